"""A static mixed-precision policy: a bitwidth for each block, by measured sensitivity under a computation budget.

In the spirit of HAQ (Wang et al. 2019), which Section 4 compares with: each block's bitwidth is chosen by its cost and
by the loss that it adds. HAQ searches by reinforcement learning; here the choice is exact for the measured losses. The
loss that one block adds is measured with every other block in full precision; those of several are assumed to add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dfs_deploy.errors import UsageError
from dfs_deploy.models import DFSNetwork, run_option
from dfs_deploy.network import Block
from dfs_deploy.options import FULL_BITS, Options

_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Loss with one gated block at one option and all other blocks in full precision.

    Attributes:
        options: options that were tried.
        images: number of images it was measured on.
        full_loss: mean cross entropy with every block in full precision.
        losses: (gated blocks, options) mean cross entropy with only that block at that option; infinite if the block
            may not run it.
    """

    options: Options
    images: int
    full_loss: float
    losses: NDArray[np.float64]


@torch.no_grad()
def measure_sensitivity(network: DFSNetwork, options: Options, batches: Iterable[tuple[Tensor, Tensor]]) -> Sensitivity:
    """Measures the loss that each option of each gated block causes.

    The network stays as it is. Convolutions that never ran quantised take their input range from the first batch.

    Args:
        network: network with a trained backbone; its gate or policy is not used.
        options: options to try at each block.
        batches: images (N, C, H, W) float32, normalised, and labels (N,) int64; best ones that were not trained on.

    Returns:
        The losses; the same network and batches give the same.

    Raises:
        UsageError: no batch.
    """
    policy = [_first_possible(block, options) for block in network.architecture.blocks[1:]]
    trial = network.with_policy(policy, options).eval()
    losses = np.full((len(trial.blocks), len(options)), math.inf)
    full_loss, images = 0.0, 0
    for x, labels in batches:
        if not images:
            take_ranges(trial, x)
        features = trial.stem(x)
        for block in trial.blocks:
            index = block.shape.index
            for position, option in enumerate(options):
                if option.bits == FULL_BITS or option not in block.shape.choices(options):
                    continue
                y = run_option(block, features, option)
                for later in trial.blocks[index:]:
                    y = later(y)
                before = losses[index - 1, position] if images else 0.0
                losses[index - 1, position] = before + summed_loss(trial, y, labels)
            features = block(features)
        full_loss += summed_loss(trial, features, labels)
        images += len(labels)
    if not images:
        raise UsageError("no images to measure sensitivity on, expected at least one batch")
    for row, block in zip(losses, trial.blocks, strict=True):
        row[[option.bits == FULL_BITS and option in block.shape.choices(options) for option in options]] = full_loss
    return Sensitivity(options, images, full_loss / images, losses / images)


def _first_possible(block: Block, options: Options) -> int:
    """Index of the first option that a block may run; any will do, as each is tried."""
    return next((k for k, option in enumerate(options) if option in block.choices(options)), 0)


def summed_loss(network: DFSNetwork, features: Tensor, labels: Tensor) -> float:
    """Cross entropy of the last features (N, C, H, W), summed over the images."""
    logits = network.head(features)
    return float(functional.cross_entropy(logits.float(), labels, reduction="sum"))


def take_ranges(network: DFSNetwork, x: Tensor) -> None:
    """Gives each layer of a gated block without a range the range of what reaches it in full precision.

    Args:
        network: the network; layers that have a range keep it.
        x: (N, C, H, W) float32, normalised.
    """
    readers: dict[tuple[int, str], list[str]] = {}
    for block in network.blocks:
        for node in block.whole.nodes:
            if node.quantizable and not network.ranges.known(node.name):
                readers.setdefault((block.shape.index, node.inputs[0]), []).append(node.name)

    def take(block: int, value: str, features: Tensor) -> None:
        for name in readers.get((block, value), ()):
            network.ranges.follow(name, features)

    with network.observed(take):
        network.static(x)


def choose_policy(sensitivity: Sensitivity, costs: NDArray[np.floating], target: float) -> tuple[int, ...]:
    """The policy of least summed loss that costs no more than the target: a multiple-choice knapsack, solved exactly.

    Args:
        sensitivity: measured losses.
        costs: (gated blocks, options) cost of each option, in full-precision blocks: ``(bits / 32) ** 2`` (Section 4,
            Metrics), or measured times (``LatencyTable.costs``).
        target: computation percentage that the policy may cost.

    Returns:
        An option index for each gated block.

    Raises:
        UsageError: the cheapest policy costs more than the target.
    """
    from scipy import optimize, sparse

    blocks, options = sensitivity.losses.shape
    possible = np.isfinite(sensitivity.losses)
    least = 100.0 * float(np.where(possible, costs, np.inf).min(1).mean())
    if least > target + _TOLERANCE:
        raise UsageError(
            f"target {target:g} %, expected at least {least:.4g}, the cost of the cheapest of the options"
            f" '{sensitivity.options}'; choose another target or other options"
        )
    added = np.where(possible, sensitivity.losses - sensitivity.full_loss, 0.0)
    one_each = sparse.kron(sparse.eye(blocks), np.ones((1, options)))
    found = optimize.milp(
        # Of policies that add the same loss, the cheaper one.
        added.ravel() + _TOLERANCE * costs.ravel(),
        integrality=np.ones(blocks * options),
        bounds=optimize.Bounds(0, possible.ravel().astype(float)),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(costs.reshape(1, -1), ub=blocks * (target / 100.0 + _TOLERANCE)),
        ],
    )
    if found.x is None:
        raise UsageError(f"no policy was found for target {target:g} % ({found.message}); choose another target")
    return tuple(int(choice) for choice in found.x.reshape(blocks, options).argmax(1))


def policy_percentage(policy: Iterable[int], costs: NDArray[np.floating]) -> float:
    """Computation percentage of a policy.

    Args:
        policy: an option index for each gated block.
        costs: (gated blocks, options), in full-precision blocks.
    """
    return 100.0 * float(np.mean([row[choice] for row, choice in zip(costs, policy, strict=True)]))
