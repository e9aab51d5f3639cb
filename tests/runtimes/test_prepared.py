"""Engines prepared for the blocked layout: the same network, kept under a key, never loaded stale."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.engines import engines_of
from dfs_deploy.bundle.weights import WeightsInMemory, inlined
from dfs_deploy.errors import BundleError
from dfs_deploy.io.files import sha256
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime import blocked, prepared
from tests.bundles import copied, mixed_bundle, pixels, relative, rewritten, wide_bundle

_HAS_BLOCKS = blocked.block_size() > 1


def prepared_file(bundle: Bundle) -> Path:
    """Where engines prepared for this machine lie, beside the bundle."""
    return bundle.path.with_name(f"{bundle.path.name}.cache") / prepared.prepared_name(bundle)


needs_blocks = pytest.mark.skipif(not _HAS_BLOCKS, reason="ONNX Runtime has no blocked layout for this CPU")


@pytest.fixture
def bundle(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(copied(wide_bundle(tmp_path_factory), tmp_path))


def _paths(count: int, gated: int, options: int) -> NDArray[np.uint8]:
    """Every option everywhere, then all kinds of change from one to another."""
    drawn = np.random.default_rng(5).integers(0, options, (count, gated)).astype(np.uint8)
    drawn[:options] = np.arange(options)[:, None]
    return drawn


@needs_blocks
@pytest.mark.parametrize("gate", ["numpy", None])
def test_prepared_engines_are_the_same_network(bundle: Bundle, gate: str | None) -> None:
    images = pixels(40)
    paths = _paths(40, bundle.architecture.gated_blocks, len(bundle.options))
    with Runtime(bundle, gate=gate) as fast, Runtime(bundle, gate=gate, prepared=False) as plain:
        assert fast.description["layout"].startswith("blocked by ")
        assert plain.description["layout"].startswith("plain")
        chosen, expected = fast(images), plain(images)
        assert (chosen.path == expected.path).all()
        assert len({row.tobytes() for row in chosen.path}) > 2
        # An INT8 engine rounds what is a step apart to the next step, so logits are close and not equal.
        assert relative(fast(images, path=paths).logits, plain(images, path=paths).logits) < 0.02
        full = np.full_like(paths, bundle.options.names.index("full"))
        assert relative(fast(images, path=full).logits, plain(images, path=full).logits) < 1e-4


@needs_blocks
def test_batch_and_single_agree(bundle: Bundle) -> None:
    images, paths = pixels(24), _paths(24, bundle.architecture.gated_blocks, len(bundle.options))
    with Runtime(bundle) as runtime:
        together = runtime(images, path=paths)
        for i in range(len(images)):
            assert np.array_equal(runtime(images[i : i + 1], path=paths[i : i + 1]).logits[0], together.logits[i])


@needs_blocks
def test_they_are_kept_beside_the_bundle(bundle: Bundle) -> None:
    made, file = prepared.prepare_engines(bundle), prepared_file(bundle)
    assert made.made
    assert made.folder == file.parent
    before = file.stat()
    with Runtime(bundle) as runtime:
        assert runtime.description["layout"] == f"blocked by {made.channel_block}, prepared engines kept"
    assert not prepared.prepare_engines(bundle).made
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    assert Bundle(bundle.path).digest == bundle.digest


def stored(file: Path) -> prepared.StoredEngines:
    return msgspec.msgpack.decode(file.read_bytes()[64:], type=prepared.StoredEngines)


def store(file: Path, engines: prepared.StoredEngines) -> None:
    """Writes a file of prepared engines with a digest that fits, as whoever gave a cache away may have done."""
    content = msgspec.msgpack.encode(engines)
    file.write_bytes(sha256(content).encode() + content)


@needs_blocks
@pytest.mark.parametrize("harm", ["a byte changed", "empty", "no map", "a loop", "a function", "weights outside"])
def test_a_damaged_file_is_made_anew(bundle: Bundle, harm: str) -> None:
    images = pixels(6)
    with Runtime(bundle) as runtime:
        expected = runtime(images).logits
    file = prepared_file(bundle)
    content, engines = file.read_bytes(), stored(file)
    name = "common/head.onnx"
    model = onnx.load_from_string(engines.models[name])
    if harm == "a loop":
        model.graph.node.add(op_type="Loop", output=["never"], name="loop")
    elif harm == "a function":
        model.functions.add(name="Conv", domain=blocked.DOMAIN)
    elif harm == "weights outside":
        (entry,) = (e for t in model.graph.initializer for e in t.external_data if e.key == "offset")
        entry.value = str(1 << 30)
    if harm in ("a loop", "a function", "weights outside"):
        store(file, msgspec.structs.replace(engines, models={**engines.models, name: model.SerializeToString()}))
    else:
        file.write_bytes(
            {
                "a byte changed": content[:-1] + bytes([content[-1] ^ 1]),
                "empty": b"",
                "no map": sha256(b"\x01").encode() + b"\x01",
            }[harm]
        )
    assert prepared.load_prepared(bundle) is None
    with Runtime(bundle) as runtime:
        assert np.array_equal(runtime(images).logits, expected)
        assert runtime.description["layout"].endswith("kept")
    assert stored(file).models.keys() == engines.models.keys()


@needs_blocks
@pytest.mark.parametrize("change", ["bundle", "cpu", "dfs_deploy", "block", "one less"])
def test_what_was_made_for_something_else_is_never_loaded(bundle: Bundle, change: str) -> None:
    assert prepared.prepare_engines(bundle).made
    file = prepared_file(bundle)
    engines = stored(file)
    changed: dict[str, object] = {
        "block": {"channel_block": 2 * engines.channel_block},
        "one less": {"models": dict(list(engines.models.items())[1:])},
    }.get(change, {"key": {**engines.key, change: "another"}})
    store(file, msgspec.structs.replace(engines, **changed))
    assert prepared.load_prepared(bundle) is None
    assert prepared.prepare_engines(bundle).made
    assert not prepared.prepare_engines(bundle).made


@needs_blocks
def test_many_may_prepare_at_once(bundle: Bundle) -> None:
    images = pixels(3)

    def start(_: int) -> NDArray[np.float32]:
        with Runtime(bundle) as runtime:
            assert runtime.description["layout"].endswith("engines kept")
            return runtime(images).logits

    with ThreadPoolExecutor(4) as pool:
        logits = list(pool.map(start, range(8)))
    assert all(np.array_equal(one, logits[0]) for one in logits)
    file = prepared_file(bundle)
    assert [each.name for each in file.parent.iterdir()] == [file.name]


@needs_blocks
def test_what_fails_is_said_remembered_and_tried_again_when_asked(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(prepared, "TOLERANCE", -1.0)
        with Runtime(bundle) as runtime:
            assert "other features in the blocked layout" in runtime.description["layout"]
    kept = prepared.load_prepared(bundle)
    assert kept is not None
    assert kept.failed
    with Runtime(bundle) as runtime:
        assert runtime.description["layout"].startswith("plain: ")
    again = prepared.prepare_engines(bundle)
    assert (again.made, again.failed) == (True, False)
    with Runtime(bundle) as runtime:
        assert runtime.description["layout"].endswith("engines kept")


@needs_blocks
def test_a_malformed_engine_is_refused_as_without_preparing(bundle: Bundle) -> None:
    rewritten(bundle.path, {"common/block-01-full-fp32.onnx": (bundle.path / "common/head.onnx").read_bytes()})
    messages = []
    for choice in (False, True):
        with pytest.raises(BundleError) as caught:
            Runtime(bundle.path, prepared=choice)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@needs_blocks
@pytest.mark.skipif(sys.platform != "linux", reason="files in memory")
def test_no_place_for_temporary_files_is_needed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(bundle.path / "nowhere"))
    monkeypatch.setenv("TMPDIR", str(bundle.path / "nowhere"))
    with Runtime(bundle) as runtime:
        assert runtime.description["layout"].endswith("engines kept")


@needs_blocks
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_what_a_machine_is_short_of_now_is_not_remembered(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object) -> bytes:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(prepared, "blocked_models", fail)
        with Runtime(bundle) as runtime:
            assert runtime.description["layout"].startswith("plain: ")
    assert prepared.load_prepared(bundle) is None
    with Runtime(bundle) as runtime:
        assert runtime.description["layout"].endswith("engines kept")


@needs_blocks
def test_where_nothing_can_be_kept_they_are_held_in_memory(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    bundle.path.with_name(f"{bundle.path.name}.cache").write_text("in the way")
    with Runtime(bundle) as runtime:
        assert "engines not kept: " in runtime.description["layout"]
        images = pixels(3)
        held = runtime(images).logits
    with Runtime(bundle, prepared=False) as plain:
        assert relative(held, plain(images).logits) < 0.02


@needs_blocks
@pytest.mark.parametrize("linked", ["cache", "file"])
def test_no_link_is_followed_out_of_the_cache(bundle: Bundle, tmp_path: Path, linked: str) -> None:
    prepared.prepare_engines(bundle)
    file = prepared_file(bundle)
    path = file if linked == "file" else file.parent
    outside = path.rename(tmp_path / "outside")
    path.symlink_to(outside)
    before = sorted(each.name for each in tmp_path.rglob("*"))
    assert prepared.prepare_engines(bundle).made
    with Runtime(bundle) as runtime:
        layout = runtime.description["layout"]
    assert ("not kept" in layout) == (linked == "cache")
    assert (linked == "cache") == path.is_symlink()
    assert outside.exists()
    assert not list(file.parent.glob(".*"))
    assert sorted(each.name for each in tmp_path.rglob("*")) == before


@needs_blocks
def test_what_a_killed_process_left_beside_whole_engines_goes(bundle: Bundle) -> None:
    prepared.prepare_engines(bundle)
    file = prepared_file(bundle)
    file.with_name(f".{file.name}.0123456789abcdef.tmp").write_bytes(b"half")
    assert not prepared.prepare_engines(bundle).made
    assert [each.name for each in file.parent.iterdir()] == [file.name]


@needs_blocks
def test_what_was_made_for_a_bundle_that_was_replaced_goes(bundle: Bundle) -> None:
    prepared.prepare_engines(bundle)
    old = prepared_file(bundle)
    other = shutil.copytree(bundle.path, bundle.path.with_name("other"))
    rewritten(other, {"samples.npz": (other / "samples.npz").read_bytes() + b"\0"})
    shutil.rmtree(bundle.path)
    other.rename(bundle.path)
    again = Bundle(bundle.path)
    prepared.prepare_engines(again)
    assert [each.name for each in old.parent.iterdir()] == [prepared_file(again).name] != [old.name]


@needs_blocks
def test_their_weights_are_kept_once(bundle: Bundle) -> None:
    """An engine in FP32 has a variant for each layout of its input, with the same weights."""
    prepared.prepare_engines(bundle)
    engines = stored(prepared_file(bundle))
    weights = WeightsInMemory("weights.bin", engines.weights)
    whole = sum(len(inlined(model, weights, name)) for name, model in engines.models.items())
    assert sum(map(len, engines.models.values())) + len(engines.weights) < 0.7 * whole
    assert all(
        len(tensor.raw_data) < 256
        for model in engines.models.values()
        for tensor in onnx.load_from_string(model).graph.initializer
    )


@needs_blocks
def test_they_are_the_same_in_any_number_of_threads(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    original, content = prepared.in_threads, set()
    for threads in (1, 4):
        monkeypatch.setattr(prepared, "in_threads", lambda tasks, threads=threads: original(tasks, threads))
        prepared.prepare_engines(bundle)
        engines = stored(prepared_file(bundle))
        content.add((*engines.models, bytes(engines.weights)))  # ONNX Runtime names nodes now so, now so
        prepared_file(bundle).unlink()
    assert len(content) == 1


@needs_blocks
def test_large_bundles_are_not_kept_twice(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "MOST_BYTES", bundle.size - 1)
    made = prepared.prepare_engines(bundle)
    assert (made.channel_block, made.made, made.failed) == (1, False, False)
    assert "kept twice" in made.reason


@needs_blocks
def test_without_an_engine_between_float32_features_nothing_is_prepared(bundle: Bundle) -> None:
    def int8_only(manifest: dict[str, Any]) -> None:
        for block in manifest["runtimes"]["onnxruntime"]["blocks"]:
            block["options"] = dict.fromkeys(block["options"], block["options"]["8"])

    made = prepared.prepare_engines(Bundle(rewritten(bundle.path, {}, int8_only)))
    assert made.channel_block == 1
    assert "no option passes float32 features" in made.reason


def test_narrow_networks_run_as_they_are(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    narrow = Bundle(copied(mixed_bundle(tmp_path_factory), tmp_path))
    made = prepared.prepare_engines(narrow)
    assert made.channel_block == 1
    assert made.reason
    assert not made.models
    assert not prepared_file(narrow).exists()
    with Runtime(narrow) as runtime:
        assert runtime.description["layout"].startswith("plain: ")


@pytest.mark.parametrize("part", ["stem", "block", "head"])
def test_what_is_no_model_is_refused_with_its_name(bundle: Bundle, part: str) -> None:
    placed = next(each for each in engines_of(bundle, "onnxruntime") if each.part == part)
    with pytest.raises(BundleError, match=r"engine\.onnx"):
        blocked.blocked_models(placed, {"float32": b"\xff\xff no model"}, "engine.onnx")
