from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dfs_deploy.calibration import (
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
from dfs_deploy.models import BasicBlock, DFSNetwork, run_option
from tests.bundles import Split, normal_images, rig_gate, settled_network
from tests.checks import refuses

Ranges = dict[TensorKey, CalibratedRange]
Tensors = dict[str, Tensor]

EIGHT, SIXTEEN = 1, 2
"""Indices in ``skip,8,16,full``."""


def batches(images: Tensor, size: int = 16) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter(images.split(size))


@torch.no_grad()
def tensors_of(block: BasicBlock, x: Tensor, bits: int) -> Tensors:
    """What an INT8 engine of the block rounds; a convolution's input clamped to the checkpoint's range."""
    y = torch.relu(block.norm1(block.conv1(x, bits)))
    found = {
        "conv1": x.clamp(block.conv1.low, block.conv1.high),
        "conv2": y.clamp(block.conv2.low, block.conv2.high),
        "conv2_out": block.norm2(block.conv2(y, bits)),
        "output": block(x, bits),
    }
    if block.projection is not None:
        conv = block.projection.conv
        found["projection"] = x.clamp(conv.low, conv.high)
        found["projection_out"] = block.projection(x, bits)
    else:
        found["shortcut"] = x
    return found


@torch.no_grad()
def features_before(network: DFSNetwork, images: Tensor, path: Tensor) -> list[Tensor]:
    """The input of each block, block 0 included, image by image along a given path."""
    features = network.backbone.stem(images)
    found = [features]
    for index, block in enumerate(network.blocks):
        rows = [
            block(x[None]) if index == 0 else run_option(block, x[None], network.options[int(k)])
            for x, k in zip(features, path[:, max(index - 1, 0)], strict=True)
        ]
        features = torch.cat(rows)
        found.append(features)
    return found


def expected_ends(
    network: DFSNetwork, images: Tensor, path: Tensor, options: list[int]
) -> dict[TensorKey, tuple[float, float, int]]:
    """Ends of what each block gets at each option: of the images sent there, or of all if there are none."""
    reached = features_before(network, images, path)
    ends = {}
    for block in network.blocks[1:]:
        index = block.shape.index
        for option in options:
            sent = path[:, index - 1] == option
            rows = reached[index][sent if sent.any() else slice(None)]
            for tensor, x in tensors_of(block, rows, network.options[option].bits).items():
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
        if key.tensor in ("conv1", "conv2", "projection"):
            clamp = routing.saturation(network.blocks[key.block], key.tensor)
            low, high = clamp.low, clamp.high
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
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not network.training


def test_the_static_network_runs_every_block_in_full_on_everything() -> None:
    network = settled_network()
    images = normal_images(24) * 2
    ranges = calibrate_static(network, batches(images, 5), "minmax")
    expected: dict[TensorKey, Tensor] = {TensorKey(0, STATIC, "images"): images}
    with torch.no_grad():
        x = network.backbone.stem(images)
        for block in network.blocks:
            y = torch.relu(block.norm1(block.conv1(x)))
            found = {"conv1": x, "conv2": y, "conv2_out": block.norm2(block.conv2(y)), "output": block(x)}
            if block.projection is not None:
                found |= {"projection": x, "projection_out": block.projection(x)}
            else:
                found |= {"shortcut": x}
            expected |= {TensorKey(block.shape.index, STATIC, name): value for name, value in found.items()}
            x = block(x)
    assert ranges.keys() == expected.keys()
    for key, value in expected.items():
        assert (ranges[key].low, ranges[key].high) == pytest.approx((float(value.min()), float(value.max())), abs=1e-4)
        assert (ranges[key].source, ranges[key].samples) == ("reached", 24)


def test_without_data_the_checkpoint_and_its_statistics_say() -> None:
    network = settled_network("skip,4,8,full", blocks=2, widths=(4, 8, 16))
    ranges = from_checkpoint(network, [1, 2])
    groups = [block.group for block in network.architecture.blocks]
    for block in network.blocks[1:]:
        index = block.shape.index
        names = {"conv1", "conv2", "conv2_out", "output"}
        if block.projection is not None:
            names |= {"projection", "projection_out"}
        else:
            names |= {"shortcut"}
        for option in (1, 2):
            own = {key.tensor: value for key, value in ranges.items() if (key.block, key.option) == (index, option)}
            assert own.keys() == names
            for name in names & {"conv1", "conv2", "projection"}:
                assert own[name] == routing.saturation(block, name)
                assert own[name].source == "checkpoint"
            bias, weight = block.norm2.bias.detach(), block.norm2.weight.detach().abs()
            assert own["conv2_out"].low == pytest.approx(float((bias - 6 * weight).min()))
            assert own["conv2_out"].high == pytest.approx(float((bias + 6 * weight).max()))
            assert own["conv2_out"].source == own["output"].source == "statistics"
            assert own["output"].low == 0.0 < own["output"].high
            if block.projection is None:
                assert own["shortcut"].low <= 1.5 * own["conv1"].low
                assert own["shortcut"].high >= max(1.5 * own["conv1"].high, own["output"].high)
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
        network.blocks[1].norm2.bias[0] = float("nan")
    with refuses(CheckpointError, "block 1", "nan", "finite"):
        calibrate_static(network, lambda: iter([normal_images(4)]), method)
