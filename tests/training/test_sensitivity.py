from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dfs_deploy.errors import UsageError
from dfs_deploy.models import run_option
from dfs_deploy.options import Options
from dfs_deploy.training.sensitivity import (
    Sensitivity,
    choose_policy,
    measure_sensitivity,
    policy_percentage,
)
from tests.checks import refuses
from tests.settled import normal_images, settled_network

OPTIONS = Options.parse("skip,8,full")


def sensitivity(losses: np.ndarray) -> Sensitivity:
    return Sensitivity(OPTIONS, 10, 1.0, losses)


def test_it_is_the_loss_with_one_block_alone_changed() -> None:
    network = settled_network("skip,8,full")
    x, labels = normal_images(12), torch.arange(12) % 10
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = measure_sensitivity(network, OPTIONS, [(x[:5], labels[:5]), (x[5:], labels[5:])])
    assert (found.images, found.losses.shape) == (12, (3, 3))
    with torch.no_grad():
        for changed, option in itertools.product(range(3), range(3)):
            features = network.stem(x)
            for index, block in enumerate(network.blocks):
                features = run_option(block, features, OPTIONS[option if index == changed else 2])
            expected = functional.cross_entropy(network.head(features), labels).item()
            assert found.losses[changed, option] == pytest.approx(expected, rel=1e-4)
    assert np.allclose(found.losses[:, 2], found.full_loss)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_the_same_images_give_the_same() -> None:
    network, batch = settled_network("8,full"), (normal_images(8), torch.zeros(8, dtype=torch.int64))
    options = Options.parse("4,8,full")
    first, second = (measure_sensitivity(network, options, [batch]) for _ in range(2))
    assert np.array_equal(first.losses, second.losses)


def test_convolutions_that_never_ran_quantised_take_a_range() -> None:
    network = settled_network("skip,8,full")
    for name, buffer in network.named_buffers():
        if name.endswith(("low", "high")):
            buffer.zero_()
    found = measure_sensitivity(network, OPTIONS, [(normal_images(8), torch.zeros(8, dtype=torch.int64))])
    assert (np.abs(found.losses[:, 1] - found.full_loss) < np.abs(found.losses[:, 0] - found.full_loss)).all()


def test_no_images_are_refused() -> None:
    with refuses(UsageError, "no images"):
        measure_sensitivity(settled_network(), OPTIONS, [])


losses = st.lists(st.floats(0.0, 5.0), min_size=9, max_size=9)
costs = st.lists(st.floats(0.0, 2.0), min_size=9, max_size=9)


@settings(max_examples=60, deadline=None)
@given(losses, costs, st.floats(1.0, 150.0))
def test_no_policy_within_the_budget_is_better(some: list[float], prices: list[float], target: float) -> None:
    spoilt, cost = np.array(some).reshape(3, 3), np.array(prices).reshape(3, 3)
    every = list(itertools.product(range(3), repeat=3))
    within = [policy for policy in every if policy_percentage(policy, cost) <= target]
    if not within:
        with pytest.raises(UsageError, match="cheapest"):
            choose_policy(sensitivity(spoilt), cost, target)
        return

    def total(policy: tuple[int, ...]) -> float:
        return float(sum(spoilt[block, choice] for block, choice in enumerate(policy)))

    chosen = choose_policy(sensitivity(spoilt), cost, target)
    assert policy_percentage(chosen, cost) <= target + 1e-4
    assert total(chosen) <= min(map(total, within)) + 1e-4


def test_of_equal_policies_the_cheaper_is_taken() -> None:
    cost = np.tile(OPTIONS.costs, (3, 1))
    assert choose_policy(sensitivity(np.ones((3, 3))), cost, 100.0) == (0, 0, 0)


def test_a_budget_is_spent_where_it_helps_most() -> None:
    spoilt = np.array([[1.5, 1.4, 1.0], [3.0, 2.9, 1.0], [1.1, 1.05, 1.0]])
    cost = np.tile(OPTIONS.costs, (3, 1))
    assert choose_policy(sensitivity(spoilt), cost, 100.0 * (1 + 2 / 16) / 3) == (1, 2, 1)
    assert choose_policy(sensitivity(spoilt), cost, 100.0 * 2 / 16 / 3) == (1, 1, 0)
