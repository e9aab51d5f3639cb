"""Random parts of a network, calibrated ranges of their values, and their arithmetic in INT8 in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from dfs_deploy.calibration import Range
from dfs_deploy.exporters.int8 import Grid, Int8Layer, Int8Part
from dfs_deploy.exporters.split import Layer, Part
from dfs_deploy.models.graph import INPUT

Values = NDArray[np.float64]


def window(stride: int = 1, padding: Sequence[int] = (0, 0, 0, 0), groups: int = 1) -> dict[str, Any]:
    return {"stride": (stride, stride), "padding": tuple(padding), "dilation": (1, 1), "groups": groups}


def computed(layer: Layer, x: Sequence[Values], weight: Values | None, bias: Values | None) -> Values:
    """One layer in float64; of its own weights if none are given."""
    a = [torch.from_numpy(np.asarray(value, np.float64)) for value in x]
    if layer.weight is not None and layer.bias is not None:
        w = torch.from_numpy(np.asarray(layer.weight if weight is None else weight, np.float64))
        b = torch.from_numpy(np.asarray(layer.bias if bias is None else bias, np.float64))
        if layer.operator == "linear":
            return functional.linear(a[0], w, b).numpy()
        top, left, bottom, right = layer.numbers("padding")
        padded = functional.pad(a[0], (left, right, top, bottom))
        stride, dilation = layer.numbers("stride"), layer.numbers("dilation")
        return functional.conv2d(padded, w, b, stride, 0, dilation, int(layer.number("groups"))).numpy()
    return SIMPLE[layer.operator](layer, a).numpy()


def _pool(layer: Layer) -> tuple[Any, ...]:
    return tuple(layer.numbers(name) for name in ("kernel", "stride", "padding"))


def _padded(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    c, h, w, c2, h2, w2 = layer.numbers("pads")
    return functional.pad(x, (w, w2, h, h2, c, c2))


def _sliced(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    places = zip(*(layer.numbers(name) for name in ("starts", "ends", "steps")), strict=True)
    return x[(slice(None), *(slice(*place) for place in places))]


SIMPLE: dict[str, Any] = {
    "relu": lambda layer, x: functional.relu(x[0]),
    "clip": lambda layer, x: x[0].clamp(layer.number("low"), layer.number("high")),
    "leaky_relu": lambda layer, x: functional.leaky_relu(x[0], layer.number("slope")),
    "hard_swish": lambda layer, x: functional.hardswish(x[0]),
    "hard_sigmoid": lambda layer, x: functional.hardsigmoid(x[0]),
    "sigmoid": lambda layer, x: torch.sigmoid(x[0]),
    "silu": lambda layer, x: functional.silu(x[0]),
    "tanh": lambda layer, x: torch.tanh(x[0]),
    "add": lambda layer, x: x[0] + x[1],
    "mul": lambda layer, x: x[0] * x[1],
    "max_pool": lambda layer, x: functional.max_pool2d(x[0], *_pool(layer)),
    "avg_pool": lambda layer, x: functional.avg_pool2d(
        x[0], *_pool(layer), bool(layer.number("ceil")), bool(layer.number("count_padding"))
    ),
    "global_avg_pool": lambda layer, x: x[0].mean((2, 3), keepdim=True),
    "flatten": lambda layer, x: x[0].flatten(1),
    "unflatten": lambda layer, x: x[0][:, :, None, None],
    "pad": lambda layer, x: _padded(layer, x[0]),
    "slice": lambda layer, x: _sliced(layer, x[0]),
    "concat": lambda layer, x: torch.cat(list(x), 1),
}


def in_floats(part: Part, x: NDArray[np.floating]) -> dict[str, Values]:
    """Every value of a part in float arithmetic, its options' clamps included."""
    values = {INPUT: np.asarray(x, np.float64)}
    for layer in part.layers:
        inputs = [values[name] for name in layer.inputs]
        if layer.saturates is not None:
            inputs[0] = inputs[0].clip(layer.saturates.low, layer.saturates.high)
        values[layer.name] = computed(layer, inputs, None, None)
    return values


def measured(part: Part, x: NDArray[np.floating]) -> dict[str, Range]:
    """Least and greatest value of every value of a part."""
    return {name: Range(float(v.min()), float(v.max())) for name, v in in_floats(part, x).items()}


def rounded(x: Values, grid: Grid | None) -> Values:
    if grid is None:
        return x
    low, high = (-128, 127) if grid.signed else (0, 255)
    return grid.scale * (np.clip(np.rint(x / grid.scale) + grid.zero_point, low, high) - grid.zero_point)


def clamped(x: Values, interval: Range | None, grid: Grid | None) -> Values:
    """What an interval makes of values, on uint8 levels if they lie on such a grid."""
    if interval is None:
        return x
    if grid is None or grid.signed:
        return x.clip(interval.low, interval.high)
    low, high = (grid.scale * (grid.level(end) - grid.zero_point) for end in (interval.low, interval.high))
    return x.clip(low, high)


def described(form: Int8Part, x: NDArray[np.floating]) -> Values:
    """What the description of a part in INT8 says, in float64."""
    values = {INPUT: rounded(np.asarray(x, np.float64), form.takes)}
    for step in form.layers:
        values[step.name] = _step(step, [values[name] for name in step.layer.inputs])
    return rounded(values[form.part.output], form.gives)


def _step(step: Int8Layer, x: list[Values]) -> Values:
    layer, first = step.layer, step.takes[0]
    if first is not None and first.signed:  # TensorRT clamps what it then rounds
        x[0] = clamped(x[0], step.clamp, None)
    x = [rounded(value, grid) for value, grid in zip(x, step.takes, strict=True)]
    if first is not None and not first.signed:
        x[0] = clamped(x[0], step.clamp, first)
    weight = bias = None
    if step.weight is not None and first is not None:
        scale = step.weight.scale.astype(np.float64)
        weight = step.weight.levels * scale.reshape(-1, *[1] * (step.weight.levels.ndim - 1))
        bias = step.weight.bias.astype(np.float64)
        if step.weight.bias.dtype == np.int32:
            bias = bias * step.weight.bias_scale(first)
    y = rounded(computed(layer, x, weight, bias), step.gives)
    return clamped(y, step.limits, step.gives)


class Making:
    """A part in the making: layers over maps of known sizes."""

    def __init__(self, shape: tuple[int, int, int], seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.sizes: dict[str, tuple[int, ...]] = {INPUT: shape}
        self.layers: list[Layer] = []

    def add(self, operator: str, *inputs: str, exact: bool = False, **attributes: Any) -> str:
        """Adds a layer without weights; returns its name."""
        return self._place(Layer(f"{operator}_{len(self.layers)}", operator, inputs, attributes, exact=exact))

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        padding: Sequence[int] | None = None,
        **more: Any,
    ) -> str:
        """Adds a convolution whose channels differ in size, and returns its name."""
        own = self.sizes[x][0] // groups
        spread = self.random.uniform(0.3, 2.0, (channels, 1, 1, 1)) / np.sqrt(own * kernel * kernel)
        weight = (self.random.standard_normal((channels, own, kernel, kernel)) * spread).astype(np.float32)
        bias = self.random.normal(0.0, 0.3, channels).astype(np.float32)
        sides = (kernel // 2,) * 4 if padding is None else padding
        name = f"conv_{len(self.layers)}"
        return self._place(Layer(name, "conv", (x,), window(stride, sides, groups), weight, bias, **more))

    def linear(self, x: str, outputs: int, **more: Any) -> str:
        """Adds a linear layer and returns its name."""
        inputs = self.sizes[x][0]
        weight = self.random.normal(0.0, 1.0 / np.sqrt(inputs), (outputs, inputs)).astype(np.float32)
        bias = self.random.normal(0.0, 0.3, outputs).astype(np.float32)
        return self._place(Layer(f"linear_{len(self.layers)}", "linear", (x,), {}, weight, bias, **more))

    def excitation(self, x: str, scale: str = "hard_sigmoid") -> str:
        """Adds squeeze-and-excitation of a value, its layers in float; returns the product's name."""
        channels = self.sizes[x][0]
        y = self.add("global_avg_pool", x)
        y = self.add("relu", self.conv(y, max(channels // 4, 1), exact=True))
        return self.add("mul", self.add(scale, self.conv(y, channels, exact=True)), x)

    def linear_excitation(self, x: str) -> str:
        """The same with linear layers (Hu et al. 2018)."""
        channels = self.sizes[x][0]
        y = self.add("flatten", self.add("global_avg_pool", x))
        y = self.add("relu", self.linear(y, max(channels // 4, 1), exact=True))
        y = self.add("sigmoid", self.linear(y, channels, exact=True))
        return self.add("mul", x, self.add("unflatten", y))

    def part(self, output: str, name: str = "part") -> Part:
        return Part(name, tuple(self.layers), output, self.sizes)

    def _place(self, layer: Layer) -> str:
        inputs = [np.zeros((1, *self.sizes[name])) for name in layer.inputs]
        self.layers.append(layer)
        self.sizes[layer.name] = computed(layer, inputs, None, None).shape[1:]
        return layer.name


ACTIVATIONS: Mapping[str, dict[str, Any]] = {
    "relu": {},
    "clip": {"low": 0.0, "high": 1.5},
    "leaky_relu": {"slope": 0.1},
    "hard_swish": {},
    "hard_sigmoid": {},
    "sigmoid": {},
    "silu": {},
    "tanh": {},
}


@st.composite
def parts(draw: st.DrawFn) -> Part:
    """Blocks as networks have them, and others that none has, of every operator."""
    channels = draw(st.sampled_from([4, 6, 8]))
    size = draw(st.sampled_from([5, 7, 8]))
    make = Making((channels, size, size), draw(st.integers(0, 2**16)))
    x = INPUT
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "depthwise", "grouped", "pool", "excitation", "shift", "wide"]))
        here, height = make.sizes[x][:2]
        if kind == "conv":
            kernel = draw(st.sampled_from([1, 3]))
            sides = draw(st.sampled_from([None, (0, 0, 1, 1)])) if kernel == 3 else None
            x = make.conv(x, draw(st.sampled_from([4, 6])), kernel, draw(st.sampled_from([1, 2])), padding=sides)
        elif kind == "depthwise":
            x = make.conv(x, here, 3, groups=here)
        elif kind == "grouped" and here % 2 == 0:
            x = make.conv(x, 6, 3, groups=2)
        elif kind == "pool" and height > 3:
            operator = draw(st.sampled_from(["max_pool", "avg_pool"]))
            more = {"dilation": (1, 1)} if operator == "max_pool" else {"count_padding": 0}
            x = make.add(operator, x, kernel=(3, 3), stride=(2, 2), padding=(1, 1), ceil=0, **more)
        elif kind == "excitation":
            x = make.excitation(x, draw(st.sampled_from(["hard_sigmoid", "sigmoid"])))
        elif kind == "shift":
            x = make.add("pad", x, pads=(0, 1, 0, 2, 0, 1))
            x = make.add("slice", x, starts=(0, 0, 0), ends=(99, 99, 99), steps=(1, 2, 1))
        elif kind == "wide":
            x = make.add("concat", x, make.conv(x, 4))
        if draw(st.booleans()):
            operator = draw(st.sampled_from(sorted(ACTIVATIONS)))
            x = make.add(operator, x, **ACTIVATIONS[operator])
        if make.sizes[x] == make.sizes[INPUT] and draw(st.booleans()):
            x = make.add("add", x, INPUT)
    if not any(layer.weight is not None for layer in make.layers):
        x = make.conv(x, 4)
    return make.part(x)
