from __future__ import annotations

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
from torch import Tensor

from dfs_deploy.calibration import Range
from dfs_deploy.exporters.int8 import BlockRanges, Grid, Int8Block, Int8Conv, output_grid, quantize_weight
from dfs_deploy.exporters.int8_graphs import onnxruntime_engine, tensorrt_engine
from dfs_deploy.exporters.split import split_block
from dfs_deploy.models import BasicBlock
from dfs_deploy.options import Option
from tests.bundles import run_as_written, run_model, settled_network

BITS = 8
GRID = Grid(0.02)
"""Of features that arrive in uint8: 0 to 5.1."""

LAYOUTS = ("float32", "uint8")


def described(block: BasicBlock, ranges: BlockRanges, layout: str, bits: int = 8) -> Int8Block:
    """The INT8 block of a layout of ONNX Runtime's features, or of ``tensorrt``."""
    part = split_block(block, Option(BITS))
    if layout == "tensorrt":
        return Int8Block.for_tensorrt(part, ranges)
    return Int8Block.for_onnxruntime(part, ranges, GRID if layout == "uint8" else None, bits)


def ort_engine(block: BasicBlock, ranges: BlockRanges, layout: str, bits: int = 8) -> bytes:
    return onnxruntime_engine("block", described(block, ranges, layout, bits))


def trt_engine(block: BasicBlock, ranges: BlockRanges) -> bytes:
    return tensorrt_engine("block", described(block, ranges, "tensorrt"))


def rms(x: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def ends(x: Tensor) -> Range:
    return Range(float(x.min()), float(x.max()))


@torch.no_grad()
def measured(block: BasicBlock, x: Tensor) -> BlockRanges:
    """Least and greatest values of what the block rounds in 8 bits."""
    y = torch.relu(block.norm1(block.conv1(x, BITS)))
    convs: dict[str, Range] = {
        "conv1": ends(x.clamp(block.conv1.low, block.conv1.high)),
        "conv2": ends(y.clamp(block.conv2.low, block.conv2.high)),
        "conv2_out": ends(block.norm2(block.conv2(y, BITS))),
        "output": Range(0.0, float(block(x, BITS).max())),
    }
    if block.projection is not None:
        conv = block.projection.conv
        convs["projection"] = ends(x.clamp(conv.low, conv.high))
        convs["projection_out"] = ends(block.projection(x, BITS))
    else:
        convs["shortcut"] = ends(x)
    return convs


def plain_and_stride(seed: int = 0) -> tuple[BasicBlock, BasicBlock]:
    """A block with a free shortcut and one with a projection, whose inputs are clamped to -0.5 .. 3."""
    network = settled_network("skip,8,full", blocks=2, widths=(6, 8), seed=seed)
    plain, stride = network.blocks[1:3]
    assert stride.projection is not None
    with torch.no_grad():
        for conv in (plain.conv1, stride.conv1, stride.projection.conv):
            conv.low.fill_(-0.5)
            conv.high.fill_(3.0)
    return plain, stride


def features(block: BasicBlock, low: float = -1.0, high: float = 4.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(8, *block.shape.in_shape, generator=generator)


def feed(x: Tensor, layout: str) -> tuple[NDArray[Any], Tensor]:
    """The features in a layout, and what they mean there."""
    if layout == "float32":
        return x.numpy(), x
    fed = np.clip(np.rint(x.numpy() / GRID.scale), 0, 255).astype(np.uint8)
    return fed, torch.from_numpy(fed.astype(np.float32) * np.float32(GRID.scale))


def dequantized(got: NDArray[np.uint8], ranges: BlockRanges) -> NDArray[np.float32]:
    assert got.dtype == np.uint8
    return got.astype(np.float32) * np.float32(output_grid(ranges).scale)


@torch.no_grad()
def error(block: BasicBlock, x: Tensor, layout: str, ranges: BlockRanges | None = None) -> float:
    """Root-mean-square error of the ONNX Runtime engine against what the option means, over that of the output."""
    fed, meant = feed(x, layout)
    ranges = measured(block, meant) if ranges is None else ranges
    model = ort_engine(block, ranges, layout)
    got = dequantized(run_model(model, features=fed)[0], ranges)
    expected = block(meant, BITS, round_inputs=False).numpy()
    return rms(got - expected) / rms(expected)


def constants(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in graph.node for output in node.output}


# What both layouts share


@settings(max_examples=40)
@given(
    stn.arrays(np.float32, (3, 2, 3, 3), elements=st.floats(-100, 100, width=32)),
    st.sampled_from([7, 8]),
)
def test_a_weight_is_rounded_to_the_nearest_level_of_its_channel(weight: NDArray[np.float32], bits: int) -> None:
    levels, scale = quantize_weight(weight, bits)
    limit = {7: 63, 8: 127}[bits]
    assert levels.dtype == np.int8
    assert scale.dtype == np.float32
    assert (scale > 0).all()
    assert np.abs(levels.astype(int)).max(initial=0) <= limit
    back = levels * scale[:, None, None, None].astype(np.float64)
    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    # A scale below float32's smallest normal number has fewer digits.
    assert (np.abs(back - weight) <= largest / limit * 0.5001 + 1e-37).all()
    for channel in range(3):
        if largest[channel] > 1e-30:
            assert np.abs(levels[channel].astype(int)).max() == limit, "the whole range of integers is used"
        if not largest[channel]:
            assert not levels[channel].any()


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_a_grid_holds_zero_and_reaches_both_ends(first: float, second: float) -> None:
    interval = Range(min(first, second), max(first, second))
    grid = Grid.uint8(interval)
    assert grid.scale > 0
    assert 0 <= grid.zero_point <= 255
    least, greatest = -grid.zero_point * grid.scale, (255 - grid.zero_point) * grid.scale
    assert least <= min(interval.low, 0.0) + 0.51 * grid.scale
    assert greatest >= max(interval.high, 0.0) - 0.51 * grid.scale
    if interval.low >= 0:
        assert grid.zero_point == 0, "after a relu all levels are for what is positive"


# ONNX Runtime


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_an_engine_for_onnx_runtime_is_the_option_up_to_rounding(layout: str, seed: int) -> None:
    for block in plain_and_stride(seed):
        assert error(block, features(block, -0.5, 3.0), layout) < 0.03


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_lies_beyond_the_range_saturates_as_in_the_option(layout: str) -> None:
    for block in plain_and_stride():
        x = features(block, -4.0, 9.0)
        _, meant = feed(x, layout)
        with torch.no_grad():
            clamped = block(meant, BITS, round_inputs=False)
            assert rms((clamped - block(meant)).numpy()) > 0.1 * rms(clamped.numpy()), "clamping should matter"
        assert error(block, x, layout) < 0.03


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_range_above_zero_saturates_below_too(layout: str) -> None:
    """Nothing keeps a checkpoint's range from leaving zero out; padding is zero all the same."""
    for block in plain_and_stride():
        with torch.no_grad():
            for conv in [block.conv1, block.conv2] + ([block.projection.conv] if block.projection is not None else []):
                conv.low.fill_(1.0)
        x = features(block, 0.0, 4.0)
        assert error(block, x, layout) < 0.03


@pytest.mark.parametrize("layout", [*LAYOUTS, "tensorrt"])
@torch.no_grad()
def test_data_that_was_negative_throughout_is_no_trouble(layout: str) -> None:
    """All that a skipped stride block passed on may be; the range then ends below zero."""
    for block in plain_and_stride():
        x = features(block, -0.5, -0.1)
        ranges = measured(block, x)
        assert ranges["conv1"].high < 0
        if layout == "tensorrt":
            got, _ = run_as_written(trt_engine(block, ranges), features=x.numpy())
        else:
            fed, x = feed(x, layout)
            got = dequantized(run_model(ort_engine(block, ranges, layout), features=fed)[0], ranges)
        expected = block(x, BITS, round_inputs=False).numpy()
        # In uint8 there is nothing negative, so all is zero there.
        assert rms(got - expected) / rms(expected) < (0.3 if layout == "uint8" else 0.05)


@torch.no_grad()
def test_a_range_above_zero_saturates_below_for_tensorrt_too() -> None:
    for block in plain_and_stride():
        for conv in [block.conv1, block.conv2] + ([block.projection.conv] if block.projection is not None else []):
            conv.low.fill_(1.0)
        x = features(block, 0.0, 4.0)
        ranges = measured(block, x)
        got, _ = run_as_written(trt_engine(block, ranges), features=x.numpy())
        expected = block(x, BITS, round_inputs=False).numpy()
        assert rms(got - expected) / rms(expected) < 0.05


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_channel_that_weight_decay_silenced_keeps_its_bias(layout: str) -> None:
    """Its weights are next to nothing, and so is what one step of its bias would be worth."""
    for block in plain_and_stride():
        with torch.no_grad():
            for norm in (block.norm1, block.norm2):
                norm.weight[:3] = torch.tensor([1e-8, 1e-20, 0.0])
                norm.bias[:3] = 1.5
        assert error(block, features(block, -0.5, 3.0), layout) < 0.03


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_hidden_layer_that_was_always_zero_keeps_the_bias_after_it(layout: str) -> None:
    for block in plain_and_stride():
        with torch.no_grad():
            block.norm1.weight.zero_()
            block.norm1.bias.fill_(-1.0)
            block.norm2.bias.copy_(torch.linspace(0.5, 1.5, len(block.norm2.bias)))
        assert error(block, features(block, -0.5, 3.0), layout) < 0.03


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_activations_are_uint8_weights_int8_a_channel_and_biases_int32(layout: str, bits: int) -> None:
    for block in plain_and_stride():
        x = features(block)
        model = ort_engine(block, measured(block, x), layout, bits)
        graph = onnx.load_from_string(model).graph
        known, made_by = constants(graph), producers(graph)
        convs = [node for node in graph.node if node.op_type == "Conv"]
        assert len(convs) == (2 if block.projection is None else 3)
        for conv in convs:
            activation, weight, bias = (made_by[name] for name in conv.input)
            assert {node.op_type for node in (activation, weight, bias)} == {"DequantizeLinear"}
            assert known[activation.input[2]].dtype == np.uint8
            levels, scale, zero = (known[name] for name in weight.input)
            assert levels.dtype == zero.dtype == np.int8
            assert not zero.any()
            assert scale.shape == zero.shape == levels.shape[:1]
            assert np.abs(levels.astype(int)).max() == {7: 63, 8: 127}[bits]
            assert known[bias.input[0]].dtype == np.int32
            assert not known[bias.input[2]].any()
            assert np.allclose(known[bias.input[1]], scale * known[activation.input[1]])
            for node in (weight, bias):
                assert [attribute.i for attribute in node.attribute if attribute.name == "axis"] == [0]
            (reader,) = (node for node in graph.node if conv.output[0] in node.input)
            assert reader.op_type == "QuantizeLinear", "without it the convolution falls back to float"
            assert known[reader.input[2]].dtype == np.uint8
        assert graph.output[0].type.tensor_type.elem_type == TensorProto.UINT8
        assert "Relu" not in {node.op_type for node in graph.node}, "clamping at zero is the relu"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_onnx_runtime_makes_integer_convolutions_of_it(layout: str, tmp_path: Path) -> None:
    for block in plain_and_stride():
        model = ort_engine(block, measured(block, features(block)), layout)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
        assert kinds.count("QLinearConv") == (2 if block.projection is None else 3)
        assert not {"Conv", "FusedConv"} & set(kinds)
        if layout == "uint8":
            assert "QLinearAdd" in kinds


# TensorRT


@pytest.mark.parametrize(("low", "high", "seed"), [(0.0, 3.0, 0), (-0.5, 3.0, 1), (-4.0, 9.0, 0)])
@torch.no_grad()
def test_an_engine_for_tensorrt_is_the_option_up_to_rounding(seed: int, low: float, high: float) -> None:
    for block in plain_and_stride(seed):
        x = features(block, low, high)
        model = trt_engine(block, measured(block, x))
        expected = block(x, BITS, round_inputs=False).numpy()
        got, pooled = run_as_written(model, features=x.numpy())
        assert got.dtype == pooled.dtype == np.float32
        np.testing.assert_allclose(pooled, got.mean((2, 3)), rtol=1e-5, atol=1e-6)
        assert rms(got - expected) / rms(expected) < 0.05


@torch.no_grad()
def test_a_range_without_negative_values_clamps_them_for_tensorrt_too() -> None:
    """A skipped stride block sends what no range that starts at zero can hold; a symmetric grid could."""
    for block in plain_and_stride():
        for conv in [block.conv1] + ([block.projection.conv] if block.projection is not None else []):
            conv.low.fill_(0.0)
        x = features(block, -3.0, 3.0)
        ranges = measured(block, x)
        got, _ = run_as_written(trt_engine(block, ranges), features=x.numpy())
        expected = block(x, BITS, round_inputs=False).numpy()
        assert rms(got - expected) / rms(expected) < 0.05


@torch.no_grad()
def test_negative_features_of_a_skipped_stride_block_pass_the_shortcut() -> None:
    for layout in ("tensorrt", "float32"):
        block, _ = plain_and_stride()
        block.norm2.weight.zero_()
        block.norm2.bias.fill_(2.0)
        x = features(block, -1.5, 0.0)
        ranges = {**measured(block, x), "output": Range(0.0, 4.0)}
        expected = (x + 2.0).numpy()
        if layout == "tensorrt":
            got, _ = run_as_written(trt_engine(block, ranges), features=x.numpy())
        else:
            (integers,) = run_model(ort_engine(block, ranges, layout), features=x.numpy())
            got = dequantized(integers, ranges)
        np.testing.assert_allclose(got, expected, atol=0.06, err_msg=layout)


@pytest.mark.parametrize("layout", [*LAYOUTS, "tensorrt"])
def test_the_same_block_is_the_same_to_the_byte(layout: str) -> None:
    _, block = plain_and_stride()
    ranges = measured(block, features(block))

    def make() -> bytes:
        return trt_engine(block, ranges) if layout == "tensorrt" else ort_engine(block, ranges, layout)

    assert make() == make()


# The description alone


def rounded(x: NDArray[np.float64], grid: Grid | None) -> NDArray[np.float64]:
    if grid is None:
        return x
    low, high = (-128, 127) if grid.signed else (0, 255)
    return grid.scale * (np.clip(np.rint(x / grid.scale) + grid.zero_point, low, high) - grid.zero_point)


def convolved(conv: Int8Conv, x: NDArray[np.float64]) -> NDArray[np.float64]:
    if conv.clamp is not None and conv.takes.signed:
        x = x.clip(conv.clamp.low, conv.clamp.high)
    x = rounded(x, conv.takes)
    if conv.clamp is not None:
        ends = (conv.takes.level(end) - conv.takes.zero_point for end in (conv.clamp.low, conv.clamp.high))
        x = x if conv.takes.signed else x.clip(*(conv.takes.scale * end for end in ends))
    weight = conv.weight * conv.weight_scale[:, None, None, None].astype(np.float64)
    bias = conv.bias * conv.bias_scale.astype(np.float64) if conv.bias.dtype == np.int32 else conv.bias
    y = torch.nn.functional.conv2d(
        *(torch.from_numpy(np.asarray(value, np.float64)) for value in (x, weight, bias)),
        stride=conv.window.stride,
        padding=conv.window.padding,
    )
    return rounded(y.numpy(), conv.gives)


def computed(block: Int8Block, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the description says, in float64."""
    y = x
    for i, conv in enumerate(block.branch, 1):
        y = convolved(conv, y)
        y = np.maximum(y, 0.0) if i < len(block.branch) else y
    shortcut = rounded(x, block.shortcut) if block.projection is None else convolved(block.projection, x)
    return rounded(np.maximum(y + shortcut, 0.0), block.output)


@pytest.mark.parametrize("low", [-0.5, 0.3])
@pytest.mark.parametrize("layout", [*LAYOUTS, "tensorrt"])
@torch.no_grad()
def test_a_graph_computes_what_the_description_says(layout: str, low: float) -> None:
    """To a step of the coarsest grid, which another order of additions may move a value at a tie by."""
    for block in plain_and_stride():
        for conv, _ in block.convolutions.values():
            conv.low.fill_(low)
        fed, x = feed(features(block, -1.0, 4.0), "float32" if layout == "tensorrt" else layout)
        ranges = measured(block, x)
        expected = computed(described(block, ranges, layout), x.numpy().astype(np.float64))
        if layout == "tensorrt":
            got, _ = run_as_written(trt_engine(block, ranges), features=fed)
        else:
            got = dequantized(run_as_written(ort_engine(block, ranges, layout), features=fed)[0], ranges)
        step = max(ranges[name].high - ranges[name].low for name in ("conv2_out", "output")) / 100
        assert np.abs(got - expected).max() < step
        assert np.mean(np.abs(got - expected) < 1e-5) > 0.99
