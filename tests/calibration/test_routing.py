from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.calibration import (
    ALWAYS,
    METHODS,
    STATIC,
    CalibratedRange,
    TensorKey,
    calibrate,
    calibrate_static,
    from_checkpoint,
    routing,
)
from dfs_deploy.errors import CheckpointError
from dfs_deploy.models import DFSNetwork, fake_quantize, fake_quantize_weight, run_option
from tests.checks import refuses
from tests.nets import KINDS, Kind, adapted, user_images
from tests.settled import Split, normal_images, rig_gate, settled_network

Ranges = dict[TensorKey, CalibratedRange]
Tensors = dict[str, Tensor]

EIGHT, SIXTEEN = 1, 2
"""Indices in ``skip,8,16,full``."""


def batches(images: Tensor, size: int = 16) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter(images.split(size))


@torch.no_grad()
def tensors_of(network: DFSNetwork, index: int, x: Tensor, bits: int) -> Tensors:
    """Values inside a block by plain arithmetic; what only convolutions read is clamped to the checkpoint's ranges."""
    name = f"blocks.{index}"
    module = network.net.get_submodule(name)

    def convolved(conv: nn.Conv2d, conv_name: str, value: Tensor) -> Tensor:
        if bits < 32:
            value = fake_quantize(value, *network.ranges.of(conv_name), bits)
        return functional.conv2d(value, fake_quantize_weight(conv.weight, bits), None, conv.stride, conv.padding)

    def clamped(value: Tensor, *convs: str) -> Tensor:
        if bits == 32:
            return value
        ends = torch.cat([torch.cat(network.ranges.of(conv)) for conv in convs])
        return value.clamp(ends.min(), ends.max())

    normed = module.norm1(convolved(module.conv1, f"{name}.conv1", x))
    y = torch.relu(normed)
    branch = module.norm2(convolved(module.conv2, f"{name}.conv2", y))
    found = {f"{name}.norm1": normed, f"{name}.conv1.relu": clamped(y, f"{name}.conv2"), f"{name}.norm2": branch}
    shortcut = found["input"] = x
    if module.projection is not None:
        conv = f"{name}.projection.conv"
        found["input"] = clamped(x, f"{name}.conv1", conv)
        shortcut = module.projection.norm(convolved(module.projection.conv, conv, x))
        found[f"{name}.projection.norm"] = shortcut
    found[f"{name}.addition"] = branch + shortcut
    found[f"{name}.relu"] = found["output"] = torch.relu(branch + shortcut)
    return found


@torch.no_grad()
def features_before(network: DFSNetwork, images: Tensor, path: Tensor) -> list[Tensor]:
    """The input of each gated block, from index 1 on, image by image along a given path."""
    features = network.stem(images)
    found = [images, features]
    for block in network.blocks:
        choices = path[:, block.shape.index - 1]
        rows = [run_option(block, x[None], network.options[int(k)]) for x, k in zip(features, choices, strict=True)]
        features = torch.cat(rows)
        found.append(features)
    return found


def expected_ends(
    network: DFSNetwork, images: Tensor, path: Tensor, options: list[int]
) -> dict[TensorKey, tuple[float, float, int]]:
    """Ends of what each block gets at each option: of the images sent there, or of all if there are none."""
    reached = features_before(network, images, path)
    ends = {}
    for block in network.blocks:
        index = block.shape.index
        for option in options:
            sent = path[:, index - 1] == option
            rows = reached[index][sent if sent.any() else slice(None)]
            for tensor, x in tensors_of(network, index, rows, network.options[option].bits).items():
                ends[TensorKey(index, option, tensor)] = (float(x.min()), float(x.max()), len(rows))
    return ends


@pytest.fixture(scope="module")
def routed() -> tuple[DFSNetwork, Tensor, Tensor]:
    """A network whose gate splits images, the images, and the path that each takes."""
    network = settled_network(blocks=2, widths=(4, 8), seed=0)
    images = normal_images(40)
    path = rig_gate(network, [Split(0, EIGHT), Split(0, SIXTEEN), Split(EIGHT, 3)], images)
    assert torch.equal(network.route(images).path, path)
    assert len(path.unique(dim=0)) > 2
    return network, images, path


def test_ranges_come_from_what_the_gate_sends_there(routed: tuple[DFSNetwork, Tensor, Tensor]) -> None:
    network, images, path = routed
    ranges = calibrate(network, [EIGHT], batches(images), "minmax")
    expected = expected_ends(network, images, path, [EIGHT])
    assert ranges.keys() == expected.keys()
    for key, (low, high, samples) in expected.items():
        found = ranges[key]
        taken = int((path[:, key.block - 1] == EIGHT).sum())
        assert found.source == ("routed" if taken else "reached"), key
        assert found.samples == samples == (taken or len(images)), key
        if key.tensor != "output":
            assert (found.low, found.high) == pytest.approx((low, high), abs=1e-5), key


def test_an_option_that_nobody_takes_is_measured_on_all_that_reached_the_block() -> None:
    network = settled_network()
    images = normal_images(24)
    path = rig_gate(network, [Split(0, 3), 0, Split(0, SIXTEEN)], images)
    ranges = calibrate(network, [EIGHT], batches(images, 7), "minmax")
    for key, (low, high, _) in expected_ends(network, images, path, [EIGHT]).items():
        assert (ranges[key].source, ranges[key].samples) == ("reached", 24)
        if key.tensor != "output":
            assert (ranges[key].low, ranges[key].high) == pytest.approx((low, high), abs=1e-5), key


def test_two_options_are_kept_apart() -> None:
    network = settled_network("skip,4,8,full")
    images = normal_images(24)
    path = rig_gate(network, [Split(1, 2), Split(1, 2), Split(2, 1)], images)
    ranges = calibrate(network, [1, 2], batches(images), "minmax")
    for key, (low, high, _) in expected_ends(network, images, path, [1, 2]).items():
        assert ranges[key].source == "routed"
        if key.tensor != "output":
            assert (ranges[key].low, ranges[key].high) == pytest.approx((low, high), abs=1e-5), key


@pytest.mark.parametrize("method", ["checkpoint", *METHODS])
def test_no_method_widens_what_the_checkpoint_clamps_to(method: str, routed: tuple[DFSNetwork, Tensor, Tensor]) -> None:
    network, images, _ = routed
    clamped = 0
    for key, found in calibrate(network, [EIGHT], batches(images * 2), method).items():
        name, projects = f"blocks.{key.block}", network.architecture.blocks[key.block].projects
        convs = {f"{name}.conv1.relu": [f"{name}.conv2"]}
        if projects:
            convs["input"] = [f"{name}.conv1", f"{name}.projection.conv"]
        if key.tensor in convs:
            ends = [float(end) for conv in convs[key.tensor] for end in network.ranges.of(conv)]
            low, high = min(ends), max(ends)
            # Zero is on every grid, so an interval that moves toward it is no wider.
            assert min(low, 0.0) <= found.low + 1e-6
            assert found.high <= high + 1e-6
            clamped += found.high == pytest.approx(high)
            if method == "checkpoint":
                assert (found.low, found.high, found.source) == (low, high, "checkpoint")
    assert clamped > 0, "some input should lie beyond its range, or this shows little"


@pytest.mark.parametrize("method", ["checkpoint", *METHODS])
def test_the_outputs_of_a_group_share_the_widest_interval(
    method: str, routed: tuple[DFSNetwork, Tensor, Tensor]
) -> None:
    network, images, path = routed
    ranges = calibrate(network, [EIGHT, SIXTEEN], batches(images), method)
    groups = [block.group for block in network.architecture.blocks]
    expected = expected_ends(network, images, path, [EIGHT, SIXTEEN])
    for group in set(groups):
        outputs = {key: value for key, value in ranges.items() if key.tensor == "output" and groups[key.block] == group}
        assert len({(value.low, value.high) for value in outputs.values()}) == 1
        one = next(iter(outputs.values()))
        assert one.low == 0.0
        highest = max(expected[key][1] for key in outputs)
        if method in ("checkpoint", "minmax"):
            assert one.high == pytest.approx(highest, abs=1e-5)
        assert 0.0 < one.high <= highest + 1e-5


@pytest.mark.parametrize("method", ["checkpoint", "minmax", "mse"])
def test_the_batch_size_does_not_matter_and_a_second_call_gives_the_same(
    method: str, routed: tuple[DFSNetwork, Tensor, Tensor]
) -> None:
    network, images, _ = routed
    first = calibrate(network, [EIGHT], batches(images, 16), method)
    assert calibrate(network, [EIGHT], batches(images, 16), method) == first
    for size in (1, 40):
        other = calibrate(network, [EIGHT], batches(images, size), method)
        assert other.keys() == first.keys()
        for key, found in first.items():
            assert (found.source, found.samples) == (other[key].source, other[key].samples)
            # A float that moves by a digit may move to the next bin.
            slack = 1e-5 if method in ("checkpoint", "minmax") else 0.05 * (found.high - found.low)
            assert (other[key].low, other[key].high) == pytest.approx((found.low, found.high), abs=slack), key


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_memory_does_not_grow_with_the_data(
    method: str, routed: tuple[DFSNetwork, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images, _ = routed
    statistics: list[weakref.ref[Any]] = []
    tensors: list[weakref.ref[Any]] = []

    class MinMax(routing.MinMax):
        def __init__(self) -> None:
            super().__init__()
            statistics.append(weakref.ref(self))

    class Histogram(routing.Histogram):
        def __init__(self, low: float, high: float) -> None:
            super().__init__(low, high)
            statistics.append(weakref.ref(self))

    monkeypatch.setattr(routing, "MinMax", MinMax)
    monkeypatch.setattr(routing, "Histogram", Histogram)

    def alive(references: list[weakref.ref[Any]]) -> int:
        return sum(reference() is not None for reference in references)

    def most_alive(count: int) -> tuple[int, int]:
        most = (0, 0)

        def stream() -> Iterator[Tensor]:
            nonlocal most
            for _ in range(count):
                batch = images[:8].clone()
                tensors.append(weakref.ref(batch))
                most = (max(most[0], alive(statistics)), max(most[1], alive(tensors)))
                yield batch

        ranges = calibrate(network, [EIGHT], stream, method)
        assert 0 < most[0] <= 2 * len(ranges)
        return most

    few = most_alive(3)
    assert most_alive(12) == few
    assert few[1] <= 2, "a batch is let go when the next one comes"


def test_the_network_is_left_as_it_was(routed: tuple[DFSNetwork, Tensor, Tensor]) -> None:
    network, images, _ = routed
    before = {key: value.clone() for key, value in network.state_dict().items()}

    def failing() -> Iterator[Tensor]:
        yield images[:4]
        raise OSError("the disk went away")

    calibrate(network, [EIGHT], batches(images), "mse")
    calibrate_static(network, batches(images), "minmax")
    with pytest.raises(OSError, match="went away"):
        calibrate_static(network, failing, "minmax")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network._observer is None
    assert not network.training


def test_the_static_network_runs_every_block_in_full_on_everything() -> None:
    network = settled_network()
    images = normal_images(24) * 2
    ranges = calibrate_static(network, batches(images, 5), "minmax")
    with torch.no_grad():
        x = network.stem(images)
        logits = network.static(images)
    assert ranges[TensorKey(0, STATIC, "input")] == CalibratedRange(
        float(images.min()), float(images.max()), "reached", 24
    )
    expected = {TensorKey(0, STATIC, "output"): x, TensorKey(0, STATIC, "blocks.0.relu"): x}
    for block in network.blocks:
        index = block.shape.index
        found = tensors_of(network, index, x, 32)
        expected |= {TensorKey(index, STATIC, name): value for name, value in found.items()}
        x = found["output"]
    expected[TensorKey(len(network.blocks) + 1, STATIC, "output")] = logits
    for key, value in expected.items():
        assert (ranges[key].low, ranges[key].high) == pytest.approx((float(value.min()), float(value.max())), abs=1e-4)
        assert (ranges[key].source, ranges[key].samples) == ("reached", 24)
    inside = {key for key in ranges if 0 < key.block <= len(network.blocks)}
    assert inside == {key for key in expected if 0 < key.block <= len(network.blocks)}


def test_without_data_the_checkpoint_and_its_statistics_say() -> None:
    network = settled_network("skip,4,8,full", blocks=2, widths=(4, 8, 16))
    ranges = from_checkpoint(network, [1, 2])
    measured = calibrate(network, [1, 2], batches(normal_images(8)), "minmax")
    assert ranges.keys() == measured.keys()
    groups = [block.group for block in network.architecture.blocks]
    for block in network.blocks:
        index, name = block.shape.index, f"blocks.{block.shape.index}"
        norm = network.net.get_submodule(f"{name}.norm2")
        conv1 = routing.saturation(network, f"{name}.conv1")
        for option in (1, 2):
            own = {key.tensor: value for key, value in ranges.items() if (key.block, key.option) == (index, option)}
            assert own[f"{name}.conv1.relu"] == routing.saturation(network, f"{name}.conv2")
            assert own[f"{name}.conv1.relu"].source == "checkpoint"
            bias, weight = norm.bias.detach(), norm.weight.detach().abs()
            assert own[f"{name}.norm2"].low == pytest.approx(float((bias - 6 * weight).min()))
            assert own[f"{name}.norm2"].high == pytest.approx(float((bias + 6 * weight).max()))
            assert own[f"{name}.norm2"].source == own["output"].source == "statistics"
            assert own["output"].low == 0.0 < own["output"].high
            if block.shape.projects:
                conv = routing.saturation(network, f"{name}.projection.conv")
                assert (own["input"].low, own["input"].high) == (min(conv1.low, conv.low), max(conv1.high, conv.high))
            else:
                assert own["input"].low <= 1.5 * conv1.low
                assert own["input"].high >= max(1.5 * conv1.high, own["output"].high)
    assert all(value.samples == 0 for value in ranges.values())
    shared = {(groups[key.block], value.high) for key, value in ranges.items() if key.tensor == "output"}
    assert len(shared) == 3


def test_without_a_gated_block_or_an_option_there_is_nothing_to_measure() -> None:
    network = settled_network()
    assert from_checkpoint(network, []) == {}
    assert calibrate(network, [], batches(normal_images(4)), "minmax") == {}


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_features_that_are_not_finite_are_named_and_do_not_become_a_range(method: str) -> None:
    network = settled_network()
    with torch.no_grad():
        network.net.get_parameter("blocks.1.norm2.bias")[0] = float("nan")
    with refuses(CheckpointError, "block 1", "nan", "finite"):
        calibrate_static(network, lambda: iter([normal_images(4)]), method)


def user_batches(count: int = 24, size: int = 7) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter(user_images(count).split(size))


@pytest.mark.parametrize("kind", KINDS)
def test_what_always_runs_in_integers_is_measured_too(kind: Kind) -> None:
    network = adapted(kind, "skip,8,full")
    ranges = calibrate(network, [EIGHT], user_batches(), "minmax")
    with torch.no_grad():
        features = network.stem(user_images(24))
    last = len(network.blocks) + 1
    stem = ranges[TensorKey(0, ALWAYS, network.graphs.stem.output)]
    assert (stem.low, stem.high) == pytest.approx((float(features.min()), float(features.max())), abs=1e-5)
    assert (stem.source, stem.samples) == ("routed", 24)
    assert {key.tensor for key in ranges if key.block == last} >= {"input", "fc", "output"}
    assert {(key.block, key.option) for key in ranges if key.option == ALWAYS} == {
        (0, ALWAYS),
        (last, ALWAYS),
        *((block.shape.index, ALWAYS) for block in network.blocks if block.shape.projects),
    }
    for block in network.blocks:
        if block.shape.projects:
            names = {key.tensor for key in ranges if (key.block, key.option) == (block.shape.index, ALWAYS)}
            assert names >= {"input", "output"}
    assert all(key.option in (EIGHT, ALWAYS) for key in ranges)


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_that_an_engine_may_round_has_a_range(kind: Kind) -> None:
    network = adapted(kind, "skip,8,full")
    ranges = calibrate(network, [EIGHT], user_batches(), "minmax")
    for block in network.blocks:
        whole = block.whole
        norms = {node.inputs[0] for node in whole.nodes if node.operator == "batch_norm"}
        convs = {node.name for node in whole.nodes if node.operator == "conv"}
        values = {"input", "output", *(node.name for node in whole.nodes)} - (norms & convs)
        found = {key.tensor for key in ranges if (key.block, key.option) == (block.shape.index, EIGHT)}
        assert found == values


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_a_group_share_a_range_whoever_gives_them(kind: Kind) -> None:
    network = adapted(kind, "skip,8,full")
    ranges = calibrate(network, [EIGHT], user_batches(), "minmax")
    blocks = network.architecture.blocks
    for group in {block.group for block in blocks}:
        members = [key for key in ranges if key.tensor == "output" and key.block < len(blocks)]
        members = [key for key in members if blocks[key.block].group == group]
        shared = {(ranges[key].low, ranges[key].high) for key in members}
        assert len(shared) == 1
        low, high = shared.pop()
        own = [ranges[TensorKey(key.block, key.option, output_of(network, key))] for key in members]
        assert low == pytest.approx(min(0.0, *(value.low for value in own)))
        assert high == pytest.approx(max(value.high for value in own))
    signed = any(ranges[TensorKey(index, EIGHT, "output")].low < 0.0 for index in range(1, len(blocks)))
    assert signed == (kind in ("mobile", "preact"))


def output_of(network: DFSNetwork, key: TensorKey) -> str:
    """Name of the value that a block gives at an option."""
    if key.block == 0:
        return network.graphs.stem.output
    graphs = network.graphs.blocks[key.block - 1]
    skip = graphs.skip
    return skip.output if key.option == ALWAYS and skip is not None else graphs.whole.output


def test_a_block_that_is_never_asked_about_is_measured_at_its_own_option() -> None:
    network = adapted("mobile", "skip,8")
    assert not network.decided(3)
    ranges = calibrate(network, [EIGHT], user_batches(), "minmax")
    own = {value for key, value in ranges.items() if (key.block, key.option) == (3, EIGHT)}
    assert own
    assert all((value.source, value.samples) == ("routed", 24) for value in own)


def test_a_value_that_something_else_reads_as_well_is_not_clamped() -> None:
    """A shortcut passes what the branch's first layer clamps."""
    network = adapted("preact", "skip,8,full")
    for name in network.ranges.names:
        low, high = network.ranges.of(name)
        low.fill_(-0.1)
        high.fill_(0.1)
    ranges = calibrate(network, [EIGHT], user_batches(), "minmax")
    for block in network.blocks:
        conv2 = [node for node in block.whole.nodes if node.name.endswith(".conv2")]
        clamped = ranges[TensorKey(block.shape.index, EIGHT, conv2[0].inputs[0])]
        assert clamped.high <= 0.1 + 1e-6
    assert ranges[TensorKey(1, EIGHT, "input")].high > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_without_data_other_networks_are_refused(kind: Kind) -> None:
    network = adapted(kind, "skip,8,full")
    with refuses(CheckpointError, "--calibration-data"):
        from_checkpoint(network, [EIGHT])
    assert from_checkpoint(network, []) == {}
