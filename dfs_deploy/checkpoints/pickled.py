"""Pickles of ``torch.save``: what they would create, without creating it.

``torch.load(weights_only=True)`` runs no code, but trusts every size in a pickle: tensors beyond the end of their
storage, storages larger than the file, a list copied a million times. This module follows the same instructions with
stand-ins, so that sizes can be compared with the file before anything is loaded, and so that an error can name what
state dicts do not need.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from dfs_deploy.io.pickles import (
    ForbiddenNameError,
    InertUnpickler,
    MalformedPickleError,
    OversizedPickleError,
    PickleRefusedError,
    check_key,
)

MAX_TENSORS = 50_000
"""Most tensors of a checkpoint; a ResNet-1202 with its optimiser has about 30,000."""

PROTOCOL = 2
"""Pickle protocol that ``torch.save`` writes and ``torch.load`` reads."""

_MAX_AXES = 8

_ITEM_BYTES = {
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage", "UntypedStorage"), 1),
    **dict.fromkeys(("ShortStorage", "HalfStorage", "BFloat16Storage"), 2),
    **dict.fromkeys(("IntStorage", "FloatStorage"), 4),
    **dict.fromkeys(("LongStorage", "DoubleStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}

_NOT_DENSE = re.compile(
    r"torch\.(cuda\.|sparse\.)?\w*Tensor|torch\._(utils|tensor)\._rebuild_\w+|(builtins|__builtin__)\.bytearray"
)
"""Names of what torch.load creates without running code, but no supported network contains."""

_KINDS = {
    "_sparse": "a sparse tensor",
    "_qtensor": "a quantised tensor",
    "_nested": "a nested tensor",
    "_meta": "a tensor without values (device meta)",
    "_device": "a tensor of another device",
    "bytearray": "a bytearray",
}


class NotDenseError(PickleRefusedError):
    """A pickle with a tensor that is not dense, or of another class."""


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


@dataclass(frozen=True)
class _Named:
    """A storage class or a data type that a pickle names."""

    name: str


_TENSOR = object()
_OTHER = object()


class PickleFollower(InertUnpickler):
    """Follows the pickles of one file and counts what they would create; tensors and other objects are stand-ins.

    Args:
        stream: the pickles, one after another.

    Attributes:
        storages: storages that the pickles refer to, by key.
    """

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.storages: dict[str, PickledStorage] = {}
        self._tensors = 0
        self._callable = {
            **dict.fromkeys(("collections.OrderedDict", "collections.Counter"), self._dict),
            **dict.fromkeys(("builtins.set", "__builtin__.set"), self._set),
            **dict.fromkeys(("builtins.complex", "__builtin__.complex", "_codecs.encode"), self._plain),
            **dict.fromkeys(("torch.Size", "torch.device"), self._plain),
            **dict.fromkeys(("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"), self._tensor),
            "torch._utils._rebuild_tensor_v3": self._typed_tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
        }

    def load(self) -> Any:
        """Follows the next pickle; see ``InertUnpickler.load``.

        Raises:
            NotDenseError: it creates tensors that are not dense.
            PickleRefusedError: it is refused for another reason; the subclass says which.
        """
        value = super().load()
        if self.proto != PROTOCOL:
            raise MalformedPickleError(f"a pickle of protocol {self.proto}, expected {PROTOCOL}")
        return value

    def stand_in(self, name: str) -> Any:
        """Stand-in for a function, a storage class or a data type."""
        if name in self._callable:
            return self._callable[name]
        if _storage_bytes(name) is not None or name in _DTYPES:
            return _Named(name)
        if _NOT_DENSE.fullmatch(name):
            words = (words for part, words in _KINDS.items() if part in name)
            raise NotDenseError(next(words, "a tensor of another class, or with attributes"))
        raise ForbiddenNameError(name)

    def persistent_load(self, reference: Any) -> PickledStorage:
        """Storage that a pickle refers to."""
        kind, typed, key, _, items, *view = reference
        item_bytes = _storage_bytes(typed.name) if isinstance(typed, _Named) else None
        if kind != "storage" or item_bytes is None or not isinstance(key, str) or not _is_count(items):
            raise MalformedPickleError("a pickle with a malformed reference to a storage")
        storage = PickledStorage(key, items, item_bytes)
        if self.storages.setdefault(key, storage).size != storage.size:
            raise MalformedPickleError(f"two different sizes of storage {key}")
        if view and view[0] is not None:
            _, offset, length = view[0]
            if not (_is_count(offset) and _is_count(length) and offset + length <= items):
                raise MalformedPickleError(f"a view beyond the end of storage {key}")
            storage = PickledStorage(key, length, item_bytes)
        return storage

    def _dict(self, items: Any = ()) -> dict[Any, Any]:
        """``OrderedDict`` or ``Counter``: empty and filled later, from pairs as Python 2 wrote it, or from a dict."""
        self.count(len(items))
        made = {}
        for key, value in items.items() if isinstance(items, dict) else items:
            check_key(key)
            made[key] = value
        return made

    def _set(self, items: Any) -> object:
        self.count(len(items))
        for item in items:
            check_key(item)
        return _OTHER

    def _plain(self, *arguments: Any) -> object:
        """Object that at most copies its arguments: a shape, a device, bytes, a complex number."""
        self.count(sum(len(a) for a in arguments if isinstance(a, str | bytes | tuple | list)))
        return _OTHER

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> object:
        return self._view(storage, storage.item_bytes, offset, shape, strides)

    def _typed_tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> object:
        """Tensor of a data type without its own storage class, such as float8."""
        _grad, _hooks, dtype, *_ = rest
        return self._view(storage, _DTYPES[dtype.name].itemsize, offset, shape, strides)

    def _view(self, storage: PickledStorage, item_bytes: int, offset: Any, shape: Any, strides: Any) -> object:
        """Tensor in a storage, which it must not exceed."""
        self._count_tensor()
        for numbers in (shape, strides, (offset,)):
            if not isinstance(numbers, tuple) or len(numbers) > _MAX_AXES or not all(map(_is_count, numbers)):
                raise MalformedPickleError("a tensor with a malformed shape")
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if 0 not in shape and (last + 1) * item_bytes > storage.size:
            seen = f"a tensor of shape {shape} beyond the end of its storage of {storage.size} bytes"
            raise MalformedPickleError(seen)
        return _TENSOR

    def _parameter(self, data: Any, *_: Any) -> object:
        if data is not _TENSOR:
            raise MalformedPickleError("a parameter without a tensor")
        self._count_tensor()
        return _TENSOR

    def _count_tensor(self) -> None:
        self._tensors += 1
        if self._tensors > MAX_TENSORS:
            raise OversizedPickleError(f"more than {MAX_TENSORS:,} tensors")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _storage_bytes(name: str) -> int | None:
    module, _, kind = name.rpartition(".")
    return _ITEM_BYTES.get(kind) if module in ("torch", "torch.cuda", "torch.storage") else None
