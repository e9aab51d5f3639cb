"""Building engines and keeping them: on a double of TensorRT."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np
import onnx
import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.bundle.weights import WEIGHTS
from dfs_deploy.errors import BundleError, DfsDeployError, EngineError, EnvironmentLacksError, UsageError
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.tensorrt import engine_cache
from dfs_deploy.runtimes.tensorrt.engine_cache import (
    BuildSettings,
    EngineRecord,
    load_settings,
    network_engines,
    prepare,
    save_engine,
    written_by,
)
from tests.bundles import Made, copied
from tests.checks import refuses
from tests.runtimes.tensorrt.machine import VERSIONS, building_here, machine, records
from tests.settled import pixels


@pytest.fixture(scope="module")
def shared(mixed: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(mixed, tmp_path_factory.mktemp("building"))


@pytest.fixture
def bundle(shared: Path) -> Iterator[Path]:
    """A bundle without engines, itself not to be changed."""
    yield shared
    shutil.rmtree(shared.with_name(f"{shared.name}.cache"), ignore_errors=True)


@pytest.fixture
def built(bundle: Path, prepared: Path) -> Path:
    """The same with all engines."""
    shutil.copytree(prepared.with_name(f"{prepared.name}.cache"), bundle.with_name(f"{bundle.name}.cache"))
    return bundle


def engine_files(bundle: Path) -> dict[str, Path]:
    """Each engine's file by its label."""
    folder = bundle.with_name(f"{bundle.name}.cache") / "tensorrt"
    return {
        msgspec.json.decode(file.read_bytes())["label"]: file.with_suffix(".plan")
        for file in folder.glob("????????????????.json")
    }


def copied_beside(bundle: Path, folder: Path) -> Path:
    """Copies a bundle into a folder, and gives the place of its cache, where nothing is."""
    shutil.copytree(bundle, folder / bundle.name)
    return folder / f"{bundle.name}.cache"


def facts(engine: Path) -> dict[str, object]:
    """How the double built an engine."""
    data = engine.read_bytes()
    (length,) = struct.unpack_from("<I", data, 28)
    values: dict[str, object] = msgspec.json.decode(data[32 : 32 + length])
    return values


# In processes of their own

MISSING = ("block 1, option 16 (fp16)", "the head")


@pytest.fixture
def started(built: Path) -> Path:
    """A bundle with all engines but two."""
    for label in MISSING:
        engine_files(built)[label].unlink()
    return built


def test_each_engine_is_built_in_a_process_of_its_own_and_kept(started: Path) -> None:
    seen: list[tuple[str, float]] = []
    with machine():
        first = prepare(Bundle(started), progress=lambda what, share: seen.append((what, share)))
        again = prepare(Bundle(started))
    labels = {engine.label for engine in network_engines(Bundle(started))}
    assert (first.built, first.kept) == (MISSING, len(labels) - len(MISSING))
    assert (again.built, again.kept) == ((), len(labels))
    assert set(engine_files(started)) == labels
    for label in MISSING:
        assert f"building {label}" in [what for what, _ in seen]
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("fault", "words"),
    [("killed", "memory"), ("crash", "SIGSEGV"), ("raises", "the builder broke"), ("refused", "any implementation")],
)
def test_a_build_that_fails_names_its_engine_and_leaves_the_finished_ones(
    started: Path, fault: str, words: str
) -> None:
    before = {label: engine.read_bytes() for label, engine in engine_files(started).items() if label not in MISSING}
    with machine(DOUBLE_BUILD_FAULT=f"{fault}:block_1_option_16_fp16"), pytest.raises(EngineError) as error:
        prepare(Bundle(started))
    assert "block 1, option 16 (fp16)" in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert {label: engine.read_bytes() for label, engine in engine_files(started).items() if engine.exists()} == before
    folder = next(iter(engine_files(started).values())).parent
    assert not [file for file in folder.iterdir() if file.name.endswith(".tmp")]
    with machine(), building_here():
        assert prepare(Bundle(started)).built == MISSING


# How they are built


@pytest.mark.parametrize("version", VERSIONS)
def test_networks_are_strongly_typed_without_tf32(bundle: Path, version: str) -> None:
    with machine(version), building_here():
        made = prepare(Bundle(bundle), BuildSettings(batch=4, workspace_mib=64))
    old = version.startswith("8")
    assert made.weakly_typed == (made.built if old else ())
    for label, engine in engine_files(bundle).items():
        built = facts(engine)
        allowed = {"(int8)": ["INT8"], "(fp16)": ["FP16"]}.get(label.split()[-1], []) if old else []
        assert built["flags"] == allowed, "TF32 is off; only weakly typed networks need their precision allowed"
        assert built["strong"] is not old
        assert built["workspace"] == 64 << 20
        (profiles,) = {tuple(map(str, shapes)) for shapes in [built["profiles"]]}  # type: ignore[call-overload]
        assert len(profiles) == 2
    assert {record["typing"] for record in records(bundle)} == {"weak" if old else "strong"}


@pytest.mark.parametrize(("version", "typing"), [("10.3.0", "weak"), ("10.13.3.9", None), ("11.4.0.106", None)])
def test_where_strong_typing_is_young_a_refusal_falls_back(bundle: Path, version: str, typing: str | None) -> None:
    name = "block 1, option 8 (int8)"
    with machine(version, DOUBLE_BUILD_FAULT="strong:block_1_option_8_int8"), building_here():
        if typing is None:
            with pytest.raises(DfsDeployError, match="any implementation"):
                prepare(Bundle(bundle))
            return
        assert prepare(Bundle(bundle)).weakly_typed == (name,)
    assert facts(engine_files(bundle)[name])["flags"] == ["INT8"]
    assert {record["label"]: record["typing"] for record in records(bundle)}[name] == typing


def test_a_graph_that_cannot_be_read(bundle: Path) -> None:
    with (
        machine(DOUBLE_BUILD_FAULT="parse:stem"),
        building_here(),
        pytest.raises(DfsDeployError, match="No importer registered"),
    ):
        prepare(Bundle(bundle))


def test_the_times_of_one_build_serve_the_next(bundle: Path) -> None:
    with machine(), building_here():
        prepare(Bundle(bundle))
    (cache,) = next(iter(engine_files(bundle).values())).parent.glob("timing-*.cache")
    assert cache.read_bytes().startswith(b"timing 10.13.3.9: stem block_1")
    cache.write_bytes(b"of something else")
    with machine(), building_here():
        prepare(Bundle(bundle), BuildSettings(batch=2))
    assert cache.read_bytes().startswith(b"timing 10.13.3.9: stem"), "what does not fit is begun anew"


# What is kept, and what is never loaded


def test_engines_that_are_loaded_count_as_used(built: Path) -> None:
    for file in engine_files(built).values():
        os.utime(file, (0, 1))
    with machine():
        assert prepare(Bundle(built)).built == ()
    assert all(file.stat().st_mtime > 1 for file in engine_files(built).values())


@pytest.mark.parametrize("change", ["version", "batch", "workspace", "graph"])
def test_a_stale_engine_is_built_anew(bundle: Path, mixed: Made, tmp_path: Path, change: str) -> None:
    if change == "graph":
        bundle = copied(mixed, tmp_path)
    with machine(), building_here():
        before = prepare(Bundle(bundle), BuildSettings(batch=2))
    version = "11.4.0.106" if change == "version" else "10.13.3.9"
    settings = {"batch": BuildSettings(batch=3), "workspace": BuildSettings(batch=2, workspace_mib=8)}.get(change)
    if change == "graph":
        from tests.bundles import rewritten

        model = onnx.load_from_string(Bundle(bundle).model("tensorrt/stem.onnx"))
        model.doc_string = "another"
        rewritten(bundle, {"tensorrt/stem.onnx": model.SerializeToString()})
    with machine(version), building_here():
        after = prepare(Bundle(bundle), settings)
    assert after.built == (("the stem",) if change == "graph" else before.built)


def test_engines_of_other_weights_are_built_again(mixed: Made, tmp_path: Path) -> None:
    """Only the file of weights differs, as after a further training."""
    from tests.bundles import rewritten

    bundle = copied(mixed, tmp_path)
    with machine(), building_here():
        before = prepare(Bundle(bundle))
        weights = bytearray((bundle / WEIGHTS).read_bytes())
        tensor = onnx.load_from_string(Bundle(bundle).read("tensorrt/stem.onnx")).graph.initializer[0]
        place = {entry.key: entry.value for entry in tensor.external_data}
        weights[int(place["offset"])] ^= 1
        rewritten(bundle, {WEIGHTS: bytes(weights)})
        after = prepare(Bundle(bundle))
    assert "the stem" in after.built
    assert 0 < len(after.built) < len(before.built)


@pytest.mark.parametrize(
    "damage",
    [
        "record gone",
        "record of another",
        "record broken",
        "engine changed",
        "engine short",
        "engine of another",
        "engine linked",
    ],
)
def test_an_engine_that_is_not_what_was_built_never_reaches_tensorrt(built: Path, damage: str, tmp_path: Path) -> None:
    engine = engine_files(built)["the head"]
    record = engine.with_suffix(".json")
    values = msgspec.json.decode(record.read_bytes())
    if damage == "record gone":
        record.unlink()
    elif damage == "record of another":
        record.write_bytes(engine_files(built)["the stem"].with_suffix(".json").read_bytes())
    elif damage == "record broken":
        record.write_bytes(b'{"version": 1')
    elif damage == "engine changed":
        engine.write_bytes(engine.read_bytes()[:-1] + b"x")
    elif damage == "engine short":
        engine.write_bytes(engine.read_bytes()[:20])
    elif damage == "engine linked":
        elsewhere = tmp_path / "elsewhere.plan"
        engine.rename(elsewhere)
        engine.symlink_to(elsewhere)
    else:  # an engine of another version whose record fits it: the header alone tells
        data = bytearray(engine.read_bytes())
        data[24] = 9
        engine.write_bytes(data)
        from dfs_deploy.io.files import sha256

        record.write_bytes(msgspec.json.encode({**values, "sha256": sha256(bytes(data))}))
    with machine(), building_here():
        # The double notes a violation where it is given an engine of another version.
        assert prepare(Bundle(built)).built == ("the head",)
        with Runtime(built, "tensorrt") as runtime:
            runtime(pixels(2))


def test_a_runtime_builds_what_is_missing_with_the_settings_of_before(bundle: Path) -> None:
    with machine(), building_here():
        prepare(Bundle(bundle), BuildSettings(batch=5))
        engine_files(bundle)["the head"].unlink()
        with Runtime(bundle, "tensorrt") as runtime:
            assert runtime.description["batch"] == 5
        assert prepare(Bundle(bundle)).built == ()


def test_without_settings_engines_take_one_image(bundle: Path) -> None:
    cache = Cache(Bundle(bundle))
    folder = cache.folder / "tensorrt"
    assert load_settings(cache) == BuildSettings()
    folder.mkdir(parents=True)
    (folder / "settings.json").write_bytes(b'{"batch": 0}')
    assert load_settings(cache) == BuildSettings()


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"batch": 5000}, {"workspace_mib": 0}])
def test_settings_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        BuildSettings(**wrong)


def test_the_header_of_an_engine() -> None:
    header = struct.pack("<II16x4B", 0x74727466, 0, 10, 13, 3, 9)
    assert written_by(header, "10.13.3.9.post1")
    assert not written_by(header, "10.13.2.6")
    for wrong in (header[:-1], b"ONNX" + header[4:]):
        assert not written_by(wrong, "10.13.3.9")


def test_a_runtime_loads_what_it_built_whatever_another_process_puts_in_its_place(built: Path) -> None:
    engine = engine_files(built)["the head"]
    with machine(), building_here(), Runtime(built, "tensorrt") as runtime:
        before = runtime(pixels(2))
    engine.unlink()

    def before_the_other(folder: Path, record: EngineRecord, built: bytes) -> None:
        save_engine(folder, record, built)
        engine.write_bytes(built + b"another build")

    with machine(), building_here():
        with (
            mock.patch.object(engine_cache, "save_engine", before_the_other),
            Runtime(built, "tensorrt") as runtime,
        ):
            after = runtime(pixels(2))
        assert np.array_equal(before.logits, after.logits)
        assert prepare(Bundle(built)).built == ("the head",), "what does not fit its record is built anew"


# Folders and links


def _in_the_way(place: Path, kind: str, elsewhere: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    if kind == "file":
        place.write_bytes(b"")
    else:
        elsewhere.mkdir()
        place.symlink_to(elsewhere, target_is_directory=True)


@pytest.mark.parametrize(("part", "kind"), [("", "file"), ("tensorrt", "link")])
def test_where_nothing_can_be_kept_engines_are_held_in_memory_and_prepare_says_why(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, kind: str
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    place = copied_beside(bundle, tmp_path) / part
    _in_the_way(place, kind, tmp_path / "elsewhere")
    bundle = tmp_path / bundle.name
    images = pixels(2)
    with machine(), building_here():
        with refuses(EnvironmentLacksError, str(place), "cannot be kept", "--cache-dir"):
            prepare(Bundle(bundle), BuildSettings())
        with Runtime(bundle, "tensorrt") as runtime:
            assert runtime.description["engines"].startswith(f"not kept: {place}")
            held = runtime(images)
    with machine(), building_here(), Runtime(bundle, "tensorrt", cache_dir=tmp_path / "place") as runtime:
        assert runtime.description["engines"] == "kept"
        assert runtime(images) == held
    assert place.is_symlink() == (kind == "link")
    assert kind == "file" or list(place.iterdir()) == []


def test_a_disk_that_is_full_stops_no_runtime(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "head.plan")

    with (
        machine(),
        building_here(),
        mock.patch.object(engine_cache, "save_engine", full),
        Runtime(bundle, "tensorrt") as runtime,
    ):
        assert runtime.description["engines"] == "not kept: head.plan: No space left on device"
        assert len(runtime(pixels(1)).logits) == 1
    assert "engines are not kept: head.plan" in caplog.text


def test_beside_a_read_only_bundle_engines_are_kept_in_the_users_cache(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied_beside(bundle, tmp_path).write_bytes(b"")  # permissions bind no superuser
    bundle = tmp_path / bundle.name
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    with machine(), building_here():
        made = prepare(Bundle(bundle), BuildSettings(batch=2))
        assert made.folder.is_relative_to(tmp_path / "user" / "dfs-deploy")
        assert prepare(Bundle(bundle)).built == ()


def test_times_that_cannot_be_kept_stop_no_build(built: Path) -> None:
    engine_files(built)["the head"].unlink()
    (timing,) = next(iter(engine_files(built).values())).parent.glob("timing-*.cache")
    timing.unlink()
    timing.mkdir()
    with machine(), building_here():
        assert prepare(Bundle(built)).built == ("the head",)


def test_nothing_in_the_current_folder_is_run(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine_files(built)["the head"].unlink()
    for module in ("msgspec", "numpy", "sitecustomize", "dfs_deploy"):
        (tmp_path / f"{module}.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    with machine():
        assert prepare(Bundle(built)).built == ("the head",)
    assert not (tmp_path / "ran").exists()


def test_a_linked_timing_cache_is_neither_read_nor_written(built: Path, tmp_path: Path) -> None:
    engine_files(built)["the head"].unlink()
    (timing,) = next(iter(engine_files(built).values())).parent.glob("timing-*.cache")
    elsewhere = tmp_path / "elsewhere.cache"
    elsewhere.write_bytes(b"timing 10.13.3.9: foreign")
    timing.unlink()
    timing.symlink_to(elsewhere)
    with machine(), building_here():
        prepare(Bundle(built))
    assert elsewhere.read_bytes() == b"timing 10.13.3.9: foreign"
    assert not timing.is_symlink()
    assert timing.read_bytes() == b"timing 10.13.3.9: head"


# Where something is missing


def test_a_bundle_for_another_runtime(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.bundles import float_bundle

    made = float_bundle(tmp_path_factory)
    with machine(), pytest.raises(BundleError, match="--runtime tensorrt"):
        prepare(Bundle(made.path))


@pytest.mark.skipif("DOUBLE_TENSORRT" in os.environ, reason="within a double")
def test_without_tensorrt_the_line_that_installs_it(bundle: Path) -> None:
    with pytest.raises(EnvironmentLacksError, match=r"pip install -e .*\[tensorrt\]"):
        prepare(Bundle(bundle))
    with pytest.raises(EnvironmentLacksError, match=r"pip install -e .*\[tensorrt\]"):
        Runtime(bundle, "tensorrt")
