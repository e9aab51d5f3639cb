"""Normalisation statistics that are computed anew, against moments computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfs_deploy.models import DFSNetwork
from dfs_deploy.training.processes import Processes
from dfs_deploy.training.statistics import renew_statistics
from tests.builders import random_images, small_network
from tests.nets import adapted, user_images


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel of (N, C, H, W)."""
    by_channel = values.transpose(0, 1).flatten(1).double()
    return by_channel.mean(1).float(), by_channel.var(1).float()


def assert_statistics(network: DFSNetwork, norm: str, values: Tensor) -> None:
    state, (mean, variance) = network.net.state_dict(), moments(values)
    torch.testing.assert_close(state[f"{norm}.running_mean"], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state[f"{norm}.running_var"], variance, rtol=1e-4, atol=1e-5)


def convolved(network: DFSNetwork, name: str, x: Tensor, stride: int = 1) -> Tensor:
    return functional.conv2d(x, network.net.state_dict()[f"{name}.weight"], stride=stride, padding=1)


def test_all_batches_count_by_their_values_and_blocks_by_the_images_that_run_them() -> None:
    network = small_network("skip,full")
    batches = [random_images(count, seed=seed) for seed, count in enumerate((12, 7, 20))]
    ranges = {key: value.clone() for key, value in network.ranges.state_dict().items()}
    run = torch.zeros(1, 2, dtype=torch.int64).repeat(5, 1)
    run[:, 1] = 1
    # What block 2 reads of five images that skip block 1 and run it: nothing is quantised here.
    few = random_images(5, seed=9)
    network.train()
    with torch.no_grad():
        features = network.block(1).skip(network.stem(few))
    with network.forced(run):
        renew_statistics(network, [few], Processes())
    assert_statistics(network, "blocks.2.norm1", convolved(network, "blocks.2.conv1", features, stride=2))
    renew_statistics(network, batches, Processes())
    assert_statistics(network, "stem_norm", convolved(network, "stem_conv", torch.cat(batches)))
    assert all(torch.equal(value, ranges[key]) for key, value in network.ranges.state_dict().items())


@pytest.mark.parametrize(("running", "renewed"), [(0, False), (3, False), (4, True)])
def test_a_block_that_hardly_an_image_reaches_keeps_its_statistics(running: int, renewed: bool) -> None:
    network = small_network("skip,full")
    path = torch.zeros(16, 2, dtype=torch.int64)
    path[:running, 0] = 1
    before = network.net.state_dict()["blocks.1.norm1.running_mean"].clone()
    with network.forced(path):
        renew_statistics(network, [random_images(16)], Processes())
    after = network.net.state_dict()["blocks.1.norm1.running_mean"]
    assert torch.equal(before, after) != renewed


def test_few_images_of_several_batches_together_are_enough() -> None:
    network = small_network("skip,full")
    path = torch.zeros(16, 2, dtype=torch.int64)
    path[:2, 0] = 1
    before = network.net.state_dict()["blocks.1.norm1.running_mean"].clone()
    with network.forced(path):
        renew_statistics(network, [random_images(16, seed=seed) for seed in (0, 1)], Processes())
    assert not torch.equal(before, network.net.state_dict()["blocks.1.norm1.running_mean"])


def test_the_gates_normalisations_are_renewed_and_frozen_ones_are_not() -> None:
    network = adapted("basic", gate="stateless")
    frozen = next(name for name, module in network.net.named_modules() if isinstance(module, torch.nn.BatchNorm2d))
    network.train()
    network.net.get_submodule(frozen).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    renew_statistics(network, [user_images(8)], Processes())
    after = network.state_dict()
    assert torch.equal(before[f"net.{frozen}.running_mean"], after[f"net.{frozen}.running_mean"])
    of_the_gate = [key for key in after if key.startswith("gate.") and key.endswith("running_mean")]
    assert of_the_gate
    assert not any(torch.equal(before[key], after[key]) for key in of_the_gate)


def test_a_network_with_a_policy_has_statistics_too() -> None:
    network = small_network("skip,full").with_policy([1, 0])
    images = random_images(16)
    renew_statistics(network, [images], Processes())
    assert_statistics(network, "stem_norm", convolved(network, "stem_conv", images))
