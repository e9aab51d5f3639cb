from __future__ import annotations

import copy
from collections.abc import Callable

import msgspec
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfs_deploy.models import DFSNetwork, NetworkOutput
from dfs_deploy.training.forward import joint_forward
from tests.builders import random_images, small_network
from tests.nets import KINDS, Kind, adapted, user_images


def differentiated(
    network: DFSNetwork, forward: Callable[[Tensor], NetworkOutput], x: Tensor
) -> tuple[NetworkOutput, dict[str, Tensor]]:
    """One forward and the gradient of a loss that uses accuracy and cost."""
    network.zero_grad()
    output = forward(x)
    labels = torch.arange(len(x)) % network.architecture.classes
    loss = functional.cross_entropy(output.logits, labels) + 0.3 * output.expected_cost.mean()
    loss.backward()
    zeros = torch.zeros(())
    return output, {key: zeros if p.grad is None else p.grad.clone() for key, p in network.named_parameters()}


def both(network: DFSNetwork, x: Tensor) -> tuple[tuple[NetworkOutput, dict[str, Tensor]], ...]:
    """The same by ``DFSNetwork.forward`` and by ``joint_forward``, each on a copy of its own."""
    first, second = copy.deepcopy(network), copy.deepcopy(network)
    return differentiated(first, first, x), differentiated(second, lambda images: joint_forward(second, images), x)


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor], keys: str = "") -> None:
    for key in one:
        if key.startswith(keys):
            scale = one[key].abs().max().clamp_min(1e-4)
            assert (one[key] - other[key]).abs().max() <= 5e-4 * scale, key


@pytest.mark.parametrize("options", ["skip,8,16,full", "skip,full", "full,skip,4", "8,16"])
def test_in_evaluation_mode_values_and_gradients_are_those_of_the_reference(options: str) -> None:
    network = small_network(options, blocks=2)
    (naive, wanted), (fast, gradients) = both(network, random_images(24))
    assert len(torch.unique(naive.path)) > 1
    torch.testing.assert_close(fast.logits, naive.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(fast.path, naive.path)
    torch.testing.assert_close(fast.scores, naive.scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast.expected_cost, naive.expected_cost)
    assert_same_gradients(wanted, gradients)


def test_a_single_image_has_the_gradients_of_the_reference() -> None:
    (_, wanted), (_, gradients) = both(small_network(blocks=2), random_images(1, seed=3))
    assert_same_gradients(wanted, gradients)


@pytest.mark.parametrize("choice", [1, 3])
def test_in_training_mode_one_choice_for_all_trains_the_backbone_as_the_reference_does(choice: int) -> None:
    """Where all samples run one option, its batch is the whole batch in both forwards."""
    network = small_network(blocks=2)
    with torch.no_grad():
        network.gate.projection.bias[choice] += 1000.0
    network.net.train()  # ranges may differ: they move with every option there, and once here
    (naive, wanted), (fast, gradients) = both(network, random_images(24))
    assert bool((naive.path == choice).all())
    torch.testing.assert_close(fast.logits, naive.logits, rtol=1e-4, atol=1e-4)
    assert_same_gradients(wanted, gradients, "net.")


def test_running_statistics_follow_the_samples_that_run() -> None:
    """A block that all skip keeps its statistics; one that some run moves by their share."""
    network = small_network("skip,full", blocks=2)
    network.train()
    with torch.no_grad():
        network.gate.projection.bias[0] += 1000.0
    before = copy.deepcopy(network.state_dict())
    joint_forward(network, random_images(16))
    after = network.state_dict()
    moved = {key for key in before if key.endswith("running_mean") and not torch.equal(before[key], after[key])}
    assert "net.blocks.0.norm1.running_mean" in moved
    assert not any(key.startswith("net.blocks.1.") for key in moved)
    # A skipped block that changes shape still projects.
    assert any("projection.norm" in key for key in moved)


def test_every_range_is_recorded_though_nobody_chose_a_quantised_option() -> None:
    network = small_network(blocks=2)
    with torch.no_grad():
        network.gate.projection.bias[3] += 1000.0
        network.ranges.low.zero_()
        network.ranges.high.zero_()
    network.train()
    joint_forward(network, random_images(16))
    assert not network.without_ranges()


def test_ranges_stay_in_evaluation_mode() -> None:
    network = small_network(blocks=2)
    before = copy.deepcopy(network.state_dict())
    joint_forward(network, random_images(16))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_without_a_gradient_it_computes_what_route_computes() -> None:
    network = small_network(blocks=2)
    x = random_images(16)
    with torch.no_grad():
        torch.testing.assert_close(joint_forward(network, x).logits, network.route(x).logits)


def test_a_policy_is_followed() -> None:
    network = small_network().with_policy([1, 3])
    output = joint_forward(network, random_images(4))
    assert output.path.tolist() == [[1, 3]] * 4


def test_channels_last_changes_nothing_but_speed() -> None:
    # Not narrower: PyTorch 2.13 damages its heap in a strided 1x1 convolution of fewer than 8 channels, channels last.
    network = small_network(blocks=2, widths=(8, 16, 32))
    x = random_images(16)
    _, wanted = differentiated(network, lambda images: joint_forward(network, images), x)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    _, gradients = differentiated(
        last, lambda images: joint_forward(last, images), x.contiguous(memory_format=torch.channels_last)
    )
    assert_same_gradients(wanted, gradients)


@pytest.mark.parametrize("gate", ["lstm", "stateless"])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_every_kind_have_the_references_values_and_gradients(kind: Kind, gate: str) -> None:
    network = adapted(kind, gate=gate)
    (naive, wanted), (fast, gradients) = both(network, user_images(24))
    assert len(torch.unique(naive.path)) > 1
    torch.testing.assert_close(fast.logits, naive.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(fast.path, naive.path)
    torch.testing.assert_close(fast.expected_cost, naive.expected_cost)
    assert_same_gradients(wanted, gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_one_choice_for_all_trains_networks_of_every_kind_as_the_reference_does(kind: Kind) -> None:
    network = adapted(kind, "skip,8,full", always=32)
    with torch.no_grad():
        network.gate.prefer([2, 1, 0])
    network.net.train()
    (naive, wanted), (fast, gradients) = both(without_dropout(network), user_images(24))
    assert bool((naive.path == 2).all())
    torch.testing.assert_close(fast.logits, naive.logits, rtol=1e-4, atol=1e-4)
    assert_same_gradients(wanted, gradients, "net.")


def without_dropout(network: DFSNetwork) -> DFSNetwork:
    """The network with dropouts that drop nothing."""
    nodes = tuple(
        msgspec.structs.replace(node, attributes={"share": 0.0}) if node.operator == "dropout" else node
        for node in network.graphs.head.nodes
    )
    graphs = msgspec.structs.replace(network.graphs, head=msgspec.structs.replace(network.graphs.head, nodes=nodes))
    other = DFSNetwork(network.net, graphs, network.architecture, network.options)
    other.gate.load_state_dict(network.gate.state_dict())
    return other.train(network.training)


@pytest.mark.parametrize("kind", KINDS)
def test_what_runs_in_training_is_what_is_normalised(kind: Kind) -> None:
    """A block that some skip moves its statistics by the share that runs; one that nobody runs keeps them."""
    network = adapted(kind, "skip,full").train()
    skippable = [block.shape.index for block in network.blocks if network.decided(block.shape.index)]
    images = user_images(16)
    path = torch.ones(16, 4, dtype=torch.int64)
    path[:, skippable[0] - 1] = 0
    path[:8, skippable[1] - 1] = 0
    before = copy.deepcopy(network.state_dict())
    with network.forced(path):
        output = joint_forward(network, images)
    assert torch.equal(output.path, path)
    after = network.state_dict()
    moved = {key for key in before if key.endswith("running_mean") and not torch.equal(before[key], after[key])}
    nobody, some = (network.block(index).graphs.name for index in skippable[:2])
    assert not any(f".{nobody}." in key for key in moved)
    assert any(f".{some}." in key for key in moved)
