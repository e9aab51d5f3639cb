"""``dfs-deploy train`` with a static policy, and with costs that were measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfs_deploy.costs import LatencyTable, OptionCost, save_costs
from dfs_deploy.data import save_npz
from dfs_deploy.options import Options
from dfs_deploy.training import read_metrics
from dfs_deploy.training.metrics import RunRecord
from tests.cli.program import Ran, run
from tests.training.small import colour_patches

QUICK = ["--preset", "quick", "--blocks", "1", "--batch", "16", "--threads", "1"]
STEPS = ["--gate-steps", "4", "--joint-steps", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With images, and a run that trained a backbone on them."""
    folder = tmp_path_factory.mktemp("baselines")
    save_npz(folder / "patches.npz", colour_patches())
    made = train(folder, "--until", "backbone", "--backbone-steps", "8", "--out", folder / "backbone")
    assert made.code == 0, made.err
    return folder


def train(folder: Path, *arguments: str | Path) -> Ran:
    return run("train", "--data", folder / "patches.npz", *QUICK, *arguments, "--json")


def header(run_folder: str | Path) -> RunRecord:
    first = read_metrics(run_folder)[0]
    assert isinstance(first, RunRecord)
    return first


def latency_table(blocks: int = 2) -> LatencyTable:
    times = {"skip": 0.0, "8": 20.0, "16": 40.0, "full": 40.0}
    entries = [
        OptionCost(block=block, option=option, engine_us=time, precision=None)
        for block in range(1, blocks + 1)
        for option, time in times.items()
    ]
    return LatencyTable(
        bundle="0" * 64,
        machine="a machine",
        runtime="onnxruntime",
        threads=1,
        image_shape=(3, 8, 8),
        block_shapes=((16, 8, 8), (32, 4, 4), (64, 2, 2), (64, 2, 2))[: blocks + 1],
        gate_us=10.0,
        entries=entries,
    )


@pytest.mark.parametrize(("policy", "options"), [("full", "8,full"), ("16,8", "8,16,full")])
def test_a_policy_brings_its_options(folder: Path, tmp_path: Path, policy: str, options: str) -> None:
    backbone = folder / "backbone" / "backbone.pt"
    ran = train(folder, "--backbone", backbone, "--policy", policy, *STEPS, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert ran.json["options"] == list(Options.parse(options).names)
    assert ran.json["paths"] == 1
    names = policy.split(",")
    assert header(tmp_path / "run").policy == (names if len(names) > 1 else names * 2)


def test_a_mixed_policy_is_searched_and_said(folder: Path, tmp_path: Path) -> None:
    backbone = folder / "backbone" / "backbone.pt"
    ran = train(folder, "--backbone", backbone, "--policy", "mixed", "--target", "16", *STEPS, "--out", tmp_path / "a")
    assert ran.code == 0, ran.err
    assert len(header(tmp_path / "a").policy or ()) == 2
    assert ran.json["computation_percentage"] <= 16.0
    train(folder, "--policy", "mixed", *STEPS, "--out", tmp_path / "b").failed(2, "backbone")
    train(folder, "--backbone", backbone, "--policy", "mixed", "--target", "3", "--out", tmp_path / "b").failed(
        2, "6.25"
    )
    train(folder, "--policy", "9,8,7", *STEPS, "--out", tmp_path / "b").failed(2, "3 options for 2 gated blocks")
    assert not (tmp_path / "b").exists()


def test_costs_come_from_a_table(folder: Path, tmp_path: Path) -> None:
    save_costs(tmp_path / "latency.json", latency_table())
    backbone = folder / "backbone" / "backbone.pt"
    arguments = ["--backbone", backbone, "--cost", tmp_path / "latency.json", *STEPS, "--out"]
    ran = train(folder, *arguments, tmp_path / "run", "--target", "60")
    assert ran.code == 0, ran.err
    first = header(tmp_path / "run")
    assert first.cost == "latency.json"
    assert first.job["recipe"]["costs"] == [[0.2, 0.6, 1.0, 1.0]] * 2
    train(folder, *arguments, tmp_path / "no", "--target", "10").failed(2, "expected 20 to 100")
    save_costs(tmp_path / "latency.json", latency_table(3))
    train(folder, *arguments, tmp_path / "no").failed(2, "4 blocks", "save-costs")
    train(folder, "--cost", tmp_path / "missing.json", "--out", tmp_path / "no").failed(2, "missing.json")


def test_resume_stands_alone_and_a_finished_run_has_nothing_left(folder: Path) -> None:
    finished = folder / "backbone"
    log = (finished / "metrics.jsonl").read_bytes()
    for flag, value in (("--target", "10"), ("--joint-steps", "500"), ("--data", "digits"), ("--out", "elsewhere")):
        run("train", "--resume", finished, flag, value).failed(2, "--resume", flag)
    run("train", "--resume", finished, "--seed", "0").failed(2, "--seed")
    ran = run("train", "--resume", finished)
    assert (ran.code, ran.err.splitlines()[1:]) == (0, [f"nothing left to do: the run in {finished} is finished"])
    assert run("train", "--resume", finished, "--json").json["run"] == str(finished)
    assert (finished / "metrics.jsonl").read_bytes() == log


def test_a_folder_that_cannot_be_created_is_said(folder: Path) -> None:
    within_a_file = folder / "patches.npz" / "run"
    train(folder, "--out", within_a_file).failed(2, f"the folder {within_a_file} cannot be created (Not a directory)")


def test_a_pruned_policy_is_searched_and_said(folder: Path, tmp_path: Path) -> None:
    backbone = ["--backbone", folder / "backbone" / "backbone.pt"]
    ran = train(folder, *backbone, "--policy", "pruned", "--target", "4", *STEPS[2:], "--out", tmp_path / "a")
    assert ran.code == 0, ran.err
    assert "skip" in (header(tmp_path / "a").policy or ())
    assert ran.json["computation_percentage"] <= 4.0
    assert ran.json["notes"] == []
    ran = train(folder, *backbone, "--policy", "pruned:2", *STEPS[2:], "--out", tmp_path / "b")
    assert header(tmp_path / "b").policy == ["skip", "skip"]
    train(folder, *backbone, "--policy", "pruned:x", "--out", tmp_path / "c").failed(2, "pruned:x", "pruned:3")
    train(folder, "--policy", "pruned:1", *STEPS, "--out", tmp_path / "c").failed(2, "backbone")
