"""INT8 blocks as ONNX graphs of QuantizeLinear and DequantizeLinear, written from ``Int8Block``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.exporters.engines import BATCH, TENSORRT, conv_attributes, finish, grid_constants, uint8_input
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.exporters.int8 import UINT8_MAX, Grid, Int8Block, Int8Conv


def onnxruntime_engine(name: str, block: Int8Block) -> bytes:
    """An INT8 block for ONNX Runtime.

    The input is (N, C, H, W) float32, or (N, H, W, C) uint8 if the block's features have a grid. The output is uint8,
    channels last, and the sum is made channels last, where ONNX Runtime's convolutions leave it.
    """
    graph = GraphBuilder(name)
    if block.features is None:
        features = graph.input("features", np.float32, (BATCH, *block.shape.in_shape))
    else:
        features = uint8_input(graph, block.shape.in_shape)
    channels, *size = block.shape.out_shape
    output = onnxruntime_block(graph, features, block, channels_last=True)
    graph.output(output, "output", np.uint8, (BATCH, *size, channels))
    return graph.build()


def onnxruntime_block(
    graph: GraphBuilder, features: str, block: Int8Block, prefix: str = "", channels_last: bool = False
) -> str:
    """Adds a block in ONNX Runtime's arithmetic; returns its output, uint8 on ``block.output``.

    Args:
        graph: graph to add it to.
        features: float32 or, if the block's features have a grid, uint8; channels first.
        block: made by ``Int8Block.for_onnxruntime``.
        prefix: beginning of the names of constants, so that several blocks can share a graph.
        channels_last: whether the output lies channels last.
    """
    rounded: dict[Grid, str] = {}

    def taken(name: str, conv: Int8Conv) -> str:
        if block.features is not None:
            return features
        if conv.takes not in rounded:  # one tensor, rounded once for both convolutions that read it alike
            rounded[conv.takes] = quantize(graph, f"{prefix}{name}_input", features, conv.takes)
        return rounded[conv.takes]

    y = ""
    for i, conv in enumerate(block.branch, 1):  # clamping at zero is the relu between two of them
        y = onnxruntime_conv(graph, f"{prefix}conv{i}", y or taken("conv1", conv), conv)
    y = dequantize(graph, f"{prefix}conv{len(block.branch)}_output", y, block.branch[-1].gives)
    if block.projection is not None:
        shortcut = taken("projection", block.projection)
        shortcut = onnxruntime_conv(graph, f"{prefix}projection", shortcut, block.projection)
        shortcut = dequantize(graph, f"{prefix}projection_output", shortcut, block.projection.gives)
    else:
        shortcut = dequantize(graph, f"{prefix}features", features, block.features)
    if channels_last:
        y, shortcut = (graph.node("Transpose", x, perm=[0, 2, 3, 1]) for x in (y, shortcut))
    return quantize(graph, f"{prefix}block_output", graph.node("Add", y, shortcut), block.output)


def onnxruntime_conv(graph: GraphBuilder, name: str, x: str, conv: Int8Conv) -> str:
    """Adds a convolution in integers: uint8 on ``conv.takes`` to uint8 on ``conv.gives``."""
    if conv.clamp is not None:
        ends = {"low": conv.takes.level(conv.clamp.low), "high": conv.takes.level(conv.clamp.high)}
        if tuple(ends.values()) != (0, UINT8_MAX):
            x = graph.node("Clip", x, *(graph.constant(f"{name}_{end}", np.uint8(v)) for end, v in ends.items()))
    weight = _scaled(graph, f"{name}_weight", conv.weight, conv.weight_scale)
    bias = _scaled(graph, f"{name}_bias", conv.bias, conv.bias_scale)
    x = dequantize(graph, f"{name}_input", x, conv.takes)
    y = graph.node("Conv", x, weight, bias, **conv_attributes(conv.window))
    return quantize(graph, f"{name}_output", y, conv.gives)


def tensorrt_engine(name: str, block: Int8Block) -> bytes:
    """An INT8 block for TensorRT: int8 throughout, float32 features at both ends."""
    graph = GraphBuilder(name, TENSORRT.opset)
    features = graph.input("features", np.float32, (BATCH, *block.shape.in_shape))
    return finish(graph, tensorrt_block(graph, features, block), block.shape.out_shape, TENSORRT)


def tensorrt_block(graph: GraphBuilder, features: str, block: Int8Block, prefix: str = "") -> str:
    """Adds a block in TensorRT's arithmetic, from float32 features to float32; see ``onnxruntime_block``."""
    rounded: dict[tuple[str, float], str] = {}

    def round_to(name: str, value: str, grid: Grid | None) -> str:
        if grid is None:
            return value
        key = (value, grid.scale)  # one pair of nodes for all that round a value alike
        if key not in rounded:
            rounded[key] = quantized(graph, prefix + name, value, grid)
        return rounded[key]

    def convolve(name: str, x: str, conv: Int8Conv) -> str:
        if conv.clamp is not None:
            ends = {"low": conv.clamp.low, "high": conv.clamp.high}
            constants = (graph.constant(f"{prefix}{name}_input_{end}", np.float32(v)) for end, v in ends.items())
            x = graph.node("Clip", x, *constants)
        return tensorrt_conv(graph, prefix + name, round_to(f"{name}_input", x, conv.takes), conv)

    y = features
    for i, conv in enumerate(block.branch, 1):
        y = convolve(f"conv{i}", y, conv)
        if i < len(block.branch):
            y = graph.node("Relu", y)
    if block.projection is not None:
        shortcut = round_to("shortcut", convolve("projection", features, block.projection), block.projection.gives)
    else:
        shortcut = round_to("shortcut", features, block.shortcut)
    return graph.node("Relu", graph.node("Add", y, shortcut))


def tensorrt_conv(graph: GraphBuilder, name: str, x: str, conv: Int8Conv) -> str:
    """Adds a convolution of a value that ``quantized`` rounded to ``conv.takes``."""
    weight = _scaled(graph, f"{name}_weight", conv.weight, conv.weight_scale)
    bias = graph.constant(f"{name}_bias", conv.bias)
    return graph.node("Conv", x, weight, bias, **conv_attributes(conv.window))


def quantize(graph: GraphBuilder, name: str, value: str, grid: Grid | None) -> str:
    """A float32 value as integers on a grid; as it is without one."""
    return value if grid is None else graph.node("QuantizeLinear", value, *grid_constants(graph, name, grid))


def dequantize(graph: GraphBuilder, name: str, value: str, grid: Grid | None) -> str:
    """Integers on a grid as float32; a value without a grid as it is."""
    return value if grid is None else graph.node("DequantizeLinear", value, *grid_constants(graph, name, grid))


def quantized(graph: GraphBuilder, name: str, value: str, grid: Grid) -> str:
    """A float32 value rounded to a grid, as float32."""
    return dequantize(graph, name, quantize(graph, name, value, grid), grid)


def _scaled(
    graph: GraphBuilder, name: str, levels: NDArray[np.int8 | np.int32 | np.float32], scale: NDArray[np.float32]
) -> str:
    """Integer constants as float32, with one scale per channel of the first axis and zero point 0."""
    return graph.node(
        "DequantizeLinear",
        graph.constant(name, levels),
        graph.constant(f"{name}_scale", scale),
        graph.constant(f"{name}_zero_point", np.zeros(len(scale), levels.dtype)),
        axis=0,
    )
