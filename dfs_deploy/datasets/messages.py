"""What error messages about data say of arrays and of causes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from numpy.typing import NDArray

from dfs_deploy.errors import DataError

_P = ParamSpec("_P")
_R = TypeVar("_R")


def describe(array: NDArray[Any]) -> str:
    """Shape and dtype."""
    return f"{array.shape} {array.dtype}"


def cause(error: BaseException) -> str:
    """What an error says, in one short line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


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
    return DataError(f"cannot read {where} ({cause(error)}); check that it is there and may be read")
