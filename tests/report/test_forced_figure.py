from __future__ import annotations

from pathlib import Path

import pytest

from dfs_deploy.bench.result import BenchResult, ForcedPath
from dfs_deploy.errors import UsageError
from dfs_deploy.report.forced_figure import forced_figure
from dfs_deploy.report.style import figure_writer
from tests.bench.made import made_bench
from tests.checks import refuses


def path(share: int, precision: str, static_ms: float | None) -> ForcedPath:
    return ForcedPath(share, 0, "8", precision, 1.0 + share, 0.5 + share, static_ms, None, None, 0.5, 1.0)


@pytest.fixture
def result() -> BenchResult:
    return made_bench(forced=(path(0, "int8", 3.0), path(100, "int8", 3.0), path(100, "fp32", None)))


def test_a_panel_a_precision_with_every_median(result: BenchResult) -> None:
    panels = forced_figure(result)["hconcat"]
    assert ["INT8" in panels[0]["title"], "FP32" in panels[1]["title"], len(panels)] == [True, True, 2]
    drawn = [
        [(row["share"], row["line"].partition(":")[0], row["ms"]) for row in panel["data"]["values"]]
        for panel in panels
    ]
    at_0 = [(0, "dispatch", 1.0), (0, "trace", 0.5), (0, "static", 3.0)]
    at_100 = [(100, "dispatch", 101.0), (100, "trace", 100.5), (100, "static", 3.0)]
    assert drawn == [at_0 + at_100, at_100[:2]]


@pytest.mark.parametrize(("name", "begins"), [("f.svg", b"<svg"), ("f.png", b"\x89PNG")])
def test_it_is_written_as_its_suffix_says(result: BenchResult, tmp_path: Path, name: str, begins: bytes) -> None:
    figure_writer(tmp_path / name, forced_figure)(result)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_a_file_that_cannot_be(result: BenchResult, tmp_path: Path) -> None:
    with refuses(UsageError, "f.pdf", ".svg or .png"):
        figure_writer(tmp_path / "f.pdf", forced_figure)
    (tmp_path / "file").touch()
    with refuses(UsageError, "cannot be written"):
        figure_writer(tmp_path / "file" / "f.svg", forced_figure)(result)
