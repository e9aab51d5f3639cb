from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.errors import BundleError, DfsDeployError, EngineError
from dfs_deploy.exporters import export
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.runtimes import Result, Runtime, native
from dfs_deploy.runtimes.gate import GATES, native_available
from dfs_deploy.runtimes.onnxruntime import batch, engine_choice, sessions
from dfs_deploy.runtimes.onnxruntime.sessions import Rebinding
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine
from tests.builders import small_network
from tests.bundles import Made, copied, labelled, rewritten
from tests.checks import refuses
from tests.settled import CONTRACT, Split, normal_images, pixels, rig_gate, settled_network

IMAGES = 64


@pytest.fixture(scope="module", params=["mixed", "seven", "floats"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Bundles whose gates mix options, skips and stride skips; one has two INT8 and four FP16 options."""
    if request.param != "seven":
        chosen: Made = request.getfixturevalue(request.param)
        return chosen
    folder = tmp_path_factory.mktemp("seven")
    network = settled_network("skip,4,8,10,12,16,full", blocks=2, widths=(4, 8, 16), seed=2)
    rig_gate(network, [Split(0, 1), Split(3, 0), Split(0, 4), Split(2, 0), Split(0, 6)], normal_images(64))
    data = labelled(network)
    save_checkpoint(folder / "seven.pt", network, CONTRACT)
    bundle = export(folder / "seven.pt", folder / "seven.dfs", calibration_data=data).bundle
    return Made(bundle.path, folder / "seven.pt", network, data, folder)


@pytest.fixture(scope="module")
def runtime(made: Made) -> Iterator[Runtime]:
    with Runtime(made.path) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(runtime: Runtime) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Paths and logits of each image by itself."""
    results = [runtime(image[None]) for image in pixels(IMAGES, seed=1)]
    return np.concatenate([r.path for r in results]), np.concatenate([r.logits for r in results])


# Batches


def test_the_images_take_different_paths(made: Made, runtime: Runtime, alone: tuple[Any, Any]) -> None:
    """Or what follows shows little."""
    path, _ = alone
    assert len(np.unique(path, axis=0)) >= 4
    skip = runtime.options.names.index("skip")
    strided = [shape.projects for shape in made.network.architecture.blocks[1:]]
    for kind in (True, False):
        columns = path[:, [stride == kind for stride in strided]]
        assert (columns == skip).any()
        assert (columns != skip).any()


@pytest.mark.parametrize("count", [2, 7, 64])
def test_a_batch_is_its_images_one_by_one(runtime: Runtime, alone: tuple[Any, Any], count: int) -> None:
    images = pixels(IMAGES, seed=1)
    for start in range(0, IMAGES, count):
        rows = slice(start, start + count)
        result = runtime(images[rows])
        assert np.array_equal(result.path, alone[0][rows])
        np.testing.assert_allclose(result.logits, alone[1][rows], rtol=0, atol=1e-4)


def test_the_order_of_a_batch_does_not_matter(runtime: Runtime, alone: tuple[Any, Any]) -> None:
    order = np.random.default_rng(0).permutation(IMAGES)
    result = runtime(pixels(IMAGES, seed=1)[order])
    assert np.array_equal(result.path, alone[0][order])
    np.testing.assert_allclose(result.logits, alone[1][order], rtol=0, atol=1e-4)


def test_what_ran_before_does_not_matter(runtime: Runtime, alone: tuple[Any, Any]) -> None:
    images = pixels(IMAGES, seed=1)
    last = len(runtime.options) - 1
    blocks = alone[0].shape[1]
    for index in (3, 11, 30):
        for before in range(4):
            runtime(pixels(1 + 4 * before, seed=50 + before))
            runtime(images[:2], path=np.full((2, blocks), last))
            runtime(images[:1], path=np.zeros((1, blocks), int))
            result = runtime(images[index : index + 1])
            assert np.array_equal(result.path[0], alone[0][index])
            assert np.array_equal(result.logits[0], alone[1][index])


def test_an_image_twice_in_a_batch_gets_the_same_twice(runtime: Runtime) -> None:
    result = runtime(np.repeat(pixels(5, seed=1), 3, axis=0))
    for row in range(0, 15, 3):
        assert (result.path[row : row + 3] == result.path[row]).all()
        np.testing.assert_allclose(result.logits[row : row + 3], np.repeat(result.logits[row][None], 3, 0), atol=1e-4)


def test_regrouped_in_numpy_a_batch_is_the_same(made: Made, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(IMAGES, seed=1)
    expected = runtime(images)
    monkeypatch.setattr(native, "why_missing", "it was not compiled at install")
    with Runtime(made.path) as other:
        assert other.description["gate"] == "numpy"
        result = other(images)
    assert np.array_equal(result.path, expected.path)
    assert np.array_equal(result.logits, expected.logits)


@pytest.mark.parametrize("gone", [{"_ort_device"}, {"_sess", "_iobinding"}], ids=["device", "session and binding"])
def test_without_what_lies_under_onnx_runtime_s_public_calls(
    floats: Made, monkeypatch: pytest.MonkeyPatch, gone: set[str]
) -> None:
    images, asked = pixels(20, seed=1), []
    with Runtime(floats.path) as runtime:
        expected = runtime(images), runtime(images[:1])

    def without(value: object, name: str, default: object) -> object:
        asked.append(name)
        return default if name in gone else getattr(value, name, default)

    monkeypatch.setattr(sessions, "getattr", without, raising=False)
    with Runtime(floats.path) as runtime:
        results = runtime(images), runtime(images[:1])
    assert gone <= set(asked)
    for result, other in zip(results, expected, strict=True):
        assert np.array_equal(result.logits, other.logits)
        assert np.array_equal(result.path, other.path)


def test_every_path_runs_in_a_batch_as_alone(mixed: Made) -> None:
    """All 64 paths of three blocks and four options, each by one image."""
    path = np.array(np.meshgrid(*[range(4)] * 3)).reshape(3, -1).T
    images = pixels(len(path), seed=3)
    with Runtime(mixed.path) as runtime:
        together = runtime(images, path=path)
        for row in range(len(path)):
            single = runtime(images[row : row + 1], path=path[row : row + 1])
            np.testing.assert_allclose(single.logits[0], together.logits[row], rtol=0, atol=1e-4)


# Against the reference


def reference(made: Made, images: NDArray[np.uint8]) -> Any:
    return made.network.route(torch.from_numpy(CONTRACT.normalize(images)))


@pytest.mark.parametrize("count", [1, 40])
def test_in_fp32_routes_are_the_references(floats: Made, count: int) -> None:
    images = pixels(40, seed=1)
    with Runtime(floats.path) as runtime:
        results = [runtime(images[start : start + count]) for start in range(0, 40, count)]
    expected = reference(floats, images)
    assert np.array_equal(np.concatenate([r.path for r in results]), expected.path.numpy())
    logits = np.concatenate([r.logits for r in results])
    np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=1e-3, atol=1e-3)


def test_int8_and_fp16_come_near(mixed: Made) -> None:
    images = pixels(IMAGES, seed=1)
    expected = reference(mixed, images)
    with Runtime(mixed.path) as runtime:
        free = runtime(images)
        forced = runtime(images, path=expected.path.numpy())
    assert np.mean(free.path == expected.path.numpy()) > 0.95
    error = np.abs(forced.logits - expected.logits.numpy()).max() / np.abs(expected.logits.numpy()).max()
    assert error < 0.1


def test_the_gates_agree(mixed: Made) -> None:
    images = pixels(IMAGES, seed=1)
    results = []
    for kind in GATES:
        if kind == "native" and not native_available():
            continue
        with Runtime(mixed.path, gate=kind) as runtime:
            assert runtime.description["gate"] == kind
            assert runtime.clone().description["gate"] == kind
            results.append(runtime(images))
            single = np.concatenate([runtime(image[None]).path for image in images[:16]])
            assert np.array_equal(single, results[-1].path[:16])
    for result in results[1:]:
        assert np.array_equal(result.path, results[0].path)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_path(mixed: Made, threads: int) -> None:
    with Runtime(mixed.path, threads=threads) as runtime, Runtime(mixed.path) as one:
        assert runtime.description["threads"] == threads
        result, expected = runtime(pixels(12)), one(pixels(12))
        assert np.array_equal(result.path, expected.path)
        np.testing.assert_allclose(result.logits, expected.logits, rtol=1e-5, atol=1e-4)


# Skipped work


def test_a_skipped_block_runs_no_engine(made: Made, runtime: Runtime) -> None:
    shapes = made.network.architecture.blocks[1:]
    last = len(runtime.options) - 1
    skip = runtime.options.names.index("skip")
    full = runtime.engine_calls(np.full(len(shapes), last, np.uint8))
    assert len(full) == 2 + len(shapes), "stem, every block, head"
    for index, shape in enumerate(shapes):
        path = np.full(len(shapes), last, np.uint8)
        path[index] = skip
        assert len(runtime.engine_calls(path)) == len(full) - (not shape.projects)
    nothing = runtime.engine_calls(np.full(len(shapes), skip, np.uint8))
    assert len(nothing) == 2 + sum(shape.projects for shape in shapes)


def test_engine_calls_are_the_same_objects_each_time(runtime: Runtime) -> None:
    blocks = runtime.bundle.architecture.gated_blocks
    path = np.zeros(blocks, np.uint8)
    assert runtime.engine_calls(path) == runtime.engine_calls(path)
    for call in runtime.engine_calls(path):
        call()
    assert len(runtime.gate_calls()) == blocks
    for gate in runtime.gate_calls():
        gate()
    before = runtime(pixels(1))
    for call in runtime.engine_calls(path):
        call()
    assert np.array_equal(runtime(pixels(1)).logits, before.logits), "a bench leaves no trace"


class Noted(onnxruntime.InferenceSession):  # type: ignore[misc]
    """A session that is counted."""

    made: list[weakref.ref[Noted]]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.made.append(weakref.ref(self))


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> type[Noted]:
    class Fresh(Noted):
        made: list[weakref.ref[Noted]] = []  # noqa: RUF012

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fresh)
    return Fresh


def test_in_a_batch_too_skipped_work_is_skipped(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    class Noting(Rebinding):
        def __call__(self, label: str, source: NDArray[Any], target: NDArray[Any]) -> None:
            runs.append(len(source))
            super().__call__(label, source, target)

    monkeypatch.setattr(batch, "Rebinding", Noting)
    with Runtime(mixed.path) as runtime:
        runtime(pixels(20), path=np.array([[0, 0, 0]] * 18 + [[3, 0, 1], [0, 3, 0]]))
    # Stem 20; block 1: one full; block 2 (stride): 18 and one skips, one full; block 3: one in INT8; head by layout.
    assert sorted(runs) == sorted([20, 1, 19, 1, 1, 19, 1])


# Loading


def alive(sessions: list[weakref.ref[Noted]]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in sessions)


def test_clones_share_sessions_and_the_last_one_frees_them(mixed: Made, noted: type[Noted]) -> None:
    runtime = Runtime(mixed.path)
    runtime(pixels(1))
    runtime(pixels(4))
    count = len(noted.made)
    assert count > 5
    clones = [runtime.clone() for _ in range(3)]
    assert len(noted.made) == count, "a clone makes no session"
    assert alive(noted.made) > 5
    held = alive(noted.made)
    runtime.close()
    for clone in clones:
        assert alive(noted.made) == held
        clone(pixels(2))
        clone.close()
    assert alive(noted.made) == 0


def test_closing_frees_though_results_and_calls_are_kept(floats: Made, noted: type[Noted]) -> None:
    runtime = Runtime(floats.path)
    results: list[Result] = [runtime(pixels(1)), runtime(pixels(3))]
    runtime.close()
    assert alive(noted.made) == 0
    assert results[0].logits.shape == (1, 10)


def test_a_failed_load_frees_what_it_had_loaded(mixed: Made, tmp_path: Path, noted: type[Noted]) -> None:
    bundle = rewritten(copied(mixed, tmp_path), {"common/gate.onnx": b"no model"})
    with pytest.raises(BundleError):
        Runtime(bundle)
    assert alive(noted.made) == 0


def test_engines_with_the_same_content_share_a_session(mixed: Made, noted: type[Noted]) -> None:
    Runtime(mixed.path).close()
    bundle = Bundle(mixed.path)
    engines = bundle.manifest.runtimes["onnxruntime"]
    files = {engines.gate, *engines.stem.files.values(), *engines.head.files.values()}
    for block in engines.blocks:
        files |= set(block.skip.files.values()) if block.skip else set()
        files |= {file for served in block.options.values() for engine in served for file in engine.files.values()}
    digests = {bundle.manifest.files[file].sha256 for file in files}
    assert len(noted.made) <= len(digests)


# Substitutions


@pytest.mark.parametrize("fast", [False, True])
def test_without_fast_float16_the_fp32_engine_serves(mixed: Made, monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(engine_choice, "has_fast_float16", lambda: fast)
    with Runtime(mixed.path) as runtime:
        found = runtime.substitutions
        logits = runtime(pixels(4), path=np.full((4, 3), 2)).logits
    if fast:
        assert found == ()
    else:
        (one,) = found
        assert (one.option, one.wanted, one.served_by, one.blocks) == ("16", "fp16", "fp32", (1, 2, 3))
        assert "float16" in one.reason
    expected = reference(mixed, pixels(4))
    assert logits.shape == expected.logits.shape


def test_the_two_engines_of_float16_differ_a_little(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = []
    for fast in (False, True):
        monkeypatch.setattr(engine_choice, "has_fast_float16", lambda fast=fast: fast)
        with Runtime(mixed.path) as runtime:
            logits.append(runtime(pixels(8), path=np.full((8, 3), 2)).logits)
    error = np.abs(logits[0] - logits[1]).max() / np.abs(logits[0]).max()
    assert 1e-6 < error < 2e-2


def test_an_fp32_bundle_needs_no_substitution(floats: Made) -> None:
    with Runtime(floats.path) as runtime:
        assert runtime.substitutions == ()
    assert [r.option for r in Bundle(floats.path).manifest.substitutions] == ["16"], "that was decided at export"


def test_one_block_has_nothing_to_decide(tmp_path: Path) -> None:
    network = small_network("skip,full", blocks=1, widths=(4,))
    save_checkpoint(tmp_path / "net.pt", network, CONTRACT)
    export(tmp_path / "net.pt", tmp_path / "net.dfs", targets=["fp32"])
    with Runtime(tmp_path / "net.dfs") as runtime:
        for count in (1, 3):
            result = runtime(pixels(count))
            assert result.path.shape == (count, 0)
            assert result.computation_percentage.tolist() == [100.0] * count
            expected = network.route(torch.from_numpy(CONTRACT.normalize(pixels(count)))).logits
            np.testing.assert_allclose(result.logits, expected.numpy(), rtol=1e-4, atol=1e-4)
        assert len(runtime.engine_calls(np.zeros(0, np.uint8))) == 2
        assert runtime.gate_calls() == ()
        assert runtime(pixels(2), path=np.zeros((2, 0), int)).path.shape == (2, 0)


# Files that are no engines


def block_model(**changes: Any) -> bytes:
    """An engine from (N, 4, 8, 8) to itself, as block 1 has it; or with other names, types or a node that fails."""
    graph = GraphBuilder("block")
    x = graph.input("features", changes.get("dtype", np.float32), ("N", 4, 8, 8))
    if changes.get("fails"):
        far = graph.node("Mul", graph.node("Shape", x, end=1), graph.constant("far", np.array([7777], np.int64)))
        x = graph.node("Gather", x, far)
    graph.output(graph.node("Identity", x), "output", changes.get("dtype", np.float32), ("N", 4, 8, 8))
    if changes.get("second_output"):
        graph.output(graph.node("Relu", x), "extra", np.float32, ("N", 4, 8, 8))
    return graph.build()


FULL = "common/block-01-full-fp32.onnx"


@pytest.mark.parametrize(
    ("file", "content"), [(FULL, b""), ("common/gate.onnx", b"no model"), ("common/stem.onnx", b"\x08\x0a")]
)
def test_a_file_that_is_no_model(mixed: Made, tmp_path: Path, file: str, content: bytes) -> None:
    bundle = rewritten(copied(mixed, tmp_path), {file: content})
    with refuses(BundleError, str(bundle), file):
        Runtime(bundle)


@pytest.mark.parametrize("changes", [{"dtype": np.float64}, {"dtype": np.uint8}, {"second_output": True}])
def test_an_engine_with_other_inputs_or_outputs(mixed: Made, tmp_path: Path, changes: dict[str, Any]) -> None:
    bundle = rewritten(copied(mixed, tmp_path), {FULL: block_model(**changes)})
    with refuses(BundleError, "block 1, option full"):
        Runtime(bundle)


def test_a_gate_that_is_no_gate(mixed: Made, tmp_path: Path) -> None:
    bundle = rewritten(copied(mixed, tmp_path), {"common/gate.onnx": block_model()})
    with refuses(BundleError, "gate"):
        Runtime(bundle)


@pytest.mark.parametrize("count", [1, 4])
def test_an_engine_that_fails_is_named(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("dfs_deploy.bundle.artefact.check_engine", lambda *_: 0)  # no exported engine fails so
    bundle = rewritten(copied(mixed, tmp_path), {FULL: block_model(fails=True)})
    with Runtime(bundle) as runtime:
        path = np.zeros((count, 3), int)
        expected = runtime(pixels(count), path=path)
        path[:, 0] = 3
        with refuses(EngineError, "block 1, option full", "dfs-deploy inspect", "export it again"):
            runtime(pixels(count), path=path)
        path[:, 0] = 0
        assert np.array_equal(runtime(pixels(count), path=path).logits, expected.logits), "the next call works"


@pytest.mark.parametrize("part", ["stem", "gate"])
def test_an_engine_that_is_not_listed(mixed: Made, tmp_path: Path, part: str) -> None:
    bundle = copied(mixed, tmp_path)

    def edit(manifest: dict[str, Any]) -> None:
        engines = manifest["runtimes"]["onnxruntime"]
        if part == "stem":
            engines["stem"]["files"]["float32"] = "../elsewhere.onnx"
        else:
            engines["gate"] = "../elsewhere.onnx"

    (tmp_path / "elsewhere.onnx").write_bytes((bundle / f"common/{part}.onnx").read_bytes())
    with refuses(BundleError, "../elsewhere.onnx"):
        Runtime(rewritten(bundle, {}, edit))


def test_a_stem_that_does_not_take_images_is_refused(mixed: Made, tmp_path: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        del manifest["runtimes"]["onnxruntime"]["stem"]["files"]["float32"]

    with refuses(BundleError, "no file for the stem"):
        Runtime(rewritten(copied(mixed, tmp_path), {}, edit))


# Weights outside the bundle


def model_with_weights_outside(location: str) -> bytes:
    """Block 1's engine, which gives what it reads from a file."""
    graph = GraphBuilder("block")
    x = graph.input("features", np.float32, ("N", 4, 8, 8))
    secret = graph.constant("secret", np.zeros((16, 4, 8, 8), np.float32))
    zero = graph.node("Cast", graph.node("Mul", x, graph.constant("zero", np.float32(0))), to=TensorProto.INT64)
    first = graph.node("ReduceMax", graph.node("Flatten", zero), graph.constant("axes", np.array([1])), keepdims=0)
    graph.output(graph.node("Gather", secret, first), "output", np.float32, ("N", 4, 8, 8))
    model = onnx.load_from_string(graph.build())
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "secret")
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return bytes(model.SerializeToString())


def varint(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:
        encoded, number = encoded + bytes([number & 0x7F | 0x80]), number >> 7
    return encoded + bytes([number])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return number, at


def long_winded(message: bytes, fields: tuple[int, ...]) -> bytes:
    """The same Protobuf message, with the length of a nested field written in one byte more than it needs."""
    written, at = b"", 0
    while at < len(message):
        tag, after = read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind != 2:
            end = read_varint(message, after)[1] if kind == 0 else after + (8 if kind == 1 else 4)
            written, at = written + message[at:end], end
            continue
        length, start = read_varint(message, after)
        content, at = message[start : start + length], start + length
        if number != fields[0]:
            written += varint(tag) + varint(length) + content
        elif len(fields) > 1:
            inner = long_winded(content, fields[1:])
            written += varint(tag) + varint(len(inner)) + inner
        else:
            assert length < 0x80
            written += varint(tag) + bytes([length | 0x80, 0]) + content
    return written


KEY_OF_EXTERNAL_DATA = (7, 5, 13, 1)
"""ModelProto.graph, GraphProto.initializer, TensorProto.external_data, StringStringEntryProto.key."""


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file outside the bundle, and a working directory from which every way to it is open."""
    folder = tmp_path / "working" / "directory"
    folder.mkdir(parents=True)
    np.full((16, 4, 8, 8), 42, np.float32).tofile(folder / "secret.bin")
    (tmp_path / "secret.bin").write_bytes((folder / "secret.bin").read_bytes())
    monkeypatch.chdir(folder)
    return folder / "secret.bin"


@pytest.mark.parametrize("where", ["relative", "upward", "absolute"])
def test_weights_outside_the_bundle_are_never_read(mixed: Made, tmp_path: Path, secret: Path, where: str) -> None:
    location = {"relative": "secret.bin", "upward": "../../secret.bin", "absolute": str(secret)}[where]
    bundle = rewritten(copied(mixed, tmp_path), {FULL: model_with_weights_outside(location)})
    with refuses(BundleError, FULL, "keeps weights in"):
        Runtime(bundle)
    static = "onnxruntime/static-fp32.onnx"
    rewritten(bundle, {FULL: block_model(), static: model_with_weights_outside(location)})
    with refuses(BundleError, static, "keeps weights in"):
        StaticEngine(Bundle(bundle), "fp32")


def test_weights_outside_are_not_read_however_the_file_spells_it(mixed: Made, tmp_path: Path, secret: Path) -> None:
    plain = model_with_weights_outside("secret.bin")
    model = long_winded(plain, KEY_OF_EXTERNAL_DATA)
    assert model != plain
    assert onnx.load_from_string(model) == onnx.load_from_string(plain)
    bundle = rewritten(copied(mixed, tmp_path), {FULL: model})
    try:
        with Runtime(bundle) as runtime:
            runtime(pixels(1), path=np.array([[3, 0, 0]]))
    except DfsDeployError as error:
        assert isinstance(error, BundleError)
    else:
        pytest.fail("a file outside the bundle became features")
