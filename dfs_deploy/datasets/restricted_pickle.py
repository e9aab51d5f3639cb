"""Reading the pickles of CIFAR's python version with inert stand-ins for the few NumPy names they use."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.datasets.messages import cause
from dfs_deploy.errors import DataError


class _ForbiddenNameError(pickle.UnpicklingError):
    """A pickle names something other than what arrays of uint8 need."""


class _Inert:
    """Stands for a NumPy function in a pickle: can be called, and has nothing that a pickle could change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("state for a function")


class _PickledDtype:
    """What a pickle says about an element type; only unsigned bytes are let through."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Byte order, alignment and the like, which do not matter for single bytes."""


class PickledArray:
    """An array of uint8 in a pickle; ``array`` is ``None`` until its state came."""

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
        # Python 2 wrote the bytes as its str, which reads back as text of one character a byte.
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
    """Reads dicts, lists, text, bytes, numbers and arrays of uint8; refuses every other name.

    What it allows by name it does not import: each name gives a stand-in that builds plain data, so a forged pickle
    meets none of NumPy's or the codecs' own code.
    """

    def find_class(self, module: str, name: str) -> object:
        """Gives the stand-in for a name; raises UnpicklingError for all that has none."""
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


def load_restricted_pickle(file: Path) -> dict[str, object]:
    """Reads the dict of a CIFAR file, its keys as text and its arrays as :class:`PickledArray`.

    Raises:
        DataError: it is damaged, no dict, or names what arrays of uint8 do not need; nothing of that is run.
    """
    try:
        with file.open("rb") as stream:
            content = _RestrictedUnpickler(stream, encoding="latin1").load()
    except _ForbiddenNameError as error:
        raise DataError(
            f"{file} wants {cause(error)}, expected arrays of uint8, lists and text only; nothing was run: get the"
            " archive from its authors"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever the unpickler meets in it
        raise DataError(f"{file} is not a readable CIFAR file ({cause(error)}); unpack the archive again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, expected a dict; unpack the archive again")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}
