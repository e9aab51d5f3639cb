from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dfs_deploy.errors import DataError
from dfs_deploy.report.runs import is_run, load_run
from tests.checks import refuses
from tests.report.logs import ALL, SKIPNET, records, write_log


def test_a_run_says_what_it_was_asked_for_and_what_it_reached(tmp_path: Path) -> None:
    run = load_run(write_log(tmp_path / "dfs-40", records()))
    assert (run.name, run.model, run.method, run.data) == ("dfs-40", "ResNet-20", "DFS", "cifar-10.npz")
    assert (run.options, run.policy, run.cost) == (ALL, None, "flops")
    assert (run.target, run.alpha, run.alpha_sign, run.seed) == (40.0, 3e-4, "dynamic", 3)
    assert (run.stage, run.steps, run.split, run.images) == ("joint", 1500, "test", 10000)
    assert (run.top1, run.percentage, run.paths, run.backbone_top1) == (0.875, 40.5, 77, 0.9)
    assert run.option_share == ((0.25,) * 4,) * 8


def test_the_log_itself_will_do(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "a-run", records())
    assert load_run(folder / "metrics.jsonl") == load_run(folder)
    assert is_run(folder)
    assert is_run(folder / "metrics.jsonl")
    assert not is_run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({"options": SKIPNET}, "SkipNet"),
        ({"options": ("full", "skip")}, "SkipNet"),
        ({"policy": ["8"] * 8}, "static uniform"),
        ({"policy": ["8", "16"] * 4}, "static mixed"),
        ({"policy": ["full"] * 8}, "full precision"),
        ({"stage": "backbone"}, "full precision"),
    ],
)
def test_methods_are_told_apart(tmp_path: Path, changes: dict[str, Any], method: str) -> None:
    run = load_run(write_log(tmp_path / "run", records(**changes)))
    assert run.method == method
    gated = method == "SkipNet"
    assert (run.target is not None, run.alpha is not None, bool(run.option_share)) == (gated,) * 3


def test_a_line_that_a_stop_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "run", records())
    whole = load_run(folder)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"event": "evaluation", "sta')
    assert load_run(folder) == whole


@pytest.mark.parametrize("position", [0, 1, 5])
@pytest.mark.parametrize("line", ["", "{}", "[]", '{"event": "party"}', '{"event": "run"}', "\xff", "[" * 50_000])
def test_a_malformed_line_is_refused(tmp_path: Path, position: int, line: str) -> None:
    folder = write_log(tmp_path / "run", records())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[position] = line
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="latin-1")
    with refuses(DataError, "no metrics log", f"line {position + 1}"):
        load_run(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 3},
        {"options": ["skip", "many"]},
        {"options": ["skip"]},
        {"options": ["skip", "8", "full"]},
        {"architecture": {"groups": [0]}},
        {"job": {}},
    ],
)
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    header, *rest = records()
    with refuses(DataError, "metrics log"):
        load_run(write_log(tmp_path / "run", [{**header, **change}, *rest]))


def test_a_log_without_header_or_evaluation_is_refused(tmp_path: Path) -> None:
    with refuses(DataError, "first line"):
        load_run(write_log(tmp_path / "headless", records()[1:]))
    with refuses(DataError, "no evaluation yet"):
        load_run(write_log(tmp_path / "young", records()[:1]))
    with refuses(DataError, "first line"):
        load_run(write_log(tmp_path / "empty", []))
    with refuses(DataError, "cannot be read"):
        load_run(tmp_path / "missing")


def test_shares_out_of_range_are_refused(tmp_path: Path) -> None:
    made = records()
    made[-1] = json.loads(json.dumps(made[-1]).replace("0.25", "1.25"))
    with refuses(DataError, "line 6"):
        load_run(write_log(tmp_path / "run", made))
