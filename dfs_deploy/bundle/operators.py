"""Operators of exported engines, and the shapes of what they give: no loops, no branches, no data-dependent shapes.

A shape holds ``BATCH`` in place of the number of images. Each rule computes the largest shape that a node can give from
the shapes that it takes, and refuses attributes that no export writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dfs_deploy.bundle.onnx_messages import FLOAT, FLOAT16, Attribute, UnfitError

BATCH = -1
"""Placeholder for the number of images in a shape."""

Shape = tuple[int, ...]

LARGEST_WINDOW = 32
"""Most rows or columns of the window of a convolution or pool, and its largest stride: a stem may read patches of 32
pixels, and no weights in the file bound the work of a pool."""

LARGEST_REACH = 128
"""Most rows or columns from the first to the last value of a dilated window, and of padding on a side."""

WINDOWS = (
    f"windows and strides of up to {LARGEST_WINDOW} rows and columns, that reach over up to {LARGEST_REACH} if they are"
    " dilated, and as much padding on a side"
)
"""Windows that ``fits_window`` allows, in a message."""

MOST_JOINED = 64
"""Most inputs of a concatenation."""


@dataclass(frozen=True)
class Call:
    """A node for its rule.

    Attributes:
        operator: its operator.
        shapes: shapes of its inputs.
        attributes: its attributes.
        integers: values of inputs that are short lists of constant integers; ``None`` for the others.
    """

    operator: str
    shapes: Sequence[Shape]
    attributes: Mapping[str, Attribute]
    integers: Sequence[tuple[int, ...] | None]

    def require(self, fits: bool) -> None:
        """Raises ``unfit`` unless ``fits``."""
        if not fits:
            raise self.unfit()

    def unfit(self) -> UnfitError:
        """Error for a node that no export has."""
        seen = ", ".join(f"{name} {value!r}" for name, value in self.attributes.items())
        return UnfitError(f"has a node {self.operator} of {words(self.shapes)} ({seen or 'no attributes'})")

    def numbers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """An attribute that holds several integers."""
        value = self.attributes.get(name, default)
        if not isinstance(value, Sequence) or isinstance(value, bytes):
            raise self.unfit()
        return list(value)

    def flag(self, name: str, default: int = 0) -> bool:
        """An attribute that is 0 or 1."""
        value = self.attributes.get(name, default)
        self.require(value in (0, 1))
        return bool(value)


@dataclass(frozen=True)
class Operator:
    """An operator that exports write: number of inputs, rule for the shape of the output, and names of attributes."""

    inputs: range
    rule: Callable[[Call], Shape]
    attributes: frozenset[str] = frozenset()


def fits_window(kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]) -> bool:
    """Whether an engine may have such a convolution or pool.

    Args:
        kernel: rows and columns of its window.
        strides: rows and columns from one window to the next.
        dilations: rows and columns from one value of a window to the next; 1 without gaps.
        pads: rows and columns of padding, before (top, left) and then after (bottom, right).
    """
    if [len(each) for each in (kernel, strides, dilations, pads)] != [2, 2, 2, 4]:
        return False
    if not all(1 <= each <= LARGEST_WINDOW for each in (*kernel, *strides)) or min(dilations) < 1:
        return False
    reach = [(size - 1) * apart + 1 for size, apart in zip(kernel, dilations, strict=True)]
    return max(reach) <= LARGEST_REACH and all(0 <= pad <= LARGEST_REACH for pad in pads)


def words(shapes: Sequence[Shape | None]) -> str:
    """Shapes in a message."""
    return ", ".join("nothing" if s is None else str(s).replace(str(BATCH), "N") for s in shapes) or "nothing"


def _same(call: Call) -> Shape:
    return call.shapes[0]


def _broadcast(call: Call) -> Shape:
    rank = max(map(len, call.shapes))
    a, b = ((1,) * (rank - len(shape)) + shape for shape in call.shapes)
    call.require(all(m == n or 1 in (m, n) for m, n in zip(a, b, strict=True)))
    result = tuple(n if m == 1 else m for m, n in zip(a, b, strict=True))
    call.require(result in (a, b))  # otherwise it would be larger than both
    return result


def _cast(call: Call) -> Shape:
    call.require(call.attributes.get("to") in (FLOAT, FLOAT16))
    return call.shapes[0]


def _gelu(call: Call) -> Shape:
    call.require(call.attributes.get("approximate", b"none") in (b"none", b"tanh"))
    return call.shapes[0]


def _convolution(call: Call) -> Shape:
    x, weight, *bias = call.shapes
    call.require(len(x) == 4 and len(weight) == 4 and BATCH not in weight)
    channels, taken, *kernel = weight
    groups = call.attributes.get("group", 1)
    if not isinstance(groups, int) or groups < 1 or x[1] != taken * groups or channels % groups:
        raise call.unfit()
    call.require(call.attributes.get("kernel_shape", kernel) == kernel and bias in ([], [(channels,)]))
    return (x[0], channels, *_windows(call, x[2:], kernel))


def _pool(call: Call) -> Shape:
    x = call.shapes[0]
    kernel = call.numbers("kernel_shape")
    call.require(len(x) == 4)
    call.flag("count_include_pad")
    return (*x[:2], *_windows(call, x[2:], kernel))


def _windows(call: Call, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Rows and columns of what a window gives that moves over a map."""
    call.require(call.attributes.get("auto_pad", b"NOTSET") == b"NOTSET")
    strides, dilations = (call.numbers(name, (1, 1)) for name in ("strides", "dilations"))
    pads = call.numbers("pads", (0,) * 4)
    call.require(fits_window(kernel, strides, dilations, pads))
    ceil, given = call.flag("ceil_mode"), []
    for i, length in enumerate(size):
        before, after, reach = pads[i], pads[i + 2], (kernel[i] - 1) * dilations[i] + 1
        left = length + before + after - reach
        call.require(left >= 0 and (call.operator == "Conv" or max(before, after) <= reach))
        steps = -(-left // strides[i]) if ceil else left // strides[i]
        if ceil and steps * strides[i] >= length + before:  # the last window would lie in the padding
            steps -= 1
        given.append(steps + 1)
    return given


def _product(call: Call) -> Shape:
    a, b = call.shapes[:2]
    call.require(len(a) == 2 and len(b) == 2 and BATCH not in b and not call.flag("transA"))
    return a[0], b[0 if call.flag("transB") else 1]


def _mean(call: Call) -> Shape:
    call.require(len(call.shapes[0]) == 4)
    return (*call.shapes[0][:2], 1, 1)


def _mean_over(call: Call) -> Shape:
    x, axes = call.shapes[0], call.integers[1]
    if axes is None or not axes or len(set(axes)) < len(axes) or not all(axis in range(1, len(x)) for axis in axes):
        raise call.unfit()
    kept = call.flag("keepdims", 1)
    return tuple(1 if i in axes else n for i, n in enumerate(x) if kept or i not in axes)


def _flat(call: Call) -> Shape:
    call.require(call.attributes.get("axis", 1) == 1)
    first, *others = call.shapes[0] or (1,)
    return first, math.prod(others)


def _reshaped(call: Call) -> Shape:
    x, wanted = call.shapes[0], call.integers[1]
    if wanted is None or not wanted or not x or wanted[0] not in (0, -1, x[0]):
        raise call.unfit()
    rest = [x[i] if n == 0 and i < len(x) else n for i, n in enumerate(wanted[1:], 1)]
    values, known = math.prod(x[1:]), math.prod(n for n in rest if n != -1)
    if -1 in rest and wanted[0] != -1 and rest.count(-1) == 1 and known > 0:
        rest[rest.index(-1)] = values // known
    call.require(all(n > 0 for n in rest) and math.prod(rest) == values)
    return (x[0], *rest)


def _transposed(call: Call) -> Shape:
    x, perm = call.shapes[0], call.attributes.get("perm")
    if not isinstance(perm, list) or perm[:1] != [0] or sorted(perm) != list(range(len(x))):
        raise call.unfit()
    return tuple(x[i] for i in perm)


def _element(call: Call) -> Shape:
    data, index = call.shapes
    call.require(index == () and len(data) >= 1 and BATCH not in data and call.attributes.get("axis", 0) == 0)
    return data[1:]


def _size(call: Call) -> Shape:
    return (len(call.shapes[0]),)


def _sliced(call: Call) -> Shape:
    data, (starts, ends, axes) = call.shapes[0], call.integers[1:4]
    steps = call.integers[4] if len(call.integers) > 4 else (1,) * len(axes or ())
    call.require(steps is not None and 0 not in steps)
    if starts is None or ends is None or axes is None or steps is None:
        return data  # a part of it, whatever they are
    call.require(len(starts) == len(ends) == len(axes) == len(steps) == len(set(axes)))
    sizes = list(data)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        call.require(axis in range(len(data)))
        if data[axis] != BATCH:
            sizes[axis] = len(range(*slice(start, end, step).indices(data[axis])))
    return tuple(sizes)


def _padded(call: Call) -> Shape:
    x, pads, value = call.shapes[0], call.integers[1], call.shapes[2:]
    if pads is None or len(pads) != 2 * len(x) or min(pads, default=0) < 0 or pads[0] or pads[len(x)]:
        raise call.unfit()
    call.require(call.attributes.get("mode", b"constant") == b"constant" and list(value) in ([], [()]))
    return tuple(n + before + after for n, before, after in zip(x, pads, pads[len(x) :], strict=False))


def _joined(call: Call) -> Shape:
    first, axis = call.shapes[0], call.attributes.get("axis")
    if not isinstance(axis, int) or axis not in range(1, len(first)):
        raise call.unfit()
    others = {(*shape[:axis], *shape[axis + 1 :]) for shape in call.shapes if len(shape) == len(first)}
    call.require(len(others) == 1 and all(len(shape) == len(first) for shape in call.shapes))
    return (*first[:axis], sum(shape[axis] for shape in call.shapes), *first[axis + 1 :])


def _greatest(call: Call) -> Shape:
    x = call.shapes[0]
    call.require(len(x) == 2 and call.attributes.get("axis") == 1 and call.attributes.get("keepdims") == 0)
    return x[:1]


_ONE, _WINDOW = range(1, 2), frozenset({"kernel_shape", "pads", "strides", "dilations", "auto_pad"})

OPERATORS = {
    **dict.fromkeys(("Erf", "HardSwish", "Identity", "Relu", "Sigmoid", "Tanh"), Operator(_ONE, _same)),
    **dict.fromkeys(("Add", "Div", "Mul", "Sub"), Operator(range(2, 3), _broadcast)),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), Operator(range(2, 4), _same, frozenset({"axis"}))),
    "ArgMax": Operator(_ONE, _greatest, frozenset({"axis", "keepdims", "select_last_index"})),
    "AveragePool": Operator(_ONE, _pool, _WINDOW | {"ceil_mode", "count_include_pad"}),
    "Cast": Operator(_ONE, _cast, frozenset({"to"})),
    "Clip": Operator(range(1, 4), _same),
    "Concat": Operator(range(1, MOST_JOINED + 1), _joined, frozenset({"axis"})),
    "Conv": Operator(range(2, 4), _convolution, _WINDOW | {"group"}),
    "Flatten": Operator(_ONE, _flat, frozenset({"axis"})),
    "Gather": Operator(range(2, 3), _element, frozenset({"axis"})),
    "Gelu": Operator(_ONE, _gelu, frozenset({"approximate"})),
    "Gemm": Operator(range(2, 4), _product, frozenset({"alpha", "beta", "transA", "transB"})),
    "GlobalAveragePool": Operator(_ONE, _mean),
    "HardSigmoid": Operator(_ONE, _same, frozenset({"alpha", "beta"})),
    "LeakyRelu": Operator(_ONE, _same, frozenset({"alpha"})),
    "MaxPool": Operator(_ONE, _pool, _WINDOW | {"ceil_mode"}),
    "Pad": Operator(range(2, 4), _padded, frozenset({"mode"})),
    "ReduceMean": Operator(range(2, 3), _mean_over, frozenset({"keepdims"})),
    "Reshape": Operator(range(2, 3), _reshaped),
    "Shape": Operator(_ONE, _size, frozenset({"start", "end"})),
    "Slice": Operator(range(4, 6), _sliced),
    "Transpose": Operator(_ONE, _transposed, frozenset({"perm"})),
}
"""Operators of exported engines, by name, in the standard domain."""
