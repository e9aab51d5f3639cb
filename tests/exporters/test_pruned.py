"""Networks whose policy always skips some blocks: what is deployed knows nothing of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from dfs_deploy.bench import bench
from dfs_deploy.bundle import Bundle
from dfs_deploy.calibration import ALWAYS, STATIC, calibrate, calibrate_static
from dfs_deploy.data import Dataset
from dfs_deploy.exporters import export
from dfs_deploy.exporters.int8_forms import Int8Forms
from dfs_deploy.exporters.writing import EngineWriter
from dfs_deploy.models import DFSNetwork, adapt, find_blocks
from dfs_deploy.options import parse_policy
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.static import PolicyBackend, StaticEngine
from dfs_deploy.verify import verify
from tests.bundles import labelled, relative
from tests.nets import SIZE, adapted, user_images
from tests.networks.efficientnet import EfficientNetLite
from tests.settled import normal_images, settled_network


def cifar(names: str = "8,skip,8") -> DFSNetwork:
    """Three gated blocks; the second changes shape, so its skip has layers of its own."""
    network = settled_network("skip,8,full")
    return network.with_policy(parse_policy(names.split(","), network.options))


def spoilt(network: DFSNetwork) -> DFSNetwork:
    """The same network with other weights, statistics and ranges in the branches that are always skipped."""
    other = network.with_policy(network.policy or ())
    kept = {name for index in other.left_out if (graph := other.block(index).skipped) for name in _tensors(graph)}
    with torch.no_grad():
        for index in other.left_out:
            for node in other.block(index).whole.nodes:
                for name in set(node.tensors.values()) - kept:
                    _tensor(other, name).fill_(3.0)
                if node.quantizable and not _tensors_of(node) & kept:
                    other.ranges.of(node.name)[1].fill_(77.0)
    return other


def _tensors(graph: object) -> set[str]:
    return {name for node in graph.nodes for name in node.tensors.values()}  # type: ignore[attr-defined]


def _tensors_of(node: object) -> set[str]:
    return set(node.tensors.values())  # type: ignore[attr-defined]


def _tensor(network: DFSNetwork, name: str) -> torch.Tensor:
    tensors = {**dict(network.net.named_parameters()), **dict(network.net.named_buffers())}
    return tensors[name]


def files_of(network: DFSNetwork, images: torch.Tensor, runtime: str) -> dict[str, bytes]:
    measured = calibrate(network, [1], lambda: iter([images]), "minmax")
    ranges = {**measured, **calibrate_static(network, lambda: iter([images]), "minmax")}
    writer = EngineWriter(network, Int8Forms(ranges), ("int8", "fp32"))
    writer.write(runtime)
    return writer.files


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("kind", ["cifar", "basic", "mobile"])
def test_what_is_skipped_leaves_nothing_in_the_engines(kind: str, runtime: str) -> None:
    """Other weights there give the same files to the byte, static baselines included."""
    if kind == "cifar":
        network, images = cifar(), normal_images(24)
    else:
        gated = adapted(kind, "skip,8,full")  # type: ignore[arg-type]
        skips = [block.index for block in gated.architecture.blocks[1:] if block.skip is not None]
        policy = [0 if index in skips[-2:] else 1 for index in range(1, len(gated.architecture.blocks))]
        network, images = gated.with_policy(policy), user_images(24)
    assert network.left_out
    before = files_of(network, images, runtime)
    assert files_of(spoilt(network), images, runtime) == before
    running = network.with_policy([1] * len(network.blocks))
    assert files_of(spoilt(running), images, runtime) == files_of(running, images, runtime) != before


@torch.no_grad()
def test_the_static_engines_are_the_network_without_the_skipped_blocks(tmp_path: Path) -> None:
    network = cifar()
    bundle = exported(network, tmp_path)
    images = normal_images(16, seed=4)
    expected = network.static(images, skipped={2}).numpy()
    assert relative(network.static(images).numpy(), expected) > 0.2
    for precision, tolerance in (("fp32", 1e-4), ("int8", 0.15)):
        with StaticEngine(bundle, precision) as engine:  # type: ignore[arg-type]
            assert relative(engine(images.numpy()), expected) < tolerance


def test_ranges_are_those_of_the_policys_path() -> None:
    network = cifar()
    images = normal_images(24)
    measured = calibrate(network, [1], lambda: iter([images]), "minmax")
    assert {key.block for key in measured if key.option == 1} == {1, 3}
    assert {value.source for value in measured.values()} == {"routed"}
    assert {key.block for key in measured if key.option == ALWAYS} <= {0, 2, 4}
    with torch.no_grad():
        features = network.block(2).skip(network.block(1)(network.stem(images), 8))
    name = next(key for key in measured if (key.block, key.option, key.tensor) == (3, 1, "input"))
    assert measured[name].low == pytest.approx(float(features.min()), abs=1e-5)
    assert measured[name].high == pytest.approx(float(features.max()), abs=1e-5)
    static = calibrate_static(network, lambda: iter([images]), "minmax")
    assert {key.block for key in static} >= {0, 1, 3, 4}
    assert {key.option for key in static} == {STATIC}


def exported(network: DFSNetwork, folder: Path, name: str = "pruned", data: Dataset | None = None) -> Bundle:
    from tests.settled import CONTRACT

    network.contract = network.contract or CONTRACT
    return export(network, folder / f"{name}.dfs", calibration_data=data or labelled(network, 96)).bundle


def efficientnet() -> DFSNetwork:
    torch.manual_seed(0)
    net = EfficientNetLite().eval()
    example = torch.randn(2, 3, 32, 32)
    network = adapt(net, find_blocks(net, example), "skip,8,full")
    network.contract = InputContract((3, 32, 32), (0.5,) * 3, (0.25,) * 3)
    return network


@pytest.mark.parametrize("kind", ["cifar", "efficientnet"])
def test_a_pruned_network_is_one_engine_that_verifies_and_is_compared_with(kind: str, tmp_path: Path) -> None:
    if kind == "cifar":
        gated, policy = settled_network("skip,8,full"), [1, 0, 1]
    else:
        gated = efficientnet()
        policy = [0 if block.skip is not None else 1 for block in gated.architecture.blocks[1:]]
    network = gated.with_policy(policy)
    data = images_for(network)
    bundle = exported(network, tmp_path, "pruned", data)
    skipped = [block for block, choice in zip(bundle.manifest.runtimes["onnxruntime"].blocks, policy, strict=True) if not choice]
    assert skipped
    assert not any(block.options for block in skipped)
    assert bundle.manifest.runtimes["onnxruntime"].gate is None

    with Runtime(bundle) as runtime:
        assert isinstance(runtime.backend, PolicyBackend) if hasattr(runtime, "backend") else True
        assert len(runtime.engine_calls(np.array(policy, np.uint8))) == 1
        assert runtime.gate_calls() == ()
        result = runtime(data.images[:6])
    assert result.path.tolist() == [policy] * 6
    report = verify(bundle.path, data, checkpoint=None)
    assert report.passed, report

    dynamic = exported(gated, tmp_path, "dynamic", data)
    compared = bench(dynamic, data, against=[bundle], rounds=3, inputs=8)
    names = [case.name for case in compared.cases]
    assert {"static-policy@pruned", "static-int8@pruned", "static-fp32@pruned"} <= set(names)


def images_for(network: DFSNetwork) -> Dataset:
    if network.contract is None:
        return labelled(network, 96)
    random = np.random.default_rng(0)
    _, height, width = network.architecture.image_shape
    level, contrast = random.uniform(40, 215, (48, 1, 1, 1)), random.uniform(5, 70, (48, 1, 1, 1))
    images = np.clip(random.normal(level, contrast, (48, height, width, 3)), 0, 255).astype(np.uint8)
    with torch.no_grad():
        labels = network.route(torch.from_numpy(network.contract.normalize(images))).logits.argmax(1).numpy()
    return dataclasses.replace(labelled(settled_network(), 48), images=images, labels=labels, class_names=None)
