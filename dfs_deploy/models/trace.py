"""What a network does with an example, as operations of the closed set.

The network runs once, and every call of a torch function is recorded with the module that made it. Python code that
depends on shapes runs as it is, so a trace holds for images of the example's size. What the closed set of operators
lacks stays in the trace under the operator ``OPAQUE``, with the reason.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakTensorKeyDictionary

from dfs_deploy.errors import BlockError, InputError
from dfs_deploy.io.json_files import LONGEST_NAME
from dfs_deploy.models.graph import INPUT, OUTPUT, Attribute, Node, named_tensors
from dfs_deploy.models.running import as_before, user_code

OPAQUE = "opaque"
"""Operator of an operation that the closed set lacks; no graph has it."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One traced operation.

    Attributes:
        node: the operation, whose inputs are names of other steps, or ``input``.
        shape: shape of its output, without the batch.
        module: qualified name of the module in whose forward it was called; empty for the network itself.
        calls: positions in ``Trace.calls`` of the modules that were running, the outermost first.
        problem: reason why the closed set of operators lacks it; ``None`` if it has it.
    """

    node: Node
    shape: Shape
    module: str
    calls: tuple[int, ...]
    problem: str | None = None


@dataclass(frozen=True)
class Place:
    """Place of a traced tensor among the arguments of a module's call.

    Attributes:
        value: name of the value.
    """

    value: str


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        name: qualified name of the module.
        module: the module.
        arguments: positional arguments; a ``Place`` for each traced tensor.
        keywords: keyword arguments, likewise.
        parents: positions in ``Trace.calls`` of the modules that were running, the outermost first.
        start: position in ``Trace.steps`` of its first step.
        stop: position after that of its last step.
        result: name of the value that it gave; ``None`` if it gave anything other than one traced tensor.
    """

    name: str
    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    parents: tuple[int, ...]
    start: int
    stop: int = -1
    result: str | None = None


@dataclass(frozen=True)
class Reading:
    """A place where Python code read the values of a tensor that depends on the image.

    Attributes:
        function: torch function that gave the values, such as ``Tensor.__bool__``.
        module: qualified name of the module in whose forward it was called.
        calls: positions in ``Trace.calls`` of the modules that were running.
    """

    function: str
    module: str
    calls: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Trace:
    """Everything that a network did with an example.

    Attributes:
        steps: the operations, in the order in which they ran.
        calls: calls of its modules, in the order in which they began; the first is that of the network.
        readings: places where its code read values.
        shape: shape of an image.
        output: name of the value that the network gave; ``None`` if it gave anything other than one traced tensor.
        result: its output in words, such as ``(10,)``, without the batch.
    """

    steps: tuple[Step, ...]
    calls: tuple[Call, ...]
    readings: tuple[Reading, ...]
    shape: Shape
    output: str | None
    result: str


def trace(net: nn.Module, example: Tensor) -> Trace:
    """Runs a network in evaluation mode, without gradients, and records what it does.

    Training flags, buffers, hooks and random numbers are as before afterwards, even if it raises.

    Args:
        net: the network; its tensors may have no values (device ``meta``).
        example: (N, C, H, W) float32 images. Two are used, or one twice, so that a reshape that keeps the batch can be
            told from one that does not.

    Raises:
        InputError: the example is no batch of float32 images, or the network does not take it.
        BlockError: the network is compiled or scripted, so that its modules do not run as Python.
    """
    check_example(example)
    for module in net.modules():
        if isinstance(module, torch.jit.ScriptModule) or "_orig_mod" in module._modules:
            made = "scripted" if isinstance(module, torch.jit.ScriptModule) else "compiled"
            raise BlockError(
                f"a network with a {made} module, which does not run as Python; give the one it was made of"
            )
    images = example.detach()[:2].expand(2, *example.shape[1:]).clone()
    with torch.no_grad(), as_before(net):
        recorder = _Recorder(net, images)
        with (
            recorder.watching(net),
            user_code(
                InputError,
                f"the network does not take the example {describe(example)}",
                "; give one as it is trained on, such as torch.zeros(1, 3, 224, 224), on the network's device",
            ),
        ):
            result = net(images)
    return Trace(
        tuple(recorder.steps),
        tuple(recorder.calls),
        tuple(recorder.readings),
        tuple(images.shape[1:]),
        recorder.name_of(result),
        str(tuple(result.shape[1:])) if isinstance(result, Tensor) else type(result).__name__,
    )


def check_example(example: Tensor) -> None:
    """Checks that an example is a batch of images.

    Raises:
        InputError: it is not.
    """
    remedy = "expected (N, channels, height, width) float32, such as torch.zeros(1, 3, 224, 224)"
    if not isinstance(example, Tensor):
        raise InputError(f"an example of type {type(example).__name__}, {remedy}")
    if example.ndim != 4 or example.dtype != torch.float32 or not example.numel():
        raise InputError(f"an example {describe(example)}, {remedy}")


def describe(tensor: Tensor) -> str:
    """Shape and dtype in words: ``(1, 3, 224, 224) float32``."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


class _OutsideError(Exception):
    """The closed set of operators lacks what a function did; the message says what."""


@dataclass(frozen=True)
class _Value:
    """What a tensor stands for: the value of a step, as it is, expanded, or (N, C, 1, 1) without the last axis."""

    name: str
    form: Literal["whole", "expanded", "squeezed"] = "whole"


@dataclass(frozen=True)
class _Constant:
    """What a tensor stands for: a tensor of the state dict, or one that was computed from it."""

    name: str
    computed: bool = False


class _Recorder(TorchFunctionMode):
    """Translates the calls of torch functions while a network runs.

    A tensor object stands for a value. In-place operations let it stand for another one.
    """

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.calls: list[Call] = []
        self.readings: list[Reading] = []
        self.batch = len(images)
        self.results: Sequence[Tensor] = ()
        self._names: set[str] = {INPUT, OUTPUT}
        self._running: list[int] = []
        self._values: Any = WeakTensorKeyDictionary()
        self._constants: Any = WeakTensorKeyDictionary()
        self._values[images] = _Value(INPUT)
        for name, tensor in reversed(named_tensors(net).items()):
            if tensor is not None:
                self._constants[tensor] = _Constant(name)

    @contextmanager
    def watching(self, net: nn.Module) -> Iterator[None]:
        """Records until the end of the ``with`` block."""
        handles = []
        try:
            for name, module in net.named_modules():
                enter, leave = self._hooks(name)
                handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
                handles.append(module.register_forward_hook(leave, always_call=True))
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        begun: list[int] = []

        def enter(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            places = tuple(map(self._placed, arguments))
            named = {key: self._placed(value) for key, value in keywords.items()}
            begun.append(len(self.calls))
            self.calls.append(Call(name, module, places, named, tuple(self._running), len(self.steps)))
            self._running.append(begun[-1])

        def leave(module: nn.Module, arguments: tuple[Any, ...], result: object) -> None:
            call = self.calls[begun[-1]]
            call.stop, call.result = len(self.steps), self.name_of(result)
            del self._running[self._running.index(begun.pop()) :]

        return enter, leave

    def _placed(self, argument: object) -> object:
        name = self.name_of(argument)
        return argument if name is None else Place(name)

    @property
    def module(self) -> Call:
        """Innermost call of a module that is running."""
        return self.calls[self._running[-1]]

    def name_of(self, thing: object) -> str | None:
        """Name of the value for which a tensor stands; ``None`` for anything else."""
        value = self._values.get(thing) if isinstance(thing, Tensor) else None
        return None if value is None else value.name

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        read = list(_tensors((*args, *kwargs.values())))
        traced = [tensor for tensor in read if tensor in self._values]
        if not traced or not self._running:
            result = func(*args, **kwargs)
            self._note_constants(read, result)
            return result
        name = (resolve_name(func) or getattr(func, "__name__", type(func).__name__)).removeprefix("torch.")
        if name in _READS or (name == "Tensor.__getitem__" and _indexed_by_value(args[1], self)):
            self.readings.append(Reading(name, self.module.name, tuple(self._running)))
        target: Any = args[0] if args else kwargs.get("input")
        before = self.name_of(target)
        result = func(*args, **kwargs)
        if name == "Tensor.__setitem__":
            self._changed(target, before, self._opaque(traced, "assigns to a part of a tensor", target))
            return result
        results = list(_tensors((result,)))
        if not results:
            return result
        made, problem = self._translated(name, args, kwargs, results)
        if problem is not None:
            made = [_Value(self._opaque(traced, problem, tensor)) for tensor in results]
        if len(results) == 1 and result is target and made[0].name != before:
            if "dropout" in name:  # without a change in evaluation mode
                result = result.detach()
                self._values[result] = made[0]
            else:
                self._changed(target, before, made[0].name)
            return result
        for tensor, value in zip(results, made, strict=True):
            self._values[tensor] = value
        return result

    def _note_constants(self, read: Sequence[Tensor], result: object) -> None:
        """Remembers which tensors were computed from the state dict."""
        sources = [self._constants[tensor] for tensor in read if tensor in self._constants]
        for tensor in _tensors((result,)) if sources else ():
            if tensor not in self._constants:
                same = len(read) == 1 and _memory(tensor) == _memory(read[0])
                self._constants[tensor] = sources[0] if same else _Constant(sources[0].name, computed=True)

    def _translated(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], results: Sequence[Tensor]
    ) -> tuple[list[_Value], str | None]:
        """Values that a function gave; or the reason why the closed set lacks it."""
        translate = None if name in _UNLIKE else _TRANSLATIONS.get(_plain(name))
        if translate is None:
            return [], f"uses {name} (no operator of the closed set)"
        try:
            inspect.signature(translate).bind(self, results[0], *args, **kwargs)
        except TypeError:
            return [], f"uses {name} with arguments that are not supported"
        self.results = results
        try:
            made = translate(self, results[0], *args, **kwargs)
        except _OutsideError as error:
            return [], str(error)
        values = made if isinstance(made, list) else [made]
        if len(values) != len(results):
            return [], f"uses {name} with {len(results)} results"
        return [value if isinstance(value, _Value) else _Value(value) for value in values], None

    def _changed(self, tensor: Tensor, before: str | None, now: str) -> None:
        """Follows an in-place operation: a tensor, and what shares its memory, stands for another value."""
        storage = tensor.untyped_storage()._cdata
        self._values[tensor] = _Value(now)
        for other, value in list(self._values.items()):
            if other is not tensor and other.untyped_storage()._cdata == storage:
                whole = value.name == before and _memory(other) == _memory(tensor)
                problem = "changes a tensor in place through a view of it"
                self._values[other] = _Value(now if whole else self._opaque([tensor], problem, other))

    def _opaque(self, traced: Sequence[Tensor], problem: str, result: Tensor) -> str:
        inputs = tuple(dict.fromkeys(self._values[tensor].name for tensor in traced if tensor in self._values))
        return self.emit(OPAQUE, inputs, tuple(result.shape[1:]), problem=problem)

    # What translations use

    def form(self, thing: object) -> str | None:
        """Form of the value of a tensor; ``None`` for anything else."""
        value = self._values.get(thing) if isinstance(thing, Tensor) else None
        return None if value is None else cast(str, value.form)

    def value(self, thing: object, *forms: str) -> str:
        """Name of the value of an operand, which is whole or in one of some other forms."""
        name = self.name_of(thing)
        if name is None:
            raise _OutsideError("computes with a constant tensor in place of an image's")
        if (form := self.form(thing)) not in ("whole", *forms):
            raise _OutsideError(f"computes with a tensor that was {form}")
        return name

    def constant(self, tensor: Tensor | None, what: str) -> str:
        """Name in the state dict of a layer's tensor."""
        known = self._constants.get(tensor)
        if known is None:
            whence = "depends on the image" if tensor in self._values else "is not in its state dict"
            raise _OutsideError(f"has a {what} that {whence}")
        if known.computed:
            raise _OutsideError(f"computes its {what} from {known.name} in every forward")
        return cast(str, known.name)

    def number(self, thing: object) -> float:
        """A constant operand that is one number."""
        if isinstance(thing, bool | int | float):
            return float(thing)
        if not isinstance(thing, Tensor):
            raise _OutsideError(f"computes with a {type(thing).__name__}")
        if known := self._constants.get(thing):
            raise _OutsideError(f"computes with {known.name} outside of a convolution, linear layer or batch norm")
        if thing.numel() != 1 or thing.is_meta:
            raise _OutsideError(f"computes with a constant tensor {describe(thing)}")
        return float(thing)

    def emit(
        self,
        operator: str,
        inputs: tuple[str, ...],
        shape: Shape,
        tensors: Mapping[str, str] | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        problem: str | None = None,
    ) -> str:
        """Adds a step; returns its name."""
        owner = self.module.name
        name = owner if tensors and owner not in self._names and not owner.endswith(".addition") else ""
        if not name:
            prefix = f"{owner}.{operator}" if owner else operator
            names = (f"{prefix}_{number}" for number in count())
            name = next(name for name in names if name not in self._names)
        if len(name) > LONGEST_NAME:
            raise BlockError(f"a module with the name {name[:40]}..., expected at most {LONGEST_NAME} characters")
        self._names.add(name)
        node = Node(name, operator, inputs, dict(tensors or {}), dict(attributes or {}))
        self.steps.append(Step(node, shape, owner, tuple(self._running), problem))
        return name


_READS = frozenset(
    [
        *(
            f"Tensor.__{name}__"
            for name in ("bool", "int", "float", "index", "complex", "array", "contains", "nonzero")
        ),
        *(f"Tensor.{name}" for name in ("item", "tolist", "numpy", "is_nonzero", "equal", "allclose", "nonzero")),
        *("is_nonzero", "equal", "allclose", "nonzero", "masked_select", "Tensor.masked_select"),
    ]
)
"""Functions that give a tensor's values to Python, or a tensor whose shape depends on them."""

_UNLIKE = frozenset(("batch_norm",))
"""Functions that share the last part of their name with a translated one, and not its arguments."""

_DUNDER = re.compile(r"__[ir]?(add|sub|mul|truediv)__")


def _plain(name: str) -> str:
    """Last part of a function's name, without the mark of an in-place operation."""
    last = name.rsplit(".", 1)[-1] if not name.endswith(".__get__") else name.split(".")[-2]
    if last == "__rsub__":
        return "rsub"
    return found[1] if (found := _DUNDER.fullmatch(last)) else last.removesuffix("_") if last[:2] != "__" else last


def _tensors(things: object) -> Iterator[Tensor]:
    if isinstance(things, Tensor):
        yield things
    elif isinstance(things, tuple | list):
        for thing in things:
            yield from _tensors(thing)
    elif isinstance(things, dict):
        yield from _tensors(tuple(things.values()))


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """What two tensors have in common if they are the same values in the same memory."""
    return tensor.untyped_storage()._cdata, tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


def _indexed_by_value(index: object, recorder: _Recorder) -> bool:
    return any(recorder.name_of(tensor) is not None for tensor in _tensors(index))


# Translations: functions of the same arguments as torch's, after the recorder and the (first) result.

_Made = str | _Value | list[str | _Value]
_TRANSLATIONS: dict[str, Callable[..., _Made]] = {}


def _translates(*names: str) -> Callable[[Callable[..., _Made]], Callable[..., _Made]]:
    def register(translate: Callable[..., _Made]) -> Callable[..., _Made]:
        for name in names:
            _TRANSLATIONS[name] = translate
        return translate

    return register


def _shape(result: Tensor) -> Shape:
    return tuple(result.shape[1:])


def _pair(value: object) -> tuple[int, int]:
    numbers = [int(v) for v in value] if isinstance(value, Sequence) else [int(cast(int, value))]
    return (numbers[0], numbers[-1])


def _is_map(tensor: Tensor) -> None:
    if tensor.ndim != 4:
        raise _OutsideError(f"computes on a tensor {describe(tensor)}, which is no (N, channels, height, width)")


@_translates("conv2d")
def _conv2d(
    run: _Recorder,
    result: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: int = 1,
) -> _Made:
    x = run.value(input)
    _is_map(input)
    tensors = {"weight": run.constant(weight, "weight")}
    if bias is not None:
        tensors["bias"] = run.constant(bias, "bias")
    strides, dilations = _pair(stride), _pair(dilation)
    if isinstance(padding, str):  # as torch: the odd pixel of "same" comes after
        total = (
            [0, 0] if padding == "valid" else [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
        )
        pads = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        pads = _pair(padding) * 2
    attributes: dict[str, Attribute] = {
        "stride": strides,
        "padding": pads,
        "dilation": dilations,
        "groups": int(groups),
    }
    return run.emit("conv", (x,), _shape(result), tensors, attributes)


@_translates("linear")
def _linear(run: _Recorder, result: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> _Made:
    x = run.value(input)
    if input.ndim != 2:
        raise _OutsideError(f"uses a linear layer on a tensor {describe(input)}, expected (N, values)")
    tensors = {"weight": run.constant(weight, "weight")}
    if bias is not None:
        tensors["bias"] = run.constant(bias, "bias")
    return run.emit("linear", (x,), _shape(result), tensors)


@_translates("batch_norm")
def _batch_norm(
    run: _Recorder,
    result: Tensor,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Made:
    module = run.module.module
    if getattr(module, "momentum", 0.1) is None:
        raise _OutsideError("has momentum None, a mean over all batches so far; set a number such as 0.1")
    if training or running_mean is None or running_var is None:
        raise _OutsideError("uses the batch's mean and variance in evaluation mode too")
    tensors = {"mean": run.constant(running_mean, "mean"), "variance": run.constant(running_var, "variance")}
    if weight is not None:
        tensors["weight"] = run.constant(weight, "weight")
    if bias is not None:
        tensors["bias"] = run.constant(bias, "bias")
    attributes: dict[str, Attribute] = {"epsilon": float(eps), "momentum": float(momentum)}
    return run.emit("batch_norm", (run.value(input),), _shape(result), tensors, attributes)


def _simple(operator: str, *names: str) -> None:
    """A function of one tensor without constants."""

    def translate(run: _Recorder, result: Tensor, input: Tensor, inplace: bool = False) -> _Made:
        return run.emit(operator, (run.value(input),), _shape(result))

    _translates(*names)(translate)


_simple("relu", "relu")
_simple("hard_swish", "hardswish")
_simple("hard_sigmoid", "hardsigmoid")
_simple("sigmoid", "sigmoid")
_simple("silu", "silu")
_simple("tanh", "tanh")


@_translates("gelu")
def _gelu(run: _Recorder, result: Tensor, input: Tensor, approximate: str = "none") -> _Made:
    if approximate != "none":
        raise _OutsideError(f"uses gelu with the approximation {approximate}")
    return run.emit("gelu", (run.value(input),), _shape(result))


@_translates("leaky_relu")
def _leaky_relu(
    run: _Recorder, result: Tensor, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> _Made:
    attributes = {"slope": float(negative_slope)}
    return run.emit("leaky_relu", (run.value(input),), _shape(result), attributes=attributes)


@_translates("relu6")
def _relu6(run: _Recorder, result: Tensor, input: Tensor, inplace: bool = False) -> _Made:
    return _clipped(run, result, input, 0.0, 6.0)


@_translates("hardtanh")
def _hardtanh(
    run: _Recorder,
    result: Tensor,
    input: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> _Made:
    return _clipped(run, result, input, min_val, max_val)


@_translates("clamp", "clip")
def _clamp(run: _Recorder, result: Tensor, input: Tensor, min: object = None, max: object = None) -> _Made:
    return _clipped(run, result, input, min, max)


@_translates("clamp_min")
def _clamp_min(run: _Recorder, result: Tensor, input: Tensor, min: object) -> _Made:
    return _clipped(run, result, input, min, None)


def _clipped(run: _Recorder, result: Tensor, input: Tensor, low: object, high: object) -> str:
    x = run.value(input)
    if high is None and low is not None and run.number(low) == 0.0:
        return run.emit("relu", (x,), _shape(result))
    if low is None or high is None:
        raise _OutsideError("clamps on one side")
    attributes = {"low": run.number(low), "high": run.number(high)}
    return run.emit("clip", (x,), _shape(result), attributes=attributes)


def _affine(run: _Recorder, x: str, shape: Shape, scale: float, shift: float) -> str:
    return run.emit("affine", (x,), shape, attributes={"scale": float(scale), "shift": float(shift)})


@_translates("add")
def _add(run: _Recorder, result: Tensor, input: Any, other: Any, *, alpha: float = 1) -> _Made:
    return _sum(run, result, (input, 1.0), (other, float(alpha)))


@_translates("sub", "subtract")
def _sub(run: _Recorder, result: Tensor, input: Any, other: Any, *, alpha: float = 1) -> _Made:
    return _sum(run, result, (input, 1.0), (other, -float(alpha)))


@_translates("rsub")
def _rsub(run: _Recorder, result: Tensor, input: Any, other: Any, *, alpha: float = 1) -> _Made:
    return _sum(run, result, (other, 1.0), (input, -float(alpha)))


def _sum(run: _Recorder, result: Tensor, *terms: tuple[Any, float]) -> str:
    """Sum of two operands with their factors; one of them may be a number."""
    values = [(run.value(term, "expanded"), term.shape, scale) for term, scale in terms if run.name_of(term)]
    shift = sum(scale * run.number(term) for term, scale in terms if not run.name_of(term))
    if len(values) == 1:
        name, shape, scale = values[0]
        if shape != result.shape:
            raise _OutsideError("adds a constant of a larger shape")
        return _affine(run, name, _shape(result), scale, shift)
    names = [n if scale == 1.0 else _affine(run, n, tuple(shape[1:]), scale, 0.0) for n, shape, scale in values]
    return run.emit("add", tuple(names), _shape(result))


@_translates("mul", "multiply")
def _mul(run: _Recorder, result: Tensor, input: Any, other: Any) -> _Made:
    traced = [thing for thing in (input, other) if run.name_of(thing)]
    if len(traced) == 2:
        return run.emit("mul", tuple(run.value(thing, "expanded") for thing in traced), _shape(result))
    factor = other if traced[0] is input else input
    return _affine(run, run.value(traced[0]), _shape(result), run.number(factor), 0.0)


@_translates("div", "truediv", "true_divide", "divide")
def _div(run: _Recorder, result: Tensor, input: Any, other: Any, *, rounding_mode: str | None = None) -> _Made:
    if rounding_mode is not None or run.name_of(other):
        raise _OutsideError("divides by a tensor" if rounding_mode is None else "divides and rounds")
    return _affine(run, run.value(input), _shape(result), 1.0 / run.number(other), 0.0)


@_translates("neg", "negative")
def _neg(run: _Recorder, result: Tensor, input: Tensor) -> _Made:
    return _affine(run, run.value(input), _shape(result), -1.0, 0.0)


@_translates("zeros_like")
def _zeros_like(run: _Recorder, result: Tensor, input: Tensor) -> _Made:
    return _affine(run, run.value(input), _shape(result), 0.0, 0.0)


@_translates("max_pool2d")
def _max_pool2d(
    run: _Recorder,
    result: Tensor,
    input: Tensor,
    kernel_size: object,
    stride: object = None,
    padding: object = 0,
    dilation: object = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> _Made:
    _is_map(input)
    attributes = _window(kernel_size, stride, padding, ceil_mode)
    return run.emit(
        "max_pool", (run.value(input),), _shape(result), attributes={**attributes, "dilation": _pair(dilation)}
    )


def _window(kernel: object, stride: object, padding: object, ceil_mode: bool) -> dict[str, Attribute]:
    kernels = _pair(kernel)
    strides = kernels if stride is None or stride == [] else _pair(stride)
    return {"kernel": kernels, "stride": strides, "padding": _pair(padding), "ceil": int(ceil_mode)}


@_translates("avg_pool2d")
def _avg_pool2d(
    run: _Recorder,
    result: Tensor,
    input: Tensor,
    kernel_size: object,
    stride: object = None,
    padding: object = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> _Made:
    _is_map(input)
    if divisor_override is not None:
        raise _OutsideError("uses an average pool with a divisor of its own")
    attributes = _window(kernel_size, stride, padding, ceil_mode)
    if attributes["kernel"] == tuple(input.shape[2:]) and attributes["padding"] == (0, 0):
        return run.emit("global_avg_pool", (run.value(input),), _shape(result))
    attributes["count_padding"] = int(count_include_pad)
    return run.emit("avg_pool", (run.value(input),), _shape(result), attributes=attributes)


@_translates("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(run: _Recorder, result: Tensor, input: Tensor, output_size: object) -> _Made:
    if tuple(result.shape[2:]) == (1, 1):
        _is_map(input)
        return run.emit("global_avg_pool", (run.value(input),), _shape(result))
    return _adaptive(run, result, input, "avg_pool", {"count_padding": 1})


@_translates("adaptive_max_pool2d")
def _adaptive_max_pool2d(
    run: _Recorder, result: Tensor, input: Tensor, output_size: object, return_indices: bool = False
) -> _Made:
    return _adaptive(run, result, input, "max_pool", {"dilation": (1, 1)})


def _adaptive(
    run: _Recorder, result: Tensor, input: Tensor, operator: str, attributes: dict[str, Attribute]
) -> str | _Value:
    _is_map(input)
    x, before, after = run.value(input), tuple(input.shape[2:]), tuple(result.shape[2:])
    if before == after:
        return _Value(x)
    if any(size % parts for size, parts in zip(before, after, strict=True)):
        raise _OutsideError(f"pools {before} to {after} in windows of unequal sizes")
    window = _window((before[0] // after[0], before[1] // after[1]), None, 0, False)
    return run.emit(operator, (x,), _shape(result), attributes={**window, **attributes})


@_translates("mean")
def _mean(
    run: _Recorder, result: Tensor, input: Tensor, dim: object = None, keepdim: bool = False, *, dtype: object = None
) -> _Made:
    _is_map(input)
    axes = sorted(int(d) % 4 for d in dim) if isinstance(dim, Sequence) else []
    if axes != [2, 3] or result.dtype != input.dtype:
        raise _OutsideError("takes a mean other than over rows and columns")
    pooled = run.emit("global_avg_pool", (run.value(input),), (input.shape[1], 1, 1))
    return pooled if keepdim else run.emit("flatten", (pooled,), _shape(result))


@_translates("contiguous", "clone", "to", "float", "type", "type_as", "requires_grad", "alias")
def _unchanged(run: _Recorder, result: Tensor, input: Tensor, *args: object, **kwargs: object) -> _Made:
    x = run.value(input)
    if (result.dtype, result.device, result.shape) != (input.dtype, input.device, input.shape):
        raise _OutsideError(f"converts {describe(input)} on {input.device} to {describe(result)} on {result.device}")
    return _Value(x)


@_translates("detach", "data")
def _detached(run: _Recorder, result: Tensor, input: Tensor) -> _Made:
    raise _OutsideError("keeps gradients from what it computes (detach or data), as no graph does; leave that out")


@_translates("dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def _other_dropout(run: _Recorder, result: Tensor, input: Tensor, *args: object, **kwargs: object) -> _Made:
    raise _OutsideError("drops whole channels or shifts values in training; take nn.Dropout in its place")


@_translates("dropout")
def _dropout(
    run: _Recorder, result: Tensor, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> _Made:
    if training:
        raise _OutsideError("drops at random in evaluation mode too")
    return run.emit("dropout", (run.value(input),), _shape(result), attributes={"share": float(p)})


@_translates("flatten", "view", "reshape", "squeeze", "unsqueeze", "view_as", "reshape_as", "unflatten")
def _reshaped(run: _Recorder, result: Tensor, input: Tensor, *args: object, **kwargs: object) -> _Made:
    x, before, after = run.value(input, "squeezed"), tuple(input.shape), tuple(result.shape)
    if before == after and result.dtype == input.dtype:
        return _Value(x)
    if before == (*after, 1) and after[2:] == (1,):
        return _Value(x, "squeezed")
    if before[0] == after[0] == run.batch and result.dtype == input.dtype:
        if len(after) == 2:
            return run.emit("flatten", (x,), after[1:])
        if len(before) == 2 and after[2:] == (1, 1) and len(after) == 4:
            return run.emit("unflatten", (x,), after[1:])
    raise _OutsideError(f"reshapes {before} to {after}")


@_translates("expand", "expand_as", "broadcast_to")
def _expand(run: _Recorder, result: Tensor, input: Tensor, *args: object, **kwargs: object) -> _Made:
    if result.ndim != input.ndim or len(result) != len(input):
        raise _OutsideError(f"expands {tuple(input.shape)} to {tuple(result.shape)}")
    return _Value(run.value(input), "whole" if result.shape == input.shape else "expanded")


@_translates("pad", "constant_pad_nd")
def _pad(
    run: _Recorder,
    result: Tensor,
    input: Tensor,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> _Made:
    x = run.value(input)
    if mode != "constant" or value:
        raise _OutsideError(f"pads with {mode if mode != 'constant' else value}, expected zeros")
    numbers = [*map(int, pad), *(0 for _ in range(8 - len(pad)))]
    if input.ndim != 4 or len(numbers) != 8 or any(numbers[6:]) or min(numbers) < 0:
        raise _OutsideError(f"pads {tuple(input.shape)} by {tuple(pad)}, expected channels, rows or columns")
    if not any(numbers):
        return _Value(x)
    pads = (numbers[4], numbers[2], numbers[0], numbers[5], numbers[3], numbers[1])
    return run.emit("pad", (x,), _shape(result), attributes={"pads": pads})


@_translates("__getitem__")
def _getitem(run: _Recorder, result: Tensor, input: Tensor, index: object) -> _Made:
    x, parts = run.value(input), list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        at = next(number for number, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (input.ndim - len(parts) + 1)
    if not all(isinstance(part, slice) for part in parts) or len(parts) > input.ndim:
        if input.ndim == 2 and parts == [slice(None), slice(None), None, None]:
            return run.emit("unflatten", (x,), _shape(result))
        raise _OutsideError("indexes a tensor other than by slices")
    parts += [slice(None)] * (input.ndim - len(parts))
    ranges = [cast(slice, part).indices(size) for part, size in zip(parts, input.shape, strict=True)]
    return _sliced(run, result, input, ranges)


def _sliced(run: _Recorder, result: Tensor, input: Tensor, ranges: list[tuple[int, int, int]]) -> str | _Value:
    """A slice of channels, rows and columns; ``ranges`` has a start, an end and a step for each axis."""
    x = run.value(input)
    if result.shape == input.shape:
        return _Value(x)
    if input.ndim != 4 or len(result) != len(input):
        raise _OutsideError(f"takes {tuple(result.shape)} of {tuple(input.shape)}, expected whole images")
    starts, ends, steps = zip(*ranges[1:], strict=True)
    return run.emit("slice", (x,), _shape(result), attributes={"starts": starts, "ends": ends, "steps": steps})


@_translates("narrow")
def _narrow(run: _Recorder, result: Tensor, input: Tensor, dim: int, start: int, length: int) -> _Made:
    ranges = [(0, size, 1) for size in input.shape]
    ranges[dim] = (start % max(input.shape[dim], 1), start % max(input.shape[dim], 1) + length, 1)
    return _sliced(run, result, input, ranges)


@_translates("chunk", "split", "tensor_split", "split_with_sizes")
def _split(run: _Recorder, result: Tensor, input: Tensor, how: object, dim: int = 0) -> _Made:
    made: list[str | _Value] = []
    start = 0
    for part in run.results:
        ranges = [(0, size, 1) for size in input.shape]
        ranges[dim] = (start, start + part.shape[dim], 1)
        made.append(_sliced(run, part, input, ranges))
        start += part.shape[dim]
    return made


@_translates("cat", "concat", "concatenate")
def _cat(run: _Recorder, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> _Made:
    if dim % result.ndim != 1:
        raise _OutsideError(f"joins tensors along axis {dim}, expected channels")
    return run.emit("concat", tuple(map(run.value, tensors)), _shape(result))
