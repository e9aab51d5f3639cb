"""INT8 block graphs as explicit Q/DQ, in the form that each runtime takes.

ONNX Runtime on a CPU is fast with uint8 activations and int8 weights per output channel, and runs a convolution in
integers only where input, weight, bias and output all carry Q/DQ. TensorRT takes int8 alone, zero point 0, no
quantised bias, and at a residual Add a Q/DQ on the shortcut and none on the convolution, so that conv, add and relu
become one kernel ("Working with Quantized Types", NVIDIA TensorRT documentation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.exporters.engines import BATCH, Grid, conv_attributes, grid_constants
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.exporters.split import BlockPart, ConvPart, Range

UINT8_STEPS = 255
INT8_LIMIT = 127


@dataclass(frozen=True)
class BlockRanges:
    """Calibrated intervals of one block at one option.

    Attributes:
        conv1: input of the first convolution.
        conv2: input of the second.
        conv2_out: output of the second, normalised.
        projection: input of the projection, where there is one.
        projection_out: its output, normalised.
        output: output of the block; every block of a group shares one, so that a skip passes its grid on.
    """

    conv1: Range
    conv2: Range
    conv2_out: Range
    output: Range
    projection: Range | None = None
    projection_out: Range | None = None


def uint8_grid(interval: Range) -> Grid:
    """The uint8 grid over an interval, moved so that zero is on it."""
    interval = interval.including_zero()
    scale = max((interval.high - interval.low) / UINT8_STEPS, float(np.finfo(np.float32).tiny))
    return Grid(float(np.float32(scale)), round(-interval.low / scale))


def quantize_weight(weight: NDArray[np.float32], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds a weight to symmetric integers, a scale for each output channel.

    Args:
        weight: (out, in, k, k) float32.
        bits: 8, or 7 for CPUs whose 8-bit products saturate in 16 bits (x86 without VNNI).

    Returns:
        (out, in, k, k) int8 and (out,) float32 scales.
    """
    limit = (1 << (bits - 1)) - 1
    largest = np.abs(weight).max(axis=(1, 2, 3)).astype(np.float64)
    scale = (np.where(largest > 0, largest, 1.0) / limit).astype(np.float32)
    levels = np.rint(weight / scale[:, None, None, None].astype(np.float64))
    return np.clip(levels, -limit, limit).astype(np.int8), scale


def onnxruntime_block(name: str, block: BlockPart, ranges: BlockRanges, grid: Grid | None, weight_bits: int) -> bytes:
    """An INT8 block for ONNX Runtime, ending in uint8 on the grid of ``ranges.output``.

    Args:
        name: of the graph.
        block: the block as its option computes it.
        ranges: calibrated intervals.
        grid: of a uint8 input, or ``None`` for float32. From float32 the shortcut stays float32, since what a skipped
            stride block passes on is negative in parts, which the grid of a block's output cannot hold.
        weight_bits: 8 or 7.
    """
    shape, writer = block.shape, _OnnxRuntimeWriter(GraphBuilder(name), weight_bits)
    graph = writer.graph
    features_shape = (BATCH, shape.in_channels, *shape.in_size)
    features = graph.input("features", np.float32 if grid is None else np.uint8, features_shape)
    out_grid = uint8_grid(Range(0.0, ranges.output.high))

    def conv_input(conv: str, interval: Range) -> tuple[str, Grid]:
        if grid is None:
            own = uint8_grid(interval)
            # One tensor, quantised once, where both convolutions that read it saturate alike.
            label = "conv1" if interval == ranges.conv1 else conv
            return writer.quantize(f"{label}_input", features, own), own
        return writer.clip(conv, features, grid, interval), grid

    y, y_grid = conv_input("conv1", ranges.conv1)
    hidden = uint8_grid(Range(0.0, ranges.conv2.high))
    y = writer.conv("conv1", y, y_grid, block.conv1, hidden)  # clamping at zero is the relu
    out = uint8_grid(ranges.conv2_out)
    y = writer.dequantize("conv2_output", writer.conv("conv2", y, hidden, block.conv2, out), out)
    if block.projection is not None:
        assert ranges.projection is not None and ranges.projection_out is not None  # noqa: S101 (calibrated together)
        shortcut, shortcut_grid = conv_input("projection", ranges.projection)
        projected = uint8_grid(ranges.projection_out)
        shortcut = writer.conv("projection", shortcut, shortcut_grid, block.projection, projected)
        shortcut = writer.dequantize("projection_output", shortcut, projected)
    else:
        shortcut = features if grid is None else writer.dequantize("features", features, grid)
    output = writer.quantize("block_output", graph.node("Add", y, shortcut), out_grid)  # clamping at zero is the relu
    graph.output(output, "output", np.uint8, (BATCH, shape.out_channels, *shape.out_size))
    return graph.build()


class _OnnxRuntimeWriter:
    def __init__(self, graph: GraphBuilder, weight_bits: int) -> None:
        self.graph = graph
        self._weight_bits = weight_bits
        self._quantized: dict[str, str] = {}

    def quantize(self, name: str, value: str, grid: Grid) -> str:
        if name not in self._quantized:
            constants = grid_constants(self.graph, name, grid)
            self._quantized[name] = self.graph.node("QuantizeLinear", value, *constants)
        return self._quantized[name]

    def dequantize(self, name: str, value: str, grid: Grid) -> str:
        return self.graph.node("DequantizeLinear", value, *grid_constants(self.graph, name, grid))

    def clip(self, name: str, value: str, grid: Grid, interval: Range) -> str:
        """Saturates uint8 values where the interval ends before the grid does."""
        low, high = (round(end / grid.scale) + grid.zero_point for end in (interval.low, interval.high))
        low, high = max(low, 0), min(high, UINT8_STEPS)
        if (low, high) == (0, UINT8_STEPS):
            return value
        bounds = (self.graph.constant(f"{name}_{end}", np.uint8(v)) for end, v in (("low", low), ("high", high)))
        return self.graph.node("Clip", value, *bounds)

    def conv(self, name: str, x: str, grid: Grid, part: ConvPart, out: Grid) -> str:
        """A convolution in integers: uint8 in, uint8 out."""
        graph = self.graph
        levels, scale = quantize_weight(part.weight, self._weight_bits)
        bias_scale = scale.astype(np.float64) * grid.scale
        bias = np.clip(np.rint(part.bias / bias_scale), -(2**31), 2**31 - 1).astype(np.int32)
        weight = graph.node(
            "DequantizeLinear",
            graph.constant(f"{name}_weight", levels),
            graph.constant(f"{name}_weight_scale", scale),
            graph.constant(f"{name}_weight_zero_point", np.zeros(len(scale), np.int8)),
            axis=0,
        )
        offset = graph.node(
            "DequantizeLinear",
            graph.constant(f"{name}_bias", bias),
            graph.constant(f"{name}_bias_scale", bias_scale.astype(np.float32)),
            graph.constant(f"{name}_bias_zero_point", np.zeros(len(scale), np.int32)),
            axis=0,
        )
        y = graph.node("Conv", self.dequantize(f"{name}_input", x, grid), weight, offset, **conv_attributes(part))
        return self.quantize(f"{name}_output", y, out)


def tensorrt_block(name: str, block: BlockPart, ranges: BlockRanges) -> bytes:
    """An INT8 block for TensorRT: symmetric int8 throughout, float32 features at both ends.

    Args:
        name: of the graph.
        block: the block as its option computes it.
        ranges: calibrated intervals; each is widened to be symmetric about zero.
    """
    shape, graph = block.shape, GraphBuilder(name)
    features = graph.input("features", np.float32, (BATCH, shape.in_channels, *shape.in_size))

    def quantize(label: str, value: str, interval: Range) -> str:
        largest = max(abs(interval.low), abs(interval.high), float(np.finfo(np.float32).tiny))
        scale = np.float32(largest / INT8_LIMIT)
        constants = (
            graph.constant(f"{label}_scale", scale),
            graph.constant(f"{label}_zero_point", np.int8(0)),
        )
        return graph.node("DequantizeLinear", graph.node("QuantizeLinear", value, *constants), *constants)

    def conv_input(label: str, interval: Range) -> str:
        x = features
        if interval.low < 0.0:
            # Only then may the features be negative; a symmetric grid would not saturate them where the option does.
            bounds = (interval.low, interval.high)
            ends = [graph.constant(f"{label}_{n}", np.float32(v)) for n, v in zip(("low", "high"), bounds, strict=True)]
            x = graph.node("Clip", features, *ends)
        return quantize(label, x, interval)

    def conv(label: str, x: str, part: ConvPart) -> str:
        levels, scale = quantize_weight(part.weight, 8)
        weight = graph.node(
            "DequantizeLinear",
            graph.constant(f"{label}_weight", levels),
            graph.constant(f"{label}_weight_scale", scale),
            graph.constant(f"{label}_weight_zero_point", np.zeros(len(scale), np.int8)),
            axis=0,
        )
        return graph.node("Conv", x, weight, graph.constant(f"{label}_bias", part.bias), **conv_attributes(part))

    y = graph.node("Relu", conv("conv1", conv_input("conv1_input", ranges.conv1), block.conv1))
    y = conv("conv2", quantize("conv2_input", y, ranges.conv2), block.conv2)
    if block.projection is not None:
        assert ranges.projection is not None and ranges.projection_out is not None  # noqa: S101 (calibrated together)
        shortcut = conv("projection", conv_input("projection_input", ranges.projection), block.projection)
        shortcut = quantize("shortcut", shortcut, ranges.projection_out)
    else:
        # The shortcut is not saturated by the option, so its range is that of the features themselves.
        shortcut = quantize("shortcut", features, ranges.output)
    output = graph.node("Relu", graph.node("Add", y, shortcut))
    graph.output(output, "output", np.float32, (BATCH, shape.out_channels, *shape.out_size))
    return graph.build()
