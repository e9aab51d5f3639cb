"""The command that trains and compares the networks of docs/results.md, on tiny images with a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.results import STUDIES, Run, Study, main
from tests.training.small import colour_patches

SHORT = {"preset": "cpu-int8", "blocks_per_group": 1, "held_out": 64, "batch": 16}


def tiny(folder: Path) -> Study:
    place = folder / "backbone" / "backbone.pt"
    backbone = {"backbone": place, "options": "skip,8", "gate_steps": 1, "joint_steps": 4}
    return Study(
        None,
        SHORT,
        (
            Run("backbone", {"until": "backbone", "backbone_steps": 4, "preset": "quick"}, None),
            Run("dfs", {**backbone, "cost": "flops", "target": 5.0}, {"budgets": (0.04,)}),
            Run("static", {**backbone, "policy": "8"}),
            Run("pruned", {**backbone, "policy": "pruned:1"}),
        ),
    )


def test_a_study_is_trained_verified_and_compared_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = colour_patches(160), colour_patches(64, seed=1)
    data = tmp_path / "data.npz"
    np.savez(data, train_x=train.images, train_y=train.labels, test_x=test.images, test_y=test.labels)
    command = ["tiny", "--data", str(data), "--out", str(tmp_path / "out"), "--seconds", "0.05"]
    main(command, {"tiny": tiny})
    out = tmp_path / "out"
    result = json.loads((out / "bench.json").read_text())
    names = {case["name"] for case in result["cases"]}
    assert {"dfs", "static-int8@static", "static-int8@pruned"} <= names
    assert (out / "frontier.svg").exists()
    assert result["verdict"]["words"] in capsys.readouterr().out
    written = (out / "dfs" / "checkpoint.pt").stat().st_mtime_ns
    main([*command, "--no-bench"], {"tiny": tiny})
    assert (out / "dfs" / "checkpoint.pt").stat().st_mtime_ns == written
    with pytest.raises(SystemExit):
        main([*command, "--steps", "2"], {"tiny": tiny})
    assert "begun with" in capsys.readouterr().err


def test_unknown_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["twins", "--data", "digits", "--out", str(tmp_path), "--only", "dfs-21"])
    assert "dfs-21" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cifar", "twins"])
def test_studies_compare_what_begins_alike(name: str, tmp_path: Path) -> None:
    study = STUDIES[name](tmp_path)
    compared = [run for run in study.runs if run.export is not None and run.name != "whole"]
    assert len({run.values.get("joint_steps", study.common.get("joint_steps")) for run in compared}) == 1
