"""INT8 blocks as explicit Q/DQ in the layout that TensorRT takes.

TensorRT takes int8 alone, zero point 0, a scale a tensor for activations and a scale an output channel for weights, no
quantised bias, and at a residual Add a Q/DQ on the shortcut and none on the convolution, so that conv, add and relu
become one kernel ("Working with Quantized Types", NVIDIA TensorRT documentation).
:mod:`dfs_deploy.exporters.tensorrt_lint` holds every graph to that.
"""

from __future__ import annotations

import numpy as np

from dfs_deploy.exporters.engines import BATCH, TENSORRT, conv_attributes, finish
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.exporters.quantized import BlockRanges, clamped, dequantized_weight, quantize_weight
from dfs_deploy.exporters.split import BlockPart, ConvPart, Range

INT8_LIMIT = 127
LEAST_SCALE = float(np.finfo(np.float32).tiny)
"""A GPU takes a smaller number for zero, and a scale must be positive."""


def tensorrt_block(name: str, block: BlockPart, ranges: BlockRanges) -> bytes:
    """An INT8 block for TensorRT: symmetric int8 throughout, float32 features at both ends.

    Args:
        name: name of the graph.
        block: the block as its option computes it.
        ranges: calibrated intervals; each is widened to be symmetric about zero.
    """
    shape, graph = block.shape, GraphBuilder(name, TENSORRT.opset)
    features = graph.input("features", np.float32, (BATCH, *shape.in_shape))
    return finish(graph, TensorRTWriter(graph).block(features, block, ranges), shape, TENSORRT)


class TensorRTWriter:
    """Adds INT8 nodes in TensorRT's layout to a graph.

    Args:
        graph: graph to add them to.
        prefix: beginning of the names of constants, so that several blocks can share a graph.
    """

    def __init__(self, graph: GraphBuilder, prefix: str = "") -> None:
        self._graph = graph
        self._prefix = prefix
        self._rounded: dict[tuple[str, float], str] = {}

    def block(self, features: str, block: BlockPart, ranges: BlockRanges) -> str:
        """A residual block, from float32 features to float32."""
        y = self._graph.node("Relu", self._conv("conv1", features, block.conv1, ranges.conv1))
        hidden = clamped(ranges.conv2, block.conv2)
        if hidden.low > 0.0:  # else the relu clamps as the option does
            y = self._clip("conv2", y, hidden)
        y = self.conv("conv2", self.quantize("conv2_input", y, hidden), block.conv2)
        if block.projection is not None:
            assert ranges.projection is not None and ranges.projection_out is not None  # noqa: S101 (one calibration)
            shortcut = self._conv("projection", features, block.projection, ranges.projection)
            shortcut = self.quantize("shortcut", shortcut, ranges.projection_out)
        else:
            assert ranges.shortcut is not None  # noqa: S101 (calibrated together)
            shortcut = self.quantize("shortcut", features, ranges.shortcut)
        return self._graph.node("Relu", self._graph.node("Add", y, shortcut))

    def conv(self, name: str, x: str, part: ConvPart) -> str:
        """A convolution of a value that :meth:`quantize` gave."""
        levels, scale = quantize_weight(part.weight, 8, LEAST_SCALE)
        weight = dequantized_weight(self._graph, f"{self._prefix}{name}_weight", levels, scale)
        bias = self._graph.constant(f"{self._prefix}{name}_bias", part.bias)
        return self._graph.node("Conv", x, weight, bias, **conv_attributes(part))

    def quantize(self, name: str, value: str, interval: Range) -> str:
        """A float32 value rounded to int8, as float32; one pair of nodes for all that round a value alike."""
        scale = np.float32(max(max(abs(interval.low), abs(interval.high)) / INT8_LIMIT, LEAST_SCALE))
        key = (value, float(scale))
        if key not in self._rounded:
            constants = (
                self._graph.constant(f"{self._prefix}{name}_scale", scale),
                self._graph.constant(f"{self._prefix}{name}_zero_point", np.int8(0)),
            )
            rounded = self._graph.node("QuantizeLinear", value, *constants)
            self._rounded[key] = self._graph.node("DequantizeLinear", rounded, *constants)
        return self._rounded[key]

    def _conv(self, name: str, features: str, part: ConvPart, calibrated: Range) -> str:
        interval = clamped(calibrated, part)
        if part.saturates is not None:
            # What a skipped stride block passes on is negative in parts, and a symmetric grid would not saturate it
            # where the option does.
            features = self._clip(name, features, interval)
        return self.conv(name, self.quantize(f"{name}_input", features, interval), part)

    def _clip(self, name: str, value: str, interval: Range) -> str:
        ends = [
            self._graph.constant(f"{self._prefix}{name}_input_{end}", np.float32(v))
            for end, v in (("low", interval.low), ("high", interval.high))
        ]
        return self._graph.node("Clip", value, *ends)
