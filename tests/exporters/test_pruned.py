"""Networks whose policy always skips some blocks: what is deployed knows nothing of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

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
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine
from dfs_deploy.verify import verify
from tests.bundles import relative
from tests.nets import Kind, adapted, user_images
from tests.networks.efficientnet import EfficientNetLite
from tests.settled import CONTRACT, normal_images, pixels, settled_network

QUICK: dict[str, Any] = {"min_seconds": 0.0, "min_iterations": 8, "warm_up_seconds": 0.0, "energy_seconds": 0.0}


def cifar(names: str = "8,skip,8") -> DFSNetwork:
    """Three gated blocks; the second changes shape, so its skip has layers of its own."""
    network = settled_network("skip,8,full")
    return network.with_policy(parse_policy(names.split(","), network.options))


def spoilt(network: DFSNetwork) -> DFSNetwork:
    """The same network with other weights, statistics and ranges in the branches that are always skipped."""
    other = network.with_policy(network.policy or ())
    tensors = {**dict(other.net.named_parameters()), **dict(other.net.named_buffers())}
    for block in (other.block(index) for index in other.left_out):
        kept = {node.name for node in block.skipped.nodes} if block.skipped is not None else set()
        for node in (node for node in block.whole.nodes if node.name not in kept):
            with torch.no_grad():
                for name in node.tensors.values():
                    tensors[name].fill_(3.0)
                if node.quantizable:
                    other.ranges.of(node.name)[1].fill_(77.0)
    return other


def files_of(network: DFSNetwork, images: torch.Tensor, runtime: str) -> dict[str, bytes]:
    measured = calibrate(network, [1], lambda: iter([images]), "minmax")
    ranges = {**measured, **calibrate_static(network, lambda: iter([images]), "minmax")}
    writer = EngineWriter(network, Int8Forms(ranges), ("int8", "fp32"))
    writer.write(runtime)
    return writer.files


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("kind", ["cifar", "basic", "mobile"])
def test_what_is_skipped_leaves_nothing_in_the_engines(kind: Kind | Literal["cifar"], runtime: str) -> None:
    """Other weights there give the same files to the byte, static baselines included."""
    network, images = cifar(), normal_images(24)
    if kind != "cifar":
        gated = adapted(kind, "skip,8,full")
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
    assert relative(network.static(images).numpy(), expected) > 0.15
    for precision, tolerance in (("fp32", 1e-4), ("int8", 0.08)):
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


def images_for(network: DFSNetwork, count: int = 48) -> Dataset:
    """Images of the network's size, each of another brightness and contrast, with its own answers as labels."""
    contract = network.contract or CONTRACT
    images = pixels(count, size=contract.shape[1:])
    with torch.no_grad():
        labels = network.route(torch.from_numpy(contract.normalize(images))).logits.argmax(1)
    return Dataset(images, labels.numpy(), contract.class_names or (), "images")


def exported(network: DFSNetwork, folder: Path, name: str = "pruned") -> Bundle:
    network.save(folder / f"{name}.pt", network.contract or CONTRACT)
    return export(folder / f"{name}.pt", folder / f"{name}.dfs", calibration_data=images_for(network)).bundle


def efficientnet() -> DFSNetwork:
    torch.manual_seed(0)
    net = EfficientNetLite().eval()
    network = adapt(net, find_blocks(net, torch.randn(2, 3, 32, 32)), "skip,8,full")
    network.contract = InputContract((3, 32, 32), (0.5,) * 3, (0.25,) * 3)
    return network


@pytest.mark.parametrize("kind", ["cifar", "efficientnet"])
def test_a_pruned_network_is_one_engine_that_verifies_and_is_compared_with(kind: str, tmp_path: Path) -> None:
    gated = settled_network("skip,8,full") if kind == "cifar" else efficientnet()
    skippable = [block.index for block in gated.architecture.blocks[1:] if block.skip is not None]
    network = gated.with_policy([int(index not in skippable[1::2]) for index in range(1, len(gated.blocks) + 1)])
    assert network.left_out
    bundle = exported(network, tmp_path)
    policy = list(network.policy or ())
    engines = bundle.manifest.runtimes["onnxruntime"]
    assert engines.gate is None
    assert [bool(block.options) for block in engines.blocks] == list(map(bool, policy))

    data = images_for(network)
    with Runtime(bundle) as runtime:
        assert len(runtime.engine_calls(np.array(policy, np.uint8))) == 1
        assert runtime.gate_calls() == ()
        assert runtime(data.images[:6]).path.tolist() == [policy] * 6
    verified = verify(bundle, tmp_path / "pruned.pt", data)
    assert verified.passed, verified

    compared = bench(exported(gated, tmp_path, "gated"), data, against=bundle, start_ups=0, **QUICK)
    names = {case.name for case in compared.cases}
    assert {f"static-{kind}@pruned" for kind in ("policy", "int8", "fp32")} <= names
