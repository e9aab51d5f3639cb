from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dfs_deploy.io import files
from dfs_deploy.io.files import (
    BoundedReads,
    OversizedReadError,
    UnfitFileError,
    check_file,
    check_folder,
    first_link,
    put_folder,
    read_file,
    read_head,
    remove_leftovers,
    sha256,
    sole_use,
    temporary_folder,
    whole_file,
    write_whole,
)


def test_a_known_digest() -> None:
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_bytes_are_written_and_folders_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    write_whole(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    write_whole(path, b"")
    assert path.read_bytes() == b""
    assert os.listdir(path.parent) == ["file.bin"]  # noqa: PTH208 (hidden ones too)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with whole_file(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("failing", ["os.open", "pathlib.Path.replace", "pathlib.Path.write_bytes"])
def test_an_error_names_the_file_and_not_the_hidden_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fails(*given: object, **named: object) -> None:
        hidden = given[0]
        raise OSError(28, "No space left on device", str(hidden))

    monkeypatch.setattr(failing, fails)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(tmp_path / "out.html", b"new")
    assert caught.value.filename == str(tmp_path / "out.html")


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="other") as caught, whole_file(tmp_path / "out.html"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")


def test_a_folder_is_tried_and_left_as_it_is(tmp_path: Path) -> None:
    check_folder(tmp_path / "not" / "there")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        check_folder(tmp_path / "file" / "within")


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")]
    assert modes[0] == modes[1]


def test_a_file_and_its_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, bool]] = []
    path = tmp_path / "file"
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((os.fstat(handle).st_ino, path.exists())))
    write_whole(path, b"new")
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path) as one, whole_file(path) as other:
        assert one != other
        one.write_bytes(b"one")
        other.write_bytes(b"other")
    assert path.read_bytes() == b"one"


def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    """A new folder, and an old one in its place, each with a file that says which it is."""
    made, path = tmp_path / "made", tmp_path / "path"
    for folder, text in ((made, "new"), (path, "old")):
        folder.mkdir()
        (folder / "which").write_text(text)
    return made, path


def never(one: Path, other: Path) -> bool:
    """An exchange on a file system that has none."""
    return False


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", never)
    made, path = two_folders(tmp_path)
    put_folder(made, path)
    assert ((path / "which").read_text(), (made / "which").read_text()) == ("new", "old")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["made", "path"]
    put_folder(made, tmp_path / "free")
    assert (tmp_path / "free" / "which").read_text() == "old"
    assert not made.exists()


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no exchange of two names there")
def test_a_folder_that_is_replaced_is_never_missing(tmp_path: Path) -> None:
    made, path = two_folders(tmp_path)
    done, seen = threading.Event(), set[bool]()

    def look() -> None:
        while not done.is_set():
            seen.add(path.exists())

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(300):
        put_folder(made, path)
    done.set()
    looking.join()
    assert seen == {True}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    made, path = two_folders(tmp_path)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self == made:
            raise error
        return rename(self, target)

    monkeypatch.setattr(files, "_exchange", never)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(error):
        put_folder(made, path)
    assert ((path / "which").read_text(), (made / "which").read_text()) == ("old", "new")


# Reading what others wrote


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert read_file(tmp_path / "a", 3) == b"abc"
    (tmp_path / "link").symlink_to("a")
    assert read_file(tmp_path / "link", 3) == b"abc"


@pytest.mark.parametrize("reader", [read_file, check_file])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, reader: Callable[..., object]) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for name, kind in (("fifo", "FIFO"), ("link", "FIFO"), (".", "folder"), ("/dev/zero", "device")):
        with pytest.raises(UnfitFileError, match=f"is a {kind}, expected a regular file"):
            reader(tmp_path / name, 10)
    with pytest.raises(FileNotFoundError):
        reader(tmp_path / "missing", 10)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "other").symlink_to("file")
    with pytest.raises(UnfitFileError, match="is a link"):
        reader(tmp_path / "other", 10, follow=False)


@pytest.mark.parametrize("reader", [read_file, check_file])
def test_a_file_of_any_size_takes_no_memory(tmp_path: Path, reader: Callable[..., object]) -> None:
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(UnfitFileError, match="1,099,511,627,776 bytes, the most for such a file is 10"):
        reader(tmp_path / "sparse", 10)


def test_a_file_that_says_another_size_than_it_has_is_bounded() -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    with pytest.raises(UnfitFileError, match="more than 10 bytes"):
        read_file(Path("/proc/self/status"), 10)


# What a killed writer leaves, and odd file systems

KILLED = """
import os, signal, sys
from pathlib import Path
from dfs_deploy.io.files import temporary_folder, whole_file
with {writer}(Path(sys.argv[1])) as made:
    (made / "x").write_bytes(b"x") if made.is_dir() else made.write_bytes(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("writer", ["temporary_folder", "whole_file"])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "made"
    subprocess.run([sys.executable, "-c", KILLED.format(writer=writer), str(path)], check=False)
    assert len(list(tmp_path.glob(".made.*.tmp"))) == 1
    write_whole(tmp_path / "another", b"")
    assert len(list(tmp_path.glob(".made.*.tmp"))) == 1, "not of this file"
    write_whole(path, b"new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["another", "made"]


def test_what_is_in_use_is_no_leftover(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "a") as folder, whole_file(tmp_path / "a") as file:
        remove_leftovers(tmp_path / "a")
        assert folder.is_dir()
        assert file.is_file()
        file.write_bytes(b"")


def test_the_only_copy_of_what_was_replaced_stays(tmp_path: Path) -> None:
    aside = tmp_path / ".a.12345678.tmp" / f"a{files.ASIDE}"
    aside.mkdir(parents=True)
    remove_leftovers(tmp_path / "a")
    assert aside.is_dir()
    (tmp_path / "a").mkdir()
    remove_leftovers(tmp_path / "a")
    assert not aside.parent.exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_fsync_keeps_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write_whole(tmp_path / "a", b"a")
    assert (tmp_path / "a").read_bytes() == b"a"


def test_a_disk_that_fails_is_said_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="a'") as caught:
        write_whole(tmp_path / "a", b"a")
    assert caught.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_writing_never_touches_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    previous = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", None)
        write_whole(tmp_path / "a", b"a")
    finally:
        monkeypatch.undo()
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


# ------------------------------------------------------------------------------------------------------------ sole use


def test_a_folder_in_sole_use_is_refused_to_others_and_free_after_it(tmp_path: Path) -> None:
    with sole_use(tmp_path):
        with pytest.raises(BlockingIOError), sole_use(tmp_path):
            pass
        assert list(tmp_path.iterdir()) == []
    with sole_use(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), sole_use(tmp_path / "nothing"):
        pass


def test_a_folder_in_sole_use_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from dfs_deploy.io.files import sole_use\n"
        "with sole_use(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(BlockingIOError), sole_use(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with sole_use(tmp_path):
        pass


@pytest.mark.parametrize("make", [whole_file, temporary_folder])
@pytest.mark.parametrize("moment", ["os.open", "fcntl.flock"])
def test_an_interrupt_while_a_temporary_one_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], AbstractContextManager[Path]], moment: str
) -> None:
    def interrupted(*arguments: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, interrupted)
    with pytest.raises(KeyboardInterrupt), make(tmp_path / "a"):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


def test_the_first_link_below_a_folder_is_found(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "way").symlink_to(root)  # what leads to the root may be a link
    assert first_link(tmp_path / "way" / "folder" / "inner" / "missing", tmp_path / "way") is None
    (root / "folder" / "inner" / "file").symlink_to("nowhere")
    assert first_link(root / "folder" / "inner" / "file", root) == root / "folder" / "inner" / "file"
    (root / "link").symlink_to("folder")
    assert first_link(root / "link" / "inner" / "file", root) == root / "link"


def test_the_head_of_what_is_no_regular_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert read_head(tmp_path / "file", 4) == b"cont"
    assert read_head(tmp_path / "file", 100) == b"content"
    assert read_head(tmp_path, 4) == b""
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert read_head(tmp_path / "pipe", 4) == b""


def test_no_read_takes_more_than_its_limit() -> None:
    reads = BoundedReads(io.BytesIO(b"0123456789"), 4)
    assert reads.read(4) == b"0123"
    with pytest.raises(OversizedReadError, match="more than 4 bytes"):
        reads.read(5)
    reads.seek(7)
    assert reads.read() == b"789"
    reads.seek(0)
    with pytest.raises(OversizedReadError):
        reads.read()
