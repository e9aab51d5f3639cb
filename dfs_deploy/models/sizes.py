"""Shapes of every value of a graph, by arithmetic alone: no tensor is made, so sizes that a file claims are free."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from dfs_deploy.errors import CheckpointError
from dfs_deploy.models.graph import INPUT, Graph, Node
from dfs_deploy.network import MAX_MAP

Size = tuple[int, ...]
"""Shape of a value, without the batch."""


class _MisfitError(Exception):
    """A node does not fit its inputs; the text says what it expected."""


def sizes_of(graph: Graph, tensors: Mapping[str, Tensor], shape: Size) -> dict[str, Size]:
    """Shapes of every value of a graph, by name.

    Args:
        graph: a graph whose nodes passed ``check_graphs``.
        tensors: tensors by name; only their shapes matter.
        shape: shape of the input, without the batch.

    Raises:
        CheckpointError: a node does not fit its input, or a value is larger than any map of a supported network.
    """
    sizes: dict[str, Size] = {INPUT: tuple(shape)}
    for node in graph.nodes:
        inputs = [sizes[name] for name in node.inputs]
        weights = {role: tuple(tensors[name].shape) for role, name in node.tensors.items()}
        try:
            size = SIZES[node.operator](node, weights, inputs)
        except _MisfitError as error:
            given = " and ".join(map(str, inputs))
            raise CheckpointError(
                f"{node.name} ({node.operator}) does not fit its input of {given}: it expects {error}"
            ) from error
        if math.prod(size) > MAX_MAP:
            raise CheckpointError(f"{node.name} has {math.prod(size):,} values, expected at most {MAX_MAP:,}")
        if 0 in size:
            raise CheckpointError(f"{node.name} gives {size}, which has no values; give larger images")
        sizes[node.name] = size
    return sizes


def multiply_adds(graph: Graph, tensors: Mapping[str, Tensor], shape: Size) -> int:
    """Multiply-adds of a graph's convolutions and linear layers for one image.

    Args:
        graph: the graph.
        tensors: tensors by name; only their shapes matter.
        shape: shape of the input, without the batch.

    Raises:
        CheckpointError: as for ``sizes_of``.
    """
    sizes = sizes_of(graph, tensors, shape)
    layers = (node for node in graph.nodes if node.operator in ("conv", "linear"))
    return sum(math.prod(sizes[node.name][1:]) * tensors[node.tensors["weight"]].numel() for node in layers)


def _map(size: Size) -> Size:
    if len(size) != 3:
        raise _MisfitError("channels, height and width")
    return size


def _vector(weights: Mapping[str, Size], roles: Sequence[str], count: int) -> None:
    for role in roles:
        if weights.get(role, (count,)) != (count,):
            raise _MisfitError(f"a {role} of {count} values, and it has {weights[role]}")


def _window(sides: Size, kernel: Size, stride: Size, before: Size, after: Size, dilation: Size, ceil: bool) -> Size:
    """Height and width of what a window gives, as PyTorch counts its places."""
    result = []
    for side, size, step, ahead, behind, gap in zip(sides, kernel, stride, before, after, dilation, strict=True):
        left = side + ahead + behind - gap * (size - 1) - 1
        places = (left + (step - 1 if ceil else 0)) // step + 1
        if ceil and (places - 1) * step >= side + ahead:  # a window must begin in the map or the padding before it
            places -= 1
        if places < 1:
            raise _MisfitError(f"at least {gap * (size - 1) + 1 - ahead - behind} rows and columns")
        result.append(places)
    return tuple(result)


def _conv(node: Node, weights: Mapping[str, Size], inputs: Sequence[Size]) -> Size:
    channels, *sides = _map(inputs[0])
    weight, groups = weights["weight"], int(node.number("groups"))
    if len(weight) != 4 or 0 in weight or weight[0] % groups or weight[1] * groups != channels:
        raise _MisfitError(f"channels for a weight {weight} in {groups} group(s)")
    _vector(weights, ("bias",), weight[0])
    top, left, bottom, right = node.numbers("padding")
    stride, dilation = node.numbers("stride"), node.numbers("dilation")
    return (
        weight[0],
        *_window(tuple(sides), weight[2:], stride, (top, left), (bottom, right), dilation, ceil=False),
    )


def _linear(node: Node, weights: Mapping[str, Size], inputs: Sequence[Size]) -> Size:
    weight = weights["weight"]
    if len(weight) != 2 or not inputs[0] or inputs[0][-1] != weight[1]:
        raise _MisfitError(f"values for a weight {weight}")
    _vector(weights, ("bias",), weight[0])
    return (*inputs[0][:-1], weight[0])


def _batch_norm(node: Node, weights: Mapping[str, Size], inputs: Sequence[Size]) -> Size:
    if not inputs[0]:
        raise _MisfitError("channels")
    _vector(weights, tuple(weights), inputs[0][0])
    return inputs[0]


def _same(node: Node, weights: Mapping[str, Size], inputs: Sequence[Size]) -> Size:
    return inputs[0]


def _broadcast(node: Node, weights: Mapping[str, Size], inputs: Sequence[Size]) -> Size:
    one, other = inputs
    if len(one) != len(other) or any(a != b and 1 not in (a, b) for a, b in zip(one, other, strict=True)):
        raise _MisfitError("two values of one shape, or with sides of 1")
    return tuple(map(max, one, other))


def _pool(node: Node, weights: Mapping[str, Size], inputs: Sequence[Size]) -> Size:
    channels, *sides = _map(inputs[0])
    kernel, padding = node.numbers("kernel"), node.numbers("padding")
    dilation = node.numbers("dilation") if "dilation" in node.attributes else (1, 1)
    if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
        raise _MisfitError(f"a padding of at most half its kernel {kernel}, and it has {padding}")
    ceil = bool(node.number("ceil"))
    return (channels, *_window(tuple(sides), kernel, node.numbers("stride"), padding, padding, dilation, ceil))


def _global_avg_pool(node: Node, weights: Mapping[str, Size], inputs: Sequence[Size]) -> Size:
    return (_map(inputs[0])[0], 1, 1)


def _flatten(node: Node, weights: Mapping[str, Size], inputs: Sequence[Size]) -> Size:
    return (math.prod(inputs[0]),)


def _unflatten(node: Node, weights: Mapping[str, Size], inputs: Sequence[Size]) -> Size:
    if len(inputs[0]) != 1:
        raise _MisfitError("channels alone")
    return (*inputs[0], 1, 1)


def _pad(node: Node, weights: Mapping[str, Size], inputs: Sequence[Size]) -> Size:
    pads = node.numbers("pads")
    return tuple(size + before + after for size, before, after in zip(_map(inputs[0]), pads[:3], pads[3:], strict=True))


def _slice(node: Node, weights: Mapping[str, Size], inputs: Sequence[Size]) -> Size:
    parts = map(slice, *(node.numbers(name) for name in ("starts", "ends", "steps")))
    return tuple(len(range(*part.indices(size))) for part, size in zip(parts, _map(inputs[0]), strict=True))


def _concat(node: Node, weights: Mapping[str, Size], inputs: Sequence[Size]) -> Size:
    if not inputs[0] or any(size[1:] != inputs[0][1:] or not size for size in inputs):
        raise _MisfitError("values that differ in channels only")
    return (sum(size[0] for size in inputs), *inputs[0][1:])


_UNCHANGED = (
    *("relu", "clip", "leaky_relu", "hard_swish", "hard_sigmoid", "sigmoid", "silu", "tanh", "gelu"),
    *("affine", "dropout"),
)

SIZES: dict[str, Callable[[Node, Mapping[str, Size], Sequence[Size]], Size]] = {
    **dict.fromkeys(_UNCHANGED, _same),
    "conv": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "add": _broadcast,
    "mul": _broadcast,
    "max_pool": _pool,
    "avg_pool": _pool,
    "global_avg_pool": _global_avg_pool,
    "flatten": _flatten,
    "unflatten": _unflatten,
    "pad": _pad,
    "slice": _slice,
    "concat": _concat,
}
"""Shape of a node's output, by operator: ``size(node, shapes of its tensors by role, shapes of its inputs)``."""
