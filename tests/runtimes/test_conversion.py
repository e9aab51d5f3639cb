"""Features that arrive in a layout for which an engine has no file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.engines import FeatureGrid, feature_grids
from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.blocked import block_size, from_blocks, to_blocks
from dfs_deploy.runtimes.onnxruntime.conversion import Converters, conversion_model
from dfs_deploy.runtimes.onnxruntime.static import StraightEngine, join_engines, join_path
from tests.bundles import Made, converted, copied, rewritten, run_path, wide_bundle
from tests.runtimes.gates import needs_native
from tests.settled import pixels

GATES = ["numpy", pytest.param("native", marks=needs_native)]
LAYOUTS: tuple[Layout, ...] = ("float32", "uint8")


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(LAYOUTS),
    st.tuples(st.integers(1, 3), st.sampled_from([16, 32, 48]), st.integers(1, 5), st.integers(1, 5)),
    st.integers(0, 255),
    st.booleans(),
)
def test_a_conversion_does_what_its_grid_says(
    to: Layout, shape: tuple[int, int, int, int], zero_point: int, blocked: bool
) -> None:
    rng, grid = np.random.default_rng(zero_point), FeatureGrid(0.03, zero_point)
    together = block_size() if blocked else 1
    n, channels, height, width = shape
    floats = rng.normal(0, 3, shape).astype(np.float32)
    integers = rng.integers(0, 256, (n, height, width, channels), np.uint8)
    given_features = floats if to == "uint8" else integers
    expected = converted(given_features, to, grid)
    if together > 1 and to == "uint8":
        given_features = to_blocks(floats, together)
    session = Converters([grid], together).session(0, channels, to)
    found = session.run(None, {"features": given_features})[0]
    if together > 1 and to == "float32":
        found = from_blocks(found, together)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_conversions_of_one_grid_share_a_session() -> None:
    converters = Converters([FeatureGrid(0.5, 1), FeatureGrid(0.5, 1), FeatureGrid(0.5, 2)], 1)
    assert converters.session(0, 4, "uint8") is converters.session(1, 4, "uint8")
    assert converters.session(0, 4, "uint8") is not converters.session(2, 4, "uint8")
    assert converters.session(0, 4, "uint8") is not converters.session(0, 4, "float32")


def dropped(manifest: dict[str, Any], drops: Callable[[dict[str, Any]], str | None]) -> None:
    """Drops the file of a layout of each engine for which ``drops`` names one."""
    engines = manifest["runtimes"]["onnxruntime"]
    each = [engines["head"]]
    for block in engines["blocks"]:
        each += [engine for served in block["options"].values() for engine in served]
        each += [] if block["skip"] is None else [block["skip"]]
    for engine in each:
        layout = drops(engine)
        if layout is not None:
            engine["files"].pop(layout, None)


def one_layout(engine: dict[str, Any]) -> str:
    """INT8 engines take uint8 alone, the others float32 alone."""
    return "float32" if engine["precision"] == "int8" else "uint8"


@pytest.fixture(scope="module", params=["one layout each", "uint8 alone", "float32 alone"])
def edited(request: pytest.FixtureRequest, mixed: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles whose engines take some layouts only."""
    drops = {
        "one layout each": one_layout,
        "uint8 alone": lambda engine: "float32",
        "float32 alone": lambda engine: "uint8",
    }[request.param]
    folder = copied(mixed, tmp_path_factory.mktemp("edited"))
    return rewritten(folder, {}, lambda manifest: dropped(manifest, drops))


def every_path() -> Iterator[NDArray[np.uint8]]:
    yield from np.array(np.meshgrid(*[range(4)] * 3)).reshape(3, -1).T.astype(np.uint8)


@pytest.mark.parametrize("gate", GATES)
def test_every_path_gives_what_its_engines_and_conversions_give(edited: Path, gate: str) -> None:
    bundle, images = Bundle(edited), pixels(64, seed=4)
    paths = np.stack(list(every_path()))
    with Runtime(bundle, gate=gate, prepared=False, plan=False) as runtime:
        together = runtime(images, path=paths)
        for row, path in enumerate(paths):
            alone = runtime(images[row : row + 1], path=path[None])
            np.testing.assert_allclose(
                alone.logits, run_path(bundle, runtime.substitutions, images[row : row + 1], path), rtol=0, atol=1e-5
            )
            np.testing.assert_allclose(together.logits[row], alone.logits[0], rtol=0, atol=1e-4)


def test_the_trace_of_a_path_equals_its_dispatch(edited: Path) -> None:
    """Up to the order of sums in float: one step of a grid more or less would show."""
    bundle, images = Bundle(edited), pixels(64, seed=4)
    with Runtime(bundle, prepared=False, plan=False) as runtime:
        for row, path in enumerate(every_path()):
            alone, model = (
                runtime(images[row : row + 1], path=path[None]),
                join_path(bundle, path, runtime.substitutions),
            )
            with StraightEngine(model, "the trace", bundle, joined=True) as trace:
                logits = trace(bundle.input.normalize(images[row : row + 1]))
            np.testing.assert_allclose(logits, alone.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gate", GATES)
def test_decisions_are_those_of_a_batch_whatever_is_converted(edited: Path, gate: str) -> None:
    images = pixels(40, seed=5)
    with Runtime(edited, gate=gate, prepared=False) as runtime:
        together = runtime(images)
        alone = np.concatenate([runtime(image[None]).path for image in images])
    np.testing.assert_array_equal(together.path, alone)
    assert len(np.unique(alone, axis=0)) > 3


@pytest.mark.skipif(block_size() == 1, reason="ONNX Runtime has no blocked layout for this CPU")
def test_conversions_go_into_and_out_of_the_blocked_layout(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Float32 engines take float32 alone here; an INT8 engine needs its float32 file to be prepared."""
    bundle = rewritten(
        copied(wide_bundle(tmp_path_factory), tmp_path),
        {},
        lambda manifest: dropped(manifest, lambda e: "uint8" if e["output"] == "float32" else None),
    )
    images, paths = pixels(64, seed=4), np.stack(list(every_path()))
    with Runtime(bundle, plan=False) as runtime, Runtime(bundle, plan=False, prepared=False) as plain:
        assert runtime.description["layout"].startswith("blocked")
        expected = plain(images, path=paths).logits
        np.testing.assert_allclose(runtime(images, path=paths).logits, expected, rtol=0, atol=1e-3)
        for row in range(0, 64, 5):
            alone = runtime(images[row : row + 1], path=paths[row : row + 1]).logits
            np.testing.assert_allclose(alone, expected[row : row + 1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("gate", GATES)
def test_a_stem_that_leaves_signed_uint8_and_a_head_that_takes_nothing_else(
    mixed: Made, tmp_path: Path, gate: str
) -> None:
    """The first grid has a zero point, which the gate's pooling and the conversions must honour."""
    whole = Bundle(mixed.path)
    grid = FeatureGrid(feature_grids(whole, "onnxruntime")[0].scale * 1.5, 37)
    stem = whole.manifest.runtimes["onnxruntime"].stem.files["float32"]
    channels = whole.architecture.blocks[0].out_channels
    ends = conversion_model("uint8", grid, channels, opset=opset_of(whole.model(stem)))
    model = join_engines([("stem", whole.model(stem)), ("its end", ends)])

    def edit(manifest: dict[str, Any]) -> None:
        engines = manifest["runtimes"]["onnxruntime"]
        engines["stem"]["output"] = "uint8"
        engines["feature_scales"][0], engines["feature_zero_points"][0] = grid.scale, grid.zero_point
        dropped(manifest, lambda engine: "uint8" if engine is not engines["head"] else "float32")
        # A free skip passes the features on, so the grid of block 1 is that of block 0.
        engines["feature_scales"][1], engines["feature_zero_points"][1] = grid.scale, grid.zero_point
        for served in engines["blocks"][0]["options"].values():
            served[:] = [engine for engine in served if engine["precision"] == "fp32"]

    bundle = Bundle(rewritten(copied(mixed, tmp_path), {stem: model}, edit))
    images = pixels(40, seed=6)
    with Runtime(bundle, gate=gate, prepared=False, plan=False) as runtime, Runtime(mixed.path, gate=gate) as floats:
        together = runtime(images)
        for row in range(40):
            alone = runtime(images[row : row + 1])
            np.testing.assert_array_equal(alone.path, together.path[row : row + 1])
            np.testing.assert_allclose(
                alone.logits,
                run_path(bundle, runtime.substitutions, images[row : row + 1], alone.path[0]),
                rtol=0,
                atol=1e-5,
            )
        # The grid is fine enough for nearly all decisions of the rigged gate to stay.
        assert np.mean(together.path[:, 0] == floats(images).path[:, 0]) > 0.9


def opset_of(model: bytes) -> int:
    import onnx

    return int(onnx.load_from_string(model).opset_import[0].version)
