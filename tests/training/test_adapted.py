"""Training of networks that users hand over."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dfs_deploy
from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.costs import LatencyTable, OptionCost, save_costs
from dfs_deploy.data import save_npz
from dfs_deploy.errors import CheckpointError, DataError, UsageError
from dfs_deploy.geometry import Geometry
from dfs_deploy.models import DFSNetwork, adapt, find_blocks
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.training import read_metrics, resume, train
from dfs_deploy.training.metrics import EvaluationRecord, RunRecord, StepRecord
from tests.checks import refuses
from tests.nets import SIZE, Kind, user_images, user_net
from tests.training.small import colour_patches

SHORT: dict[str, Any] = {
    "batch": 16,
    "cost": "flops",
    "gate_steps": 3,
    "joint_steps": 6,
    "threads": 1,
    "device": "cpu",
    "seed": 1,
    "save_every": 2,
    "held_out": 24,
}


def network(kind: Kind = "mobile", options: str = "skip,8,full", classes: int = 3, **choices: Any) -> DFSNetwork:
    net = user_net(kind, classes)
    return adapt(net, find_blocks(net, user_images(2)), options, **choices)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour patches of the size that the networks take."""
    path = tmp_path_factory.mktemp("adapted") / "patches.npz"
    small = colour_patches()
    save_npz(path, dataclasses.replace(small, images=np.stack([Geometry(SIZE)(image) for image in small.images])))
    return path


def metrics_of(run: Path) -> list[Any]:
    """All but the times."""
    return [record for record in read_metrics(run) if isinstance(record, StepRecord | EvaluationRecord)]


@pytest.mark.parametrize("gate", ["lstm", "stateless"])
def test_a_network_that_was_handed_over_is_trained_in_place(data: Path, tmp_path: Path, gate: str) -> None:
    model = network(gate=gate)
    before = copy.deepcopy(model.state_dict())
    result = train(model, data, tmp_path / "run", target=40.0, **SHORT)
    assert not model.training
    assert result.job.stages == ("gate", "joint")
    assert result.job.target == 40.0
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "ranges.high" in moved
    assert any(name.startswith("net.") and name.endswith("weight") for name in moved)
    assert any(name.startswith("gate.") for name in moved)
    loaded = load_checkpoint(result.checkpoint)
    images = user_images(8)
    assert torch.equal(loaded.network.route(images).logits, model.route(images).logits)
    assert loaded.input == model.contract
    assert loaded.input.class_names == ("red", "green", "blue")
    header = read_metrics(tmp_path / "run")[0]
    assert isinstance(header, RunRecord)
    assert header.network == model.architecture
    assert header.options == ["skip", "8", "full"]


def test_it_learns_and_comes_near_its_target(data: Path, tmp_path: Path) -> None:
    model = network("basic", "skip,full")
    values = {**SHORT, "joint_steps": 150, "save_every": 1000, "joint_lr": 0.02, "alpha": 1e-2}
    result = train(model, data, tmp_path / "run", target=50.0, **values)
    assert result.evaluation.top1 > 0.8
    assert abs(result.evaluation.percentage - 50.0) < 20.0


def test_the_first_step_is_at_full_computation(data: Path, tmp_path: Path) -> None:
    train(network("mobile", "skip,8,full"), data, tmp_path / "run", target=40.0, **SHORT)
    first = next(record for record in read_metrics(tmp_path / "run") if isinstance(record, StepRecord))
    assert first.percentage == pytest.approx(100.0)


def test_a_stopped_run_goes_on_without_the_users_code_to_the_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    whole = train(network(), data, tmp_path / "whole", target=40.0, **SHORT)

    def stop(text: str, share: float) -> None:
        if text.startswith("joint step 4"):
            raise KeyboardInterrupt

    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        train(network(), data, tmp_path / "cut", target=40.0, progress=stop, **{**SHORT, "evaluate_every": 4})
    shutil.move(tmp_path / "cut", tmp_path / "moved")
    monkeypatch.setattr("dfs_deploy.models.blocks.find_blocks", lambda *given: pytest.fail("nothing is found again"))
    gone_on = resume(tmp_path / "moved")
    ours, theirs = load_checkpoint(gone_on.checkpoint).network, load_checkpoint(whole.checkpoint).network
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    steps = [record for record in metrics_of(gone_on.folder) if isinstance(record, StepRecord)]
    assert steps == [record for record in metrics_of(whole.folder) if isinstance(record, StepRecord)]


def test_what_the_user_froze_stays_as_it_is(data: Path, tmp_path: Path) -> None:
    model = network("basic")
    frozen = [name for name, _ in model.net.named_parameters() if name.startswith(("stem", "layer1"))]
    for name in frozen:
        model.net.get_parameter(name).requires_grad_(False)
    before = {name: value.clone() for name, value in model.net.named_parameters()}

    def stop(text: str, share: float) -> None:
        if text.startswith("joint step 4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, data, tmp_path / "run", progress=stop, **{**SHORT, "evaluate_every": 4})
    assert [name for name, value in model.net.named_parameters() if not value.requires_grad] == frozen
    after = load_checkpoint(resume(tmp_path / "run").checkpoint).network.net
    for name, value in before.items():
        assert torch.equal(after.get_parameter(name), value) == (name in frozen), name


def test_modules_that_were_frozen_stay_so_when_a_run_goes_on(data: Path, tmp_path: Path) -> None:
    def frozen() -> DFSNetwork:
        net = user_net("basic", 3).train()
        for name in ("layer1", "dropout"):
            net.get_submodule(name).eval()
        torch.manual_seed(0)
        return adapt(net, find_blocks(net, user_images(2)), "skip,full")

    def stop(text: str, share: float) -> None:
        if text.startswith("joint step 4"):
            raise KeyboardInterrupt

    model = frozen()
    before = {name: value.clone() for name, value in model.net.named_buffers()}
    modules = model.frozen_modules
    whole = train(model, data, tmp_path / "whole", **SHORT)
    for name, value in model.net.named_buffers():
        if "running" in name:
            assert torch.equal(value, before[name]) == name.startswith("layer1"), name
    assert model.frozen_modules == modules
    with pytest.raises(KeyboardInterrupt):
        train(frozen(), data, tmp_path / "cut", progress=stop, **{**SHORT, "evaluate_every": 4})
    after = load_checkpoint(resume(tmp_path / "cut").checkpoint).network.state_dict()
    for name, value in load_checkpoint(whole.checkpoint).network.state_dict().items():
        assert torch.equal(value, after[name]), name


def test_a_run_whose_network_is_gone_is_named(data: Path, tmp_path: Path) -> None:
    train(network(), data, tmp_path / "run", target=40.0, **SHORT)
    (tmp_path / "run" / "network.pt").unlink()
    with refuses(CheckpointError, "network.pt"):
        resume(tmp_path / "run")


def test_its_own_normalisation_is_kept_and_images_are_resized(data: Path, tmp_path: Path) -> None:
    model = network("basic")
    model.contract = InputContract((3, *SIZE), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    small = tmp_path / "small.npz"
    save_npz(small, colour_patches())
    result = train(model, small, tmp_path / "run", **SHORT)
    assert result.job.size == SIZE
    assert load_checkpoint(result.checkpoint).input.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("given", "size", "resize", "interpolation"),
    [
        ({}, SIZE, 15, "bicubic"),
        ({"resize": 0}, SIZE, None, "bicubic"),
        ({"resize": 20}, SIZE, 20, "bicubic"),
        ({"interpolation": "bilinear"}, SIZE, 15, "bilinear"),
        ({"size": "12x12"}, SIZE, 15, "bicubic"),
        ({"size": "12x12", "resize": 0, "interpolation": "bilinear"}, SIZE, None, "bilinear"),
        ({"size": "24x24"}, (24, 24), 30, "bicubic"),
    ],
)
def test_images_are_resized_as_the_network_says_and_as_asked_for(
    given: dict[str, Any], size: tuple[int, int], resize: int | None, interpolation: str, data: Path, tmp_path: Path
) -> None:
    net = user_net("basic", 3)
    model = adapt(net, find_blocks(net, torch.zeros(2, 3, *size)), "skip,full")
    model.contract = InputContract((3, *SIZE), resize=15, interpolation="bicubic")
    result = train(model, data, tmp_path / "run", **{**SHORT, "gate_steps": 0, "joint_steps": 0, **given})
    found = load_checkpoint(result.checkpoint).input
    assert (result.job.size, result.job.resize, result.job.interpolation) == (size, resize, interpolation)
    assert (found.shape, found.resize, found.interpolation) == ((3, *size), resize, interpolation)


def test_a_policy_is_trained_too(data: Path, tmp_path: Path) -> None:
    model = network("mobile", "skip,8,full").with_policy([1, 2, 1, 0])
    result = train(model, data, tmp_path / "run", **SHORT)
    assert result.job.stages == ("joint",)
    assert result.evaluation.paths == 1
    assert load_checkpoint(result.checkpoint).network.policy == (1, 2, 1, 0)


def test_only_joint_training_is_left_if_the_gate_stage_has_no_steps(data: Path, tmp_path: Path) -> None:
    model = network("basic")
    gate = {name: value.clone() for name, value in model.gate.state_dict().items()}
    train(model, data, tmp_path / "run", **{**SHORT, "gate_steps": 0, "joint_steps": 0})
    assert all(torch.equal(value, gate[name]) for name, value in model.gate.state_dict().items())


def changed(kind: Kind = "basic", change: Callable[[nn.Module], object] = id) -> DFSNetwork:
    """A network whose module was changed before its blocks were found."""
    net = user_net(kind, 3)
    change(net)
    return adapt(net, find_blocks(net, user_images(2)), "skip,full")


def bounded(net: nn.Module) -> None:
    net.get_submodule("stem")[2] = nn.ReLU6()


def other_names(net: nn.Module) -> None:
    net.stem = nn.Sequential(OrderedDict(zip(("conv", "norm", "act", "pool"), net.stem, strict=True)))


def wider(net: nn.Module) -> None:
    first, second = (net.get_submodule(f"layer2.1.conv{number}") for number in (1, 2))
    block = net.get_submodule("layer2.1")
    block.conv1 = nn.Conv2d(first.in_channels, 40, 3, 1, 1, bias=False)
    block.bn1 = nn.BatchNorm2d(40)
    block.conv2 = nn.Conv2d(40, second.out_channels, 3, 1, 1, bias=False)


def dilated(net: nn.Module) -> None:
    net.get_submodule("layer1.0.conv1").dilation = (2, 2)
    net.get_submodule("layer1.0.conv1").padding = (2, 2)


@pytest.mark.parametrize("which", ["start", "backbone"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (bounded, ["relu stem.2", "expected clip stem.2"]),
        (other_names, ["conv stem.0", "expected conv stem.conv"]),
        (wider, ["layer2.1.bn1.bias of shape (16,)", "expected layer2.1.bn1.bias of shape (40,)"]),
        (dilated, ["conv layer1.0.conv1", "other settings"]),
    ],
)
def test_a_run_begins_with_the_weights_of_the_same_layers_only(
    change: Callable[[nn.Module], object], words: list[str], which: str, data: Path, tmp_path: Path
) -> None:
    changed().save(tmp_path / "other.pt", InputContract((3, *SIZE)))
    values = {**SHORT, which: str(tmp_path / "other.pt"), "joint_steps": 0, "gate_steps": 0}
    with refuses(CheckpointError, "another network than this job's", *words):
        train(changed(change=change), data, tmp_path / "run", **values)
    assert not (tmp_path / "run").exists()
    assert train(changed(), data, tmp_path / "same", **values).checkpoint.exists()


def test_what_does_not_fit_is_refused(data: Path, tmp_path: Path) -> None:
    with refuses(DataError, "3 classes", "5"):
        train(network(classes=5), data, tmp_path / "run", **SHORT)
    with refuses(UsageError, "adapt()"):
        train(user_net("basic"), data, tmp_path / "run")
    with refuses(UsageError, "skip,full", "skip,8,full"):
        train(network(), data, tmp_path / "run", options="skip,full")
    with refuses(UsageError, "policy", "one of its own"):
        train(network().with_policy([1, 1, 1, 1]), data, tmp_path / "run", policy="8")
    with refuses(UsageError, "data is given twice"):
        train(network(), data, tmp_path / "run", data=data)
    with refuses(UsageError, "4 values"):
        train(network(), data, tmp_path / "run", "more")
    with pytest.raises(TypeError, match="data"):
        train(network=network())
    with refuses(UsageError, "weights", "network"):
        train(data, tmp_path / "run", weights="net.pt")
    assert not (tmp_path / "run").exists()


def test_a_policy_trains_a_copy_of_a_network_with_a_gate(data: Path, tmp_path: Path) -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = load_checkpoint(train(model, data, tmp_path / "run", policy="8", **SHORT).checkpoint).network
    assert trained.gate is None
    assert [trained.options[choice].name for choice in trained.policy or ()] == ["8"] * len(trained.blocks)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_target_out_of_reach_is_refused_with_the_reach(data: Path, tmp_path: Path) -> None:
    """A block of it cannot be skipped, so it costs something at least."""
    model = network("mobile", "skip,8,full")
    low = 100.0 * model.architecture.computation_range(model.options)[0]
    assert low > 0.5
    with refuses(UsageError, f"{low:.4g} to 100"):
        train(model, data, tmp_path / "run", **{**SHORT, "target": 0.0})
    assert not (tmp_path / "run").exists()


def times_of(model: DFSNetwork, times: dict[int, dict[str, float]]) -> LatencyTable:
    """A table of times in microseconds, by block and option."""
    return LatencyTable(
        bundle="0" * 64,
        machine="a machine",
        runtime="onnxruntime",
        threads=1,
        image_shape=model.architecture.image_shape,
        block_shapes=tuple(block.out_shape for block in model.architecture.blocks),
        gate_us=10.0,
        entries=[
            OptionCost(block=block, option=option, engine_us=time, precision="int8" if option == "8" else None)
            for block, row in times.items()
            for option, time in row.items()
        ],
    )


@pytest.mark.parametrize("preset", ["cpu-int8", "jetson"])
def test_the_usual_target_is_within_what_blocks_without_a_shortcut_reach(
    data: Path, tmp_path: Path, preset: str
) -> None:
    """One block of three cannot be skipped; by the costs of options that it may not run, less would be in reach."""
    model = network("mobile", "skip,8,full")
    rows = {index: {"skip": 0.0, "8": 27.0, "full": 30.0} for index in (1, 2, 4)}
    rows[3] = {"8": 270.0, "full": 300.0}
    save_costs(tmp_path / "latency.json", times_of(model, rows))
    values = {**SHORT, "preset": preset, "cost": tmp_path / "latency.json", "joint_steps": 1, "gate_steps": 1}
    result = train(model, data, tmp_path / "run", **values)
    assert result.job.target == pytest.approx(100.0 * result.job.recipe.reach(model.architecture)[0])
    assert result.job.target > 60.0


def test_the_usual_target_of_blocks_that_may_not_run_the_dearest_option(data: Path, tmp_path: Path) -> None:
    net = user_net("basic", 3)
    plan = find_blocks(net, user_images(2))
    plan["*"].options = "skip,8"
    values = {**SHORT, "preset": "jetson", "joint_steps": 1, "gate_steps": 1}
    model = adapt(net, plan, "skip,8,full")
    result = train(model, data, tmp_path / "run", **values)
    assert result.job.target == pytest.approx(60.0 * result.job.recipe.reach(model.architecture)[1])
    assert result.job.target < 6.25


def test_measured_costs_are_over_the_blocks_that_are_decided(data: Path, tmp_path: Path) -> None:
    """A block of it always runs, so the table says nothing about it; what may not be chosen costs nothing."""
    model = network("mobile", "skip,full")
    times = {"skip": 0.0, "full": 30.0}
    table = times_of(model, dict.fromkeys((1, 2, 4), times))
    save_costs(tmp_path / "latency.json", table)
    values = {**SHORT, "cost": tmp_path / "latency.json"}
    result = train(model, data, tmp_path / "run", target=60.0, **{**values, "joint_steps": 1, "joint_gate_lr": 0.0})
    assert result.evaluation.percentage == pytest.approx(100.0)
    with refuses(UsageError, "expected 25 to 100"):
        train(network("mobile", "skip,full"), data, tmp_path / "other", target=20.0, **values)


def test_it_is_public(data: Path) -> None:
    assert dfs_deploy.train is train


def test_a_pruned_copy_runs_8_bits_whatever_the_gate_may_choose(data: Path, tmp_path: Path) -> None:
    model = network("mobile", "skip,8,full")
    result = train(model, data, tmp_path / "run", policy="pruned:1", **SHORT)
    trained = load_checkpoint(result.checkpoint).network
    assert trained.options.names == ("skip", "8")
    assert len(trained.left_out) == 1
    assert model.gate is not None
    same = train(model, data, tmp_path / "other", policy="pruned:1", options="skip,8,full", **SHORT)
    again = load_checkpoint(same.checkpoint).network
    assert [again.options[choice].name for choice in again.policy or ()].count("full") == len(again.blocks) - 1


def test_a_pruned_copy_of_a_network_aims_for_the_presets_target_and_heeds_a_teacher(data: Path, tmp_path: Path) -> None:
    model = network("basic", "skip,8")
    result = train(model, data, tmp_path / "run", policy="pruned", teacher="full", **SHORT)
    assert 0 < len(load_checkpoint(result.checkpoint).network.left_out) < len(model.blocks)
    assert result.evaluation.percentage <= result.job.recipe.target + 1e-6
    assert result.job.recipe.distill > 0.0
    assert not any("target" in note or "distill" in note for note in result.notes), result.notes


def test_a_gate_that_no_first_step_trains_is_scaled_before_the_second_and_keeps_its_preference(
    data: Path, tmp_path: Path
) -> None:
    model, untouched = network("mobile", "skip,full"), network("mobile", "skip,full")
    still = {**SHORT, "gate_steps": 0, "joint_steps": 1, "joint_lr": 0.0, "joint_gate_lr": 0.0}
    still |= {"target": 100.0, "statistics_batches": 0, "settle_share": 0.0, "distill": 0.0, "standardize_gate": True}
    result = train(model, data, tmp_path / "run", **still)
    assert not any("standardize_gate" in note for note in result.notes)
    assert result.evaluation.percentage == pytest.approx(100.0)
    assert model.gate is not None
    assert untouched.gate is not None
    before, after = untouched.gate.state_dict(), model.gate.state_dict()
    scaled = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert scaled
    assert all(name.startswith("embeddings") for name in scaled)


def test_a_gate_that_was_trained_before_is_not_scaled_anew(data: Path, tmp_path: Path) -> None:
    model = network("mobile", "skip,full")
    train(model, data, tmp_path / "first", **SHORT)
    assert model.gate is not None
    before = copy.deepcopy(model.gate.state_dict())
    still = {**SHORT, "gate_steps": 0, "joint_steps": 1, "joint_lr": 0.0, "joint_gate_lr": 0.0}
    still |= {"target": 60.0, "statistics_batches": 0, "settle_share": 0.0, "distill": 0.0, "standardize_gate": True}
    train(model, data, tmp_path / "second", **still)
    assert all(torch.equal(value, before[name]) for name, value in model.gate.state_dict().items())
