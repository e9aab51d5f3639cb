from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from dfs_deploy.errors import OptionError
from dfs_deploy.models import DFSNetwork, cifar_network, fake_quantize, fake_quantize_weight, run_option
from dfs_deploy.models.cifar import BasicBlock
from dfs_deploy.network import Block, cifar_resnet
from dfs_deploy.options import Option, Options, computation_percentage
from tests.builders import random_images, small_network

VALID_BITS = (0, *range(2, 33))

option_lists = st.lists(st.sampled_from(VALID_BITS), min_size=2, max_size=6, unique=True).map(Options)


@settings(max_examples=40)
@given(option_lists, st.integers(1, 2), st.sampled_from([1, 2, 5]), st.integers(0, 2**31))
def test_both_forwards_agree(options: Options, blocks: int, batch: int, seed: int) -> None:
    """In double precision, where no rounding to the grid lies so near a tie that the order of additions decides it."""
    network = small_network(options, blocks, seed=seed).double()
    images = random_images(batch, seed=seed).double()
    with torch.no_grad():
        mixed = network(images)
    routed = network.route(images)
    assert torch.equal(mixed.path, routed.path)
    torch.testing.assert_close(mixed.logits, routed.logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixed.scores, routed.scores, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixed.expected_cost.double(), routed.expected_cost.double(), rtol=1e-6, atol=1e-6)


def test_both_forwards_agree_in_single_precision() -> None:
    network = small_network("skip,full", 3, seed=3)
    images = random_images(32, seed=3)
    with torch.no_grad():
        mixed = network(images)
    routed = network.route(images)
    assert len(routed.path.unique(dim=0)) > 4, "the images should take different paths, or this shows little"
    assert torch.equal(mixed.path, routed.path)
    torch.testing.assert_close(mixed.logits, routed.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_mix_runs_exactly_what_was_chosen(seed: int) -> None:
    """A weight that is one only up to rounding would move features, and may move them past a decision."""
    network = small_network("skip,4,8,full", 3, seed=seed)
    image = random_images(1, seed=seed)
    with torch.no_grad():
        # Scores close together: no option has a softmax near one.
        network.gate.projection.weight.mul_(0.05)
        mixed = network(image)
        features = network.stem(image)
        for block, choice in zip(network.blocks, mixed.path[0].tolist(), strict=True):
            features = run_option(block, features, network.options[choice])
        assert torch.equal(mixed.logits, network.head(features))


def test_an_image_alone_goes_as_it_goes_in_a_batch() -> None:
    network = small_network("skip,8,16,full", 2).double()
    images = random_images(6).double()
    together = network.route(images)
    for index in range(len(images)):
        alone = network.route(images[index : index + 1])
        assert torch.equal(alone.path[0], together.path[index])
        torch.testing.assert_close(alone.logits[0], together.logits[index], rtol=1e-9, atol=1e-9)


def test_the_path_is_the_greatest_score_and_the_cost_follows_it() -> None:
    network = small_network("skip,8,16,full", 2)
    output = network.route(random_images(16))
    assert torch.equal(output.path, output.scores.argmax(2))
    weights = network.architecture.weights(network.options)
    percentage = computation_percentage(output.path.numpy(), network.options.costs, weights)
    torch.testing.assert_close(100 * output.expected_cost, torch.from_numpy(percentage))


def test_the_observer_sees_each_sample_once_a_block_with_what_the_block_gets() -> None:
    network = small_network("skip,8,full", 2)
    images = random_images(8)
    seen: list[tuple[int, int, Tensor, Tensor]] = []
    output = network.route(images, lambda *call: seen.append(call))
    with torch.no_grad():
        expected = network.stem(images)
    for block in range(1, len(network.blocks) + 1):
        calls = [call for call in seen if call[0] == block]
        rows = torch.cat([rows for _, _, rows, _ in calls])
        assert sorted(rows.tolist()) == list(range(8))
        for _, option, rows, features in calls:
            assert output.path[rows, block - 1].tolist() == [option] * len(rows)
            assert len(features) == len(rows)
            if block == 1:
                torch.testing.assert_close(features, expected[rows])


def test_routing_keeps_no_gradient_and_changes_no_range() -> None:
    network = small_network("skip,8,full")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert not network.route(random_images(2)).logits.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def gradient(network: DFSNetwork, name: str) -> Tensor:
    found = network.get_parameter(name).grad
    assert found is not None, name
    assert torch.isfinite(found).all(), name
    return found


@pytest.mark.parametrize("training", [False, True])
def test_the_loss_moves_backbone_and_gate(training: bool) -> None:
    network = small_network("skip,8,16,full", 2).train(training)
    output = network(random_images(8))
    functional.cross_entropy(output.logits, torch.arange(8)).backward()
    for name in ("net.stem_conv.weight", "net.blocks.0.conv1.weight", "net.head.weight"):
        assert gradient(network, name).any(), name
    for name in ("gate.embeddings.0.weight", "gate.lstm.weight_ih", "gate.lstm.weight_hh", "gate.projection.weight"):
        assert gradient(network, name).any(), name
    # Every block ran in some option for some image, or was mixed in with weight zero: each has a gradient, if of zeros.
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_expected_cost_alone_moves_the_gate() -> None:
    network = small_network("skip,8,16,full", 2)
    network(random_images(8)).expected_cost.sum().backward()
    assert gradient(network, "gate.projection.weight").any()


def test_training_follows_the_ranges_that_evaluation_uses() -> None:
    network = small_network("8,full", 1)
    network.ranges.low.zero_()
    network.ranges.high.zero_()
    assert set(network.without_ranges()) == {1, 2}
    block = network.blocks[0]
    name = f"{block.graphs.name}.conv1"
    x = torch.rand(4, 4, 8, 8) + 1.0
    with torch.no_grad():
        network.train()
        block(x, 32)
        assert not network.ranges.known(name), "a pass in full precision needs no range"
        block(x, 8)
        assert set(network.without_ranges()) == {2}
        low, high = (end.clone() for end in network.ranges.of(name))
        torch.testing.assert_close(low, x.flatten(1).amin(1).mean().reshape(1))
        torch.testing.assert_close(high, x.flatten(1).amax(1).mean().reshape(1))
        block(x - 1.0, 8)
        assert float(low) - 1.0 < float(network.ranges.of(name)[0]) < float(low), "a later batch moves it in part"
        before = [end.clone() for end in network.ranges.of(name)]
        network.eval()
        block(100 * x, 8)
        assert list(network.ranges.of(name)) == before


def test_a_normalisation_that_is_frozen_stays_so_in_training() -> None:
    network = small_network("skip,full", 1).train()
    network.net.get_submodule("blocks.1.norm1").eval()
    before = {key: value.clone() for key, value in network.state_dict().items() if "running" in key}
    network(random_images(8))
    moved = {key for key, value in before.items() if not torch.equal(network.state_dict()[key], value)}
    assert not any("blocks.1.norm1" in key for key in moved)
    assert any("blocks.1.norm2" in key for key in moved)


def test_the_static_network_is_the_dynamic_one_that_always_chooses_one_option() -> None:
    for index, bits in enumerate((8, 32)):
        network = small_network(Options([8, 32]), 2).double()
        with torch.no_grad():
            network.gate.projection.weight.zero_()
            network.gate.projection.bias.copy_(torch.tensor([1.0, 0.0] if index == 0 else [0.0, 1.0]))
        images = random_images(3).double()
        output = network.route(images)
        assert (output.path == index).all()
        with torch.no_grad():
            torch.testing.assert_close(output.logits, network.static(images, bits), rtol=1e-9, atol=1e-9)


def test_a_skipped_block_passes_its_input_and_a_skipped_stride_block_its_projection() -> None:
    network = small_network("skip,8,full", 2)
    plain, stride = network.blocks[0], network.blocks[1]
    projection = network.net.get_submodule("blocks.2.projection")
    features = torch.randn(4, 4, 8, 8).relu()
    with torch.no_grad():
        assert run_option(plain, features, Option(0)) is features
        skipped = run_option(stride, features, Option(0))
        torch.testing.assert_close(skipped, projection(features))
        assert (skipped < 0).any(), "without relu"
        assert (run_option(stride, features, Option(8)) >= 0).all()


def test_a_block_computes_what_its_module_does() -> None:
    network = small_network("skip,8,full", 2)
    features = torch.randn(4, 4, 8, 8).relu()
    images = random_images(4)
    with torch.no_grad():
        for block in network.blocks[:2]:
            module = network.net.get_submodule(block.graphs.name)
            assert torch.equal(block(features), module(features))
        assert torch.equal(network.static(images), network.net(images))


def test_a_quantised_stride_block_quantises_its_projection_too() -> None:
    network = small_network("skip,4,full")
    stride, module = network.blocks[0], network.net.get_submodule("blocks.1")
    features = torch.randn(2, 4, 8, 8).relu()

    def rounded(conv: str, x: Tensor) -> Tensor:
        layer = module.get_submodule(conv)
        x = fake_quantize(x, *network.ranges.of(f"blocks.1.{conv}"), 4)
        return functional.conv2d(x, fake_quantize_weight(layer.weight, 4), None, layer.stride, layer.padding)

    with torch.no_grad():
        main = module.norm2(rounded("conv2", module.norm1(rounded("conv1", features)).relu()))
        projected = module.projection.norm(rounded("projection.conv", features))
        torch.testing.assert_close(stride(features, 4), (main + projected).relu())
        assert not torch.allclose(stride(features, 4), (main + module.projection(features)).relu())


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 2))
def test_a_block_gives_what_its_shape_says(height: int, width: int, stride: int) -> None:
    halved = (4 * stride, -(-height // stride), -(-width // stride))
    shape = Block(1, "layer2.0", (4, height, width), halved, 2, "projection" if stride > 1 else "free")
    block = BasicBlock(shape).eval()
    features = torch.rand(2, 4, height, width)
    with torch.no_grad():
        assert block(features).shape == (2, *shape.out_shape)


@pytest.mark.parametrize("size", [(7, 9), (3, 3)])
def test_odd_sizes_run(size: tuple[int, int]) -> None:
    network = small_network("skip,8,full", 2, size=size).double()
    images = random_images(3, size).double()
    with torch.no_grad():
        torch.testing.assert_close(network(images).logits, network.route(images).logits, rtol=1e-9, atol=1e-9)


def test_a_network_of_one_block_has_nothing_to_decide() -> None:
    network = cifar_network(cifar_resnet((1,), (4,), 3, (3, 8, 8)), Options.parse("skip,full")).eval()
    for output in (network(random_images(2)), network.route(random_images(2))):
        assert output.path.shape == (2, 0)
        assert output.scores.shape == (2, 0, 2)
        assert output.expected_cost.tolist() == [1.0, 1.0]
        assert output.logits.shape == (2, 3)


policies = st.lists(st.integers(0, 3), min_size=5, max_size=5)


@settings(max_examples=20)
@given(policies, st.integers(0, 2**31))
def test_a_policy_runs_its_options_for_every_image(policy: list[int], seed: int) -> None:
    gated = small_network("skip,8,16,full", 2, seed=seed)
    static = gated.with_policy(policy)
    images = random_images(3, seed=seed)
    with torch.no_grad():
        features = gated.stem(images)
        for block, choice in zip(gated.blocks, policy, strict=True):
            features = run_option(block, features, gated.options[choice])
        expected = gated.head(features)
        mixed, routed = static(images), static.route(images)
    for output in (mixed, routed):
        assert torch.equal(output.logits, expected)
        assert output.path.tolist() == [policy] * 3
        weights = static.architecture.weights(static.options)
        percentage = computation_percentage(output.path.numpy(), static.options.costs, weights)
        torch.testing.assert_close(100 * output.expected_cost, torch.from_numpy(percentage))
        assert output.scores.shape == (3, 5, 4)
    assert static.gate is None


def test_a_policy_of_full_precision_is_the_backbone() -> None:
    gated = small_network("skip,8,full", 2)
    images = random_images(4)
    static = gated.with_policy([1] * 5, Options.parse("8,full"))
    assert torch.equal(static.route(images).logits, gated.static(images).detach())


def test_a_policy_is_trained_through_its_own_options_alone() -> None:
    static = small_network("skip,8,full", 1).train().with_policy([0, 1])
    assert static.training
    static(random_images(4)).logits.sum().backward()
    skipped, quantised = (static.net.get_parameter(f"blocks.{index}.conv1.weight") for index in (1, 2))
    assert skipped.grad is None
    assert quantised.grad is not None
    assert quantised.grad.abs().sum() > 0
    assert not any("gate" in name for name, _ in static.named_parameters())


def test_the_observer_sees_a_policys_blocks() -> None:
    seen: list[tuple[int, int, list[int]]] = []
    static = small_network("skip,8,full", 1).with_policy([0, 2])
    static.route(random_images(2), lambda block, option, rows, x: seen.append((block, option, rows.tolist())))
    assert seen == [(1, 0, [0, 1]), (2, 2, [0, 1])]


@pytest.mark.parametrize("policy", [[0], [0, 1, 2], [0, 3], [0, -1], [0, "8"], [0, 1.0]])
def test_a_policy_that_does_not_fit_is_refused(policy: list[Any]) -> None:
    with pytest.raises(OptionError, match="policy"):
        small_network("skip,8,full", 1).with_policy(policy)


@settings(max_examples=10)
@given(policies, st.integers(0, 2**31))
def test_a_forced_path_runs_its_options_and_keeps_the_gates_scores(path: list[int], seed: int) -> None:
    network = small_network("skip,8,16,full", 2, seed=seed)
    images = random_images(3, seed=seed)
    forced = torch.tensor([path, path[::-1], path])
    with torch.no_grad():
        output = network.unroll(
            images, lambda block, x, taken: network.run_block(block.shape.index, x, taken.choice), forced
        )
    assert torch.equal(output.path, forced)
    for row, image in enumerate(images):
        expected = network.with_policy(forced[row].tolist()).route(image[None])
        torch.testing.assert_close(output.logits[row], expected.logits[0], rtol=0, atol=1e-4)
    own = network.route(images)
    same = (own.path == forced).all(1)
    torch.testing.assert_close(output.scores[:, 0], own.scores[:, 0])
    torch.testing.assert_close(output.scores[same], own.scores[same])
