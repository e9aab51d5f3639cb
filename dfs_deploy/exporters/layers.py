"""Layers in float arithmetic as ONNX nodes: one function for each operator of the closed set.

Windows are written with explicit padding only. PyTorch's ``ceil_mode`` and ONNX's differ at the edge of a map, and
shapes are known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfs_deploy.bundle.operators import WINDOWS, fits_window
from dfs_deploy.errors import InternalError, UsageError
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.exporters.split import Layer, Part
from dfs_deploy.models.graph import INPUT, NetworkGraphs, Node

Float = type[np.floating[Any]]

_FOLDED = frozenset({"batch_norm", "dropout"})
"""Operators that no part has: folded into others, or left out."""

_GELU_OPSET = 20
"""Opset that brought Gelu."""


@dataclass(frozen=True)
class Writing:
    """A layer on its way into a graph.

    Attributes:
        graph: graph to add it to.
        layer: the layer.
        sizes: shape without the batch of every value of its part.
        dtype: float type of the arithmetic.
        prefix: beginning of the names of its constants, so that several parts can share a graph.
    """

    graph: GraphBuilder
    layer: Layer
    sizes: Mapping[str, tuple[int, ...]]
    dtype: Float
    prefix: str

    def constant(self, name: str, value: NDArray[np.floating[Any]] | float) -> str:
        """A constant of the layer, in the type of the arithmetic."""
        with np.errstate(over="ignore"):  # what float16 cannot hold is found when the engine is validated
            return self.graph.constant(f"{self.prefix}{self.layer.name}_{name}", np.asarray(value).astype(self.dtype))

    def integers(self, name: str, values: Iterable[int]) -> str:
        """A constant list of integers."""
        return self.graph.constant(f"{self.prefix}{self.layer.name}_{name}", np.array([*values], np.int64))

    def clipped(self, x: str) -> str:
        """The layer's input, clamped if its option does so."""
        interval = self.layer.saturates
        if interval is None:
            return x
        ends = {"low": interval.low, "high": interval.high}
        return self.graph.node("Clip", x, *(self.constant(end, value) for end, value in ends.items()))

    def values(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight and bias."""
        weight, bias = self.layer.weight, self.layer.bias
        if weight is None or bias is None:
            raise InternalError(f"layer {self.layer.name} has no weight or no bias")
        return weight, bias


Write = Callable[[Writing, Sequence[str]], str]


def float_part(graph: GraphBuilder, x: str, part: Part, dtype: Float = np.float32, prefix: str = "") -> str:
    """Adds a part in float arithmetic.

    Args:
        graph: graph to add it to.
        x: name of its input, of the type ``dtype``.
        part: the part.
        dtype: float type of the arithmetic.
        prefix: beginning of the names of constants, so that several parts can share a graph.

    Returns:
        Name of its output.
    """
    values = {INPUT: x}
    for layer in part.layers:
        inputs = [values[name] for name in layer.inputs]
        values[layer.name] = float_layer(graph, layer, inputs, part.sizes, dtype, prefix)
    return values[part.output]


def float_layer(
    graph: GraphBuilder,
    layer: Layer,
    inputs: Sequence[str],
    sizes: Mapping[str, tuple[int, ...]],
    dtype: Float = np.float32,
    prefix: str = "",
) -> str:
    """Adds one layer; ``inputs`` are names of values, ``sizes`` those of its part. See ``float_part``."""
    return WRITERS[layer.operator](Writing(graph, layer, sizes, dtype, prefix), inputs)


def check_operators(graphs: NetworkGraphs, tensors: Mapping[str, Tensor]) -> None:
    """Refuses a network that no engines can be written of, or none that a bundle may hold.

    Args:
        graphs: graphs of the network.
        tensors: its tensors, by name.

    Raises:
        UsageError: an operator outside the set, or a window beyond the limits of an engine.
    """
    for node in graphs.whole.nodes:
        if node.operator not in WRITERS and node.operator not in _FOLDED:
            raise UsageError(
                f"layer {node.name} is a {node.operator}, which no engine can be written of; replace it by"
                f" {', '.join(WRITERS)}"
            )
        window = _window_of(node, tensors)
        if window is not None and not fits_window(*window):
            kernel, strides, dilations, pads = map(tuple, window)
            raise UsageError(
                f"layer {node.name} is a {node.operator} with a window of {kernel}, strides {strides}, dilations"
                f" {dilations} and padding {pads}; engines have {WINDOWS}; change the layer"
            )


def _window_of(node: Node, tensors: Mapping[str, Tensor]) -> tuple[Sequence[int], ...] | None:
    """Kernel, strides, dilations and padding (before, then after) of a convolution or pool; ``None`` of other nodes."""
    if node.operator == "conv":
        kernel = tensors[node.tensors["weight"]].shape[2:]
        return kernel, node.numbers("stride"), node.numbers("dilation"), node.numbers("padding")
    if node.operator in ("max_pool", "avg_pool"):
        dilation = node.numbers("dilation") if "dilation" in node.attributes else (1, 1)
        return node.numbers("kernel"), node.numbers("stride"), dilation, node.numbers("padding") * 2
    return None


def conv_attributes(layer: Layer) -> dict[str, Any]:
    """Attributes of a convolution's node, spelled out."""
    if layer.weight is None:
        raise InternalError(f"layer {layer.name} has no weight")
    return {
        "kernel_shape": list(layer.weight.shape[2:]),
        "strides": list(layer.numbers("stride")),
        "pads": list(layer.numbers("padding")),
        "dilations": list(layer.numbers("dilation")),
        "group": int(layer.number("groups")),
    }


def _conv(to: Writing, x: Sequence[str]) -> str:
    weight, bias = to.values()
    operands = (to.clipped(x[0]), to.constant("weight", weight), to.constant("bias", bias))
    return to.graph.node("Conv", *operands, **conv_attributes(to.layer))


def _linear(to: Writing, x: Sequence[str]) -> str:
    weight, bias = to.values()
    value = to.clipped(x[0])
    if len(to.sizes[to.layer.inputs[0]]) == 1:
        return to.graph.node("Gemm", value, to.constant("weight", weight), to.constant("bias", bias), transB=1)
    # Of the last axis of a map: a 1x1 convolution with the columns as channels.
    across = to.graph.node("Transpose", value, perm=[0, 3, 1, 2])
    operands = (to.constant("weight", weight[:, :, None, None]), to.constant("bias", bias))
    product = to.graph.node("Conv", across, *operands, kernel_shape=[1, 1], strides=[1, 1], pads=[0] * 4)
    return to.graph.node("Transpose", product, perm=[0, 2, 3, 1])


def _silu(to: Writing, x: Sequence[str]) -> str:
    return to.graph.node("Mul", x[0], to.graph.node("Sigmoid", x[0]))


def _gelu(to: Writing, x: Sequence[str]) -> str:
    graph = to.graph
    if graph.opset >= _GELU_OPSET:
        return graph.node("Gelu", x[0])
    scaled = graph.node("Mul", x[0], to.constant("root", math.sqrt(0.5)))
    error = graph.node("Add", graph.node("Erf", scaled), to.constant("one", 1.0))
    return graph.node("Mul", graph.node("Mul", x[0], error), to.constant("half", 0.5))


def _affine(to: Writing, x: Sequence[str]) -> str:
    scaled = to.graph.node("Mul", x[0], to.constant("scale", to.layer.number("scale")))
    return to.graph.node("Add", scaled, to.constant("shift", to.layer.number("shift")))


def _window(to: Writing, dilation: Sequence[int]) -> tuple[dict[str, Any], list[int], list[int]]:
    """Attributes of a pool without its padding; the padding before and after; and what the last windows need after."""
    layer = to.layer
    kernel, stride, padding = (layer.numbers(name) for name in ("kernel", "stride", "padding"))
    needed = [
        max((size_out - 1) * step + (width - 1) * apart + 1 - size_in - before, 0)
        for size_in, size_out, width, step, before, apart in zip(
            to.sizes[layer.inputs[0]][1:], to.sizes[layer.name][1:], kernel, stride, padding, dilation, strict=True
        )
    ]
    return {"kernel_shape": list(kernel), "strides": list(stride)}, list(padding), needed


def _max_pool(to: Writing, x: Sequence[str]) -> str:
    dilation = to.layer.numbers("dilation")
    window, before, needed = _window(to, dilation)
    return to.graph.node("MaxPool", x[0], **window, pads=[*before, *needed], dilations=list(dilation))


def _avg_pool(to: Writing, x: Sequence[str]) -> str:
    window, padding, needed = _window(to, (1, 1))
    value, before = x[0], padding
    if to.layer.number("count_padding") and any(padding):
        # Zeros of the padding count; what a last window has beyond them does not.
        pads = to.integers("pads", [0, 0, *padding, 0, 0, *padding])
        value, before = to.graph.node("Pad", value, pads), [0, 0]
        needed = [max(more - given, 0) for more, given in zip(needed, padding, strict=True)]
    return to.graph.node("AveragePool", value, **window, pads=[*before, *needed], count_include_pad=0)


def _pad(to: Writing, x: Sequence[str]) -> str:
    pads, size = to.layer.numbers("pads"), to.sizes[to.layer.inputs[0]]
    before, after = pads[:3], pads[3:]
    value = x[0]
    if min(pads) < 0:  # such a pad cuts off
        starts = to.integers("starts", [max(-each, 0) for each in before])
        ends = to.integers("ends", [length - max(-each, 0) for length, each in zip(size, after, strict=True)])
        value = to.graph.node("Slice", value, starts, ends, to.integers("axes", (1, 2, 3)))
    kept = [0, *(max(each, 0) for each in before), 0, *(max(each, 0) for each in after)]
    return to.graph.node("Pad", value, to.integers("pads", kept)) if any(kept) else value


def _unflatten(to: Writing, x: Sequence[str]) -> str:
    return to.graph.node("Reshape", x[0], to.integers("shape", (0, *to.sizes[to.layer.name])))


def _slice(to: Writing, x: Sequence[str]) -> str:
    starts, ends, steps = (to.integers(name, to.layer.numbers(name)) for name in ("starts", "ends", "steps"))
    return to.graph.node("Slice", x[0], starts, ends, to.integers("axes", (1, 2, 3)), steps)


def _clip(to: Writing, x: Sequence[str]) -> str:
    ends = (to.constant(end, to.layer.number(end)) for end in ("low", "high"))
    return to.graph.node("Clip", x[0], *ends)


def _simple(operator: str, **attributes: Any) -> Write:
    return lambda to, x: to.graph.node(operator, *x, **attributes)


WRITERS: dict[str, Write] = {
    "conv": _conv,
    "linear": _linear,
    "relu": _simple("Relu"),
    "clip": _clip,
    "leaky_relu": lambda to, x: to.graph.node("LeakyRelu", x[0], alpha=to.layer.number("slope")),
    "hard_swish": _simple("HardSwish"),
    "hard_sigmoid": _simple("HardSigmoid", alpha=1.0 / 6.0, beta=0.5),
    "sigmoid": _simple("Sigmoid"),
    "silu": _silu,
    "tanh": _simple("Tanh"),
    "gelu": _gelu,
    "add": _simple("Add"),
    "mul": _simple("Mul"),
    "affine": _affine,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_avg_pool": _simple("GlobalAveragePool"),
    "flatten": _simple("Flatten"),
    "unflatten": _unflatten,
    "pad": _pad,
    "slice": _slice,
    "concat": _simple("Concat", axis=1),
}
"""Writers of the operators that a ``Layer`` can have, by name."""
