"""Where a bundle's cache lies, what is kept there, and who waits for whom."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle import cache as caches
from dfs_deploy.bundle.cache import PLACE, Cache, UnkeptError, cache_key
from tests.bundles import copied, mixed_bundle


@pytest.fixture
def bundle(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path / "bundles"
    folder.mkdir()
    return Bundle(copied(mixed_bundle(tmp_path_factory), folder))


def own(bundle: Bundle) -> str:
    return f"mixed-{bundle.digest[:16]}"


def in_the_way(bundle: Bundle) -> Path:
    """Puts a file where the folder beside the bundle would be: permissions bind no superuser."""
    place = bundle.path.with_name(f"{bundle.path.name}.cache")
    place.write_bytes(b"")
    return place


# Places


def test_it_lies_beside_the_bundle(bundle: Bundle) -> None:
    path = Cache(bundle).write("a.json", b"{}")
    assert path == bundle.path.parent / "mixed.dfs.cache" / "a.json"
    assert Cache(bundle).read("a.json") == b"{}"
    assert Cache(bundle).why_not() == ""


def test_an_argument_names_it_before_the_environment(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PLACE, str(tmp_path / "variable"))
    assert Cache(bundle).write("a", b"1") == tmp_path / "variable" / own(bundle) / "a"
    assert Cache(bundle, tmp_path / "argument").write("a", b"2") == tmp_path / "argument" / own(bundle) / "a"
    assert Cache(bundle).read("a") == b"1"
    assert Cache(bundle, tmp_path / "argument").read("a") == b"2"
    monkeypatch.setenv(PLACE, "")
    assert Cache(bundle).read("a") is None, "an empty variable is none"


def test_a_relative_place_is_of_the_folder_where_it_was_named(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = Cache(bundle, "place")
    monkeypatch.chdir("/")
    assert named.write("a", b"") == tmp_path / "place" / own(bundle) / "a"


def test_where_nothing_can_be_written_beside_the_bundle_the_users_cache_serves(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way(bundle)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache(bundle).write("a", b"1") == tmp_path / "xdg/dfs-deploy" / own(bundle) / "a"
    assert Cache(bundle).read("a") == b"1"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Cache(bundle).write("a", b"1") == tmp_path / "home/.cache/dfs-deploy" / own(bundle) / "a"


def test_what_was_kept_beside_a_bundle_is_read_where_it_cannot_be_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    Cache(bundle).write("a", b"made in the image")
    beside, access = Cache(bundle).folder, os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != beside and access(path, mode))
    assert Cache(bundle).read("a") == b"made in the image"
    assert Cache(bundle).write("b", b"").parent != beside
    Cache(bundle).write("a", b"made anew")
    assert Cache(bundle).read("a") == b"made anew"


def test_a_home_that_may_not_be_entered_is_as_none(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, home = Cache(bundle).folder, tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    status, links = Path.stat, Path.is_symlink

    def closed(path: Path) -> None:
        if home in path.parents:
            raise PermissionError(13, "Permission denied", str(path))

    def stat(self: Path, **options: bool) -> os.stat_result:
        closed(self)
        return status(self, **options)

    def is_symlink(self: Path) -> bool:
        closed(self)
        return links(self)

    monkeypatch.setattr(Path, "stat", stat)  # permissions bind no superuser
    monkeypatch.setattr(Path, "is_symlink", is_symlink)
    assert Cache(bundle).read("a") is None
    assert Cache(bundle).write("a", b"1") == beside / "a"


def test_without_a_home_nothing_is_kept_and_this_is_said(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    place = in_the_way(bundle)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    with pytest.raises(UnkeptError) as refused:
        Cache(bundle).write("a", b"")
    assert f"{place} is not a folder" in str(refused.value)
    assert "HOME" in str(refused.value)
    assert Cache(bundle).why_not() == str(refused.value)
    assert Cache(bundle).read("a") is None


def test_a_named_place_that_cannot_be_written_is_not_replaced_by_another(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    named = Cache(bundle, tmp_path / "file" / "below")
    with pytest.raises(UnkeptError, match="file is not a folder"):
        named.write("a", b"")
    assert not Cache(bundle).folder.exists()


def test_asking_makes_nothing(bundle: Bundle, tmp_path: Path) -> None:
    Cache(bundle).why_not("tensorrt")
    Cache(bundle).read("tensorrt/a")
    Cache(bundle, tmp_path / "place").why_not()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles"]
    assert [path.name for path in bundle.path.parent.iterdir()] == ["mixed.dfs"]


def test_bundles_of_one_name_do_not_share(
    bundle: Bundle, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from tests.bundles import manifest_of, write_manifest

    folder = tmp_path / "others"
    folder.mkdir()
    path = copied(mixed_bundle(tmp_path_factory), folder)
    write_manifest(path, manifest_of(path))  # the same values, written in another way
    place = tmp_path / "place"
    Cache(bundle, place).write("a", b"1")
    assert Cache(Bundle(path), place).read("a") is None


# Links


@pytest.mark.parametrize("linked", ["folder", "subfolder", "file"])
def test_no_link_is_followed(bundle: Bundle, tmp_path: Path, linked: str) -> None:
    cache = Cache(bundle)
    with cache.writing("part") as folder:
        (folder / "a").write_bytes(b"kept")
    path = {"folder": cache.folder, "subfolder": cache.folder / "part", "file": cache.folder / "part" / "a"}[linked]
    outside = path.rename(tmp_path / "outside")
    path.symlink_to(outside)
    assert cache.read("part/a") is None
    assert (cache.folder / "part" / "a" in cache.find("part/a")) == (linked == "file")
    before = sorted(map(str, tmp_path.rglob("*")))
    if linked != "file":
        assert cache.why_not("part") == f"{path} is a link, which is not followed"
        with pytest.raises(UnkeptError, match="is a link"), cache.writing("part"):
            raise AssertionError
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_place_that_was_named_may_be_a_link(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "place").symlink_to(tmp_path / "disk")
    Cache(bundle, tmp_path / "place").write("a", b"1")
    assert (tmp_path / "disk" / own(bundle) / "a").read_bytes() == b"1"


@pytest.mark.parametrize("kind", ["fifo", "folder", "huge"])
def test_what_is_no_file_of_bounded_size_is_as_none(bundle: Bundle, kind: str) -> None:
    cache = Cache(bundle)
    cache.folder.mkdir()
    path = cache.folder / "a"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    assert cache.read("a", 1 << 20) is None


# Locks, leftovers, bounds


def test_one_writes_while_the_others_wait(bundle: Bundle) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with Cache(bundle).writing():
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6


def test_a_process_that_holds_the_lock_too_long_is_not_waited_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
import sys, time
from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
with Cache(Bundle(sys.argv[1])).writing():
    print("in", flush=True)
    time.sleep(60)
"""
    monkeypatch.setattr(caches, "_WAIT_S", 0.2)
    command = [sys.executable, "-c", script, str(bundle.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        begin = time.monotonic()
        Cache(bundle).write("a", b"1")
        assert time.monotonic() - begin >= 0.2
        other.kill()
    assert Cache(bundle).read("a") == b"1"


def test_what_a_killed_writer_left_is_removed(bundle: Bundle) -> None:
    cache = Cache(bundle)
    cache.write("a", b"1")
    for name in (".prepared-1.0123abcd.tmp", ".b.json.0123abcd.tmp"):
        (cache.folder / name).mkdir()
        (cache.folder / name / "part").write_bytes(b"")
    cache.write("b", b"2")
    assert sorted(path.name for path in cache.folder.iterdir()) == ["a", "b"]


def test_a_failed_write_leaves_what_was_there(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(bundle)
    cache.write("a", b"old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UnkeptError, match="No space left on device"):
        cache.write("a", b"new")
    assert cache.read("a") == b"old"
    assert [path.name for path in cache.folder.iterdir()] == ["a"]


def lay(path: Path, age: float) -> Path:
    """Makes a file of 300 KiB that was last used so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(300 << 10))
    used = path.parent if path.parent.name.startswith("prepared") else path
    os.utime(used, (0, 1e9 - age * 1e6))
    return path


@pytest.mark.parametrize("named", [False, True])
def test_what_was_used_longest_ago_goes_where_there_is_too_much(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    monkeypatch.setattr(caches, "MAX_BYTES", 700 << 10)
    cache = Cache(bundle, tmp_path / "place" if named else None)
    other = tmp_path / "place" / "other-0123456789abcdef" if named else cache.folder
    engine = lay(cache.folder / "prepared-new" / "engine", 0)
    used = lay(cache.folder / "tensorrt" / "used.plan", 1)
    old = lay(other / "prepared-old" / "engine", 2)
    oldest = lay(other / "tensorrt" / "oldest.plan", 3)
    (cache.folder / "plan-1.json").write_bytes(b"{}")
    os.utime(cache.folder / "plan-1.json", (0, 1))
    assert cache.read("tensorrt/used.plan") is not None
    kept = cache.write("plan-2.json", b"1")
    assert all(path.exists() for path in (engine, used, cache.folder / "plan-1.json", kept))
    assert not any(path.exists() for path in (old, oldest))


def test_files_of_others_in_a_named_place_stay(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "MAX_BYTES", 100 << 10)
    home = tmp_path / "home"
    theirs = [
        *(lay(home / name, 9) for name in ("photo.raw", "photos/a.raw", "prepared-talk/slides", "tensorrt/a.plan")),
        *(lay(home / "photos-0123456789abcdef" / name, 9) for name in ("a.raw", "raw/a.raw")),
    ]
    (home / "linked-0123456789abcdef").symlink_to(tmp_path / "elsewhere")
    theirs.append(lay(tmp_path / "elsewhere" / "prepared-talk" / "slides", 9))
    ours = lay(home / "other-0123456789abcdef" / "prepared-old" / "engine", 8)
    Cache(bundle, home).write("plan-1.json", b"1")
    assert all(path.exists() for path in theirs)
    assert not ours.exists()


def test_every_key_holds_our_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_key(cpu="x")
    assert before["cpu"] == "x"
    monkeypatch.setattr(caches, "__version__", "another")
    assert cache_key(cpu="x") != before


def test_what_is_kept_and_removed_is_logged(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dfs_deploy")
    Bundle(bundle.path)
    assert f"opened, digest {bundle.digest[:12]}" in caplog.text
    monkeypatch.setattr(caches, "MAX_BYTES", 100_000)
    first = Cache(bundle).write("plan-1", bytes(90_000))
    os.utime(first, (1, 1))
    second = Cache(bundle).write("plan-2", bytes(90_000))
    said = [record.getMessage() for record in caplog.records if record.name == "dfs_deploy.bundle.cache"]
    assert [message.rpartition(": ")[2] for message in said] == [str(first), str(second), str(first)]
