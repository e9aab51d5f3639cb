"""A static depth-pruned policy: the blocks whose skipping costs least accuracy are always skipped.

What a block's skip costs depends on which others are skipped, so the blocks are chosen one after the other, and
measured anew after each choice. To bound the work, the first choice measures every block that may be skipped, and each
later one only the ``SHORTLIST`` blocks that came nearest when they were last measured.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfs_deploy.errors import UsageError
from dfs_deploy.models import DFSNetwork, run_option
from dfs_deploy.network import Architecture
from dfs_deploy.options import Options
from dfs_deploy.training.sensitivity import summed_loss, take_ranges

SHORTLIST = 4
"""Blocks that are measured anew for each choice after the first."""

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Called once per measurement; yields images (N, C, H, W) float32, normalised, and labels (N,) int64, the same each
time."""

_TOLERANCE = 1e-9
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pruning:
    """Result of a search for the blocks to skip.

    Attributes:
        policy: an option index for each gated block.
        order: indices, at least 1, of the skipped blocks in the order in which they were chosen.
        losses: mean cross entropy with nothing skipped, and after each choice.
        images: number of images it was measured on.
    """

    policy: tuple[int, ...]
    order: tuple[int, ...]
    losses: tuple[float, ...]
    images: int


def prune(
    network: DFSNetwork,
    options: Options,
    batches: Batches,
    costs: NDArray[np.floating],
    *,
    target: float | None = None,
    count: int | None = None,
) -> Pruning:
    """Chooses the blocks to skip, for a target or a number of them; all others run the most precise of the options.

    For a number of blocks, each choice is the block whose skip raises the loss least; for a target, the one that raises
    it least for the cost that it saves and that is still to be saved. A block that the target does not need in the end
    runs again if the loss is lower with it. The network stays as it is.

    Args:
        network: network with a trained backbone; its gate or policy is not used.
        options: options of the policy, skip among them.
        batches: images to measure on; best ones that were not trained on.
        costs: (gated blocks, options) cost of each option; see ``choose_policy``.
        target: computation percentage that the policy may cost.
        count: number of blocks to skip, in place of a target.

    Returns:
        The policy; the same network and images give the same.

    Raises:
        UsageError: nothing may be skipped, the number or the target is out of reach, or there are no images.
    """
    kept = most_precise(network.architecture, options)
    skip = next((position for position, option in enumerate(options) if option.skips), None)
    candidates = network.architecture.skippable(options)
    if skip is None or not candidates:
        raise UsageError(f"policy pruned with the options '{options}', expected skip and one that computes; add skip")
    every = np.arange(len(kept))
    saved = costs[every, kept] - costs[:, skip] if count is None else np.ones(len(kept))
    goal = _to_save(costs[every, kept], saved[np.array(candidates) - 1], target, count)
    trial = _Trial(network.with_policy(kept, options).eval(), batches)
    order, losses = _greedy(trial, saved.tolist(), goal, candidates)
    policy = [skip if index in order else choice for index, choice in enumerate(kept, start=1)]
    return Pruning(tuple(policy), tuple(order), tuple(losses), trial.images)


def most_precise(architecture: Architecture, options: Options) -> tuple[int, ...]:
    """Index of the most precise option that each gated block may run."""
    possible = [block.choices(options) for block in architecture.blocks[1:]]
    return tuple(
        max(
            (position for position, option in enumerate(options) if option in choices),
            key=lambda position: options[position].bits,
            default=0,
        )
        for choices in possible
    )


def _to_save(kept: NDArray[np.floating], saved: NDArray[np.floating], target: float | None, count: int | None) -> float:
    """What skips must save in all: blocks for a number, else cost."""
    if count is not None:
        if not 1 <= count <= len(saved):
            raise UsageError(
                f"policy pruned:{count}, expected 1 to {len(saved)}, the blocks that may be skipped; choose another"
                " number"
            )
        return float(count)
    if target is None:
        raise UsageError("neither a target nor a number of blocks to skip, expected one of them")
    dearest = 100.0 * float(kept.mean())
    least = dearest - 100.0 * float(saved.sum()) / len(kept)
    if not least - _TOLERANCE <= target < dearest:
        raise UsageError(
            f"target {target:g} %, expected {least:.4g} to less than {dearest:.4g}, the cost with every block that may"
            " be skipped and with none; choose another target, or a number of blocks, as in pruned:3"
        )
    return (dearest - target) / 100.0 * len(kept)


def _greedy(
    trial: _Trial, saved: Sequence[float], goal: float, candidates: Collection[int]
) -> tuple[list[int], list[float]]:
    """Skips block after block until enough is saved; gives the blocks, and the loss before and after each."""
    order: list[int] = []
    left = set(candidates)
    base, rises = trial.rises((), left)
    losses = [base]
    while (missing := goal - sum(saved[index - 1] for index in order)) > _TOLERANCE:
        price = functools.partial(_price, rises, saved, missing)
        nearest = sorted(left, key=price)[: SHORTLIST if order else 1]
        if order:
            rises.update(trial.rises(order, nearest)[1])
        chosen = min(nearest, key=price)
        left.remove(chosen)
        order.append(chosen)
        losses.append(losses[-1] + rises[chosen])
        _LOG.info("skipping block %d: mean cross entropy %.4f with %d skipped", chosen, losses[-1], len(order))
    return _without_needless(trial, saved, goal, order, losses)


def _price(rises: Mapping[int, float], saved: Sequence[float], missing: float, index: int) -> tuple[float, float, int]:
    """Key by which a block is chosen: its rise for what it saves and is missing, then its rise, then its index."""
    worth = min(saved[index - 1], missing)
    # A skip that even helps costs nothing; of several such, the one that helps most comes first.
    return (max(rises[index], 0.0) / worth if worth > _TOLERANCE else math.inf, rises[index], index)


def _without_needless(
    trial: _Trial, saved: Sequence[float], goal: float, order: list[int], losses: list[float]
) -> tuple[list[int], list[float]]:
    """Lets blocks run again whose skips later ones made needless, as long as that lowers the loss."""
    while True:
        spare = sum(saved[index - 1] for index in order) - goal + _TOLERANCE
        needless = [index for index in order[:-1] if saved[index - 1] <= spare]
        if not needless:
            return order, losses
        gains = {index: trial.rises([other for other in order if other != index], ())[0] for index in needless}
        best = min(needless, key=lambda index: gains[index])
        if gains[best] >= losses[-1]:
            return order, losses
        place = order.index(best)
        order, losses = [*order[:place], *order[place + 1 :]], [*losses[: place + 1], *losses[place + 2 :]]
        losses[-1] = gains[best]


class _Trial:
    """A network whose loss is measured with some blocks skipped.

    Args:
        network: the network, with a policy that runs every block, in evaluation mode.
        batches: images to measure on.

    Attributes:
        images: number of images; 0 before the first measurement.
    """

    def __init__(self, network: DFSNetwork, batches: Batches) -> None:
        self._network = network
        self._batches = batches
        self.images = 0

    @torch.no_grad()
    def rises(self, skipped: Collection[int], further: Collection[int]) -> tuple[float, dict[int, float]]:
        """Measures the mean cross entropy with some blocks skipped, and its rise with each further one, by index."""
        network, images = self._network, 0
        base, losses = 0.0, dict.fromkeys(further, 0.0)
        for x, labels in self._batches():
            if not self.images and not images:
                take_ranges(network, x)
            features = network.stem(x)
            for block in network.blocks:
                index = block.shape.index
                if index in losses:
                    losses[index] += summed_loss(network, self._rest(block.skip(features), index, skipped), labels)
                features = self._run(features, index, skipped)
            base += summed_loss(network, features, labels)
            images += len(labels)
        if not images:
            raise UsageError("no images to measure sensitivity on, expected at least one batch")
        self.images = images
        return base / images, {index: (loss - base) / images for index, loss in losses.items()}

    def _run(self, features: Tensor, index: int, skipped: Collection[int]) -> Tensor:
        block, (option,) = self._network.block(index), self._network.options_of(index)
        return block.skip(features) if index in skipped else run_option(block, features, option)

    def _rest(self, features: Tensor, after: int, skipped: Collection[int]) -> Tensor:
        for index in range(after + 1, len(self._network.architecture.blocks)):
            features = self._run(features, index, skipped)
        return features
