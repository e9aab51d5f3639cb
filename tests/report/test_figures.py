from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dfs_deploy.errors import UsageError
from dfs_deploy.report.figures import figures, table, write_figures
from dfs_deploy.report.runs import TrainingRun, load_run, runs_json, table_1, table_2
from tests.checks import refuses
from tests.report.logs import SKIPNET, records, write_log


def run(folder: Path, name: str, **changes: Any) -> TrainingRun:
    return load_run(write_log(folder / name, records(**changes)))


@pytest.fixture
def runs(tmp_path: Path) -> list[TrainingRun]:
    return [
        run(tmp_path, "dfs-20", target=20.0, top1=0.88, percentage=20.25),
        run(tmp_path, "dfs-40", top1=0.89, percentage=40.5),
        run(tmp_path, "dfs-40-constant", alpha_sign="constant", top1=0.86, percentage=8.25),
        run(tmp_path, "dfs-40-coarse", alpha=1e-2, top1=0.85, percentage=43.5),
        run(tmp_path, "skipnet-20", options=SKIPNET, target=20.0, top1=0.8, percentage=20.5),
        run(tmp_path, "static-8", policy=["8"] * 8, top1=0.87, percentage=6.25),
        run(tmp_path, "static-mixed", policy=["8", "16"] * 4, top1=0.875, percentage=15.625),
        run(tmp_path, "other", data="digits", target=20.0),
    ]


def rows(runs: list[TrainingRun], name: str) -> list[list[dict[str, Any]]]:
    """The rows of each layer of a figure."""
    spec = figures(runs)[name]
    return [spec["datasets"][layer["data"]["name"]] for layer in spec.get("layer", [spec])]


def test_a_figure_for_each_model_and_data_set_and_each_gate(runs: list[TrainingRun]) -> None:
    assert list(figures(runs)) == [
        "accuracy-ResNet-20-cifar-10.npz",
        "accuracy-ResNet-20-digits",
        "decisions-dfs-20",
        "decisions-dfs-40",
        "decisions-dfs-40-constant",
        "decisions-dfs-40-coarse",
        "decisions-skipnet-20",
        "decisions-other",
    ]


def test_accuracy_is_drawn_over_computation_for_each_method(runs: list[TrainingRun]) -> None:
    rules, drawn = rows(runs, "accuracy-ResNet-20-cifar-10.npz")
    assert {(point["method"], point["computation"], point["top1"]) for point in drawn} == {
        ("DFS", 20.25, 88.0),
        ("DFS", 40.5, 89.0),
        ("DFS", 43.5, 85.0),
        ("SkipNet", 20.5, 80.0),
        ("static uniform", 6.25, 87.0),
        ("static mixed", 15.625, 87.5),
    }
    assert rules == [{"top1": 90.0}]


def test_decisions_stack_up_to_every_image_at_each_block(runs: list[TrainingRun]) -> None:
    (drawn,) = rows(runs, "decisions-dfs-20")
    assert [row["block"] for row in drawn[::4]] == list(range(1, 9))
    for block in range(1, 9):
        assert sum(row["share"] for row in drawn if row["block"] == block) == pytest.approx(100.0)


def test_table_1_sets_a_constant_alpha_beside_its_dynamic_twin(runs: list[TrainingRun]) -> None:
    assert [row.name for row in table_1(runs)] == ["dfs-40", "dfs-40-constant"]
    assert table_1([row for row in runs if row.name != "dfs-40"]) == []
    assert table(table_1(runs)).splitlines()[-1] == "| DFS-ResNet-20 | +0.0003 | 40 % | 8.25 % | 86.00 % | 1,500 |"


def test_table_2_sets_absolute_values_of_alpha_side_by_side(runs: list[TrainingRun]) -> None:
    assert [row.name for row in table_2(runs)] == ["dfs-40", "dfs-40-coarse"]
    assert table_2(runs[:1]) == []


def test_every_figure_is_written_as_svg_and_png_and_every_number_as_json(
    tmp_path: Path, runs: list[TrainingRun]
) -> None:
    some = [runs[0], runs[5]]
    files = write_figures(some, tmp_path / "figures")
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == sorted(file.name for file in files)
    names = ["accuracy-ResNet-20-cifar-10.npz", "decisions-dfs-20"]
    assert [file.name for file in files] == ["figures.json", *(f"{n}.{s}" for n in names for s in ("svg", "png"))]
    for file in files[1:]:
        content = file.read_bytes()
        assert content.startswith(b"<svg" if file.suffix == ".svg" else b"\x89PNG")
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(runs_json(some)))
    assert json.loads(files[0].read_text())["runs"][0]["percentage"] == 20.25


def test_tables_are_written_as_markdown(tmp_path: Path, runs: list[TrainingRun]) -> None:
    write_figures(runs[1:4], tmp_path)
    for number, rows in ((1, table_1(runs)), (2, table_2(runs))):
        assert (tmp_path / f"table-{number}.md").read_text() == table(rows)


def test_names_from_outside_stay_in_the_folder(tmp_path: Path) -> None:
    made = figures([run(tmp_path, name, data="/data/..") for name in ("a b", "a_b")])
    assert list(made) == ["accuracy-ResNet-20-unnamed", "decisions-a_b", "decisions-a_b-2"]


def test_nothing_to_draw_and_nowhere_to_write(tmp_path: Path) -> None:
    with refuses(UsageError, "no training runs"):
        write_figures([], tmp_path)
    (tmp_path / "file").touch()
    with refuses(UsageError, "cannot be written"):
        write_figures([run(tmp_path, "a")], tmp_path / "file" / "figures")
