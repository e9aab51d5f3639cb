"""Networks with a static policy: what is made of them, part by part."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import pytest
from torch import Tensor

from dfs_deploy.calibration import STATIC, CalibratedRange, TensorKey, calibrate, calibrate_static, from_checkpoint
from dfs_deploy.exporters.int8_forms import Int8Forms
from dfs_deploy.exporters.single_file import single_file
from dfs_deploy.exporters.split import split_gate
from dfs_deploy.exporters.writing import EngineWriter
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import parse_policy, parse_targets
from tests.bundles import CONTRACT, normal_images, relative, run_model, settled_network

TARGETS = parse_targets("fp32,fp16,int8")


def static_network(names: str) -> DFSNetwork:
    """Three gated blocks; the second changes shape."""
    network = settled_network()
    return network.with_policy(parse_policy(names.split(","), network.options))


def batches() -> Iterator[Tensor]:
    yield normal_images(48)


def measured(network: DFSNetwork) -> dict[TensorKey, CalibratedRange]:
    return {**calibrate(network, [1], batches, "minmax"), **calibrate_static(network, batches, "minmax")}


def test_only_what_the_policy_runs_in_int8_is_calibrated() -> None:
    ranges = measured(static_network("8,full,8"))
    assert {key.block for key in ranges if key.option == 1} == {1, 3}
    assert {value.source for key, value in ranges.items() if key.option != STATIC} == {"routed"}
    assert {key.block for key in from_checkpoint(static_network("8,full,8"), [1])} == {1, 3}
    assert {key.block for key in from_checkpoint(static_network("full,8,8"), [1])} == {2, 3}


@pytest.mark.parametrize("names", ["8,full,8", "skip,8,skip", "8,skip,16"])
def test_engines_are_those_of_the_policy_alone(names: str) -> None:
    network = static_network(names)
    assert split_gate(network) is None
    writer = EngineWriter(network, Int8Forms(measured(network)), TARGETS)
    engines = writer.write("onnxruntime")
    assert engines.gate is None
    assert not any("gate" in file for file in writer.files)
    for block, name in zip(engines.blocks, names.split(","), strict=True):
        assert list(block.options) == ([] if name == "skip" else [name])
        assert (block.skip is not None) == (name == "skip" and block.index == 2)


@pytest.mark.parametrize("names", ["full,full,full", "skip,8,skip", "8,skip,16"])
def test_the_single_file_is_a_straight_line(names: str) -> None:
    network = static_network(names)
    model = single_file(network, CONTRACT, Int8Forms(measured(network)), TARGETS)
    operators = {node.op_type for node in onnx.load_model_from_string(model).graph.node}
    assert not operators & {"If", "ArgMax", "Sigmoid"}
    assert ("QuantizeLinear" in operators) == ("8" in names.split(","))
    image = normal_images(1, seed=5)
    logits, path = run_model(model, images=image.numpy())
    reference = network.route(image)
    assert path.tolist() == [list(network.policy or ())]
    assert relative(logits, reference.logits.numpy()) < (0.15 if "8" in names.split(",") else 1e-4)


def test_without_data_a_mixed_policy_has_no_static_int8_baseline() -> None:
    """Its ranges do not cover every block; those of a uniform one do."""
    for names, expected in (("8,full,8", {"fp32", "fp16"}), ("8,8,8", {"fp32", "fp16", "int8"})):
        network = static_network(names)
        writer = EngineWriter(network, Int8Forms(from_checkpoint(network, [1])), TARGETS)
        assert set(writer.write("onnxruntime").static) == expected


def test_two_exports_are_the_same_to_the_byte() -> None:
    network = static_network("8,16,8")
    made = []
    for _ in range(2):
        writer = EngineWriter(network, Int8Forms(measured(network)), TARGETS)
        writer.write("onnxruntime")
        made.append(writer.files)
    assert made[0] == made[1]
