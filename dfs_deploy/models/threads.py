"""CPU threads of PyTorch: as many as asked for, or as the machine really grants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dfs_deploy.errors import UsageError
from dfs_deploy.system.cpu import cpu_limits


@contextmanager
def torch_threads(count: int | None = None) -> Iterator[None]:
    """Limits PyTorch to a number of CPU threads for a while.

    Args:
        count: number of threads; ``None`` for PyTorch's own choice, but no more than affinity and the container's CPU
            quota keep busy: PyTorch counts the cores of the host, and a process that runs 32 threads on the quota of
            one CPU spends its time being stopped.

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
