from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfs_deploy.errors import UsageError
from dfs_deploy.models.network import block_costs
from dfs_deploy.options import Options
from dfs_deploy.training.pruning import most_precise, prune
from tests.checks import refuses
from tests.nets import adapted, user_images
from tests.settled import normal_images, settled_network

OPTIONS = Options.parse("skip,8")
NETWORK = settled_network("skip,8,full", blocks=3, widths=(4, 8))
COSTS = block_costs(NETWORK.architecture, OPTIONS).numpy()
X, LABELS = normal_images(24), torch.arange(24) % 10


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(X[:16], LABELS[:16]), (X[16:], LABELS[16:])]


@torch.no_grad()
def loss(policy: tuple[int, ...]) -> float:
    network = NETWORK.with_policy(policy, OPTIONS).eval()
    return functional.cross_entropy(network.route(X).logits, LABELS).item()


def policy_without(skipped: set[int]) -> tuple[int, ...]:
    return tuple(int(index not in skipped) for index in range(1, 6))


def test_each_block_that_is_skipped_is_the_least_harmful_after_those_before_it() -> None:
    before = {key: value.clone() for key, value in NETWORK.state_dict().items()}
    found = prune(NETWORK, OPTIONS, batches, COSTS, count=2)
    (first, second), images = found.order, found.images
    assert images == 24
    alone = {index: loss(policy_without({index})) for index in range(1, 6)}
    assert first == min(alone, key=alone.__getitem__)
    pairs = {index: loss(policy_without({first, index})) for index in range(1, 6) if index != first}
    assert second == min(pairs, key=pairs.__getitem__)
    assert found.policy == policy_without({first, second})
    expected = [loss(policy_without(set())), alone[first], pairs[second]]
    assert found.losses == pytest.approx(expected, rel=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in NETWORK.state_dict().items())


def test_a_deeper_cut_goes_on_from_a_lighter_one_and_its_loss_is_measured() -> None:
    """Rises do not add up here: the sum of those alone is not the loss of all."""
    counts = [prune(NETWORK, OPTIONS, batches, COSTS, count=count) for count in range(1, 6)]
    for count, found in enumerate(counts, start=1):
        assert len(found.order) == found.policy.count(0) == count
        assert found.losses[-1] == pytest.approx(loss(found.policy), rel=1e-4)
    for fewer, more in itertools.pairwise(counts):
        assert more.order[: len(fewer.order)] == fewer.order
    whole = loss(policy_without(set()))
    added = whole + sum(loss(policy_without({index})) - whole for index in range(1, 6))
    assert abs(added - counts[-1].losses[-1]) > 1e-3


@pytest.mark.parametrize("share", [0.85, 0.5, 0.2, 0.0])
def test_a_target_is_met_and_no_skip_is_needless(share: float) -> None:
    target = share * 100.0 * float(COSTS[:, 1].mean())
    found = prune(NETWORK, OPTIONS, batches, COSTS, target=target)
    assert 100.0 * float(COSTS[range(5), found.policy].mean()) <= target + 1e-4
    for index in found.order[:-1]:
        again = list(found.policy)
        again[index - 1] = 1
        dearer = 100.0 * float(COSTS[range(5), again].mean())
        assert dearer > target or loss(tuple(again)) >= loss(found.policy) - 1e-6


def test_a_block_that_saves_much_goes_first_if_it_harms_no_more_for_that() -> None:
    harm = {index: loss(policy_without({index})) - loss(policy_without(set())) for index in range(1, 6)}
    dear = max(harm, key=harm.__getitem__)
    costs = np.tile([0.0, 1.0], (5, 1))
    costs[dear - 1, 1] = 1e6
    found = prune(NETWORK, OPTIONS, batches, costs, target=100.0 * 4 / 5)
    assert found.order[-1] == dear
    assert list(found.losses[:-1]) == sorted(found.losses[:-1], reverse=True), "the others help even for free"


def test_what_cannot_be_skipped_runs_the_most_precise_option_that_it_may() -> None:
    network = adapted("basic", "skip,8,16,full")
    options = Options.parse("16,skip,8")
    assert most_precise(network.architecture, options) == (0, 0, 0, 0)
    mobile = adapted("mobile", "skip,8,full")
    never = {block.index for block in mobile.architecture.blocks[1:] if block.skip is None}
    assert never
    skippable = len(mobile.blocks) - len(never)
    costs = block_costs(mobile.architecture, OPTIONS).numpy()
    found = prune(mobile, OPTIONS, lambda: [(user_images(8), torch.arange(8) % 5)], costs, count=skippable)
    assert {index for index, choice in enumerate(found.policy, start=1) if choice == 1} == never
    with refuses(UsageError, f"pruned:{skippable + 1}", f"1 to {skippable}"):
        prune(mobile, OPTIONS, batches, costs, count=skippable + 1)


def test_the_same_images_give_the_same() -> None:
    first, second = (prune(NETWORK, OPTIONS, batches, COSTS, count=3) for _ in range(2))
    assert first == second


def test_what_cannot_be_is_refused() -> None:
    with refuses(UsageError, "8,full", "add skip"):
        prune(NETWORK, Options.parse("8,full"), batches, np.ones((5, 2)), count=1)
    with refuses(UsageError, "pruned:0", "1 to 5"):
        prune(NETWORK, OPTIONS, batches, COSTS, count=0)
    with refuses(UsageError, "target 40 %", "6.25", "pruned:3"):
        prune(NETWORK, OPTIONS, batches, COSTS, target=40.0)
    with refuses(UsageError, "target -1 %", "0 to"):
        prune(NETWORK, OPTIONS, batches, COSTS, target=-1.0)
    with refuses(UsageError, "neither a target"):
        prune(NETWORK, OPTIONS, batches, COSTS)
    with refuses(UsageError, "no images"):
        prune(NETWORK, OPTIONS, list, COSTS, count=1)
