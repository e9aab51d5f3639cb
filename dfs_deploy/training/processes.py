"""The processes of one run: one, or several that ``torchrun`` started on one machine or more.

Every process holds the whole network and takes its share of each batch. Gradients and statistics are averaged in one
exchange a step. ``DistributedDataParallel`` is not used: which parameters a step touches depends on what the gate
chose, and differs between processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from dfs_deploy.errors import UsageError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Processes:
    """This process and how many there are.

    Attributes:
        rank: of this process, from 0.
        count: of all.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def share(self, items: int) -> slice:
        """The consecutive part of ``items`` that is this process's."""
        return slice(items * self.rank // self.count, items * (self.rank + 1) // self.count)

    def check_batch(self, batch: int) -> None:
        """Raises UsageError where a batch cannot be split evenly."""
        if batch % self.count:
            raise UsageError(f"a batch of {batch} for {self.count} processes, expected a multiple of their number")

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces float tensors by their mean over all processes, in one exchange."""
        if self.count > 1 and tensors:
            flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
            distributed.all_reduce(flat)
            flat.div_(self.count)
            start = 0
            for tensor in tensors:
                tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
                start += tensor.numel()

    def gather(self, value: _T) -> list[_T]:
        """The values of all processes, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[_T] = [value] * self.count
        distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Waits until every process is here."""
        if self.count > 1:
            distributed.barrier()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that ``torchrun`` started; alone without it.

    Args:
        device: on which the network is; decides how processes speak, by NCCL or by Gloo.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def local_device(name: str | None) -> torch.device:
    """The device that this process computes on.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1`` and the like; ``None`` for a GPU where there is one.

    Raises:
        UsageError: no such device here.
    """
    kind = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(kind)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        cause = str(error).splitlines()[0]
        raise UsageError(f"device {kind!r} cannot be used here ({cause}); leave --device out, or give cpu") from error
    return device
