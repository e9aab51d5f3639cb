"""Static policies that are searched: by measured sensitivity, for the target of a job or a number of blocks to skip."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dfs_deploy.errors import UsageError
from dfs_deploy.models import DFSNetwork
from dfs_deploy.models.network import block_costs
from dfs_deploy.options import Options
from dfs_deploy.training.begin import begun, built, contract_of
from dfs_deploy.training.data import Images
from dfs_deploy.training.job import Job
from dfs_deploy.training.processes import local_device
from dfs_deploy.training.pruning import most_precise, prune
from dfs_deploy.training.sensitivity import choose_policy, measure_sensitivity, policy_percentage
from dfs_deploy.training.splits import HELD_OUT, Splits, splits_for

MIXED, PRUNED = "mixed", "pruned"

SEARCH_IMAGES = 1024
"""Most images that a search measures on."""

_OPTIONS = {MIXED: Options.parse("8,16,full"), PRUNED: Options.parse("skip,8")}
_BATCH = 128
"""Most images at once; no more than a training step takes, which needs more memory."""

_MOST_DIGITS = 4


@dataclass(frozen=True)
class WantedPolicy:
    """A policy that is to be searched.

    Attributes:
        kind: ``mixed``, a bitwidth for each block; or ``pruned``, blocks that are always skipped.
        count: number of blocks that ``pruned`` skips; ``None`` for as many as the target asks for.
    """

    kind: str
    count: int | None = None

    @staticmethod
    def parse(text: str | None) -> WantedPolicy | None:
        """Reads ``mixed``, ``pruned`` or ``pruned:K``; ``None`` for a policy that names its options, or for none.

        Raises:
            UsageError: ``pruned:`` without a number of blocks.
        """
        kind, colon, count = ("" if text is None else text.strip()).partition(":")
        if kind == PRUNED and colon:
            if not count.isascii() or not count.isdigit() or len(count) > _MOST_DIGITS or not int(count):
                raise UsageError(f"policy {text!r}, expected a number of blocks after the colon, as in pruned:3")
            return WantedPolicy(kind, int(count))
        return WantedPolicy(kind) if kind in _OPTIONS and not colon else None

    @property
    def aims(self) -> bool:
        """Whether the target decides what the policy costs."""
        return self.count is None

    @property
    def options(self) -> Options:
        """Options to choose from if none are given."""
        return _OPTIONS[self.kind]

    def __str__(self) -> str:
        return self.kind if self.count is None else f"{self.kind}:{self.count}"


def check_searchable(job: Job, wanted: WantedPolicy) -> None:
    """Makes sure that a job has a network whose sensitivity can be measured.

    Raises:
        UsageError: it has no backbone.
    """
    if not job.trained:
        raise UsageError(
            f"policy {wanted} without a backbone, whose sensitivity it measures; train one, then --backbone it"
        )


@dataclass(frozen=True)
class FoundPolicy:
    """Result of a search for a policy.

    Attributes:
        policy: name of the option of each gated block.
        percentage: computation percentage of the policy.
        images: the images that were measured on, in words.
    """

    policy: tuple[str, ...]
    percentage: float
    images: str


def search_policy(
    job: Job, wanted: WantedPolicy, splits: Splits | None = None, network: DFSNetwork | None = None
) -> FoundPolicy:
    """Chooses a policy for a job: the best for its target, by the sensitivity of its backbone.

    Measured on images held out of the training split if the job holds some out, which a backbone trained with the same
    seed and number has not seen; else on training images; on ``SEARCH_IMAGES`` of them at most.

    Args:
        job: job with a backbone; its recipe gives the options, the costs and the target.
        wanted: kind of policy.
        splits: its data if they are loaded already; ``None`` loads them.
        network: the network that it begins with; ``None`` for the one that it names.

    Raises:
        UsageError: no backbone, or a target or number of blocks that the options do not reach.
        CheckpointError: the backbone cannot be read, or is of another architecture.
        DataError: the data cannot be read.
    """
    check_searchable(job, wanted)
    splits = splits or splits_for(job)
    recipe, device = job.recipe, local_device(job.device)
    if network is None and job.network is not None:
        network = built(job.network, job, splits)[0]
    architecture = splits.architecture(recipe.blocks_per_group) if network is None else network.architecture
    whole = ",".join(recipe.options[choice].name for choice in most_precise(architecture, recipe.options))
    static = dataclasses.replace(job, recipe=dataclasses.replace(recipe, policy=whole))
    network = begun(static, splits, network, None)[0].to(device)
    held_out = splits.evaluation_name == HELD_OUT
    measured = (splits.evaluation if held_out else splits.train).subset(SEARCH_IMAGES, job.seed)
    images = Images(measured, contract_of(network, splits), device)

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        for pixels, labels in images.batches(min(_BATCH, recipe.batch)):
            yield images.normalize(pixels), labels

    given = recipe.costs
    costs = block_costs(network.architecture, recipe.options).numpy() if given is None else np.array(given)
    if wanted.kind == MIXED:
        policy = choose_policy(measure_sensitivity(network, recipe.options, batches()), costs, recipe.target)
    else:
        target = recipe.target if wanted.aims else None
        policy = prune(network, recipe.options, batches, costs, target=target, count=wanted.count).policy
    return FoundPolicy(
        policy=tuple(recipe.options[choice].name for choice in policy),
        percentage=policy_percentage(policy, costs),
        images=f"{len(measured)} {'held-out' if held_out else 'training'} images",
    )
