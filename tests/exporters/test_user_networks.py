"""Networks of users: every family is exported, and computes along many paths what the reference does."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfs_deploy import Runtime, verify
from dfs_deploy.bundle.manifest import BlockEngines, Engine
from dfs_deploy.calibration import ALWAYS, STATIC, CalibratedRange, TensorKey
from dfs_deploy.checkpoints import CheckpointFacts
from dfs_deploy.data import Dataset
from dfs_deploy.errors import ExportMismatchError, UsageError
from dfs_deploy.exporters import Exported, export, validation
from dfs_deploy.exporters.reference import images_at_once
from dfs_deploy.exporters.single_file import LOGIT_TOLERANCE
from dfs_deploy.exporters.validation import LEAST_PATHS, LOGIT_TOLERANCES, different_paths
from dfs_deploy.exporters.writing import feature_grids
from dfs_deploy.models import DFSNetwork, adapt, find_blocks
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes.onnxruntime.sessions import open_session, session_options
from tests.bundles import pixels
from tests.checks import refuses
from tests.nets import KINDS, SIZE, Kind, adapted, spread_gate, user_images, user_net
from tests.networks import FAMILIES

CONTRACT = InputContract((3, *SIZE), (0.5,) * 3, (0.25,) * 3, tuple("abcde"))


def data_for(network: DFSNetwork, count: int = 48, seed: int = 1) -> Dataset:
    """Images of its size with its own answers as labels."""
    _, *size = network.architecture.image_shape
    images = pixels(count, seed, (size[0], size[1]))
    contract = network.contract or CONTRACT
    answers = network.route(torch.from_numpy(contract.normalize(images))).logits.argmax(1)
    return Dataset(images, answers.numpy().astype(np.int64), contract.class_names, "random")


def family(name: str, options: str, gate: Any) -> DFSNetwork:
    """A small network of a family whose gate sends images along different paths."""
    net = FAMILIES[name].build()
    network = adapt(net, find_blocks(net, FAMILIES[name].images()), options, gate)
    images = FAMILIES[name].images(24)
    with torch.no_grad():
        features = network.stem(images)
        for block in network.blocks:
            if network.decided(block.shape.index):
                assert network.gate is not None
                network.gate.standardize(block.shape.index - 1, features)
            features = block(features)
    generator = torch.Generator().manual_seed(0)
    assert network.gate is not None
    for key, weight in network.gate.named_parameters():
        if "projection" in key or "score" in key:
            weight.data.copy_((0.3 if key.endswith("bias") else 2.0) * torch.randn(weight.shape, generator=generator))
    network.contract = InputContract(network.architecture.image_shape, (0.5,) * 3, (0.25,) * 3)
    return network.eval()


def forced(network: DFSNetwork, images: Tensor, path: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The reference's logits for images along given paths."""
    with torch.no_grad(), network.forced(torch.from_numpy(path.astype(np.int64))):
        return network.route(images).logits.numpy()


def relative(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_exported_and_takes_ten_paths(name: str, tmp_path: Path) -> None:
    network = family(name, "skip,8,full", "lstm")
    exported = export(network, tmp_path / "net.dfs", targets="fp32,int8", calibration_data=data_for(network))
    assert exported.validation.paths >= LEAST_PATHS
    assert {engine.precision for engine in exported.validation.engines} == {"fp32", "int8"}

    images = network.contract.normalize(pixels(12, 5, network.architecture.image_shape[1:]))  # type: ignore[union-attr]
    rows, path = different_paths(network, network.route(torch.from_numpy(images)).path.numpy().astype(np.uint8))
    assert len(np.unique(path, axis=0)) >= LEAST_PATHS
    floats = path.copy()
    floats[path == network.options.names.index("8")] = network.options.names.index("full")
    with Runtime(exported.bundle) as runtime:
        got = runtime(images[rows], path=path)
        assert np.array_equal(got.path, path)
        expected = forced(network, torch.from_numpy(images[rows]), path)
        assert relative(got.logits, expected) < LOGIT_TOLERANCES["int8"]
        assert relative(got.logits, expected) > 0.0
        # Stem and head are in 8 bits whatever the path is.
        got = runtime(images[rows], path=floats)
        assert relative(got.logits, forced(network, torch.from_numpy(images[rows]), floats)) < LOGIT_TOLERANCES["int8"]


@pytest.mark.parametrize("kind", KINDS)
def test_in_full_precision_every_path_is_the_references(kind: Kind, tmp_path: Path) -> None:
    network = adapted(kind, "skip,16,full", always=32)
    network.contract = CONTRACT
    exported = export(network, tmp_path / "net.dfs", targets="fp32", calibration_data=data_for(network))
    assert exported.comparison is not None
    assert exported.comparison.route_agreement == 1.0
    images = CONTRACT.normalize(pixels(16, 3, SIZE))
    expected = network.route(torch.from_numpy(images))
    with Runtime(exported.bundle) as runtime:
        got = runtime(images)
        assert np.array_equal(got.path, expected.path.numpy())
        rows, path = different_paths(network, got.path)
        got = runtime(images[rows], path=path)
    # Inputs of 16 bits are rounded by the reference, and not here.
    assert relative(got.logits, forced(network, torch.from_numpy(images[rows]), path)) < 1e-3


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[DFSNetwork, Exported]:
    """Every kind of block, each with the gate that the others of its pair do not have, for both runtimes."""
    kind: Kind = request.param
    network = adapted(kind, "skip,8,16,full", gate="stateless" if kind in ("basic", "mobile") else "lstm")
    network.contract = CONTRACT
    folder = tmp_path_factory.mktemp(kind)
    exported = export(
        network,
        folder / "net.dfs",
        runtimes="onnxruntime,tensorrt",
        calibration_data=data_for(network),
        single_file=folder / "net.onnx",
        budgets="0.1",
    )
    return network, exported


def engines_of(block: BlockEngines) -> list[Engine]:
    engines = [engine for made in block.options.values() for engine in made]
    return engines if block.skip is None else [*engines, block.skip]


def test_each_engine_takes_the_layout_that_it_computes_in(made: tuple[DFSNetwork, Exported]) -> None:
    network, exported = made
    engines = exported.bundle.manifest.runtimes["onnxruntime"]
    assert (engines.stem.precision, engines.stem.output, list(engines.stem.files)) == ("int8", "uint8", ["float32"])
    assert (engines.head.precision, engines.head.output, list(engines.head.files)) == ("int8", "float32", ["uint8"])
    for block in engines.blocks:
        skips = network.graphs.blocks[block.index - 1].skip
        computes = skips is not None and not skips.identity
        assert (block.skip is not None) == computes
        for engine in engines_of(block):
            layout = "uint8" if engine.precision == "int8" else "float32"
            assert (engine.output, list(engine.files)) == (layout, [layout])
    theirs = exported.bundle.manifest.runtimes["tensorrt"]
    assert {theirs.stem.output, theirs.head.output} == {"float32"}
    assert all(list(engine.files) == ["float32"] for block in theirs.blocks for engine in engines_of(block))


def test_signed_features_have_a_zero_point_and_others_none(made: tuple[DFSNetwork, Exported]) -> None:
    network, exported = made
    engines = exported.bundle.manifest.runtimes["onnxruntime"]
    images = torch.from_numpy(CONTRACT.normalize(pixels(32, 1, SIZE)))
    features = network.stem(images)
    for block, zero in zip((None, *network.blocks), engines.feature_zero_points, strict=True):
        features = features if block is None else block(features, 8)
        assert zero > 0 or not bool(features.amin() < 0)
    if network.graphs.blocks[0].after.nodes:
        assert set(engines.feature_zero_points) == {0}, "a relu follows every addition"


def test_a_single_file_takes_the_runtimes_paths(made: tuple[DFSNetwork, Exported]) -> None:
    _, exported = made
    assert exported.single_file is not None
    session = open_session(exported.single_file.read_bytes(), "single file", session_options(threads=1))
    images, paths = CONTRACT.normalize(pixels(40, 8, SIZE)), []
    with Runtime(exported.bundle) as runtime:
        for i in range(len(images)):
            logits, path = session.run(["logits", "path"], {"images": images[i : i + 1]})
            expected = runtime(images[i : i + 1])
            np.testing.assert_array_equal(path, expected.path)
            tolerance = LOGIT_TOLERANCE * np.abs(expected.logits).max()
            np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=tolerance)
            paths.append(path[0])
    assert len(np.unique(paths, axis=0)) > 2


def test_no_block_runs_what_it_may_not(made: tuple[DFSNetwork, Exported]) -> None:
    network, exported = made
    with Runtime(exported.bundle) as runtime:
        path = runtime(CONTRACT.normalize(pixels(64, 8, SIZE))).path
        allowed = network.architecture.allowed(network.options)
        assert allowed[np.arange(path.shape[1]), path].all()
        if not allowed.all():
            skipping = np.zeros((1, path.shape[1]), np.uint8)
            with pytest.raises(Exception, match="which may run"):
                runtime(CONTRACT.normalize(pixels(1, 8, SIZE)), path=skipping)


def test_budgets_are_held_by_multiply_adds(made: tuple[DFSNetwork, Exported]) -> None:
    network, exported = made
    (point,) = [point for point in exported.bundle.manifest.budgets if point.budget == 0.1]
    data = data_for(network)
    with Runtime(exported.bundle, budget=0.1) as runtime:
        result = runtime(data.images)
    weights = np.array(network.architecture.weights(network.options))
    costs = np.array(network.options.costs)[result.path]
    percentage = 100 * float((costs * weights).sum(1).mean() / weights.sum())
    assert percentage == pytest.approx(point.computation_percentage, abs=1e-3)
    assert percentage == pytest.approx(10.0, abs=1.0)


def test_a_block_with_one_choice_always_runs_it(tmp_path: Path) -> None:
    net = user_net("basic")
    plan = find_blocks(net, user_images(2))
    plan["layer1.*"].options = "full"
    network = adapt(net, plan, "skip,8,full")
    spread_gate(network)
    network.contract = CONTRACT
    full = network.options.names.index("full")
    decided = [network.decided(block.shape.index) for block in network.blocks]
    assert set(decided) == {True, False} or decided == [True] * len(decided)
    exported = export(
        network.eval(),
        tmp_path / "net.dfs",
        targets="fp32,int8",
        calibration_data=data_for(network),
        single_file=tmp_path / "net.onnx",
    )
    with Runtime(exported.bundle) as runtime:
        path = runtime(CONTRACT.normalize(pixels(40, 2, SIZE))).path
    for index, steps in enumerate(decided):
        assert steps or (path[:, index] == full).all()


def test_a_saved_network_gives_the_same_engines_and_verifies(tmp_path: Path) -> None:
    network = adapted("mobile", "skip,8,full")
    network.contract = CONTRACT
    network.save(tmp_path / "net.pt")
    data = data_for(network)
    ways: list[Any] = [network, tmp_path / "net.pt"]
    bundles = [export(way, tmp_path / f"{i}.dfs", calibration_data=data).bundle for i, way in enumerate(ways)]
    manifests = [bundle.manifest for bundle in bundles]
    assert manifests[0].files == manifests[1].files
    assert msgspec.structs.replace(manifests[0], source=manifests[1].source) == manifests[1]
    assert manifests[0].source.format == "memory"
    found = verify(bundles[0], tmp_path / "net.pt", data, per_block=True)
    assert found.route_agreement > 0.95
    assert found.per_block is not None
    assert all(record.passed for record in found.per_block)


@pytest.mark.parametrize(
    ("options", "always", "targets", "stem"),
    [
        ("skip,8,full", 8, "fp32", "fp32"),
        ("skip,8,full", 32, "fp32,int8", "fp32"),
        ("skip,full", 8, "fp32,int8", "int8"),
        ("skip,4,16,full", 4, "fp32,fp16,int8", "int8"),
        ("skip,16,full", 16, "fp32,fp16", "fp32"),
    ],
)
def test_what_always_runs_has_its_own_bits(tmp_path: Path, options: str, always: int, targets: str, stem: str) -> None:
    network = adapted("basic", options, always=always)
    network.contract = CONTRACT
    single = tmp_path / "net.onnx"
    exported = export(
        network, tmp_path / "net.dfs", targets=targets, calibration_data=data_for(network), single_file=single
    )
    engines = exported.bundle.manifest.runtimes["onnxruntime"]
    assert {engines.stem.precision, engines.head.precision} == {stem}
    assert {block.skip.precision for block in engines.blocks if block.skip is not None} == {stem}
    assert exported.validation.paths >= LEAST_PATHS


# A network in memory


def test_an_export_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    network = adapted("basic", "skip,full")
    network.contract = CONTRACT
    before = copy.deepcopy(network.state_dict())
    network.train()
    export(network, tmp_path / "net.dfs", targets="fp32")
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_what_the_network_does_not_say_is_assumed_and_said(tmp_path: Path) -> None:
    network = adapted("basic", "skip,full")
    data = dataclasses.replace(data_for(network), class_names=tuple("vwxyz"))
    exported = export(network, tmp_path / "net.dfs", targets="fp32", calibration_data=data)
    assert exported.bundle.input.mean == pytest.approx((0.485, 0.456, 0.406))
    assert exported.bundle.input.class_names == tuple("vwxyz")
    (assumption,) = exported.assumptions
    assert "ImageNet" in assumption
    given = export(network, tmp_path / "given.dfs", targets="fp32", contract=CONTRACT)
    assert (given.bundle.input, given.assumptions) == (CONTRACT, ())


def test_another_network_in_its_place_is_said(tmp_path: Path) -> None:
    first, second = (adapted("basic", "skip,full", seed=seed) for seed in (0, 1))
    assert export(first, tmp_path / "net.dfs", targets="fp32", contract=CONTRACT).replaced is None
    assert export(first, tmp_path / "net.dfs", targets="fp32", contract=CONTRACT).replaced is None
    assert export(second, tmp_path / "net.dfs", targets="fp32", contract=CONTRACT).replaced == "Classifier"


def test_choices_that_cannot_be(tmp_path: Path) -> None:
    network = adapted("basic", "skip,full")
    network.contract = CONTRACT
    with refuses(UsageError, "out"):
        export(network)
    with refuses(UsageError, "facts", "contract"):
        export(network, tmp_path / "net.dfs", facts=CheckpointFacts())
    with refuses(UsageError, "skip,8", "skip,full"):
        export(network, tmp_path / "net.dfs", options="skip,8")
    with refuses(UsageError, "(3, 32, 32)", "(3, 12, 12)"):
        export(network, tmp_path / "net.dfs", contract=InputContract((3, 32, 32)))
    network.save(tmp_path / "net.pt")
    with refuses(UsageError, "contract"):
        export(tmp_path / "net.pt", tmp_path / "net.dfs", contract=CONTRACT)
    assert not (tmp_path / "net.dfs").exists()


class Grey(nn.Module):
    """A network for images of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1)
        self.net = user_net("basic").layer1
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.net(self.stem(x)).mean((2, 3)))


def test_images_without_colours_need_a_contract(tmp_path: Path) -> None:
    net = Grey().eval()
    network = adapt(net, find_blocks(net, torch.randn(2, 1, *SIZE)), "skip,full")
    with refuses(UsageError, "1 channel", "contract"):
        export(network, tmp_path / "net.dfs", targets="fp32")
    contract = InputContract((1, *SIZE), (0.5,), (0.25,))
    exported = export(network, tmp_path / "net.dfs", targets="fp32", contract=contract)
    with Runtime(exported.bundle) as runtime:
        assert runtime(np.zeros((2, 1, *SIZE), np.float32)).logits.shape == (2, 5)


def test_int8_without_data_is_refused_with_the_remedy(tmp_path: Path) -> None:
    network = adapted("basic", "skip,8,full")
    with pytest.raises(Exception, match="--calibration-data"):
        export(network, tmp_path / "net.dfs", contract=CONTRACT)
    assert not (tmp_path / "net.dfs").exists()


# Its pieces


def test_paths_differ_and_hold_only_what_blocks_may_run() -> None:
    network = adapted("mobile", "skip,8,full")
    taken = np.full((5, 4), network.options.names.index("full"), np.uint8)
    rows, path = different_paths(network, taken)
    assert len(path) == len(np.unique(path, axis=0)) == LEAST_PATHS
    assert path[0].tolist() == taken[0].tolist()
    assert (rows == 0).all()
    assert network.architecture.allowed(network.options)[np.arange(4), path].all()
    assert ((path != taken[0]).sum(1) <= 2).all(), "near to what was measured"
    static = network.with_policy([1, 1, 1, 1])
    assert different_paths(static, np.ones((3, 4), np.uint8))[1].tolist() == [[1, 1, 1, 1]]


def test_a_grid_holds_all_that_its_group_gives_and_what_is_converted_to_it() -> None:
    network = adapted("mobile", "skip,8,full")
    groups = [block.group for block in network.architecture.blocks]
    ranges = {
        TensorKey(0, ALWAYS, "output"): CalibratedRange(-1.0, 2.0, "routed", 1),
        TensorKey(1, 1, "input"): CalibratedRange(-3.0, 1.0, "routed", 1),
        TensorKey(1, STATIC, "output"): CalibratedRange(-99.0, 99.0, "routed", 1),
        TensorKey(len(groups), ALWAYS, "output"): CalibratedRange(-99.0, 99.0, "routed", 1),
    }
    grids = feature_grids(network, ranges)
    for grid, group in zip(grids, groups, strict=True):
        if group == groups[0]:
            assert grid.scale == pytest.approx(5.0 / 255.0)
            assert grid.zero_point == 153
        else:
            assert (grid.scale, grid.zero_point) == (pytest.approx(1.0 / 255.0), 0)


def test_large_images_are_computed_a_few_at_once() -> None:
    assert images_at_once((3, 32, 32), 128) == 128
    assert images_at_once((3, 224, 224), 128) == 20
    assert images_at_once((3, 1024, 1024), 128) == 8
    assert images_at_once((3, 1024, 1024), 4) == 4


def test_a_gate_that_magnifies_rounding_is_judged_by_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that was scaled to images that hardly differ: its scores hang on the last digits of what it sees."""
    network = adapted("basic", "skip,16,full", always=32)
    network.contract = CONTRACT
    images = pixels(1, 4, SIZE) + np.random.default_rng(0).integers(0, 2, (32, *SIZE, 3), dtype=np.uint8)
    data = Dataset(images, np.zeros(32, np.int64), CONTRACT.class_names, "alike")
    assert network.gate is not None
    with torch.no_grad():
        network.net.get_parameter("stem.1.bias").add_(1000.0)  # far from zero, and nearly the same everywhere
        network.gate.standardize(0, network.stem(torch.from_numpy(CONTRACT.normalize(images))))
    export(network, tmp_path / "net.dfs", targets="fp32", calibration_data=data)
    monkeypatch.setattr(validation, "_GATE_SHARE", 0.0)
    with pytest.raises(ExportMismatchError, match="gate after block"):
        export(network, tmp_path / "net.dfs", targets="fp32", calibration_data=data)
