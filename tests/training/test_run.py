"""Training as a library function."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import msgspec
import pytest

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.data import save_npz
from dfs_deploy.errors import UsageError
from dfs_deploy.options import Options
from dfs_deploy.training import TrainingResult, preset, resume, train
from dfs_deploy.training.metrics import EvaluationRecord, RunRecord, StepRecord
from tests.checks import refuses
from tests.training.small import colour_patches

QUICK = {
    "preset": "quick",
    "blocks_per_group": 1,
    "batch": 16,
    "backbone_steps": 4,
    "gate_steps": 3,
    "joint_steps": 12,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "patches.npz"
    save_npz(path, colour_patches())
    return path


@pytest.fixture(scope="module")
def result(data: Path) -> TrainingResult:
    return train(data, data.parent / "run", options="skip,full", target=30.0, held_out=10, seed=3, size="8x8", **QUICK)


def test_a_run_gives_checkpoint_metrics_and_job(result: TrainingResult) -> None:
    assert load_checkpoint(result.checkpoint).network.options == Options.parse("skip,full")
    job = result.job
    assert (job.seed, job.held_out, job.recipe.target, job.recipe.joint_steps) == (3, 10, 30.0, 12)
    assert (result.split, result.evaluation.images) == ("held-out", 10)
    first, *rest = result.metrics
    assert isinstance(first, RunRecord)
    assert (first.asked.seed, first.network.name, first.images) == (3, "ResNet-8", {"train": 86, "held-out": 10})
    last = [record for record in rest if isinstance(record, EvaluationRecord)][-1]
    assert (last.stage, last.step, last.top1) == ("joint", 12, result.evaluation.top1)


def test_a_finished_run_is_resumed_to_the_same_result(result: TrainingResult) -> None:
    again = resume(result.folder)
    assert again.finished_before
    assert (again.checkpoint, again.job, again.evaluation) == (result.checkpoint, result.job, result.evaluation)


def test_a_value_that_nobody_knows_is_refused(data: Path, tmp_path: Path) -> None:
    with refuses(UsageError, "no value 'speed'"):
        train(data, tmp_path / "run", speed=3)
    with refuses(UsageError, "did you mean blocks_per_group"):
        train(data, tmp_path / "run", blocks=1)
    with refuses(UsageError, "size '8'", "32x32"):
        train(data, tmp_path / "run", size="8")
    with refuses(UsageError, "stage 'lunch'"):
        train(data, tmp_path / "run", until="lunch")
    assert not (tmp_path / "run").exists()


def test_progress_is_called_and_the_log_says_the_rest(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="dfs_deploy.training")
    seen: list[tuple[str, float]] = []
    values = {**QUICK, "until": "backbone"}
    trained = train(data, tmp_path / "run", progress=lambda text, share: seen.append((text, share)), **values)
    assert [share for _, share in seen] == [0.25, 1.0]
    assert all(text.startswith("backbone step ") for text, _ in seen)
    levels = {record.getMessage(): record.levelno for record in caplog.records}
    chosen = f"training on all images of {data}, evaluating on a tenth of the images held out of them"
    assert levels[chosen] == logging.INFO
    assert any(message.startswith("backbone step 4: top-1 ") for message in levels)
    assert trained.notes == (
        "no effect on this run: gate_steps, joint_steps (a network with a gate; stages: backbone)",
    )
    assert levels[trained.notes[0]] == logging.WARNING


@pytest.mark.parametrize(("options", "missed"), [("skip,8,full", False), ("skip,8", True)])
def test_a_target_is_missed_by_a_share_of_what_the_dearest_path_costs(
    result: TrainingResult, options: str, missed: bool
) -> None:
    """Half a point away: nothing if paths reach 100 %, and much if they reach 6.25 %."""
    job = dataclasses.replace(result.job, recipe=preset("quick", options=options, target=4.0, blocks_per_group=1))
    evaluation = msgspec.structs.replace(result.evaluation, percentage=4.5)
    assert dataclasses.replace(result, job=job, evaluation=evaluation).target_missed == missed


def test_a_run_stopped_before_its_first_save_begins_with_its_backbone_again(
    data: Path, result: TrainingResult, tmp_path: Path
) -> None:
    values = {**QUICK, "backbone": result.checkpoint, "options": "skip,full", "seed": 3}
    whole = train(data, tmp_path / "whole", **values)

    def stop(text: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "cut", progress=stop, **values)
    assert not (tmp_path / "cut" / "state.pt").exists()
    steps = [
        [each for each in run.metrics if isinstance(each, StepRecord)] for run in (whole, resume(tmp_path / "cut"))
    ]
    assert steps[0] == steps[1]
