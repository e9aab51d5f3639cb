"""The arithmetic of a part in INT8, described once: the graphs of every runtime are written from this description.

The weights of an option are rounded to integers again, one scale per output channel; activations are rounded to grids
that calibration chose, and clamped where the option clamps. Which grids those are depends on the runtime:

- ONNX Runtime on a CPU is fast with uint8 activations, and runs a layer in integers only if what it reads and gives is
  rounded. The ends of a grid are then the relu or clip that follows a layer.
- TensorRT takes only int8 with zero point 0, one scale per tensor, no rounded bias, and at a residual addition a
  rounded shortcut and a convolution as it is, so that convolution, addition and activation become one kernel ("Working
  with Quantized Types", NVIDIA TensorRT documentation). ``dfs_deploy.exporters.tensorrt_lint`` holds every graph to
  that.

What the options compute in float, such as the small layers of squeeze-and-excitation, stays in float.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.calibration import Range
from dfs_deploy.errors import InternalError
from dfs_deploy.exporters.split import Layer, Part
from dfs_deploy.models.graph import INPUT, OPERATORS

UINT8_MAX = 255
INT8_LIMIT = 127
BIAS_LIMIT = 2**30
"""Greatest integer of a bias: half of what 32 bits hold, so that the sum of a layer's products still fits beside it."""

LEAST_SCALE = float(np.finfo(np.float32).tiny)
"""A GPU takes a smaller number for zero, and a scale must be positive."""

ValueRanges = Mapping[str, Range]
"""Calibrated intervals of the values of one part at one option, by name."""

PASSING = frozenset({"relu", "clip", "max_pool", "flatten", "unflatten", "slice", "pad"})
"""Operators that give values of the grid that they take, so that integers pass as they are."""

_GATED = {"hard_swish": "hard_sigmoid", "silu": "sigmoid"}
"""Activations that multiply their input by a function of it."""

_ARITHMETIC = frozenset({"add", "mul", "avg_pool", "global_avg_pool", "leaky_relu", "concat", *_GATED.values()})
"""Operators that ONNX Runtime computes from integers to integers, besides those with weights."""

_UNIT = Range(0.0, 1.0)
"""Of a sigmoid's values."""

_SWISH_LOW = -3.0
"""Hard swish is zero from here down (Howard et al. 2019, Section 5.2)."""


@dataclass(frozen=True)
class Grid:
    """Integers that stand for the values of a tensor: ``value = scale * (integer - zero_point)``.

    Attributes:
        scale: value of one step, exactly representable in float32.
        zero_point: integer that stands for zero.
        signed: whether the integers are int8; else they are uint8.
    """

    scale: float
    zero_point: int = 0
    signed: bool = False

    @classmethod
    def uint8(cls, interval: Range) -> Grid:
        """The 256 levels over an interval, moved so that zero is one of them."""
        interval = interval.including_zero()
        scale = max((interval.high - interval.low) / UINT8_MAX, LEAST_SCALE)
        return cls(float(np.float32(scale)), round(-interval.low / scale))

    @classmethod
    def int8(cls, interval: Range) -> Grid:
        """The levels over an interval that was widened to be symmetric about zero."""
        largest = max(abs(interval.low), abs(interval.high))
        return cls(float(np.float32(max(largest / INT8_LIMIT, LEAST_SCALE))), signed=True)

    @property
    def ends(self) -> Range:
        """Least and greatest value."""
        low, high = (-INT8_LIMIT - 1, INT8_LIMIT) if self.signed else (0, UINT8_MAX)
        return Range(self.scale * (low - self.zero_point), self.scale * (high - self.zero_point))

    def level(self, value: float) -> int:
        """The uint8 level nearest to a value."""
        steps = min(max(value / self.scale, -self.zero_point), UINT8_MAX - self.zero_point)
        return round(steps) + self.zero_point

    def levels(self, interval: Range) -> tuple[int, int] | None:
        """The uint8 levels nearest to the ends of an interval; ``None`` if it holds every level."""
        ends = self.level(interval.low), self.level(interval.high)
        return None if ends == (0, UINT8_MAX) else ends

    def quantize(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Rounds values to their uint8 levels."""
        with np.errstate(over="ignore"):  # a tensor that was always zero has next to no scale
            levels = np.rint(values / self.scale) + self.zero_point
        rounded: NDArray[np.uint8] = np.clip(levels, 0, UINT8_MAX).astype(np.uint8)
        return rounded

    def dequantize(self, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The values of uint8 levels."""
        shifted: NDArray[np.float32] = levels.astype(np.float32) - np.float32(self.zero_point)
        return shifted * np.float32(self.scale)


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """Integer weights of a convolution or a linear layer.

    Attributes:
        levels: int8 in the shape of the layer's weight; axis 0 counts output channels.
        scale: (out,) float32, value of one step of a channel's weights.
        bias: (out,) int32 in products of ``scale`` and the scale of the input, or float32 if it is added to the
            dequantised sum.
    """

    levels: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.int32] | NDArray[np.float32]

    def bias_scale(self, takes: Grid) -> NDArray[np.float32]:
        """(out,) float32, value of one step of the products of weight and input on a grid."""
        return _product_scale(self.scale, takes).astype(np.float32)

    @classmethod
    def for_onnxruntime(cls, layer: Layer, takes: Grid, bits: int) -> Int8Weight:
        """Weights of 8 or 7 bits and a bias in integers; a depthwise convolution has 8 in any case.

        The kernels of depthwise convolutions add up every product in 32 bits, so none saturates on any CPU, and with
        nine or 25 weights per channel each level counts.
        """
        weight, bias = _float_weight(layer)
        if layer.operator == "conv" and weight.shape[1] == 1 and len(weight) == layer.number("groups"):
            bits = 8
        # The bias is counted in products of both scales and must fit 32 bits with the sum, also where a channel's
        # weights or all that was seen of the input are next to nothing; a coarser weight then loses nothing that shows.
        levels, scale = quantize_weight(weight, bits, np.abs(bias) / takes.scale / BIAS_LIMIT)
        steps = np.rint(bias / _product_scale(scale, takes))
        return cls(levels, scale, np.clip(steps, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32))

    @classmethod
    def for_tensorrt(cls, layer: Layer) -> Int8Weight:
        """Weights of 8 bits and a bias in float32."""
        weight, bias = _float_weight(layer)
        return cls(*quantize_weight(weight, 8, LEAST_SCALE), bias)


def _float_weight(layer: Layer) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if layer.weight is None:
        raise InternalError(f"layer {layer.name} ({layer.operator}) has no weight to round")
    return layer.weight, np.zeros(len(layer.weight), np.float32) if layer.bias is None else layer.bias


@dataclass(frozen=True, eq=False)
class Int8Layer:
    """One step of a part in INT8.

    Attributes:
        layer: layer that it computes, in floats.
        name: name of the value that it gives: the layer's, or that of an activation folded into it.
        takes: grid to which each input is rounded; ``None`` for one that is read in float.
        clamp: interval to which the input is clamped; ``None`` if it is not, or the grid's ends do that.
        weight: integer weights; ``None`` for a layer without weights, or with weights in float.
        gives: grid to which the result is rounded; ``None`` if it stays float32.
        limits: interval to which the result is clamped by an activation; ``None`` if there is none.
    """

    layer: Layer
    name: str
    takes: tuple[Grid | None, ...]
    clamp: Range | None = None
    weight: Int8Weight | None = None
    gives: Grid | None = None
    limits: Range | None = None

    @property
    def floats(self) -> bool:
        """Whether it computes in float32."""
        return not any(self.takes)


@dataclass(frozen=True, eq=False)
class Int8Part:
    """A part of a network in INT8.

    Attributes:
        part: layers that it computes, in floats.
        layers: its steps, in order; activations that are folded into the layer before them have none.
        takes: grid on which the features arrive; ``None`` if they arrive in float32.
        gives: grid on which the output leaves; ``None`` if it leaves in float32.
    """

    part: Part
    layers: tuple[Int8Layer, ...]
    takes: Grid | None
    gives: Grid | None

    @classmethod
    def for_onnxruntime(
        cls, part: Part, ranges: ValueRanges, takes: Grid | None, gives: Grid | None, bits: int
    ) -> Int8Part:
        """A part for ONNX Runtime.

        From float32 features a shortcut stays float32: the output of a skipped stride block may be negative in parts,
        which the grid of a block's output need not hold.

        Args:
            part: layers that it computes.
            ranges: calibrated interval of every value in it.
            takes: grid on which the features arrive; ``None`` for float32.
            gives: grid on which the output leaves; ``None`` for float32.
            bits: bits of the weights, 8 or 7; see ``Int8Weight``.
        """
        plan = _Uint8Plan(part, ranges, takes, gives, bits)
        for layer in part.layers:
            plan.add(layer)
        return cls(part, tuple(plan.steps), takes, gives)

    @classmethod
    def for_tensorrt(cls, part: Part, ranges: ValueRanges) -> Int8Part:
        """A part for TensorRT, with float32 features at both ends; arguments as for ONNX Runtime."""
        plan = _Int8Plan(part, ranges)
        return cls(part, tuple(map(plan.step, part.layers)), None, None)

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Names of the convolutions and linear layers that compute in float."""
        return tuple(step.layer.name for step in self.layers if step.layer.weight is not None and step.weight is None)


class _Plan:
    """Values of a part: their ranges, who reads them, and whether they can be negative."""

    def __init__(self, part: Part, ranges: ValueRanges) -> None:
        self.part = part
        self.makers = {layer.name: layer for layer in part.layers}
        self.readers: dict[str, list[Layer]] = {name: [] for name in (INPUT, *self.makers)}
        for layer in part.layers:
            for name in dict.fromkeys(layer.inputs):
                self.readers[name].append(layer)
        self._ranges = ranges

    def range_of(self, name: str) -> Range:
        if name not in self._ranges:
            raise InternalError(f"{self.part.name}: no calibrated range of {name}, expected one of every value")
        return self._ranges[name]

    def taken(self, layer: Layer) -> Range:
        """The interval to which the input of a layer with weights is clamped.

        A calibrated interval that leaves zero out only says what the data was; the grid holds zero in any case. A
        checkpoint's that lies above zero is part of what its option computes.
        """
        seen, own = self.range_of(layer.inputs[0]), layer.saturates
        if own is None:
            return seen.including_zero()
        low, high = (min(max(end, own.low), own.high) for end in (seen.low, seen.high))
        return Range(low if low < 0.0 else max(own.low, 0.0), max(high, 0.0))

    def integer(self, layer: Layer) -> bool:
        """Whether a layer has weights that may be integers; linear layers of more than vectors stay in float."""
        vectors = layer.operator != "linear" or len(self.part.sizes[layer.inputs[0]]) == 1
        return layer.weight is not None and not layer.exact and vectors

    def read_only_by(self, name: str) -> Layer | None:
        """The one layer that reads a value, if there is one."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name != self.part.output else None

    def nonnegative(self, name: str) -> bool:
        """Whether a value of the part cannot be negative, whatever its input is."""
        maker = self.makers.get(name)
        if maker is None or (maker.operator == "clip" and maker.number("high") < 0.0):
            return False
        sign = OPERATORS[maker.operator].sign
        clipped = maker.operator == "clip" and maker.number("low") >= 0.0
        return sign == "nonnegative" or clipped or (sign == "same" and all(map(self.nonnegative, maker.inputs)))


class _Result(TypedDict):
    name: str
    gives: Grid
    limits: Range | None


def _limits(activation: Layer) -> Range:
    """The interval to which a relu or clip clamps."""
    if activation.operator == "relu":
        return Range(0.0, np.inf)
    return Range(activation.number("low"), activation.number("high"))


class _Uint8Plan(_Plan):
    """Steps of a part for ONNX Runtime, in the making.

    Attributes:
        steps: those made so far.
        grids: grid of each value that was made; ``None`` for one in float32.
    """

    def __init__(self, part: Part, ranges: ValueRanges, takes: Grid | None, gives: Grid | None, bits: int) -> None:
        super().__init__(part, ranges)
        self.bits = bits
        self.steps: list[Int8Layer] = []
        self.grids: dict[str, Grid | None] = {INPUT: takes}
        self._given = {} if gives is None else dict.fromkeys(self._passed_on(), gives)

    def _passed_on(self) -> Iterator[str]:
        """Names of the values that reach the part's output as they are."""
        name = self.part.output
        while True:
            yield name
            maker = self.makers.get(name)
            if maker is None or maker.operator not in PASSING or self.read_only_by(maker.inputs[0]) is None:
                return
            (name,) = maker.inputs

    def add(self, layer: Layer) -> None:
        """Adds what a layer computes, unless it was folded into the layer before it."""
        if layer.name in self.grids:
            return
        taken = [self.grids[name] for name in layer.inputs]
        if self.integer(layer):
            self._weighted(layer, taken[0])
        elif layer.operator in PASSING and taken[0] is not None:
            limits = _limits(layer) if layer.operator in ("relu", "clip") else None
            self._step(Int8Layer(layer, layer.name, tuple(taken), gives=taken[0], limits=limits))
        elif layer.operator in _GATED and taken[0] is not None:
            (source,) = layer.inputs
            gate = Layer(f"{layer.name}.gate", _GATED[layer.operator], layer.inputs)
            self._step(Int8Layer(gate, gate.name, tuple(taken), gives=Grid.uint8(_UNIT)))
            self._rounded(replace(layer, operator="mul", inputs=(source, gate.name), attributes={}))
        elif layer.operator in _ARITHMETIC and any(taken):
            self._rounded(layer)
        else:
            self._step(Int8Layer(layer, layer.name, (None,) * len(taken)))

    def _step(self, step: Int8Layer) -> None:
        self.steps.append(step)
        self.grids[step.layer.name] = self.grids[step.name] = step.gives

    def _weighted(self, layer: Layer, arrives: Grid | None) -> None:
        clamp = None
        if arrives is None:
            interval = self.taken(layer)
            takes = Grid.uint8(interval)
            clamp = interval if interval.low > 0.0 else None
        else:
            takes = arrives
            clamp = None if layer.saturates is None else self.taken(layer)
        weight = Int8Weight.for_onnxruntime(layer, takes, self.bits)
        if layer.operator == "linear" and layer.name == self.part.output and layer.name not in self._given:
            self._step(Int8Layer(layer, layer.name, (takes,), clamp, weight))  # in float32, as it is made
        else:
            self._step(Int8Layer(layer, takes=(takes,), clamp=clamp, weight=weight, **self._result(layer)))

    def _rounded(self, layer: Layer) -> None:
        """Adds a layer without weights that is computed from integers to integers."""
        takes = [self.grids[name] for name in layer.inputs]
        if layer.operator != "add":  # a float32 operand of an addition is added as it is
            takes = [grid or self._grid(name) for name, grid in zip(layer.inputs, takes, strict=True)]
        self._step(Int8Layer(layer, takes=tuple(takes), **self._result(layer)))

    def _result(self, layer: Layer) -> _Result:
        """Name, grid and limits of what a layer gives, an activation after it included."""
        own = _UNIT if layer.operator == "hard_sigmoid" else None  # which is computed without its ends
        after = self.read_only_by(layer.name)
        if own is not None or after is None or after.operator not in ("relu", "clip"):
            return {"name": layer.name, "gives": self._grid(layer.name), "limits": own}
        return {"name": after.name, "gives": self._grid(after.name), "limits": _limits(after)}

    def _grid(self, name: str) -> Grid:
        """The grid of a value."""
        if name in self._given:
            return self._given[name]
        seen, reader = self.range_of(name), self.read_only_by(name)
        if reader is not None and reader.operator == "hard_swish":
            seen = replace(seen, low=max(seen.low, _SWISH_LOW))
        maker = self.makers.get(name)
        if maker is not None and maker.operator in ("relu", "clip"):
            limits = _limits(maker)
            seen = Range(max(seen.low, limits.low), min(seen.high, limits.high))
        return Grid.uint8(seen)


class _Int8Plan(_Plan):
    """Steps of a part for TensorRT: rounded inputs of layers with weights, and rounded shortcuts; the rest in float."""

    def step(self, layer: Layer) -> Int8Layer:
        """What a layer computes."""
        if self.integer(layer):
            interval = self.taken(layer)
            grid = Grid.int8(interval)
            clamp = interval if layer.saturates is not None and self._exceeds(layer.inputs[0], grid, interval) else None
            return Int8Layer(layer, layer.name, (grid,), clamp, Int8Weight.for_tensorrt(layer))
        takes: list[Grid | None] = [None] * len(layer.inputs)
        summed = [
            place for place, name in enumerate(layer.inputs) if name in self.makers and self.integer(self.makers[name])
        ]
        if layer.operator == "add" and summed:
            whole = summed[0]
            takes[1 - whole] = Grid.int8(self.range_of(layer.inputs[1 - whole]))
        return Int8Layer(layer, layer.name, tuple(takes))

    def _exceeds(self, name: str, grid: Grid, interval: Range) -> bool:
        """Whether a symmetric grid holds values that an option clamps."""
        half, ends = grid.scale / 2, grid.ends
        low = 0.0 if self.nonnegative(name) else ends.low
        return interval.low > low + half or interval.high < ends.high - half


def quantize_weight(
    weight: NDArray[np.float32], bits: int, least: NDArray[np.floating] | float = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds a weight to symmetric integers, with one scale per output channel.

    A channel of 8 bits spans its greatest weight. One of 7 bits has half the levels; there the scale is the one, of a
    few that span less, that moves the weights least in the square.

    Args:
        weight: (out, ...) float32.
        bits: 8, or 7 for CPUs whose 8-bit products saturate in 16 bits (x86 without VNNI).
        least: least scale of a channel; (out,) or one for all.

    Returns:
        int8 in the shape of the weight and (out,) float32 scales.
    """
    rest = tuple(range(1, weight.ndim))
    largest = np.abs(weight).max(axis=rest).astype(np.float64)
    largest = np.where(largest > 0, largest, 1.0)
    levels, scale = _rounded(weight, largest, bits, least)
    if bits >= 8:
        return levels, scale
    error = _squared_error(weight, levels, scale)
    for share in _SHARES:
        others = _rounded(weight, largest * share, bits, least)
        moved = _squared_error(weight, *others)
        better = moved < error
        levels[better], scale[better] = (values[better] for values in others)
        error = np.minimum(error, moved)
    return levels, scale


_SHARES = np.linspace(0.975, 0.6, 16)
"""Shares of a channel's greatest weight that a scale of 7 bits may span."""


def _rounded(
    weight: NDArray[np.float32], spans: NDArray[np.float64], bits: int, least: NDArray[np.floating] | float
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Levels of a weight and the scale of each channel, whose greatest level spans (out,) values."""
    limit = (1 << (bits - 1)) - 1
    scale = np.maximum(spans / limit, least).astype(np.float32)
    levels = np.rint(weight / _broadcast(scale, weight))
    return np.clip(levels, -limit, limit).astype(np.int8), scale


def _squared_error(
    weight: NDArray[np.float32], levels: NDArray[np.int8], scale: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(out,) what rounding moves each channel by, in the square."""
    moved = np.square(weight - levels * _broadcast(scale, weight))
    return np.asarray(moved.sum(axis=tuple(range(1, weight.ndim))))


def _broadcast(scale: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.expand_dims(scale.astype(np.float64), tuple(range(1, weight.ndim)))


def _product_scale(weight_scale: NDArray[np.float32], takes: Grid) -> NDArray[np.float64]:
    return weight_scale.astype(np.float64) * takes.scale
