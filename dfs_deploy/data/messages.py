"""What error messages about data say of arrays and of causes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np

from dfs_deploy.errors import DataError
from dfs_deploy.io.files import UnfitFileError
from dfs_deploy.io.text import first_line

_P = ParamSpec("_P")
_R = TypeVar("_R")


class ShapeAndType(Protocol):
    """What an array is said to be, whether or not it was read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its lengths."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""


def describe(array: ShapeAndType) -> str:
    """Shape and dtype."""
    return f"{array.shape} {array.dtype}"


def cause(error: BaseException) -> str:
    """What an error says, in one short line."""
    return first_line(error, 120)


def os_errors_as_data_errors(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turns what the file system refuses anywhere in a call into a DataError."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            raise unreadable(error) from error

    return wrapped


def unreadable(error: OSError) -> DataError:
    """What is said of a file or folder that the file system does not give."""
    where = error.filename or "a file"
    remedy = "give another" if isinstance(error, UnfitFileError) else "check that it is there and may be read"
    return DataError(f"cannot read {where} ({cause(error)}); {remedy}")
