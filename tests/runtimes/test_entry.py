"""The way from an image to the first engine: compiled pixels are what ONNX Runtime makes of the image, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from dfs_deploy.bundle import Bundle
from dfs_deploy.data import Dataset
from dfs_deploy.errors import BundleError, InputError
from dfs_deploy.exporters import export
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes import Runtime, native
from dfs_deploy.runtimes.onnxruntime.entry import split_entry
from dfs_deploy.runtimes.onnxruntime.sessions import open_session, run_once, session_options
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine, StraightEngine, join_path
from tests.checks import refuses
from tests.nets import SIZE, adapted
from tests.settled import pixels

needs_ends = pytest.mark.skipif(native.ends_missing is not None, reason=f"no compiled ends: {native.ends_missing}")

CONTRACT = InputContract((3, *SIZE), (0.4, 0.5, 0.6), (0.25, 0.3, 0.2), tuple("abcde"))


# The compiled part


def quantised(image: NDArray[np.float32], scale: float, zero_point: int) -> NDArray[np.uint8]:
    """(H, W, C) levels as QuantizeLinear of ONNX Runtime gives them."""
    graph = GraphBuilder("quantise")
    x = graph.input("images", np.float32, ("N", *image.shape))
    constants = graph.constant("scale", np.float32(scale)), graph.constant("zero", np.uint8(zero_point))
    graph.output(graph.node("QuantizeLinear", x, *constants), "levels", np.uint8, ("N", *image.shape))
    session = open_session(graph.build(), "quantise", session_options(1))
    return np.ascontiguousarray(run_once(session, "quantise", image[None])[0].transpose(1, 2, 0))


@needs_ends
@settings(max_examples=40)
@given(data=st.data())
def test_pixels_are_those_of_onnx_runtime_to_the_bit(data: st.DataObject) -> None:
    from dfs_deploy.runtimes.native._ends import CHANNELS, VARIANTS, quantize

    channels, height, width = (data.draw(st.integers(1, most)) for most in (CHANNELS, 9, 40))
    scale = float(np.float32(data.draw(st.floats(1e-6, 1e3))))
    zero_point = data.draw(st.integers(0, 255))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    shape = channels, height, width
    steps = random.integers(-300, 300, shape) + random.choice([0.0, 0.5, 0.25], shape)  # many a tie
    image = (steps * scale * random.choice([1.0, 1e-9, 1e30], shape, p=[0.9, 0.05, 0.05])).astype(np.float32)
    expected = np.full((height, width, CHANNELS), zero_point, np.uint8)
    expected[..., :channels] = quantised(image, scale, zero_point)
    assert VARIANTS[-1] == "baseline"
    for variant in range(len(VARIANTS)):
        got = np.zeros_like(expected)
        squares = quantize(image, scale, zero_point, got, variant)
        np.testing.assert_array_equal(got, expected)
        with np.errstate(over="ignore"):
            whole = float(np.square(image).sum(dtype=np.float64))
        assert squares == pytest.approx(whole, rel=1e-5)


@needs_ends
def test_the_sum_of_squares_shows_what_is_not_finite() -> None:
    from dfs_deploy.runtimes.native._ends import CHANNELS, VARIANTS, quantize

    for value in (np.nan, np.inf, -np.inf):
        for place in range(0, 3 * 5 * 7, 4):
            image = np.ones((3, 5, 7), np.float32)
            image.reshape(-1)[place] = value
            for variant in range(len(VARIANTS)):
                assert not np.isfinite(quantize(image, 0.1, 7, np.zeros((5, 7, CHANNELS), np.uint8), variant))


@needs_ends
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_bytes_are_looked_up(channels: int) -> None:
    from dfs_deploy.runtimes.native._ends import CHANNELS, look_up

    random = np.random.default_rng(0)
    image = random.integers(0, 256, (6, 7, channels), np.uint8)
    levels = random.integers(0, 256, (channels, 256), np.uint8)
    found = np.zeros((6, 7, CHANNELS), np.uint8)
    look_up(image, levels, 9, found)
    for channel in range(CHANNELS):
        expected = levels[channel][image[..., channel]] if channel < channels else np.full((6, 7), 9)
        np.testing.assert_array_equal(found[..., channel], expected)


@needs_ends
def test_compiled_code_refuses_arrays_that_do_not_fit() -> None:
    from dfs_deploy.runtimes.native._ends import are_finite, look_up, quantize

    image, target = np.zeros((3, 4, 5), np.float32), np.zeros((4, 5, 4), np.uint8)
    levels = np.zeros((3, 256), np.uint8)
    refused: list[Callable[[], object]] = [
        lambda: quantize(image.astype(np.float64), 1.0, 0, target),
        lambda: quantize(image[0], 1.0, 0, target),
        lambda: quantize(image[:, ::2], 1.0, 0, target),
        lambda: quantize(image, 1.0, 0, target[:3]),
        lambda: quantize(image, 1.0, 256, target),
        lambda: quantize(image, 1.0, 0, target, 9),
        lambda: quantize(np.zeros((5, 4, 5), np.float32), 1.0, 0, target),
        lambda: look_up(np.zeros((4, 5, 3), np.uint8), levels[:2], 0, target),
        lambda: look_up(np.zeros((4, 4, 3), np.uint8), levels, 0, target),
        lambda: are_finite(levels),  # type: ignore[arg-type]
    ]
    for call in refused:
        with pytest.raises((TypeError, ValueError)):
            call()
    target.flags.writeable = False
    with pytest.raises((TypeError, ValueError)):
        quantize(image, 1.0, 0, target)


@needs_ends
@given(st.lists(st.floats(width=32), min_size=1, max_size=70))
def test_logits_are_finite_if_every_one_is(values: list[float]) -> None:
    from dfs_deploy.runtimes.native._ends import are_finite

    logits = np.array([values], np.float32)
    assert are_finite(logits) == bool(np.isfinite(logits).all())


# Models


def stem(channels: int = 3, pads: int = 1, clip: bool = False, twice: bool = False, other_zero: int = 0) -> bytes:
    """An INT8 stem as an export writes it, or nearly so."""
    graph, random = GraphBuilder("stem"), np.random.default_rng(0)
    x = graph.input("images", np.float32, ("N", channels, 6, 7))
    scale, zero = graph.constant("scale", np.float32(0.02)), graph.constant("zero", np.uint8(100))
    levels = y = graph.node("QuantizeLinear", x, scale, zero)
    if clip:
        y = graph.node("Clip", y, graph.constant("low", np.uint8(10)), graph.constant("high", np.uint8(200)))
    if pads:
        ends = graph.constant("pads", np.array([0, 0, 0, 0, 0, pads, 0, 0], np.int64))
        y = graph.node("Pad", y, ends, graph.constant("pad_value", np.uint8(100 + other_zero)))
    weight = random.integers(-127, 127, (8, channels + pads, 3, 3)).astype(np.int8)
    one, none = graph.constant("one", np.full(8, 0.01, np.float32)), graph.constant("none", np.zeros(8, np.int8))
    weights = graph.node("DequantizeLinear", graph.constant("weight", weight), one, none, axis=0)
    y = graph.node("Conv", graph.node("DequantizeLinear", y, scale, zero), weights, kernel_shape=[3, 3], pads=[1] * 4)
    if twice:
        y = graph.node("Add", y, graph.node("ReduceMax", graph.node("DequantizeLinear", levels, scale, zero)))
    graph.output(y, "output", np.float32, ("N", 8, 6, 7))
    return graph.build()


def contract_of(channels: int) -> InputContract:
    return InputContract((channels, 6, 7), (0.5,) * channels, (0.25,) * channels)


@needs_ends
@pytest.mark.parametrize(("channels", "pads"), [(3, 1), (1, 3), (4, 0)])
def test_what_remains_of_a_model_gives_the_same_on_its_pixels(channels: int, pads: int) -> None:
    contract, whole = contract_of(channels), stem(channels, pads)
    rest, entry = split_entry(whole, contract, "stem")
    assert (entry.layout, entry.size) == ("uint8", (4, 6, 7))
    assert not {"QuantizeLinear", "Pad"} & {node.op_type for node in onnx.load_from_string(rest).graph.node}
    images = np.random.default_rng(1).integers(0, 256, (5, 6, 7, channels), np.uint8)
    normalised = contract.normalize(images)
    expected = run_once(open_session(whole, "stem", session_options(1)), "stem", normalised)
    session = open_session(rest, "rest", session_options(1))
    for given_images in (images, normalised):
        target = np.zeros((5, 6, 7, 4), np.uint8)
        entry.fill(entry.admit(given_images), target)
        np.testing.assert_array_equal(run_once(session, "rest", target), expected)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(stem(pads=2), id="too many channels"),
        pytest.param(stem(pads=0), id="too few"),
        pytest.param(stem(clip=True), id="something in between"),
        pytest.param(stem(twice=True), id="another reader"),
        pytest.param(stem(other_zero=1), id="channels of another level"),
    ],
)
def test_a_model_that_begins_otherwise_stays_whole(model: bytes) -> None:
    contract = contract_of(3)
    rest, entry = split_entry(model, contract, "stem")
    assert (rest, entry.layout, entry.size) == (model, "float32", contract.shape)
    images = contract.normalize(pixels(2, size=(6, 7)))
    target = np.zeros_like(images)
    entry.fill(entry.admit(images), target)
    np.testing.assert_array_equal(target, images)


def test_without_compiled_code_a_model_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ends_missing", "no compiler")
    model = stem()
    assert split_entry(model, contract_of(3), "stem")[0] == model


def test_bytes_that_are_no_model_are_refused() -> None:
    if native.ends_missing is None:
        with refuses(BundleError, "stem"):
            split_entry(b"\xff\xff no model", contract_of(3), "stem")


# Networks


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose stem computes in INT8."""
    network = adapted("basic", "skip,8,full", always=8)
    network.contract = CONTRACT
    images = pixels(32, 1, SIZE)
    answers = network.route(torch.from_numpy(CONTRACT.normalize(images))).logits.argmax(1)
    data = Dataset(images, answers.numpy().astype(np.int64), CONTRACT.class_names, "random")
    made = export(network, tmp_path_factory.mktemp("small") / "small.dfs", targets="fp32,int8", calibration_data=data)
    return made.bundle.path


def without_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ends_missing", "no compiler")


@needs_ends
@pytest.mark.parametrize("count", [1, 5, 40])
def test_a_network_gives_the_same_with_and_without_compiled_pixels(
    small: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    images = pixels(count, 3, SIZE)
    normalised = CONTRACT.normalize(images)
    with Runtime(small) as runtime, runtime.clone() as clone:
        results = [runtime(images), runtime(normalised), clone(images), runtime(normalised[:, :, ::-1][:, :, ::-1])]
        monkeypatch.setattr(runtime, "_most", 7)
        results.append(runtime(images))
    without_ends(monkeypatch)
    with Runtime(small) as plain:
        expected = plain(images)
    for result in results:
        np.testing.assert_array_equal(result.path, expected.path)
        np.testing.assert_allclose(result.logits, expected.logits, rtol=0, atol=1e-5)
    if count == 1:
        assert all(result == expected for result in results)


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_is_refused_and_named(
    small: Path, monkeypatch: pytest.MonkeyPatch, count: int, value: float
) -> None:
    images = CONTRACT.normalize(pixels(count, 3, SIZE))
    spoilt = images.copy()
    spoilt[-1, 2, -1, -1] = value
    with Runtime(small) as runtime:
        expected = runtime(images)
        for most in (64, 7):
            monkeypatch.setattr(runtime, "_most", most)
            with refuses(InputError, f"image {count - 1} of the batch"):
                runtime(spoilt)
            assert runtime(images) == expected


@needs_ends
def test_static_engines_and_traces_take_compiled_pixels_too(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, images = Bundle(small), CONTRACT.normalize(pixels(3, 4, SIZE))
    path = np.ones(bundle.architecture.gated_blocks, np.uint8)

    def answers() -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = []
        with StaticEngine(bundle, "int8") as static:
            found += [static(images), static(images[1:2])]
        with (
            StraightEngine(join_path(bundle, path), "the trace", bundle, joined=True) as trace,
            Runtime(small) as runtime,
        ):
            found.append(trace(images[1:2]))
            expected = runtime(images[1:2], path=path[None]).logits
            np.testing.assert_allclose(found[-1], expected, rtol=0, atol=1e-5)
            trace.call()
        return found

    with_pixels = answers()
    without_ends(monkeypatch)
    for got, expected in zip(with_pixels, answers(), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_engine_calls_start_from_an_image(small: Path) -> None:
    """What they leave in the stem's input is a blank image, and the next call is not disturbed."""
    images = CONTRACT.normalize(pixels(1, 5, SIZE))
    with Runtime(small) as runtime:
        expected = runtime(images)
        calls = runtime.engine_calls(expected.path[0])
        assert calls == runtime.engine_calls(expected.path[0])
        for call in calls:
            call()
        assert runtime(images) == expected


def test_the_stem_of_an_export_reads_four_channels(small: Path) -> None:
    bundle = Bundle(small)
    file = bundle.manifest.runtimes["onnxruntime"].stem.files["float32"]
    graph = onnx.load_from_string(bundle.model(file)).graph
    weights: list[NDArray[Any]] = [numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) == 4]
    assert weights[0].shape[1] == 4
    assert not weights[0][:, 3].any()
