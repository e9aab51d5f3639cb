"""Restricted unpickler for CIFAR's python version, with inert stand-ins for the few NumPy names that it uses.

torchvision downloads that version, so most CIFAR folders hold it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import DataError
from dfs_deploy.io.files import read_file
from dfs_deploy.io.text import first_line

_STORES = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_FETCHES = frozenset(("GET", "BINGET", "LONG_BINGET"))
_TUPLES = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"))
_OPCODES = (
    _STORES
    | _FETCHES
    | _TUPLES
    | frozenset(
        (
            *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
            *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
            *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
            *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
            *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
            *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
        )
    )
)
"""Instructions for dicts, lists, text, bytes, numbers and arrays."""


class _ForbiddenNameError(pickle.UnpicklingError):
    """A pickle that names something which arrays of uint8 do not need."""


class _Inert:
    """Stand-in for a NumPy function in a pickle: callable, without any state that a pickle could change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("state for a function")


class _PickledDtype:
    """Stand-in for an element type in a pickle, which can only be uint8."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignores byte order and alignment, which do not matter for single bytes."""


class PickledArray:
    """Stand-in for an array of uint8 in a pickle; ``array`` is ``None`` until the pickle has set its state."""

    __slots__ = ("array",)

    array: NDArray[np.uint8] | None

    def __init__(self) -> None:
        self.array = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array with another state than version, shape, type, order, bytes")
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array without shape or type")
        # Python 2 wrote the bytes as its str, which reads back as text with one character per byte.
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array without bytes")
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _pickled_dtype(code: object, *_: object) -> _PickledDtype:
    text = code.decode("latin1") if isinstance(code, bytes) else code
    if text not in ("u1", "|u1", "uint8", "B"):
        raise pickle.UnpicklingError(f"an array of type {text!r}, expected uint8")
    return _PickledDtype()


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("text in another encoding than latin1")
    return text.encode("latin1")


class _RestrictedUnpickler(pickle.Unpickler):
    """Unpickler for dicts, lists, text, bytes, numbers and arrays of uint8 that refuses every other name.

    It imports nothing: each allowed name is a stand-in that builds plain data, so a forged pickle reaches no code of
    NumPy or of the codecs.
    """

    def find_class(self, module: str, name: str) -> object:
        """Returns the stand-in for a name; raises UnpicklingError for every other name."""
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return _Inert(lambda *_: PickledArray())
            case "numpy", "ndarray":
                return _Inert(lambda *_: PickledArray())
            case "numpy", "dtype":
                return _Inert(_pickled_dtype)
            case "_codecs", "encode":
                return _Inert(_encode)
        raise _ForbiddenNameError(f"{module}.{name}")


def load_restricted_pickle(file: Path, limit: int) -> dict[str, object]:
    """Reads the dict of a CIFAR file, its keys as text and its arrays as :class:`PickledArray`.

    Args:
        file: the pickle.
        limit: most bytes that are read.

    Raises:
        DataError: the file is damaged, holds no dict, or names something that arrays of uint8 do not need. Nothing in
            it was run.
        OSError: it is larger, or cannot be read.
    """
    data = read_file(file, limit)
    try:
        _check_opcodes(data)
        content = _RestrictedUnpickler(io.BytesIO(data), encoding="latin1").load()
    except _ForbiddenNameError as error:
        raise DataError(
            f"{file} names {first_line(error)}, expected only arrays of uint8, lists and text; nothing was run: get the"
            " archive from its authors"
        ) from error
    except Exception as error:  # the unpickler raises errors of many types
        raise DataError(
            f"{file} is not a readable CIFAR file ({first_line(error)}); unpack the archive again"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, expected a dict; unpack the archive again")
    return {as_text(key, file): value for key, value in content.items()}


def as_text(value: object, file: Path) -> str:
    """Text from a pickle, which Python 2 wrote as bytes.

    Other values are never converted to text: printing nested lists that repeat each other may take forever.

    Raises:
        DataError: the value is not text; the message names the file.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("latin1")
    raise DataError(f"{file} has a {type(value).__name__} as a name, expected text; unpack the archive again")


def _check_opcodes(data: bytes) -> None:
    """Refuses a pickle that would cost the unpickler far more memory or time than its size suggests.

    The unpickler allocates room for any index of its memo, and hashing tuples that repeat each other takes exponential
    time. So memo indices must be consecutive, and no tuple may be used twice.
    """
    tuples: set[int] = set()
    stored, before = 0, ""
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name not in _OPCODES:
            raise pickle.UnpicklingError(f"opcode {name}")
        if name in _STORES:
            index = stored if argument is None else argument
            stored += 1
            if index > stored:
                raise pickle.UnpicklingError(f"memo index {index} after {stored} of them")
            if before in _TUPLES:
                tuples.add(index)
            else:
                tuples.discard(index)
        elif name in _FETCHES and argument in tuples:
            raise pickle.UnpicklingError("a tuple that is used twice")
        before = name
