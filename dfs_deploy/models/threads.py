"""PyTorch's CPU threads: as many as asked for, or as the machine truly grants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from dfs_deploy.errors import UsageError
from dfs_deploy.system.cpu import cpu_limits

_Parameters = ParamSpec("_Parameters")
_Returned = TypeVar("_Returned")


@contextmanager
def torch_threads(count: int | None = None) -> Iterator[None]:
    """Lets PyTorch use so many CPU threads for a while.

    Args:
        count: threads; ``None`` for PyTorch's own choice, but no more than affinity and the container's CPU quota
            keep busy: PyTorch counts the cores of the host, and a process that runs 32 threads on the quota of one CPU
            spends its time being stopped.

    Raises:
        UsageError: fewer than one thread.
    """
    if count is not None and count < 1:
        raise UsageError(f"{count} threads, expected at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, cpu_limits().cores) if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_torch_threads(function: Callable[_Parameters, _Returned]) -> Callable[_Parameters, _Returned]:
    """Runs a function in :func:`torch_threads` of its keyword argument ``threads``."""

    @wraps(function)
    def run(*arguments: _Parameters.args, **choices: _Parameters.kwargs) -> _Returned:
        threads = choices.get("threads")
        with torch_threads(threads if isinstance(threads, int) else None):
            return function(*arguments, **choices)

    return run
