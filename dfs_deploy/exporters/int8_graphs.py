"""Parts in INT8 as ONNX graphs of QuantizeLinear and DequantizeLinear, written from ``Int8Part``.

ONNX Runtime makes one integer operator of a layer between DequantizeLinear and QuantizeLinear: QLinearConv, QGemm,
QLinearAdd, QLinearMul, QLinearGlobalAveragePool and so on, or the layer itself on integers if it only passes values on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import InternalError
from dfs_deploy.exporters.engines import FEATURES, TENSORRT, grid_constants, part_engine
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.exporters.int8 import UINT8_MAX, Grid, Int8Layer, Int8Part, Int8Weight
from dfs_deploy.exporters.layers import conv_attributes, float_layer
from dfs_deploy.exporters.split import Layer
from dfs_deploy.models.graph import INPUT

_HARD_SIGMOID_SLOPE = 1.0 / 6.0
_HARD_SIGMOID_MIDDLE = 0.5

LEAST_CHANNELS = 4
"""Channels that ONNX Runtime's integer convolution reads at once; of fewer it first copies all windows together."""


def onnxruntime_engine(name: str, part: Int8Part, source: str = FEATURES) -> bytes:
    """A part for ONNX Runtime as a model; its ends are those of ``part_engine``."""

    def body(graph: GraphBuilder, x: str) -> str:
        return onnxruntime_part(graph, x, part, channels_last=part.gives is not None)

    return part_engine(name, part.part, body, takes=part.takes, gives=part.gives, source=source)


def tensorrt_engine(name: str, part: Int8Part, source: str = FEATURES) -> bytes:
    """A part for TensorRT as a model: int8 inside, float32 at both ends."""
    return part_engine(name, part.part, lambda graph, x: tensorrt_part(graph, x, part), TENSORRT, source=source)


def onnxruntime_part(graph: GraphBuilder, x: str, part: Int8Part, prefix: str = "", channels_last: bool = False) -> str:
    """Adds a part in ONNX Runtime's arithmetic; returns its output, uint8 on ``part.gives`` or float32.

    Args:
        graph: graph to add it to.
        x: float32 or, if the part takes a grid, uint8; channels first.
        part: made by ``Int8Part.for_onnxruntime``.
        prefix: beginning of the names of constants, so that several parts can share a graph.
        channels_last: whether the output, a feature map, lies channels last.
    """
    writer = _Uint8Writer(graph, part, prefix, {INPUT: _Value(x, part.takes)})
    for step in part.layers:
        writer.add(step)
    return writer.result(channels_last)


def tensorrt_part(graph: GraphBuilder, x: str, part: Int8Part, prefix: str = "") -> str:
    """Adds a part in TensorRT's arithmetic, from float32 to float32; see ``onnxruntime_part``."""
    writer = _Int8Writer(graph, part, prefix, {INPUT: x})
    for step in part.layers:
        writer.add(step)
    return writer.values[part.part.output]


@dataclass(frozen=True)
class _Value:
    """A value in a graph: its name there, and its grid, or ``None`` for float32."""

    name: str
    grid: Grid | None


@dataclass
class _Uint8Writer:
    """A graph for ONNX Runtime in the making.

    Attributes:
        graph: the graph.
        part: part that is added to it.
        prefix: beginning of the names of constants.
        values: values so far, by name.
        rounded: names of float32 values on grids, so that one value is rounded once for all that read it alike.
    """

    graph: GraphBuilder
    part: Int8Part
    prefix: str
    values: dict[str, _Value]
    rounded: dict[tuple[str, Grid], str] = field(default_factory=dict)

    def add(self, step: Int8Layer) -> None:
        """Adds a step."""
        layer, label = step.layer, self.prefix + step.layer.name
        if layer.operator in ("relu", "clip") and not step.floats:
            result = self._integers(layer.inputs[0], step.takes[0])
        elif layer.operator == "pad" and step.gives is not None:
            pads = layer.numbers("pads")
            x = self._integers(layer.inputs[0], step.gives)
            result = self._padded(label, x, pads[3:], step.gives, before=pads[:3])
        else:
            result = quantize(self.graph, f"{label}_output", self._computed(step, label), step.gives)
        if step.gives is not None and step.limits is not None:
            result = self._clipped(f"{label}_limit", result, step.gives.levels(step.limits))
        self.values[step.name] = _Value(result, step.gives)

    def result(self, channels_last: bool) -> str:
        """The part's output."""
        name, grid = self.part.part.output, self.part.gives
        result = self._float(name) if grid is None else self._integers(name, grid)
        return self.graph.node("Transpose", result, perm=[0, 2, 3, 1]) if channels_last else result

    def _computed(self, step: Int8Layer, label: str) -> str:
        layer, inputs = step.layer, []
        for place, (name, grid) in enumerate(zip(layer.inputs, step.takes, strict=True)):
            if grid is None:
                inputs.append(self._float(name))
                continue
            x = self._integers(name, grid)
            if step.clamp is not None:
                x = self._clipped(f"{label}_input", x, grid.levels(step.clamp))
            if missing := _missing_channels(step):
                x = self._padded(f"{label}_input", x, (missing, 0, 0), grid)
            if layer.operator == "hard_sigmoid":  # the same integers on a grid of sixths
                grid = replace(grid, scale=float(np.float32(grid.scale * _HARD_SIGMOID_SLOPE)))
            inputs.append(dequantize(self.graph, f"{label}_input_{place}", x, grid))
        if step.weight is not None:
            weight, widths = step.weight, [(0, 0), (0, _missing_channels(step)), (0, 0), (0, 0)]
            if widths[1][1]:
                weight = replace(weight, levels=np.pad(weight.levels, widths))
            return weighted(self.graph, label, inputs[0], layer, weight, step.takes[0])
        if layer.operator == "hard_sigmoid" and not step.floats:  # the ends of the grid that it gives clamp
            half = Grid(_HARD_SIGMOID_MIDDLE / UINT8_MAX)
            levels = self.graph.constant(f"{label}_half", np.uint8(UINT8_MAX))
            return self.graph.node("Add", inputs[0], dequantize(self.graph, f"{label}_half", levels, half))
        return float_layer(self.graph, layer, inputs, self.part.part.sizes, np.float32, self.prefix)

    def _padded(
        self, label: str, x: str, after: tuple[int, ...], grid: Grid, before: tuple[int, ...] = (0, 0, 0)
    ) -> str:
        """A map of integers with zeros before and after its channels, rows and columns."""
        ends = self.graph.constant(f"{label}_pads", np.array([0, *before, 0, *after], np.int64))
        zero = self.graph.constant(f"{label}_zero", np.uint8(grid.zero_point))
        return self.graph.node("Pad", x, ends, zero)

    def _clipped(self, label: str, x: str, levels: tuple[int, int] | None) -> str:
        if levels is None:
            return x
        ends = zip(("low", "high"), levels, strict=True)
        return self.graph.node("Clip", x, *(self.graph.constant(f"{label}_{end}", np.uint8(v)) for end, v in ends))

    def _float(self, name: str) -> str:
        value = self.values[name]
        return dequantize(self.graph, f"{self.prefix}{name}_value", value.name, value.grid)

    def _integers(self, name: str, grid: Grid | None) -> str:
        """A value as integers on a grid."""
        if grid is None:
            raise InternalError(f"{self.part.part.name}: {name} has no grid to be read on")
        value = self.values[name]
        if value.grid == grid:
            return value.name
        key = (name, grid)
        if key not in self.rounded:
            label = f"{self.prefix}{name}_rounded_{len(self.rounded)}"
            self.rounded[key] = quantize(self.graph, label, self._float(name), grid)
        return self.rounded[key]


@dataclass
class _Int8Writer:
    """A graph for TensorRT in the making; attributes as of ``_Uint8Writer``, values in float32."""

    graph: GraphBuilder
    part: Int8Part
    prefix: str
    values: dict[str, str]
    rounded: dict[tuple[str, float], str] = field(default_factory=dict)

    def add(self, step: Int8Layer) -> None:
        """Adds a step."""
        layer, label = step.layer, self.prefix + step.layer.name
        inputs = [self.values[name] for name in layer.inputs]
        if step.clamp is not None:
            ends = {"low": step.clamp.low, "high": step.clamp.high}
            constants = (self.graph.constant(f"{label}_input_{end}", np.float32(v)) for end, v in ends.items())
            inputs[0] = self.graph.node("Clip", inputs[0], *constants)
        inputs = [self._rounded(label, x, grid) for x, grid in zip(inputs, step.takes, strict=True)]
        if step.weight is not None:
            result = weighted(self.graph, label, inputs[0], layer, step.weight, step.takes[0])
        else:
            result = float_layer(self.graph, layer, inputs, self.part.part.sizes, np.float32, self.prefix)
        self.values[step.name] = result

    def _rounded(self, label: str, value: str, grid: Grid | None) -> str:
        if grid is None:
            return value
        key = (value, grid.scale)  # one pair of nodes for all that round a value alike
        if key not in self.rounded:
            self.rounded[key] = quantized(self.graph, f"{label}_input", value, grid)
        return self.rounded[key]


def _missing_channels(step: Int8Layer) -> int:
    """Channels of zeros that a convolution of images is given, with weights of zero: its sums stay what they are."""
    weight = step.weight
    if weight is None or step.layer.operator != "conv" or step.takes[0] is None or step.layer.number("groups") != 1:
        return 0
    channels: int = weight.levels.shape[1]
    return max(LEAST_CHANNELS - channels, 0)


def weighted(graph: GraphBuilder, label: str, x: str, layer: Layer, weight: Int8Weight, takes: Grid | None) -> str:
    """Adds a convolution or linear layer with integer weights.

    Args:
        graph: graph to add it to.
        label: beginning of the names of its constants.
        x: its input, dequantised from ``takes``.
        layer: the layer.
        weight: its weights.
        takes: grid of the input.
    """
    levels = _scaled(graph, f"{label}_weight", weight.levels, weight.scale)
    if weight.bias.dtype == np.int32 and takes is not None:
        bias = _scaled(graph, f"{label}_bias", weight.bias, weight.bias_scale(takes))
    else:
        bias = graph.constant(f"{label}_bias", weight.bias)
    if layer.operator == "linear":
        return graph.node("Gemm", x, levels, bias, transB=1)
    return graph.node("Conv", x, levels, bias, **conv_attributes(layer))


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
