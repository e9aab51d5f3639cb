"""Networks of users that decide: what they compute, how they learn, and that they stay their users'."""

from __future__ import annotations

import copy
import functools
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import dfs_deploy
from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.errors import BlockError, OptionError, UsageError
from dfs_deploy.models import DFSNetwork, Plan, adapt, find_blocks
from dfs_deploy.models.network import MASKED
from dfs_deploy.options import Options, computation_percentage
from dfs_deploy.preprocessing import IMAGENET_INPUT, InputContract
from tests.checks import refuses
from tests.nets import KINDS, SIZE, Kind, adapted, spread_gate, user_images, user_net

GATES = ("lstm", "stateless")

kinds = st.sampled_from(KINDS)
option_lists = st.lists(st.sampled_from((0, *range(2, 33))), min_size=2, max_size=4, unique=True).map(Options)


@functools.cache
def found(kind: Kind) -> tuple[nn.Module, Plan]:
    """A network, not to be changed, and its plan."""
    net = user_net(kind)
    return net, find_blocks(net, user_images(2))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_was_just_adapted_computes_what_it_did_before(kind: Kind, gate: str) -> None:
    net = user_net(kind)
    images = user_images(16)
    with torch.no_grad():
        before = net(images)
    network = adapt(net, find_blocks(net, images[:2]), "skip,full,8", gate, always=32)
    assert not network.training
    output = network.route(images)
    assert (output.path == 1).all()
    torch.testing.assert_close(output.logits, before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network.static(images), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("options", "least"), [("skip,full", 0.0), ("skip,8,full", 1e-5), ("skip,8", 1e-5)])
def test_what_runs_in_fewer_bits_is_rounded_from_the_beginning(options: str, least: float) -> None:
    net = user_net("basic")
    images = user_images(16)
    with torch.no_grad():
        before = net(images)
    logits = adapt(net, find_blocks(net, images[:2]), options).route(images).logits
    difference = float((logits - before).abs().max() / before.abs().max())
    assert least <= difference <= (0.1 if least else 1e-6)


def test_it_holds_the_users_tensors_under_their_names() -> None:
    net = user_net("bottleneck")
    network = adapt(net, find_blocks(net, user_images(2)), "skip,8,full")
    assert network.net is net
    own = {name: value for name, value in network.state_dict().items() if name.startswith("net.")}
    assert list(own) == [f"net.{name}" for name in net.state_dict()]
    assert network.get_parameter("net.layer1.0.f.c.0.weight") is net.get_parameter("layer1.0.f.c.0.weight")


@pytest.mark.parametrize("gate", GATES)
@settings(max_examples=12, deadline=None)
@given(kinds, option_lists, st.integers(0, 100), st.integers(1, 5), st.data())
def test_both_forwards_agree_whatever_the_blocks_may_do(
    gate: str, kind: Kind, options: Options, seed: int, batch: int, data: st.DataObject
) -> None:
    net, plan = found(kind)
    for row in plan.blocks:
        possible = [name for name in options.names if name != "skip" or row.skippable]
        plan[row.name].options = data.draw(st.lists(st.sampled_from(possible), min_size=1, unique=True))
    try:
        network = adapt(copy.deepcopy(net), plan, options, gate)
    except BlockError as error:
        assert "nothing is decided" in str(error)
        return
    spread_gate(network, seed)
    network = network.eval().double()
    images = user_images(batch, seed).double()
    with torch.no_grad():
        mixed = network(images)
    routed = network.route(images)
    assert torch.equal(mixed.path, routed.path)
    torch.testing.assert_close(mixed.logits, routed.logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixed.scores, routed.scores, rtol=1e-9, atol=1e-9)
    allowed = torch.from_numpy(network.architecture.allowed(options))
    assert allowed.expand(batch, -1, -1).gather(2, routed.path.unsqueeze(2)).all()
    assert ((routed.scores == MASKED) == ~allowed).all()
    weights = network.architecture.weights(options)
    percentage = computation_percentage(routed.path.numpy(), options.costs, weights)
    torch.testing.assert_close(100 * routed.expected_cost.float(), torch.from_numpy(percentage), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forced_path_is_taken_by_both_forwards(kind: Kind) -> None:
    network = adapted(kind)
    images = user_images(4)
    names = ["8", "full", "16", "full"]
    with network.forced(names):
        routed = network.route(images)
        with torch.no_grad():
            mixed = network(images)
    assert routed.path.tolist() == mixed.path.tolist() == [[1, 3, 2, 3]] * 4
    torch.testing.assert_close(mixed.logits, routed.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(routed.logits, network.with_policy([1, 3, 2, 3]).route(images).logits)
    own = torch.randint(1, 4, (4, 4))
    with network.forced(own):
        assert torch.equal(network.route(images).path, own)
    assert not torch.equal(network.route(images).path, own)


def test_a_path_that_a_block_may_not_take_is_refused() -> None:
    network = adapted("mobile")
    with refuses(OptionError, "block 3", "skip"), network.forced(["full", "full", "skip", "full"]):
        pass
    with refuses(OptionError, "'7'"), network.forced(["7", "8", "8", "8"]):
        pass
    with refuses(OptionError, "2 option(s)", "4 gated"), network.forced(["8", "8"]):
        pass


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("full", ("'full'", "a list")),
        (3, ("a path 3", "a list")),
        ([1.0, 1.0, 1.0, 1.0], ("1.0", "an index")),
        ([[1, 1, 1, 1]], ("[1, 1, 1, 1]", "an index")),
        ([None, 1, 1, 1], ("None",)),
        (torch.tensor([0.9, 1.2, 1.7, 1.0]), ("(4,) torch.float32", "int64")),
        (torch.ones(1, 1, 4, dtype=torch.int64), ("(1, 1, 4)", "(N, gated blocks)")),
        (torch.tensor(1), ("a path ()",)),
        (torch.ones(0, 4, dtype=torch.int64), ("(0, 4)",)),
    ],
)
def test_what_is_no_path_is_refused(path: object, words: tuple[str, ...]) -> None:
    network = adapted("mobile")
    with refuses(OptionError, *words), network.forced(path):  # type: ignore[arg-type]
        pass


def test_paths_of_other_samples_are_refused() -> None:
    network = adapted("mobile")
    with refuses(OptionError, "5 samples", "on 2"), network.forced(torch.ones(5, 4, dtype=torch.int64)):
        network.route(user_images(2))


def test_what_cannot_be_skipped_and_has_one_bitwidth_is_never_asked_about() -> None:
    network = adapted("mobile", "skip,full")
    assert [network.decided(index) for index in (1, 2, 3, 4)] == [True, True, False, True]
    output = network.route(user_images(16))
    assert (output.path[:, 2] == 1).all()
    assert not network.block_costs[2].any()
    torch.testing.assert_close(network.block_costs[:, 1].mean(), torch.tensor(1.0))


def test_blocks_cost_what_their_share_of_all_multiply_adds_is() -> None:
    network = adapted("basic", "skip,8,full")
    macs = torch.tensor([float(block.macs) for block in network.architecture.blocks[1:]])
    assert len(macs.unique()) > 1
    torch.testing.assert_close(network.block_costs, (macs / macs.mean())[:, None] * torch.tensor([0.0, 1 / 16, 1.0]))
    with network.forced(["skip", "full", "8", "skip"]):
        cost = network.route(user_images(2)).expected_cost
    torch.testing.assert_close(cost, ((macs[1] + macs[2] / 16) / macs.sum()).expand(2))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_in_any_training_loop(kind: Kind, gate: str) -> None:
    net = user_net(kind).train()
    network = adapt(net, find_blocks(net, user_images(2)), "skip,8,full", gate)
    assert network.training
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = user_images(32)
    labels = images.mean((1, 2, 3)).gt(0).long()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    losses, costs = [], []
    for _ in range(20):
        output = network(images)
        loss = functional.cross_entropy(output.logits, labels)
        optimizer.zero_grad()
        (loss + 10.0 * network.cost_loss(20.0)).backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        losses.append(float(loss.detach()))
        costs.append(float(output.expected_cost.detach().mean()))
    assert losses[-1] < 0.7 * losses[0]
    assert costs[0] == pytest.approx(1.0)
    assert abs(costs[-1] - 0.2) < 0.25 * abs(costs[0] - 0.2), "the gate has moved toward the target"
    assert any(name.startswith("gate.") for name in gradients)
    assert any(name.startswith("net.") for name in gradients)
    after = network.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {"ranges.low", "ranges.high", "net.stem.1.running_mean", "net.fc.weight"} <= moved
    assert not network.without_ranges()
    assert net.get_parameter("fc.weight") is network.get_parameter("net.fc.weight")
    network.eval()
    with torch.no_grad():
        mixed = network(images)
    routed = network.route(images)
    assert torch.equal(mixed.path, routed.path)
    torch.testing.assert_close(mixed.logits, routed.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", ["skip,8", "skip,8,16,full"])
def test_a_cost_is_judged_against_the_dearest_path(options: str) -> None:
    network = adapted("basic", options).eval()
    _, dearest = network.architecture.computation_range(network.options)
    with network.forced([network.options.names[-1]] * network.architecture.gated_blocks):
        network(user_images(2))
    assert float(network.cost_loss(100.0 * dearest).detach()) == pytest.approx(0.0, abs=1e-9)
    assert float(network.cost_loss(0.0).detach()) == pytest.approx(1.0)


def test_a_cost_needs_a_forward() -> None:
    network = adapted("basic")
    with refuses(UsageError, "forward"):
        network.cost_loss(40.0)


def test_a_copy_can_be_made_in_the_middle_of_training() -> None:
    network = adapted("mobile").train()
    network(user_images(4)).logits.sum().backward()
    other = copy.deepcopy(network)
    assert other.get_parameter("net.fc.weight") is not network.get_parameter("net.fc.weight")
    network.eval()
    with torch.no_grad():
        network.get_parameter("net.fc.weight").zero_()
    images = user_images(4)
    assert not torch.equal(other.eval().route(images).logits, network.route(images).logits)


def test_options_of_a_plan_narrow_those_of_the_network() -> None:
    net = user_net("basic")
    plan = find_blocks(net, user_images(2))
    plan["layer1.*"].options = "8,full"
    network = adapt(net, plan, "skip,8,16,full")
    assert [[option.name for option in network.options_of(i)] for i in (1, 2, 3)] == [
        ["8", "full"],
        ["8", "full"],
        ["skip", "8", "16", "full"],
    ]
    plan["layer2.0"].options = "4"
    with refuses(OptionError, "layer2.0", "'4'"):
        adapt(net, plan, "skip,8,16,full")


def test_what_always_runs_does_so_in_few_bits_if_blocks_may() -> None:
    assert adapted("basic", "skip,8,full").graphs.always == 8
    assert adapted("basic", "skip,4,full").graphs.always == 8
    assert adapted("basic", "skip,16,full").graphs.always == 32
    assert adapted("basic", "skip,8,full", always=16).graphs.always == 16


@pytest.mark.parametrize("always", [0, 1, 33])
def test_bits_that_cannot_be_are_refused(always: int) -> None:
    with refuses(OptionError, f"{always} bits"):
        adapted("basic", always=always)


def test_another_gate_or_a_plan_of_another_network_is_refused() -> None:
    net = user_net("basic")
    plan = find_blocks(net, user_images(2))
    with refuses(UsageError, "'mlp'", "lstm or stateless"):
        adapt(net, plan, "skip,full", "mlp")  # type: ignore[arg-type]
    with refuses(BlockError, "another network"):
        adapt(user_net("mobile"), plan, "skip,full")
    dilated = user_net("basic")
    layer = dilated.get_submodule("layer1.0.conv1")
    layer.dilation = layer.padding = (2, 2)  # type: ignore[assignment]
    nn.init.zeros_(dilated.get_parameter("layer1.0.bn2.weight"))  # hides the difference
    with refuses(BlockError, "another network", "differs from its operations", "find its blocks again"):
        adapt(dilated, plan, "skip,full")


def test_a_plan_is_of_a_copy_too_whatever_its_weights() -> None:
    net = user_net("basic").train()
    plan = find_blocks(net, user_images(2))
    before = torch.get_rng_state()
    assert adapt(user_net("basic", seed=3).train(), plan, "skip,full").training
    torch.set_rng_state(before)
    adapt(net, plan, "skip,full")


def test_modules_that_were_frozen_stay_so() -> None:
    net = user_net("basic").train()
    frozen = {"stem.1", "layer1.0.bn1", "dropout"}
    for name in frozen:
        net.get_submodule(name).eval()

    def still(network: DFSNetwork) -> bool:
        flags = {name: module.training for name, module in network.net.named_modules()}
        return network.frozen_modules == frozen and flags == {name: name not in frozen for name in flags}

    network = adapt(net, find_blocks(net, user_images(2)), "skip,8,full")
    assert still(network)
    mean = net.get_buffer("layer1.0.bn1.running_mean").clone()
    moving = net.get_buffer("layer1.0.bn2.running_mean").clone()
    first, second = network.static(user_images(8)), network.static(user_images(8))
    assert torch.equal(first, second), "a dropout that was frozen drops nothing"
    network(user_images(8))
    assert torch.equal(net.get_buffer("layer1.0.bn1.running_mean"), mean)
    assert not torch.equal(net.get_buffer("layer1.0.bn2.running_mean"), moving)
    assert still(network.eval().train())
    assert still(network.with_policy([1, 1, 1, 1]))
    assert still(network.eval().with_policy([1, 1, 1, 1]).train())
    assert still(copy.deepcopy(network).train())
    network.train()
    net.get_submodule("dropout").train()
    network.train()
    frozen.remove("dropout")
    assert still(network)
    assert not torch.equal(network.static(user_images(8)), network.static(user_images(8)))


def same_answers(one: DFSNetwork, other: DFSNetwork, images: Tensor) -> bool:
    ours, theirs = one.route(images), other.route(images)
    return torch.equal(ours.path, theirs.path) and torch.equal(ours.logits, theirs.logits)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_it_saves_itself(suffix: str, gate: str, tmp_path: Path) -> None:
    network = adapted("bottleneck", gate=gate)
    contract = InputContract((3, *SIZE), (0.5,) * 3, (0.25,) * 3, tuple("abcde"))
    network.save(tmp_path / f"net{suffix}", contract)
    loaded = load_checkpoint(tmp_path / f"net{suffix}")
    assert loaded.input == contract
    assert same_answers(network, loaded.network, user_images(8))


def test_without_a_contract_imagenets_is_assumed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = adapted("basic")
    with caplog.at_level(logging.WARNING):
        network.save(tmp_path / "net.pt")
    assert "ImageNet" in caplog.text
    assert load_checkpoint(tmp_path / "net.pt").input.mean == IMAGENET_INPUT.mean
    network.contract = InputContract((3, *SIZE), (0.5,) * 3, (0.25,) * 3)
    network.save(tmp_path / "net.pt")
    assert load_checkpoint(tmp_path / "net.pt").input == network.contract


def test_it_is_public() -> None:
    assert dfs_deploy.adapt is adapt
    assert dfs_deploy.find_blocks is find_blocks
    assert dfs_deploy.DFSNetwork is DFSNetwork
