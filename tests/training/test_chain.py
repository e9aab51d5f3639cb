"""Chains of targets: training with accuracy as the goal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.data import save_npz
from dfs_deploy.errors import CheckFailedError, CheckpointError, UsageError
from dfs_deploy.models import adapt, find_blocks
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from dfs_deploy.paired import Interval
from dfs_deploy.training import Job, Recipe, TrainingResult, preset, read_metrics, resume, run_job, train
from dfs_deploy.training.chain import chain_targets, current_run
from dfs_deploy.training.metrics import EvaluationRecord, StepRecord
from dfs_deploy.training.processes import Processes
from dfs_deploy.training.targets import load_targets
from tests.checks import refuses
from tests.nets import SIZE, user_images, user_net
from tests.training.small import colour_patches

SHORT: dict[str, Any] = {
    "preset": "quick",
    "blocks_per_group": 1,
    "batch": 16,
    "backbone_steps": 4,
    "gate_steps": 2,
    "joint_steps": 4,
    "save_every": 2,
    "threads": 1,
    "device": "cpu",
    "options": "skip,full",
    "target": 65.0,
    "max_top1_drop": 1.0,
}
TRIED = [90.0, 80.0, 70.0, 65.0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chain") / "patches.npz"
    save_npz(path, colour_patches())
    return path


@pytest.fixture(scope="module")
def whole(data: Path) -> TrainingResult:
    """All targets hold: everything may be lost."""
    return train(data, data.parent / "whole", **SHORT)


def losing(monkeypatch: pytest.MonkeyPatch, *drops: float, half: float = 1e-4) -> None:
    """Lets the targets lose so much, one after the other, whatever they learned."""
    left = list(drops)

    def difference(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> Interval:
        drop = left.pop(0)
        return Interval(drop, drop - half, drop + half)

    monkeypatch.setattr("dfs_deploy.training.chain.share_difference", difference)


def steps_of(run: Path) -> list[StepRecord]:
    return [record for record in read_metrics(run) if isinstance(record, StepRecord)]


def aiming(options: str, target: float) -> Recipe:
    return Recipe(options=Options.parse(options), target=target)


def test_targets_are_tenths_of_the_dearest_path_down_to_the_one_asked_for() -> None:
    network = cifar_resnet((1, 1, 1))
    assert chain_targets(aiming("skip,full", 65.0), network) == pytest.approx(TRIED)
    assert chain_targets(aiming("skip,full", 95.0), network) == (95.0,)
    eights = chain_targets(aiming("skip,8", 1.0), network)
    assert eights == pytest.approx([0.625 * step for step in range(9, 1, -1)] + [1.0])


def test_each_target_is_a_run_that_begins_with_the_one_before(whole: TrainingResult) -> None:
    targets = whole.targets
    assert targets is not None
    assert [each.target for each in targets.tried] == pytest.approx(TRIED)
    assert [each.run for each in targets.tried] == ["target-90", "target-80", "target-70", "target-65"]
    assert all(each.held and each.drop_low <= each.drop <= each.drop_high for each in targets.tried)
    for before, each in zip(targets.tried, targets.tried[1:], strict=False):
        job = json.loads((whole.folder / each.run / "job.json").read_text())["job"]
        assert job["start"] == str(whole.folder / before.run / "checkpoint.pt")
        assert job["recipe"]["target"] == pytest.approx(each.target)
        assert {step.stage for step in steps_of(whole.folder / each.run)} == {"joint"}
    assert {step.stage for step in steps_of(whole.folder / "target-90")} == {"backbone", "gate", "joint"}


def test_the_lowest_target_that_held_is_the_result(whole: TrainingResult) -> None:
    assert whole.targets is not None
    assert whole.checkpoint == whole.folder / "checkpoint.pt"
    last = whole.folder / "target-65"
    assert whole.checkpoint.read_bytes() == (last / "checkpoint.pt").read_bytes()
    assert whole.job.target == 65.0
    assert whole.evaluation.percentage == whole.targets.tried[-1].percentage
    evaluations = [record for record in read_metrics(last) if isinstance(record, EvaluationRecord)]
    assert whole.evaluation.top1 == evaluations[-1].top1 == whole.targets.tried[-1].top1
    again = resume(whole.folder)
    assert again.finished_before
    assert (again.job, again.evaluation, again.targets) == (whole.job, whole.evaluation, whole.targets)


def test_it_ends_with_the_first_target_that_loses_more(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(monkeypatch, -0.02, 0.009, 0.03)
    result = train(data, tmp_path / "run", **{**SHORT, "max_top1_drop": 0.01})
    assert result.targets is not None
    assert [each.held for each in result.targets.tried] == [True, True, False]
    assert result.targets.best is result.targets.tried[1]
    assert result.job.target == pytest.approx(80.0)
    assert not any("cannot tell" in note for note in result.notes)
    assert result.checkpoint.read_bytes() == (tmp_path / "run" / "target-80" / "checkpoint.pt").read_bytes()
    assert not (tmp_path / "run" / "target-65").exists()
    monkeypatch.undo()
    again = resume(tmp_path / "run")
    assert again.finished_before
    assert again.targets == result.targets


def test_a_target_holds_by_one_standard_error_and_doubts_are_noted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(monkeypatch, 0.005, 0.009, half=1.96 * 0.004)
    result = train(data, tmp_path / "run", **{**SHORT, "max_top1_drop": 0.01})
    assert result.targets is not None
    assert [each.held for each in result.targets.tried] == [True, False]
    (note,) = [note for note in result.notes if "cannot tell" in note]
    assert "9 held-out images" in note
    assert "at most 1 points" in note
    assert "hold out more" in note


def test_a_job_of_ones_own_is_not_judged_by_the_test_split_either(tmp_path: Path) -> None:
    job = Job(data="digits", recipe=preset("quick"), max_top1_drop=0.01, device="cpu")
    with refuses(UsageError, "test split must not"):
        run_job(job, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class _Late(Processes):
    """The second of two processes, which comes to everything after the first."""

    def gather(self, value: Any) -> list[Any]:
        return [(None, None), value]


@pytest.mark.parametrize("drop", [None, 0.01])
def test_a_process_that_is_late_takes_what_the_first_wrote_for_no_other_run(
    whole: TrainingResult, monkeypatch: pytest.MonkeyPatch, drop: float | None
) -> None:
    class DataWereReadError(Exception):
        pass

    @contextlib.contextmanager
    def joined(device: object) -> Iterator[Processes]:
        yield _Late(1, 2)

    def stop(job: Job) -> None:
        raise DataWereReadError

    for module in ("chain", "running"):
        monkeypatch.setattr(f"dfs_deploy.training.{module}.joined", joined)
        monkeypatch.setattr(f"dfs_deploy.training.{module}.splits_for", stop)
    with pytest.raises(DataWereReadError):
        run_job(dataclasses.replace(whole.job, max_top1_drop=drop), whole.folder)


def test_a_drop_that_no_target_keeps_is_a_failed_check(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(monkeypatch, 0.2)
    with refuses(CheckFailedError, "target 90 %", "20.00 points lost", "at most 1 points", "target-90"):
        train(data, tmp_path / "run", **{**SHORT, "max_top1_drop": 0.01})
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    with refuses(CheckFailedError, "20.00 points lost"):
        resume(tmp_path / "run")


@pytest.mark.parametrize("when", ["in its middle", "between two"])
def test_a_stopped_chain_goes_on_to_the_bit(data: Path, whole: TrainingResult, tmp_path: Path, when: str) -> None:
    seen: list[str] = []

    def stop(text: str, share: float) -> None:
        seen.append(text)
        joint = [each for each in seen if each.startswith("joint step 4")]
        if when == "between two" and len(joint) == 2 and share == 1.0:
            raise KeyboardInterrupt
        if len(joint) == 1 and text.startswith("joint step 1") and when != "between two":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "cut", progress=stop, **SHORT)
    assert current_run(tmp_path / "cut").name == "target-80"
    shutil.move(tmp_path / "cut", tmp_path / "moved")
    gone_on = resume(tmp_path / "moved")
    assert not gone_on.finished_before
    assert gone_on.targets == whole.targets
    ours, theirs = load_checkpoint(gone_on.checkpoint).network, load_checkpoint(whole.checkpoint).network
    assert all(bool((value == theirs.state_dict()[name]).all()) for name, value in ours.state_dict().items())


def test_a_network_that_was_handed_over_ends_with_the_last_weights_that_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = colour_patches()
    save_npz(tmp_path / "large.npz", dataclasses.replace(small, images=np.repeat(np.repeat(small.images, 2, 1), 2, 2)))
    net = user_net("basic", 3)
    model = adapt(net, find_blocks(net, user_images(2)), "skip,full")
    losing(monkeypatch, 0.0, 0.0, 1.0)
    values = {**SHORT, "cost": "flops", "preset": None, "blocks_per_group": None, "options": None, "max_top1_drop": 0.5}
    size = f"{SIZE[0]}x{SIZE[1]}" if isinstance(SIZE, tuple) else f"{SIZE}x{SIZE}"
    result = train(model, tmp_path / "large.npz", tmp_path / "run", **{**values, "size": size})
    kept = load_checkpoint(tmp_path / "run" / "target-80" / "checkpoint.pt").network.state_dict()
    assert all(bool((value == kept[name]).all()) for name, value in model.state_dict().items())
    assert result.job.teacher == "full", "the preset's"
    job = json.loads((tmp_path / "run" / "target-80" / "job.json").read_text())["job"]
    assert job["teacher"] == str(tmp_path / "run" / "teacher.pt"), (
        "all learn from the network that the chain began with"
    )


def test_the_test_split_has_no_say(data: Path, tmp_path: Path, whole: TrainingResult) -> None:
    assert (whole.split, whole.evaluation.images) == ("held-out", 9)
    some = colour_patches()
    splits = {"train": some, "val": some.select(slice(20)), "test": some.select(slice(30))}
    arrays: dict[str, Any] = {f"{name}_x": each.images for name, each in splits.items()}
    arrays |= {f"{name}_y": each.labels for name, each in splits.items()}
    np.savez(tmp_path / "three.npz", **arrays)
    np.savez(tmp_path / "two.npz", **{name: value for name, value in arrays.items() if not name.startswith("val")})
    short = {**SHORT, "target": 90.0}
    by_val = train(tmp_path / "three.npz", tmp_path / "val", **short)
    assert (by_val.split, by_val.evaluation.images) == ("val", 20)
    by_held_out = train(tmp_path / "two.npz", tmp_path / "held-out", **short)
    assert (by_held_out.split, by_held_out.evaluation.images) == ("held-out", 9)
    with refuses(UsageError, "test split must not"):
        train(tmp_path / "three.npz", tmp_path / "no", evaluate_on="test", **short)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_top1_drop": 1.5}, ["1.5", "half a point"]),
        ({"policy": "full", "target": None}, ["--max-top1-drop", "policy", "leave one out"]),
        ({"until": "gate"}, ["--max-top1-drop", "no joint training"]),
        ({"joint_steps": 0}, ["no joint training"]),
    ],
)
def test_a_chain_that_cannot_be_is_refused(
    data: Path, tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    with refuses(UsageError, *words):
        train(data, tmp_path / "run", **{**SHORT, **change})
    assert not (tmp_path / "run").exists()


def test_a_damaged_record_is_named(whole: TrainingResult, tmp_path: Path) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "copy")
    (folder / "targets.json").write_text("{}")
    with refuses(CheckpointError, "targets.json"):
        resume(folder)
    with refuses(CheckpointError, "targets.json"):
        load_targets(folder)


def test_without_a_target_it_goes_on_down_to_what_can_be_reached(data: Path, tmp_path: Path) -> None:
    steps = {**SHORT, "target": None, "options": "skip,8", "joint_steps": 1, "gate_steps": 1, "backbone_steps": 1}
    result = train(data, tmp_path / "run", **steps)
    assert result.targets is not None
    assert result.targets.tried[0].target == pytest.approx(5.625)
    assert result.targets.tried[-1].target == 1.0
