"""INT8 blocks as explicit Q/DQ: what the runtimes share, and the layout that ONNX Runtime takes.

ONNX Runtime on a CPU is fast with uint8 activations and int8 weights per output channel, and runs a convolution in
integers only where input, weight, bias and output all carry Q/DQ. TensorRT takes another layout:
:mod:`dfs_deploy.exporters.quantized_tensorrt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import cast

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.calibration import CalibratedRange, TensorKey, TensorName
from dfs_deploy.exporters.engines import BATCH, Grid, conv_attributes, grid_constants, uint8_input
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.exporters.split import BlockPart, ConvPart, Range

UINT8_STEPS = 255
INT32_LIMIT = 2**31 - 1
Scales = NDArray[np.float32]


@dataclass(frozen=True)
class BlockRanges:
    """Calibrated intervals of one block at one option.

    Attributes:
        conv1: input of the first convolution.
        conv2: input of the second.
        conv2_out: output of the second, normalised.
        projection: input of the projection, where there is one.
        projection_out: its output, normalised.
        shortcut: input of a block without a projection, which it adds at its end, not clamped.
        output: output of the block; every block of a group shares one, so that a skip passes its grid on.
    """

    conv1: Range
    conv2: Range
    conv2_out: Range
    output: Range
    projection: Range | None = None
    projection_out: Range | None = None
    shortcut: Range | None = None

    @staticmethod
    def calibrated(ranges: Mapping[TensorKey, CalibratedRange], block: int, option: int) -> BlockRanges:
        """Picks those of a block at an option, each by its index, out of all that calibration gave."""
        keys = {field.name: TensorKey(block, option, cast(TensorName, field.name)) for field in fields(BlockRanges)}
        found = {name: ranges[key] for name, key in keys.items() if key in ranges}
        return BlockRanges(**{name: Range(value.low, value.high) for name, value in found.items()})


def uint8_grid(interval: Range) -> Grid:
    """The uint8 grid over an interval, moved so that zero is on it."""
    interval = interval.including_zero()
    scale = max((interval.high - interval.low) / UINT8_STEPS, float(np.finfo(np.float32).tiny))
    return Grid(float(np.float32(scale)), round(-interval.low / scale))


def quantize_weight(
    weight: NDArray[np.float32], bits: int, least: NDArray[np.floating] | float = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds a weight to symmetric integers, a scale for each output channel.

    Args:
        weight: (out, in, k, k) float32.
        bits: 8, or 7 for CPUs whose 8-bit products saturate in 16 bits (x86 without VNNI).
        least: scale that a channel has at least; (out,) or one for all.

    Returns:
        (out, in, k, k) int8 and (out,) float32 scales.
    """
    limit = (1 << (bits - 1)) - 1
    largest = np.abs(weight).max(axis=(1, 2, 3)).astype(np.float64)
    scale = np.maximum(np.where(largest > 0, largest, 1.0) / limit, least).astype(np.float32)
    levels = np.rint(weight / scale[:, None, None, None].astype(np.float64))
    return np.clip(levels, -limit, limit).astype(np.int8), scale


def dequantized_weight(graph: GraphBuilder, name: str, levels: NDArray[np.signedinteger], scale: Scales) -> str:
    """Integer constants as float32, a scale for each channel of the first axis, zero point 0."""
    return graph.node(
        "DequantizeLinear",
        graph.constant(name, levels),
        graph.constant(f"{name}_scale", scale),
        graph.constant(f"{name}_zero_point", np.zeros(len(scale), levels.dtype)),
        axis=0,
    )


def clamped(interval: Range, part: ConvPart) -> Range:
    """What a convolution's input is clamped to.

    A calibrated interval that leaves zero out only says what the data was; the grid holds zero in any case. A
    checkpoint's that lies above zero is part of what its option computes.
    """
    own = part.saturates.low if part.saturates is not None else 0.0
    return Range(interval.low if interval.low < 0.0 else max(own, 0.0), max(interval.high, 0.0))


def onnxruntime_block(name: str, block: BlockPart, ranges: BlockRanges, grid: Grid | None, weight_bits: int) -> bytes:
    """An INT8 block for ONNX Runtime, ending in uint8 on the grid of ``ranges.output``.

    Args:
        name: name of the graph.
        block: the block as its option computes it.
        ranges: calibrated intervals.
        grid: grid of a uint8 input, (N, H, W, C); or ``None`` for float32, (N, C, H, W). The output is uint8, channels
            last, and the sum is made channels last, where ONNX Runtime's convolutions leave it. From float32 the
            shortcut stays float32, since what a skipped stride block passes on is negative in parts, which the grid of
            a block's output cannot hold.
        weight_bits: 8 or 7.
    """
    shape, graph = block.shape, GraphBuilder(name)
    if grid is None:
        features = graph.input("features", np.float32, (BATCH, *shape.in_shape))
    else:
        features = uint8_input(graph, shape.in_channels, shape.in_shape[1:])
    writer = OnnxRuntimeWriter(graph, weight_bits)
    y, shortcut = writer.summands(features, grid, block, ranges)
    y, shortcut = (graph.node("Transpose", x, perm=[0, 2, 3, 1]) for x in (y, shortcut))
    graph.output(
        writer.join(y, shortcut, ranges), "output", np.uint8, (BATCH, *shape.out_shape[1:], shape.out_channels)
    )
    return graph.build()


class OnnxRuntimeWriter:
    """Adds INT8 nodes in ONNX Runtime's layout to a graph.

    Args:
        graph: graph to add them to.
        weight_bits: 8 or 7.
        prefix: beginning of the names of constants, so that several blocks can share a graph.
    """

    def __init__(self, graph: GraphBuilder, weight_bits: int, prefix: str = "") -> None:
        self._graph = graph
        self._weight_bits = weight_bits
        self._prefix = prefix
        self._quantized: dict[str, str] = {}

    def block(self, features: str, grid: Grid | None, block: BlockPart, ranges: BlockRanges) -> str:
        """A residual block, from float32 (no grid) or uint8 features to uint8 on :func:`output_grid`."""
        y, shortcut = self.summands(features, grid, block, ranges)
        return self.join(y, shortcut, ranges)

    def join(self, y: str, shortcut: str, ranges: BlockRanges) -> str:
        """The end of a block: adds, and rounds to uint8; clamping at zero is the relu."""
        return self.quantize("block_output", self._graph.node("Add", y, shortcut), output_grid(ranges))

    def summands(self, features: str, grid: Grid | None, block: BlockPart, ranges: BlockRanges) -> tuple[str, str]:
        """What a block adds at its end, as float32: the output of its second convolution, and its shortcut."""

        def conv_input(conv: str, part: ConvPart, calibrated: Range) -> tuple[str, Grid]:
            interval = clamped(calibrated, part)
            if grid is not None:
                return self._clip(conv, features, grid, interval), grid
            own = uint8_grid(interval)
            # One tensor, quantised once, where both convolutions that read it saturate alike.
            name = "conv1_input" if interval == clamped(ranges.conv1, block.conv1) else f"{conv}_input"
            y = self.quantize(name, features, own)
            return (self._clip(conv, y, own, interval) if interval.low > 0.0 else y), own

        hidden, out = uint8_grid(Range(0.0, ranges.conv2.high)), uint8_grid(ranges.conv2_out)
        y, y_grid = conv_input("conv1", block.conv1, ranges.conv1)
        y = self.conv("conv1", y, y_grid, block.conv1, hidden)  # clamping at zero is the relu
        y = self._clip("conv2", y, hidden, clamped(ranges.conv2, block.conv2))
        y = self.dequantize("conv2_output", self.conv("conv2", y, hidden, block.conv2, out), out)
        if block.projection is not None:
            assert ranges.projection is not None and ranges.projection_out is not None  # noqa: S101 (one calibration)
            shortcut, shortcut_grid = conv_input("projection", block.projection, ranges.projection)
            projected = uint8_grid(ranges.projection_out)
            shortcut = self.conv("projection", shortcut, shortcut_grid, block.projection, projected)
            shortcut = self.dequantize("projection_output", shortcut, projected)
        else:
            shortcut = features if grid is None else self.dequantize("features", features, grid)
        return y, shortcut

    def quantize(self, name: str, value: str, grid: Grid) -> str:
        """A float32 value on a grid; asked for twice under one name, made once."""
        if name not in self._quantized:
            constants = grid_constants(self._graph, self._prefix + name, grid)
            self._quantized[name] = self._graph.node("QuantizeLinear", value, *constants)
        return self._quantized[name]

    def dequantize(self, name: str, value: str, grid: Grid) -> str:
        """A uint8 value as float32."""
        return self._graph.node("DequantizeLinear", value, *grid_constants(self._graph, self._prefix + name, grid))

    def conv(self, name: str, x: str, grid: Grid, part: ConvPart, out: Grid) -> str:
        """A convolution in integers: uint8 in, uint8 out."""
        graph, prefix = self._graph, self._prefix + name
        # The bias is counted in products of both scales and must fit 32 bits, also where a channel's weights or all
        # that was seen of the input are next to nothing; a coarser weight then loses nothing that shows.
        levels, scale = quantize_weight(part.weight, self._weight_bits, np.abs(part.bias) / grid.scale / INT32_LIMIT)
        bias_scale = scale.astype(np.float64) * grid.scale
        bias = np.clip(np.rint(part.bias / bias_scale), -INT32_LIMIT, INT32_LIMIT).astype(np.int32)
        weight = dequantized_weight(graph, f"{prefix}_weight", levels, scale)
        offset = dequantized_weight(graph, f"{prefix}_bias", bias, bias_scale.astype(np.float32))
        y = graph.node("Conv", self.dequantize(f"{name}_input", x, grid), weight, offset, **conv_attributes(part))
        return self.quantize(f"{name}_output", y, out)

    def _clip(self, name: str, value: str, grid: Grid, interval: Range) -> str:
        """Saturates uint8 values where the interval ends before the grid does."""
        low, high = (round(end / grid.scale) + grid.zero_point for end in (interval.low, interval.high))
        low, high = max(low, 0), min(high, UINT8_STEPS)
        if (low, high) == (0, UINT8_STEPS):
            return value
        prefix = self._prefix + name
        if name not in self._quantized:
            ends = [self._graph.constant(f"{prefix}_{end}", np.uint8(v)) for end, v in (("low", low), ("high", high))]
            self._quantized[name] = self._graph.node("Clip", value, *ends)
        return self._quantized[name]


def output_grid(ranges: BlockRanges) -> Grid:
    """The grid of a block's output, which a relu keeps from being negative."""
    return uint8_grid(Range(0.0, ranges.output.high))
