from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from dfs_deploy.calibration import Range
from dfs_deploy.exporters.int8 import PASSING, Grid, Int8Part, quantize_weight
from dfs_deploy.exporters.int8_graphs import onnxruntime_engine, tensorrt_engine
from dfs_deploy.exporters.split import Layer, Part
from dfs_deploy.exporters.tensorrt_lint import lint
from dfs_deploy.models.graph import INPUT
from dfs_deploy.runtimes.onnxruntime.sessions import open_session, session_options
from tests.exporters.parts import ACTIVATIONS, Making, described, in_floats, measured, parts

GRID = Grid(0.02)
"""Of features that arrive in uint8: 0 to 5.1."""

SIGNED = Grid(0.02, 100)
"""Of features that may be negative: -2 to 3.1."""

FORMS = ("float32", "uint8", "signed", "tensorrt")


def features(part: Part, low: float = -1.0, high: float = 3.0, count: int = 6) -> NDArray[np.float32]:
    random = np.random.default_rng(0)
    return random.uniform(low, high, (count, *part.in_shape)).astype(np.float32)


def grid_of(form: str) -> Grid | None:
    return {"uint8": GRID, "signed": SIGNED}.get(form)


def meant(x: NDArray[np.float32], form: str) -> NDArray[np.float32]:
    """What features mean in a form."""
    grid = grid_of(form)
    return x if grid is None else grid.dequantize(grid.quantize(x))


def describe(part: Part, x: NDArray[np.float32], form: str, bits: int = 8) -> Int8Part:
    """A part in INT8 whose ranges were measured on features; feature maps leave in uint8."""
    ranges = measured(part, meant(x, form))
    if form == "tensorrt":
        return Int8Part.for_tensorrt(part, ranges)
    gives = Grid.uint8(ranges[part.output]) if len(part.out_shape) == 3 else None
    return Int8Part.for_onnxruntime(part, ranges, grid_of(form), gives, bits)


def engine(described_part: Int8Part, form: str) -> bytes:
    return (tensorrt_engine if form == "tensorrt" else onnxruntime_engine)("part", described_part)


def ran(part: Int8Part, x: NDArray[np.float32], form: str, as_written: bool = True) -> NDArray[np.float64]:
    """What ONNX Runtime makes of an engine, as numbers, channels first."""
    fed: NDArray[Any] = x
    if part.takes is not None:
        fed = np.ascontiguousarray(part.takes.quantize(x).transpose(0, 2, 3, 1))
    got = run(engine(part, form), fed, as_written)
    if part.gives is not None:
        assert got.dtype == np.uint8
        got = part.gives.dequantize(got.transpose(0, 3, 1, 2))
    assert got.shape == (len(x), *part.part.out_shape)
    return got.astype(np.float64)


def run(model: bytes, fed: NDArray[Any], as_written: bool) -> NDArray[Any]:
    options = session_options(threads=1)
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = open_session(model, "part", options)
    result: NDArray[Any] = session.run(["output"], {"features": fed})[0]
    return result


def error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Root-mean-square error over that of what was expected."""
    return float(np.sqrt(np.mean(np.square(got - expected)) / np.mean(np.square(expected))))


def kinds(model: bytes, folder: Path) -> list[str]:
    """Operators that ONNX Runtime makes of a model."""
    options = session_options(threads=1)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    open_session(model, "part", options)
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def basic(projects: bool = False) -> Part:
    """A residual block of two 3x3 convolutions, each followed by a relu."""
    make = Making((6, 8, 8))
    stride = 2 if projects else 1
    y = make.add("relu", make.conv(INPUT, 6, 3, stride))
    y = make.conv(y, 6, 3)
    shortcut = make.conv(INPUT, 6, 1, stride) if projects else INPUT
    return make.part(make.add("relu", make.add("add", y, shortcut)))


def inverted(activation: str = "clip", excited: bool = False) -> Part:
    """An inverted residual block: its output is signed."""
    make = Making((6, 7, 7))
    y = make.add(activation, make.conv(INPUT, 12), **ACTIVATIONS[activation])
    y = make.add(activation, make.conv(y, 12, 3, groups=12), **ACTIVATIONS[activation])
    y = make.excitation(y) if excited else y
    return make.part(make.add("add", make.conv(y, 6), INPUT))


def excited_by_linear_layers() -> Part:
    make = Making((6, 7, 7))
    y = make.linear_excitation(make.conv(make.add("relu", make.conv(INPUT, 8)), 6, 3))
    return make.part(make.add("relu", make.add("add", y, INPUT)))


def head() -> Part:
    make = Making((6, 4, 4))
    y = make.add("clip", make.conv(INPUT, 12), low=0.0, high=1.5)
    y = make.add("flatten", make.add("global_avg_pool", y))
    return make.part(make.linear(y, 5))


BLOCKS = {
    "basic": basic(),
    "projection": basic(projects=True),
    "inverted": inverted(),
    "excited": inverted("relu", excited=True),
    "linear": excited_by_linear_layers(),
    "swish": inverted("hard_swish", excited=True),
    "silu": inverted("silu"),
}


# Weights and grids


WEIGHTS = stn.arrays(np.float32, (3, 2, 3, 3), elements=st.floats(-100, 100, width=32))


def back(levels: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float64]:
    return levels * scale[:, None, None, None].astype(np.float64)


@settings(max_examples=40)
@given(WEIGHTS)
def test_a_weight_is_rounded_to_the_nearest_level_of_its_channel(weight: NDArray[np.float32]) -> None:
    levels, scale = quantize_weight(weight, 8)
    assert levels.dtype == np.int8
    assert scale.dtype == np.float32
    assert (scale > 0).all()
    assert np.abs(levels.astype(int)).max(initial=0) <= 127
    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    # A scale below float32's smallest normal number has fewer digits.
    assert (np.abs(back(levels, scale) - weight) <= largest / 127 * 0.5001 + 1e-37).all()
    for channel in range(3):
        if largest[channel] > 1e-30:
            assert np.abs(levels[channel].astype(int)).max() == 127, "the whole range of integers is used"
        if not largest[channel]:
            assert not levels[channel].any()


@settings(max_examples=40)
@given(WEIGHTS)
def test_a_weight_of_7_bits_moves_no_further_than_on_the_scale_of_its_greatest(weight: NDArray[np.float32]) -> None:
    levels, scale = quantize_weight(weight, 7)
    assert np.abs(levels.astype(int)).max(initial=0) <= 63
    largest = np.abs(weight).max(axis=(1, 2, 3)).astype(np.float64)
    plain = np.maximum(largest / 63, 1e-30)[:, None, None, None]
    on_largest = np.square(np.rint(weight / plain) * plain - weight).sum((1, 2, 3))
    error = np.square(back(levels, scale) - weight).sum((1, 2, 3))
    assert (error <= on_largest * 1.001 + (largest * 1e-6) ** 2 + 1e-36).all()
    assert (scale <= np.maximum(largest / 63, 1.0 / 63) * 1.0001 + 1e-37).all()


def test_a_scale_of_7_bits_is_chosen_for_the_many() -> None:
    """One great weight among many small ones costs them their levels."""
    weight = np.random.default_rng(0).normal(0.0, 0.1, (1, 64, 3, 3)).astype(np.float32)
    levels, scale = quantize_weight(weight, 7)
    plain = np.abs(weight).max() / 63
    assert scale[0] < 0.99 * plain
    error, on_largest = (
        np.mean(np.square(value - weight)) for value in (back(levels, scale), np.rint(weight / plain) * plain)
    )
    assert error < 0.97 * on_largest


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_a_grid_holds_zero_and_reaches_both_ends(first: float, second: float) -> None:
    interval = Range(min(first, second), max(first, second))
    grid = Grid.uint8(interval)
    assert grid.scale > 0
    assert 0 <= grid.zero_point <= 255
    assert grid.ends.low <= min(interval.low, 0.0) + 0.51 * grid.scale
    assert grid.ends.high >= max(interval.high, 0.0) - 0.51 * grid.scale
    if interval.low >= 0:
        assert grid.zero_point == 0, "after a relu all levels are for what is positive"


@given(st.floats(-100, 0), st.floats(0, 100), st.lists(st.floats(-200, 200), min_size=1, max_size=20))
def test_signed_values_come_back_from_their_grid(low: float, high: float, values: list[float]) -> None:
    grid = Grid.uint8(Range(low, high))
    x = np.array([0.0, *values], np.float32)
    back = grid.dequantize(grid.quantize(x))
    assert back[0] == 0.0
    inside = (x >= grid.ends.low) & (x <= grid.ends.high)
    assert np.abs(back - x)[inside].max() <= 0.5001 * grid.scale + 1e-6 * abs(x).max()
    assert (back >= np.float32(grid.ends.low) * 1.0001 - 1e-30).all()
    assert (grid.quantize(back) == grid.quantize(x)).all()


# Any part


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_graph_computes_what_the_description_says(form: str, data: st.DataObject) -> None:
    """To the last unit, but for values at a tie, which another order of additions may move by a step."""
    part = data.draw(parts())
    x = features(part)
    described_part = describe(part, x, form)
    expected = described(described_part, x)
    got = ran(described_part, x, form)
    step = described_part.gives.scale if described_part.gives is not None else np.abs(expected).max() / 255
    assert np.mean(np.abs(got - expected) < 1e-3 * step) > 0.97
    assert error(got, expected) < 0.02


@pytest.mark.parametrize("form", ["float32", "uint8", "signed"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_integer_kernels_compute_the_same(form: str, data: st.DataObject) -> None:
    part = data.draw(parts())
    x = features(part)
    described_part = describe(part, x, form)
    expected, got = described(described_part, x), ran(described_part, x, form, as_written=False)
    assert error(got, expected) < 0.03


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_grid_holds_zero_and_what_was_seen(form: str, data: st.DataObject) -> None:
    part = data.draw(parts())
    x = features(part)
    described_part = describe(part, x, form)
    seen = measured(part, meant(x, form))
    for step in described_part.layers:
        name, grid = step.name, step.gives
        passes = step.layer.operator in PASSING or (grid == described_part.gives and name != part.output)
        if grid is None or name not in seen or passes:  # the last: on its way to the output, some of it dropped
            continue
        only_swish = [layer.operator for layer in part.layers if name in layer.inputs] == ["hard_swish"]
        low = max(seen[name].low, -3.0) if only_swish else seen[name].low
        assert grid.ends.low <= min(low, 0.0) + 0.51 * grid.scale
        assert grid.ends.high >= max(seen[name].high, 0.0) - 0.51 * grid.scale
        assert 0 <= grid.zero_point <= 255


@settings(max_examples=40, deadline=None)
@given(part=parts())
def test_every_part_is_legal_for_tensorrt(part: Part) -> None:
    assert lint(engine(describe(part, features(part), "tensorrt"), "tensorrt")) == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_in_int8_is_the_block_up_to_rounding(block: str, form: str) -> None:
    part, x = BLOCKS[block], features(BLOCKS[block])
    got = ran(describe(part, x, form), x, form, as_written=form == "tensorrt")
    assert error(got, in_floats(part, meant(x, form))[part.output]) < 0.04


@pytest.mark.parametrize("form", FORMS)
def test_the_same_part_is_the_same_to_the_byte(form: str) -> None:
    for part in BLOCKS.values():
        x = features(part)
        assert engine(describe(part, x, form), form) == engine(describe(part, x, form), form)


@pytest.mark.parametrize("form", ["float32", "uint8", "signed"])
@pytest.mark.parametrize("operator", ["relu", "clip"])
def test_an_activation_folded_into_a_layer_equals_one_after_it(form: str, operator: str) -> None:
    """The ends of the grid clamp, or a clip of integers if the grid that the output must have is wider."""
    make = Making((4, 5, 5))
    bounds = {"low": -0.25, "high": 0.75} if operator == "clip" else {}
    part = make.part(make.add(operator, make.conv(INPUT, 4, 3), **bounds))
    x = features(part)
    ranges = measured(part, meant(x, form))
    for gives in (Grid.uint8(ranges[part.output]), Grid(0.01, 120), Grid(0.02)):
        folded = Int8Part.for_onnxruntime(part, ranges, grid_of(form), gives, 8)
        assert [step.name for step in folded.layers] == [part.output]
        plain = Part("plain", part.layers[:1], part.layers[0].name, part.sizes)
        before = ran(Int8Part.for_onnxruntime(plain, ranges, grid_of(form), Grid(0.01, 120), 8), x, form)
        low, high = (bounds["low"], bounds["high"]) if bounds else (0.0, np.inf)
        ends = gives.ends
        expected = before.clip(max(low, ends.low), min(high, ends.high))
        inside = (before > -1.2) & (before < 1.35)  # where the grid of the plain convolution does not clamp
        # Rounded once here, and twice there.
        assert np.abs(ran(folded, x, form) - expected)[inside].max() <= 0.5 * gives.scale + 0.0051


@pytest.mark.parametrize("form", ["uint8", "signed"])
@pytest.mark.parametrize("operator", sorted(ACTIVATIONS))
@pytest.mark.parametrize("gives", [Grid(0.02), Grid(0.02, 120)], ids=["positive", "signed"])
def test_an_activation_before_a_grid_that_holds_more_is_the_activation(form: str, operator: str, gives: Grid) -> None:
    """The grid of a group's features is as wide as its widest block's."""
    make = Making((4, 5, 5))
    part = make.part(make.add(operator, make.conv(INPUT, 4, 3), **ACTIVATIONS[operator]))
    conv, activation = part.layers
    assert conv.weight is not None
    part = replace(part, layers=(replace(conv, weight=conv.weight * 6), activation))  # beyond every activation's ends
    x = features(part)
    described_part = Int8Part.for_onnxruntime(part, measured(part, meant(x, form)), grid_of(form), gives, 8)
    expected = in_floats(part, meant(x, form))[part.output].clip(gives.ends.low, gives.ends.high)
    for as_written in (False, True):
        assert np.abs(ran(described_part, x, form, as_written) - expected).max() < 0.2


def test_squeeze_and_excitation_is_computed_in_float_and_multiplied_in_integers() -> None:
    part = BLOCKS["excited"]
    described_part = describe(part, features(part), "uint8")
    squeeze = [step for step in described_part.layers if step.layer.exact]
    assert len(squeeze) == len(described_part.float_layers) == 2
    assert all(step.floats and step.weight is None for step in squeeze)
    (product,) = (step for step in described_part.layers if step.layer.operator == "mul")
    assert None not in (*product.takes, product.gives)


@pytest.mark.parametrize("bias", [1.5, -40.0])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", ["basic", "inverted"])
def test_a_channel_that_weight_decay_silenced_keeps_its_bias(block: str, form: str, bias: float) -> None:
    """Its weights are next to nothing, and so is one step of its bias; its sum must not overflow 32 bits either."""
    silence = np.array([1e-5, 1e-8, 0.0], np.float32).reshape(3, 1, 1, 1)

    def silenced(layer: Layer) -> Layer:
        if layer.weight is None or layer.bias is None:
            return layer
        weight, biases = layer.weight.copy(), layer.bias.copy()
        weight[:3] *= silence
        biases[:3] = bias
        return replace(layer, weight=weight, bias=biases)

    whole = BLOCKS[block]
    part = replace(whole, layers=tuple(map(silenced, whole.layers)))
    x = features(part)
    got = ran(describe(part, x, form), x, form, as_written=form == "tensorrt")
    assert error(got, in_floats(part, meant(x, form))[part.output]) < 0.04


def test_a_value_without_a_range_is_named() -> None:
    part = BLOCKS["basic"]
    ranges = measured(part, features(part))
    del ranges["relu_1"]
    with pytest.raises(Exception, match="part: no calibrated range of relu_1"):
        Int8Part.for_onnxruntime(part, ranges, GRID, GRID, 8)


# ONNX Runtime


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("form", ["float32", "uint8", "signed"])
@pytest.mark.parametrize("block", BLOCKS)
def test_activations_are_uint8_weights_int8_a_channel_and_biases_int32(block: str, form: str, bits: int) -> None:
    part = BLOCKS[block]
    graph = onnx.load_from_string(engine(describe(part, features(part), form, bits), form)).graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    exact = sum(layer.exact for layer in part.layers)
    convs = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in made_by]
    assert len(convs) == sum(layer.weight is not None for layer in part.layers) - exact
    for conv in convs:
        activation, weight, bias = (made_by[name] for name in conv.input)
        assert {node.op_type for node in (activation, weight, bias)} == {"DequantizeLinear"}
        assert known[activation.input[2]].dtype == np.uint8
        levels, scale, zero = (known[name] for name in weight.input)
        assert levels.dtype == zero.dtype == np.int8
        assert not zero.any()
        assert scale.shape == zero.shape == levels.shape[:1], "depthwise too"
        depthwise = levels.shape[1] == 1
        assert np.abs(levels.astype(int)).max() == (127 if depthwise else {7: 63, 8: 127}[bits])
        assert known[bias.input[0]].dtype == np.int32
        assert np.allclose(known[bias.input[1]], scale * known[activation.input[1]])
        (reader,) = (node for node in graph.node if conv.output[0] in node.input)
        assert reader.op_type == "QuantizeLinear", "without it the convolution falls back to float"
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert exact or not {"Relu", "HardSwish"} & {node.op_type for node in graph.node}, "the grid's ends are the relu"


@pytest.mark.parametrize("form", ["uint8", "signed"])
@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("basic", ["QLinearConv", "QLinearConv", "QLinearAdd"]),
        ("projection", ["QLinearConv", "QLinearConv", "QLinearConv", "QLinearAdd"]),
        ("inverted", ["QLinearConv", "QLinearConv", "QLinearConv", "QLinearAdd"]),
        ("silu", [*["QLinearConv", "QLinearSigmoid", "QLinearMul"] * 2, "QLinearConv", "QLinearAdd"]),
    ],
)
def test_onnx_runtime_makes_integer_operators_of_it_without_a_transposition(
    block: str, form: str, expected: list[str], tmp_path: Path
) -> None:
    part = BLOCKS[block]
    assert sorted(kinds(engine(describe(part, features(part), form), form), tmp_path)) == sorted(expected)


def test_onnx_runtime_multiplies_by_an_excitation_in_integers(tmp_path: Path) -> None:
    part = BLOCKS["swish"]
    found = kinds(engine(describe(part, features(part), "signed"), "signed"), tmp_path)
    assert found.count("QLinearConv") == 3
    assert found.count("QLinearMul") == 3
    assert found.count("QLinearAdd") == 3, "two of them shift a hard sigmoid"
    assert found.count("QLinearGlobalAveragePool") == 1
    assert found.count("DequantizeLinear") == found.count("QuantizeLinear") == 1, "around the small float layers"


def test_onnx_runtime_makes_integers_of_a_head_and_a_stem(tmp_path: Path) -> None:
    part = head()
    found = kinds(engine(describe(part, features(part), "signed"), "signed"), tmp_path)
    assert {"QLinearConv", "QLinearGlobalAveragePool", "QGemm"} <= set(found)
    assert not {"Conv", "FusedConv", "Gemm", "DequantizeLinear", "QuantizeLinear"} & set(found)
    make = Making((3, 16, 16))
    y = make.add("relu", make.conv(INPUT, 8, 7, 2))
    y = make.add("max_pool", y, kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1), ceil=0)
    stem = make.part(y)
    found = kinds(engine(describe(stem, features(stem), "float32"), "float32"), tmp_path)
    assert found.count("QLinearConv") == found.count("QuantizeLinear") == 1
    assert "DequantizeLinear" not in found


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_a_convolution_of_images_reads_four_channels_and_adds_up_the_same(channels: int) -> None:
    make = Making((channels, 9, 9))
    part = make.part(make.add("relu", make.conv(INPUT, 8, 3, 2)))
    x = features(part)
    described_part = describe(part, x, "float32")
    graph = onnx.load_from_string(engine(described_part, "float32")).graph
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
    assert [tensor.dims[1] for tensor in weights] == [max(channels, 4)]
    assert described_part.gives is not None
    expected, step = described(described_part, x), described_part.gives.scale
    for as_written in (True, False):
        difference = np.abs(ran(described_part, x, "float32", as_written) - expected)
        assert difference.max() < 1.01 * step, "a tie may fall to either side"
        assert np.mean(difference < 0.01 * step) > 0.97


# TensorRT


@pytest.mark.parametrize("block", BLOCKS)
def test_tensorrt_gets_int8_convolutions_and_float_excitation(block: str) -> None:
    part = BLOCKS[block]
    model = engine(describe(part, features(part), "tensorrt"), "tensorrt")
    assert lint(model) == []
    graph = onnx.load_from_string(model).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    rounded = [
        node for node in graph.node if node.op_type == "Conv" and made_by.get(node.input[1]) == "DequantizeLinear"
    ]
    assert len(rounded) == sum(layer.weight is not None and not layer.exact for layer in part.layers)
    assert "uint8" not in str({str(numpy_helper.to_array(tensor).dtype) for tensor in graph.initializer})


@pytest.mark.parametrize("form", FORMS)
def test_what_lies_beyond_a_range_saturates_as_in_the_option(form: str) -> None:
    """Nothing keeps a checkpoint's range from leaving zero out; padding is zero all the same."""
    for low, high in ((-0.5, 2.0), (0.3, 2.0), (0.0, 1.0)):
        make = Making((4, 6, 6))
        y = make.add("relu", make.conv(INPUT, 6, 3, saturates=Range(low, high)))
        y = make.conv(y, 4, 3, saturates=Range(low, high))
        part = make.part(make.add("add", y, INPUT))
        x = features(part, -3.0, 4.0)
        expected = in_floats(part, meant(x, form))[part.output]
        assert error(ran(describe(part, x, form), x, form), expected) < 0.05


def test_zero_features_of_a_head_give_the_same_answers_as_floats() -> None:
    part = head()
    x = np.zeros((2, *part.in_shape), np.float32)
    with torch.no_grad():
        expected = in_floats(part, x)[part.output]
    described_part = describe(part, features(part), "signed")
    assert error(ran(described_part, x, "signed"), expected) < 0.03
