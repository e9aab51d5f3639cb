from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfs_deploy.bundle import Bundle
from dfs_deploy.calibration import CalibratedRange, TensorKey
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.exporters import export
from dfs_deploy.models import DFSNetwork
from dfs_deploy.runtimes import Runtime
from dfs_deploy.training.deployed import (
    calibrate_deployed,
    deployed_forward,
    in_both_arithmetics,
    plain_ranges,
    read_ranges,
    widest_ranges,
)
from tests.bundles import CONTRACT, Made, normal_images, settled_network


def deployed(network: DFSNetwork, made: Made, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Logits and path in the engines' arithmetic, calibrated on what the bundle was calibrated on."""

    def batches() -> Iterator[Tensor]:
        yield torch.from_numpy(CONTRACT.normalize(made.data.images))

    with torch.no_grad():
        output = deployed_forward(network, images, calibrate_deployed(network, batches))
    return output.logits.numpy(), output.path.numpy()


def test_it_computes_what_the_engines_compute(mixed: Made) -> None:
    """Paths hold float32 and uint8 features at INT8 blocks, free skips, and a skipped stride block."""
    images = normal_images(64)
    logits, path = deployed(mixed.network, mixed, images)
    with Runtime(Bundle(mixed.path), plan=False) as runtime:
        expected = runtime(images.numpy())
    assert len(np.unique(path, axis=0)) > 4
    agreeing = (path == expected.path).all(1)
    assert agreeing.mean() > 0.95
    reference = mixed.network.route(images).logits.numpy()
    error = np.abs(logits - expected.logits)[agreeing].max()
    assert error < 0.05 * np.abs(reference - expected.logits)[agreeing].max()


def test_a_static_policy_computes_what_its_engines_compute(mixed: Made, tmp_path: Path) -> None:
    static = mixed.network.with_policy([1, 0, 1])
    save_checkpoint(tmp_path / "net.pt", static, CONTRACT)
    bundle = export(tmp_path / "net.pt", tmp_path / "net.dfs", calibration_data=mixed.data).bundle
    images = normal_images(16)
    logits, path = deployed(static, mixed, images)
    with Runtime(bundle, plan=False) as runtime:
        expected = runtime(images.numpy())
    assert np.array_equal(path, expected.path)
    # A value at a tie may fall to the other level: the exporter folds in float64. Most images have none.
    error = np.abs(logits - expected.logits).max(1)
    reference = np.abs(static.route(images).logits.numpy() - expected.logits).max(1)
    assert np.median(error) < 1e-3 * np.median(reference)
    assert error.max() < 0.2 * reference.max()


def test_gradients_reach_every_part_that_computes() -> None:
    network = settled_network()
    images = normal_images(16)
    ranges = calibrate_deployed(network, lambda: iter([images]))
    output = deployed_forward(network, images, ranges)
    (output.logits.square().sum() + output.expected_cost.sum()).backward()
    taken = {(block, int(option)) for row in output.path for block, option in enumerate(row, start=1)}
    for block in network.blocks[1:]:
        if any((block.shape.index, option) in taken for option in (1, 2, 3)):
            assert block.conv1.weight.grad is not None
            assert block.conv1.weight.grad.abs().sum() > 0
    assert network.gate is not None
    gradient = network.gate.projection.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_half_a_batch_runs_in_each_arithmetic() -> None:
    network = settled_network()
    images = normal_images(9)
    ranges = calibrate_deployed(network, lambda: iter([images]))
    with torch.no_grad():
        both = in_both_arithmetics(network, images, ranges)
        first, second = deployed_forward(network, images[:4], ranges), network.route(images[4:])
    assert torch.equal(both.logits[:4], first.logits)
    torch.testing.assert_close(both.logits[4:], second.logits)
    assert torch.equal(both.path, torch.cat([first.path, second.path]))
    assert both.scores.shape == (9, 3, 4)


def test_calibration_leaves_the_mode_as_it_was() -> None:
    network = settled_network().train()
    network.blocks[1].eval()
    before = [module.training for module in network.modules()]
    calibrate_deployed(network, lambda: iter([normal_images(4)]))
    assert [module.training for module in network.modules()] == before


def test_ranges_travel_as_plain_values() -> None:
    network = settled_network()
    ranges = calibrate_deployed(network, lambda: iter([normal_images(8)]))
    assert read_ranges(plain_ranges(ranges)) == ranges
    assert all(isinstance(value, int | float | str) for values in plain_ranges(ranges) for value in values)


def test_parts_are_merged_and_what_the_gate_sent_comes_first() -> None:
    first, second = TensorKey(1, 1, "conv1"), TensorKey(1, 1, "conv2")
    merged = widest_ranges(
        [
            {first: CalibratedRange(0.0, 2.0, "routed", 3), second: CalibratedRange(0.0, 9.0, "reached", 8)},
            {first: CalibratedRange(-1.0, 1.0, "routed", 4), second: CalibratedRange(0.5, 5.0, "routed", 2)},
        ]
    )
    assert merged[first] == CalibratedRange(-1.0, 2.0, "routed", 7)
    assert merged[second] == CalibratedRange(0.5, 5.0, "routed", 2)
