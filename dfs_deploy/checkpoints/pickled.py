"""Simulation of a pickle of ``torch.save``: what it would create, without creating it.

``torch.load(weights_only=True)`` runs no code, but trusts every size in a pickle: tensors beyond the end of their
storage, storages larger than the file, a list copied a million times. This module follows the same instructions with
stand-ins, so that sizes can be compared with the file before anything is loaded, and so that an error can name what
state dicts do not need. Nothing is imported by name, and nothing is called.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch

MAX_INSTRUCTIONS = 600_000
"""Most instructions in the pickles of a checkpoint; a tensor takes about thirty."""

MAX_TENSORS = 50_000
"""Most tensors of a checkpoint; a ResNet-1202 with its optimiser has about 30,000."""

PROTOCOL = 2
"""Pickle protocol that ``torch.save`` writes and ``torch.load`` reads."""

_MAX_AXES = 8
_MAX_KEY = 16
_MAX_DEPTH = 32
"""Most levels of nested dicts and lists."""

_ITEM_BYTES = {
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage", "UntypedStorage"), 1),
    **dict.fromkeys(("ShortStorage", "HalfStorage", "BFloat16Storage"), 2),
    **dict.fromkeys(("IntStorage", "FloatStorage"), 4),
    **dict.fromkeys(("LongStorage", "DoubleStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}

_NOT_DENSE = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (device meta)",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of another device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of another class",
    "torch._tensor._rebuild_from_type_v2": "a tensor of another class, or with attributes",
    "builtins.bytearray": "a bytearray",
    "__builtin__.bytearray": "a bytearray",
}
"""Objects that torch.load creates without running code, but that no supported network contains."""


class PickleRefusedError(Exception):
    """A pickle that is refused; the text is a noun phrase for the reason."""


class MalformedPickleError(PickleRefusedError):
    """A pickle that ``torch.save`` did not write, or that was damaged later."""


class OversizedPickleError(PickleRefusedError):
    """A pickle that holds more than any checkpoint."""


class NotDenseError(PickleRefusedError):
    """A pickle with a tensor that is not dense, or of another class."""


class ForbiddenNameError(PickleRefusedError):
    """A pickle that names something which state dicts do not need; the text is that name."""


@dataclass(frozen=True)
class PickledStorage:
    """Reference to a storage.

    Attributes:
        key: name of the storage in the file.
        items: number of values.
        item_bytes: bytes per value.
    """

    key: str
    items: int
    item_bytes: int

    @property
    def size(self) -> int:
        """Size of the storage in bytes."""
        return self.items * self.item_bytes


@dataclass
class PickleFollower:
    """Follows the pickles of one file and counts what they would create.

    Attributes:
        storages: storages that the pickles refer to, by key.
    """

    storages: dict[str, PickledStorage] = field(default_factory=dict)
    _instructions: int = 0
    _tensors: int = 0

    def follow(self, stream: BinaryIO) -> Any:
        """Follows one pickle.

        Args:
            stream: stream at the beginning of the pickle; at its end afterwards.

        Returns:
            Dicts, lists, tuples, text and numbers; tensors and other objects are stand-ins.

        Raises:
            ForbiddenNameError: it names something that state dicts do not need.
            NotDenseError: it creates tensors that are not dense.
            OversizedPickleError: it creates more than any checkpoint holds.
            MalformedPickleError: it is damaged, or ``torch.save`` does not write such pickles.
        """
        machine = _Machine(self)
        refused: PickleRefusedError | None = None
        protocol = None
        try:
            for instruction, argument, _ in pickletools.genops(stream):
                self.count(1)
                if instruction.name == "PROTO":
                    protocol = argument
                elif isinstance(refused, MalformedPickleError):  # the rest may give a better reason
                    refused = _named_in(instruction.name, argument) or refused
                elif refused is None:
                    refused = machine.try_step(instruction.name, argument)
        except (ValueError, OverflowError) as error:
            # Text may begin like a pickle of the first protocols, which have no magic number, but hardly ends like one.
            if protocol is None or refused is None or isinstance(refused, MalformedPickleError):
                raise MalformedPickleError("a damaged pickle") from error
        if refused is None and protocol != PROTOCOL:
            refused = MalformedPickleError(f"a pickle of protocol {protocol}, expected {PROTOCOL}")
        if refused is None and len(machine.stack) != 1:
            refused = MalformedPickleError("a pickle without exactly one value")
        if refused is not None:
            raise refused
        _check_traversable(machine.stack[0])
        return machine.stack[0]

    def count(self, made: int) -> None:
        """Counts instructions and copied items, because one list could be copied a million times."""
        self._instructions += made
        if self._instructions > MAX_INSTRUCTIONS:
            raise OversizedPickleError(f"more than {MAX_INSTRUCTIONS:,} values")

    def count_tensor(self) -> None:
        """Counts one tensor."""
        self._tensors += 1
        if self._tensors > MAX_TENSORS:
            raise OversizedPickleError(f"more than {MAX_TENSORS:,} tensors")


@dataclass(frozen=True)
class _Named:
    """A function, class or data type that a pickle names."""

    name: str


_TENSOR = object()
_OTHER = object()


class _Machine:
    """Pickle's stack machine, for the instructions that ``torch.save`` writes."""

    def __init__(self, follower: PickleFollower) -> None:
        self.stack: list[Any] = []
        self._follower = follower
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def try_step(self, name: str, argument: Any) -> PickleRefusedError | None:
        """Follows one instruction; returns an error instead of raising it, unless it is about size."""
        try:
            if name in _PUSHED:
                self.stack.append(argument)
            elif name in _STEPS:
                _STEPS[name](self, argument)
            else:
                return _named_in(name, argument) or MalformedPickleError(f"a pickle with the instruction {name}")
        except OversizedPickleError:
            raise
        except PickleRefusedError as error:
            return error
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return MalformedPickleError(f"a pickle with the instruction {name} in the wrong place")
        return None

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_named(self, name: str) -> None:
        if name in _NOT_DENSE:
            raise NotDenseError(_NOT_DENSE[name])
        if re.fullmatch(r"torch\.(cuda\.|sparse\.)?\w*Tensor", name):
            raise NotDenseError("a tensor of another class")
        if name not in _CALLABLE and _storage_bytes(name) is None and name not in _DTYPES:
            raise ForbiddenNameError(name)
        self.stack.append(_Named(name))

    def name_from_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):  # printing nested lists may take forever
            raise MalformedPickleError("a pickle with a name that is no text")
        self.push_named(f"{module}.{name}")

    def gather(self, count: int) -> None:
        at = len(self.stack) - count
        if at < 0:
            raise MalformedPickleError("a pickle that pops more than it pushed")
        self.stack[at:] = [tuple(self.stack[at:])]

    def mark(self) -> None:
        self._marks.append(len(self.stack))

    def marked(self) -> list[Any]:
        at = self._marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def keep(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.stack.append(self._memo[index])

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise MalformedPickleError("a pickle that appends to something other than a list")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise MalformedPickleError("a pickle that sets items of something other than a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _check_key(key)
            if key in target:
                raise MalformedPickleError(f"a dict with the key {key!r} twice")
            target[key] = value

    def set_state(self) -> None:
        """Accepts state only for dicts: state dicts keep the versions of their modules in an attribute."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise MalformedPickleError("a pickle that changes an object")

    def refer(self) -> None:
        kind, typed, key, _, items, *view = self.stack.pop()
        item_bytes = _storage_bytes(typed.name) if isinstance(typed, _Named) else None
        if kind != "storage" or item_bytes is None or not isinstance(key, str) or not _is_count(items):
            raise MalformedPickleError("a pickle with a malformed reference to a storage")
        storage = PickledStorage(key, items, item_bytes)
        if self._follower.storages.setdefault(key, storage).size != storage.size:
            raise MalformedPickleError(f"two different sizes of storage {key}")
        if view and view[0] is not None:
            _, offset, length = view[0]
            if not (_is_count(offset) and _is_count(length) and offset + length <= items):
                raise MalformedPickleError(f"a view beyond the end of storage {key}")
            storage = PickledStorage(key, length, item_bytes)
        self.stack.append(storage)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Named) or function.name not in _CALLABLE:
            raise MalformedPickleError("a pickle that calls something other than a function")
        self.stack.append(_CALLABLE[function.name](self._follower, *arguments))


_PUSHED = frozenset(
    ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "NONE")
)
"""Instructions that push their argument, which is ``None`` for ``NONE``."""

_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.gather(1),
    "TUPLE2": lambda machine, _: machine.gather(2),
    "TUPLE3": lambda machine, _: machine.gather(3),
    "MARK": lambda machine, _: machine.mark(),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.keep),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEM": lambda machine, _: machine.update([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.update(machine.marked()),
    "GLOBAL": lambda machine, name: machine.push_named(name.replace(" ", ".")),
    "STACK_GLOBAL": lambda machine, _: machine.name_from_stack(),
    "BUILD": lambda machine, _: machine.set_state(),
    "BINPERSID": lambda machine, _: machine.refer(),
    "REDUCE": lambda machine, _: machine.call(),
}
"""Instructions of protocol 2, and those of protocol 4 that show what such a pickle contains."""


def _named_in(name: str, argument: Any) -> ForbiddenNameError | None:
    """Error for what an instruction names, after following has failed."""
    if name in ("GLOBAL", "INST"):
        named = argument.replace(" ", ".")
        return None if named in _CALLABLE or _storage_bytes(named) else ForbiddenNameError(named)
    return ForbiddenNameError("an object") if name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4") else None


def _check_traversable(value: Any) -> None:
    """Checks that a value can be traversed, compared and printed in reasonable time.

    A pickle can repeat one list many times: lists that hold ten times the same list, many levels deep, take a hundred
    bytes and an exponential time to traverse.
    """
    waiting, seen = [(value, 0)], 0
    while waiting:
        held, depth = waiting.pop()
        if isinstance(held, dict):
            held = held.values()
        elif not isinstance(held, list | tuple):
            continue
        seen += len(held)
        if seen > MAX_INSTRUCTIONS or depth > _MAX_DEPTH:
            raise OversizedPickleError("lists nested too deeply or too often")
        waiting += [(each, depth + 1) for each in held]


def _dict(follower: PickleFollower, items: Any = ()) -> dict[Any, Any]:
    """``OrderedDict`` or ``Counter``: empty and filled later, from pairs as Python 2 wrote it, or from a dict."""
    follower.count(len(items))
    made = {}
    for key, value in items.items() if isinstance(items, dict) else items:
        _check_key(key)
        made[key] = value
    return made


def _set(follower: PickleFollower, items: Any) -> object:
    follower.count(len(items))
    for item in items:
        _check_key(item)
    return _OTHER


def _plain(follower: PickleFollower, *arguments: Any) -> object:
    """Object that at most copies its arguments: a shape, a device, bytes, a complex number."""
    follower.count(sum(len(a) for a in arguments if isinstance(a, str | bytes | tuple | list)))
    return _OTHER


def _tensor(follower: PickleFollower, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> object:
    return _view(follower, storage, storage.item_bytes, offset, shape, strides)


def _typed_tensor(
    follower: PickleFollower,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    *_: Any,
) -> object:
    """Tensor of a data type without its own storage class, such as float8."""
    return _view(follower, storage, _DTYPES[dtype.name].itemsize, offset, shape, strides)


def _view(follower: PickleFollower, storage: Any, item_bytes: int, offset: Any, shape: Any, strides: Any) -> object:
    """Tensor in a storage, which it must not exceed."""
    follower.count_tensor()
    for numbers in (shape, strides, (offset,)):
        if not isinstance(numbers, tuple) or len(numbers) > _MAX_AXES or not all(map(_is_count, numbers)):
            raise MalformedPickleError("a tensor with a malformed shape")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last + 1) * item_bytes > storage.size:
        raise MalformedPickleError(f"a tensor of shape {shape} beyond the end of its storage of {storage.size} bytes")
    return _TENSOR


def _parameter(follower: PickleFollower, data: Any, *_: Any) -> object:
    if data is not _TENSOR:
        raise MalformedPickleError("a parameter without a tensor")
    follower.count_tensor()
    return _TENSOR


_CALLABLE: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    **dict.fromkeys(("builtins.set", "__builtin__.set"), _set),
    **dict.fromkeys(
        ("builtins.complex", "__builtin__.complex", "_codecs.encode", "torch.Size", "torch.device"), _plain
    ),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
"""Functions that state dicts, and the training state around them, call."""


def _check_key(key: Any) -> None:
    """Checks that hashing a key is cheap: nested tuples take exponential time, and large integers collide."""
    for part in key if isinstance(key, tuple) and len(key) <= _MAX_KEY else (key,):
        if not (
            part is None or isinstance(part, str | bytes | float) or (isinstance(part, int) and abs(part) < 1 << 63)
        ):
            raise MalformedPickleError("a dict with keys that are neither text nor numbers")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _storage_bytes(name: str) -> int | None:
    module, _, kind = name.rpartition(".")
    return _ITEM_BYTES.get(kind) if module in ("torch", "torch.cuda", "torch.storage") else None
