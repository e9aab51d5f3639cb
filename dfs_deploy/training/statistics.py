"""Normalisation statistics of a network that has settled: exact means instead of running ones.

Running statistics follow a block by the share of the batch that ran it, so those of a block that rarely runs stay
behind the weights. This is not in the paper; Wu and Johnson (2021, "Rethinking 'Batch' in BatchNorm", Section 3) found
for any network that exact means over some batches are better than running ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dfs_deploy.models import DFSNetwork
from dfs_deploy.training.forward import LEAST_ROWS, joint_forward
from dfs_deploy.training.processes import Processes


@torch.no_grad()
def renew_statistics(network: DFSNetwork, batches: Iterable[Tensor], processes: Processes) -> None:
    """Gives normalisations the mean and variance of all that reach them, each image by its own choices.

    While they are gathered, each batch is normalised by itself, as in training. Frozen normalisations stay, and so do
    those that fewer than ``LEAST_ROWS`` images reach. Ranges stay.

    Args:
        network: with a gate or a policy. It is in training mode afterwards, its ranges in evaluation mode.
        batches: this process's images, each (N, C, H, W) float32, normalised.
        processes: processes that share the images.
    """
    network.train()
    network.ranges.eval()
    norms = _normalisations(network)
    with _Watched(norms):
        for x in batches:
            joint_forward(network, x)
    counts = [torch.tensor([norm.images, norm.values]).to(norm.mean) for norm in norms]
    means = [norm.total(lambda part: part.mean) for norm in norms]
    processes.average([*counts, *means])
    for count, mean in zip(counts, means, strict=True):
        mean /= count[1].clamp_min(1.0)
    squares = [
        norm.total(lambda part, mean=mean: part.variance + (part.mean - mean).square())  # type: ignore[misc]
        for norm, mean in zip(norms, means, strict=True)
    ]
    processes.average(squares)
    for norm, (images, values), mean, square in zip(norms, counts, means, squares, strict=True):
        if images * processes.count < LEAST_ROWS:
            mean, variance = norm.before
        else:
            variance = square / (values - 1.0 / processes.count).clamp_min(1.0)
        norm.mean.copy_(mean)
        norm.variance.copy_(variance)


@dataclass(frozen=True, eq=False)
class _Part:
    """Moments of what a normalisation read of one batch.

    Attributes:
        values: number of values of a channel.
        mean: (C,) float64.
        variance: (C,) float64, the mean square of the distance to the mean.
    """

    values: int
    mean: Tensor
    variance: Tensor


@dataclass(eq=False)
class _Normalisation:
    """One normalisation, and what it has read.

    Args:
        mean: its running mean, (C,) float32.
        variance: its running variance, (C,) float32.
    """

    mean: Tensor
    variance: Tensor
    images: int = 0
    parts: list[_Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.before = self.mean.clone(), self.variance.clone()

    @property
    def values(self) -> int:
        """Values of a channel that it has read."""
        return sum(part.values for part in self.parts)

    def read(self, x: Tensor) -> None:
        """Counts what it reads, (N, C, ...)."""
        by_channel = x.detach().transpose(0, 1).flatten(1).double()
        variance, mean = torch.var_mean(by_channel, 1, correction=0)
        self.parts.append(_Part(by_channel.shape[1], mean, variance))
        self.images += len(x)

    def total(self, of: Callable[[_Part], Tensor]) -> Tensor:
        """Sum over all values of what ``of`` gives for each part, (C,) float64."""
        zero = torch.zeros_like(self.mean, dtype=torch.float64)
        return sum((part.values * of(part) for part in self.parts), zero)


def _normalisations(network: DFSNetwork) -> list[_Normalisation]:
    """Normalisations of the network and its gate that are in training mode."""
    run, found = network.evaluation(), dict[int, tuple[Tensor, Tensor]]()
    for node in network.graphs.whole.nodes:
        if node.operator == "batch_norm" and run.uses_batch(node):
            mean = run.tensors[node.tensors["mean"]]
            found[id(mean)] = mean, run.tensors[node.tensors["variance"]]
    for module in () if network.gate is None else network.gate.modules():
        if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None and module.running_var is not None:
            found[id(module.running_mean)] = module.running_mean, module.running_var
    return [_Normalisation(*buffers) for buffers in found.values()]


class _Watched(TorchFunctionMode):
    """Shows normalisations what they read: a call is told by the buffer of means that it is given."""

    def __init__(self, norms: Iterable[_Normalisation]) -> None:
        super().__init__()
        self._norms = {id(norm.mean): norm for norm in norms}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (functional.batch_norm, torch.native_batch_norm):
            norm = next((self._norms[id(each)] for each in args if id(each) in self._norms), None)
            if norm is not None and len(args[0]):
                norm.read(args[0])
        return func(*args, **(kwargs or {}))
