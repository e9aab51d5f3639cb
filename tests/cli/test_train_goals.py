"""``dfs-deploy train`` with times, a teacher, and accuracy as the goal."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from dfs_deploy.costs import save_costs
from dfs_deploy.data import save_npz
from dfs_deploy.training.job import load_job
from tests.cli.program import Ran, run
from tests.cli.test_train_baselines import latency_table
from tests.training.small import colour_patches

QUICK = ["--preset", "quick", "--blocks", "1", "--batch", "16", "--threads", "1", "--device", "cpu"]
STEPS = ["--gate-steps", "2", "--joint-steps", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With images, and a run that trained a backbone on them."""
    folder = tmp_path_factory.mktemp("goals")
    save_npz(folder / "patches.npz", colour_patches())
    made = train(folder, "--until", "backbone", "--backbone-steps", "8", "--out", folder / "backbone")
    assert made.code == 0, made.err
    return folder


def train(folder: Path, *arguments: str | Path) -> Ran:
    return run("train", "--data", folder / "patches.npz", *QUICK, *arguments)


def from_backbone(folder: Path, *arguments: str | Path) -> Ran:
    return train(folder, "--backbone", folder / "backbone" / "backbone.pt", *STEPS, *arguments)


def test_measured_costs_are_said_as_time(folder: Path, tmp_path: Path) -> None:
    save_costs(tmp_path / "latency.json", latency_table())
    arguments = ["--cost", tmp_path / "latency.json", "--target", "60", "--out"]
    ran = from_backbone(folder, *arguments, tmp_path / "run")
    assert ran.code == 0, ran.err
    assert "% of the time, " in ran.out
    assert "% computation" not in ran.out
    assert "of 100.0 µs in the blocks and their gates" in ran.out
    assert (tmp_path / "run" / "latency.json").is_file()
    told = run("train", "--resume", tmp_path / "run", "--json").json
    assert told["cost"] == "latency.json"
    assert told["dearest_us"] == pytest.approx(100.0)
    assert told["predicted_us"] == pytest.approx(told["computation_percentage"])
    by_bits = from_backbone(folder, "--cost", "flops", "--json", "--out", tmp_path / "bits").json
    assert (by_bits["cost"], by_bits["predicted_us"], by_bits["targets"]) == ("flops", None, None)


def test_a_teacher_is_a_file_or_the_network_itself(folder: Path, tmp_path: Path) -> None:
    teacher = folder / "backbone" / "backbone.pt"
    for name, given in (("file", teacher), ("itself", "full")):
        ran = from_backbone(folder, "--teacher", given, "--out", tmp_path / name)
        assert ran.code == 0, ran.err
        assert load_job(tmp_path / name).teacher == str(given)
        assert (tmp_path / name / "teacher.pt").is_file()
    ran = from_backbone(folder, "--teacher", tmp_path / "missing.pt", "--out", tmp_path / "no")
    assert ran.code == 4
    assert "missing.pt does not exist" in ran.err
    assert not (tmp_path / "no").exists()


def test_accuracy_as_the_goal_says_what_was_tried(folder: Path, tmp_path: Path) -> None:
    arguments = ["--max-top1-drop", "1", "--target", "85", "--out", tmp_path / "run"]
    ran = from_backbone(folder, *arguments)
    assert ran.code == 0, ran.err
    assert "at most 100 points of top-1 lost on 9 held-out images" in ran.out
    assert "target 90 %: top-1" in ran.err
    assert f"export {tmp_path / 'run' / 'checkpoint.pt'}" in ran.out
    told = run("train", "--resume", tmp_path / "run", "--json").json
    assert (told["max_top1_drop"], told["target"], told["split"]) == (1.0, 85.0, "held-out")
    targets = told["targets"]
    assert [each["target"] for each in targets["tried"]] == [90.0, 85.0]
    for each in targets["tried"]:
        assert each["drop_low"] <= each["drop"] <= each["drop_high"]
        assert each["drop"] == pytest.approx(targets["reference_top1"] - each["top1"])
    from_backbone(folder, "--max-top1-drop", "2", "--out", tmp_path / "no").failed(2, "half a point")


def test_a_chain_that_was_stopped_says_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "run", list[str]()

    def stop(text: str, share: float) -> None:
        seen.append(text)
        if sum(each.startswith("joint step 3") for each in seen) == 2:
            raise KeyboardInterrupt

    with mock.patch("dfs_deploy.cli.train_progress.silent", stop):
        ran = from_backbone(folder, "--max-top1-drop", "1", "--target", "85", "--json", "--out", out)
    assert ran.code == 130
    assert ran.err.endswith(f"go on with: dfs-deploy train --resume {out}\n")
    assert len(run("train", "--resume", out, "--json").json["targets"]["tried"]) == 2
