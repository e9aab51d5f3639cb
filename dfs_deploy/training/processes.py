"""The processes of one run: one, or several that ``torchrun`` started on one machine or more.

Every process holds the whole network and takes its share of each batch. Gradients and statistics are averaged in one
exchange per step. ``DistributedDataParallel`` is not used: the parameters that a step touches depend on the gate's
choices and differ between processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from dfs_deploy.errors import DfsDeployError, EnvironmentLacksError, UsageError
from dfs_deploy.io.text import first_line

_T = TypeVar("_T")

_RENDEZVOUS = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_MOST_DIGITS = 9  # int() itself refuses thousands of them


@dataclass(frozen=True)
class Processes:
    """This process among all of a run.

    Attributes:
        rank: index of this process, from 0.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and logs."""
        return self.rank == 0

    def share(self, items: int) -> slice:
        """This process's consecutive part of ``items``."""
        return slice(items * self.rank // self.count, items * (self.rank + 1) // self.count)

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

    def concatenate(self, tensor: Tensor) -> Tensor:
        """The rows of all processes, in the order of their ranks; every process gives as many."""
        if self.count == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        distributed.all_gather(parts, tensor)
        return torch.cat(parts)

    def gather(self, value: _T) -> list[_T]:
        """The values of all processes, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[_T] = [value] * self.count
        distributed.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], _T]) -> _T:
        """What the first process makes, in every process: for what differs from one time to the next.

        Raises:
            DfsDeployError: the first process failed so; every process does.
        """
        if self.count == 1:
            return make()
        made: tuple[_T | None, DfsDeployError | None] = None, None
        if self.first:
            try:
                made = make(), None
            except DfsDeployError as error:
                made = None, error
        value, failed = self.gather(made)[0]
        if failed is not None:
            raise failed
        return cast("_T", value)

    def wait(self) -> None:
        """Waits until every process is here."""
        if self.count > 1:
            distributed.barrier()


def started_by_torchrun() -> int:
    """Number of processes that ``torchrun`` started for this run; 1 without it.

    Raises:
        UsageError: ``WORLD_SIZE`` says that there are others, and the variables that lead to them are not set: batch
            systems set some of these variables for every job.
    """
    count = _whole("WORLD_SIZE", 1, least=1)
    missing = [name for name in _RENDEZVOUS if not os.environ.get(name)]
    if count > 1 and missing:
        raise UsageError(
            f"WORLD_SIZE is {count} and {', '.join(missing)} not set, expected all that torchrun sets; start with"
            " torchrun -m dfs_deploy train, or unset WORLD_SIZE to train in one process"
        )
    return count


def is_first() -> bool:
    """Whether this process is the one that writes and logs, before the processes have met."""
    return started_by_torchrun() == 1 or _whole("RANK", 0, least=0) == 0


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that ``torchrun`` started; this one only without it. Within another, it is the same again.

    Args:
        device: device of the network; on GPUs the processes exchange by NCCL, else by Gloo.

    Raises:
        UsageError: see ``started_by_torchrun``.
        EnvironmentLacksError: the others cannot be reached.
    """
    if started_by_torchrun() == 1:
        yield Processes()
        return
    if distributed.is_initialized():
        yield Processes(distributed.get_rank(), distributed.get_world_size())
        return
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise EnvironmentLacksError(
            f"the processes of this run do not reach each other ({first_line(error)}); start them with torchrun"
        ) from error
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def _whole(variable: str, default: int, least: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not (text.isdecimal() and len(text) < _MOST_DIGITS and int(text) >= least):
        raise UsageError(
            f"{variable} is {text!r} in the environment, expected an integer of at least {least}; unset it"
        )
    return int(text)


def local_device(name: str | None) -> torch.device:
    """The device that this process computes on.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1`` and the like; ``None`` for a GPU if there is one.

    Raises:
        UsageError: no kind of device has this name.
        EnvironmentLacksError: this machine has no such device.
    """
    kind = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(kind)
    except RuntimeError as error:
        raise UsageError(
            f"device {kind!r}, expected cpu, cuda or cuda:N; name one of them, or leave --device out"
        ) from error
    try:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", _whole("LOCAL_RANK", 0, least=0))
        float(torch.zeros(1, device=device))  # some devices take tensors and compute nothing
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        cause = first_line(error)
        raise EnvironmentLacksError(
            f"device {kind!r} cannot be used here ({cause}); leave --device out, or give cpu"
        ) from error
    return device
