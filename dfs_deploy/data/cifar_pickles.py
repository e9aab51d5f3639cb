"""Pickles of CIFAR's python version, with stand-ins for the few NumPy names that they use.

torchvision downloads that version, so most CIFAR folders hold it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import DataError
from dfs_deploy.io.files import read_file
from dfs_deploy.io.pickles import ForbiddenNameError, InertUnpickler, MalformedPickleError, PickleRefusedError

_DTYPE = object()
_DTYPE_CODES = ("u1", "|u1", "uint8", "B", b"u1", b"|u1", b"uint8", b"B")


class PickledArray:
    """Stand-in for an array of uint8 in a pickle; ``array`` is ``None`` until the pickle has set its state."""

    array: NDArray[np.uint8] | None = None


class _CifarUnpickler(InertUnpickler):
    """Unpickler for dicts, lists, text, bytes, numbers and arrays of uint8."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._bytes_left = 2 * len(data)  # an array's bytes are encoded once if they are text, and set once
        self._callable = {
            **dict.fromkeys(("numpy.core.multiarray._reconstruct", "numpy.ndarray"), lambda *_: PickledArray()),
            "numpy._core.multiarray._reconstruct": lambda *_: PickledArray(),
            "numpy.dtype": self._dtype,
            "_codecs.encode": self._encode,
        }

    def stand_in(self, name: str) -> Any:
        """Stand-in for a function of NumPy or the codecs."""
        if name not in self._callable:
            raise ForbiddenNameError(name)
        return self._callable[name]

    def set_state(self, target: object, state: object) -> None:
        """Sets the content of an array; byte order and alignment of its type do not matter for single bytes."""
        if isinstance(target, PickledArray):
            if not isinstance(state, tuple) or len(state) != 5:
                raise MalformedPickleError("an array with another state than version, shape, type, order, bytes")
            _, shape, dtype, fortran, raw = state
            # Python 2 wrote the bytes as its str, which reads back as text with one character per byte.
            data = self._encode(raw, "latin1") if isinstance(raw, str) else raw
            if dtype is not _DTYPE or not isinstance(shape, tuple) or not isinstance(data, bytes):
                raise MalformedPickleError("an array without shape, type or bytes")
            target.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
        elif target is not _DTYPE:
            super().set_state(target, state)

    def _dtype(self, code: object, *_: object) -> object:
        if code not in _DTYPE_CODES:
            raise MalformedPickleError("an array of another type, expected uint8")
        return _DTYPE

    def _encode(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise MalformedPickleError("text in another encoding than latin1")
        self._bytes_left -= len(text)
        if self._bytes_left < 0:
            raise MalformedPickleError("text that is encoded again and again")
        return text.encode("latin1")


def load_cifar_pickle(file: Path, limit: int) -> dict[str, object]:
    """Reads the dict of a CIFAR file of at most ``limit`` bytes: keys as text, arrays as ``PickledArray``.

    Raises:
        DataError: the file is damaged, holds no dict, or names something that arrays of uint8 do not need. Nothing in
            it was run.
        OSError: it is larger, or cannot be read.
    """
    try:
        content = _CifarUnpickler(read_file(file, limit)).load()
    except ForbiddenNameError as error:
        raise DataError(
            f"{file} names {error}, expected only arrays of uint8, lists and text; nothing was run: get the archive"
            " from its authors"
        ) from error
    except PickleRefusedError as error:
        raise DataError(f"{file} is not a readable CIFAR file ({error}); unpack the archive again") from error
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
