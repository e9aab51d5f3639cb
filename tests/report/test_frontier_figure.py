from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dfs_deploy.bench.result import BenchResult
from dfs_deploy.errors import UsageError
from dfs_deploy.report.frontier_figure import frontier_figure, static_front
from dfs_deploy.report.style import draw
from tests.bench.made import FACTS, made_bench
from tests.checks import refuses

MS = {
    "dfs": 1.0,
    "static-fp32": 2.4,
    "static-int8": 1.5,
    "static-fp32@twin": 2.42,
    "static-fp16@twin": 2.421,
    "static-int8@twin": 1.5,
    "static-policy@pruned-3": 1.3,
    "dfs@skipnet": 1.7,
    "dfs-budget-40": 0.8,
}
TOP1 = dict(zip(MS, (0.882, 0.86, 0.3, 0.886, 0.886, 0.885, 0.875, 0.871, 0.87), strict=True))


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return made_bench(MS, top1=TOP1, rounds=100, against=(replace(FACTS, name="twin"),), max_top1_drop=0.02)


def marks(panel: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Rows of the first layer of a kind of mark."""
    layer = next(layer for layer in panel["layer"] if layer["mark"]["type"] == kind)
    rows: list[dict[str, Any]] = layer["data"]["values"]
    return rows


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    front = static_front(points)
    for point in points:
        beaten = any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in points)
        assert (point in front) == (not beaten)
    assert front == sorted(front)


def test_every_case_is_a_point_at_its_median_and_its_tail(result: BenchResult) -> None:
    median, tail = frontier_figure(result)["hconcat"]
    cases = [case for case in result.cases if case.name != "static-int8"]
    assert [(row["x"], row["y"]) for row in marks(median, "point")] == [
        (case.latency_ms.p50, pytest.approx(100 * (case.top1 or 0))) for case in cases
    ]
    assert [row["x"] for row in marks(tail, "point")] == [case.latency_ms.p95 for case in cases]


def test_points_are_labelled_and_those_of_one_bundle_that_coincide_share_a_label(result: BenchResult) -> None:
    texts = {row["text"] for row in marks(frontier_figure(result)["hconcat"][0], "text")}
    assert texts == {"net", "own backbone FP32", "twin FP32, FP16", "twin INT8", "pruned-3", "skipnet", "40 %"}


def test_the_band_reaches_as_far_down_as_the_verdict_allows(result: BenchResult) -> None:
    (band,) = marks(frontier_figure(result)["hconcat"][0], "rect")
    assert (band["low"], band["high"]) == (pytest.approx(86.6), pytest.approx(88.6))


def test_what_is_far_below_is_named_instead_of_drawn(result: BenchResult) -> None:
    title = frontier_figure(result)["title"]
    assert "own backbone INT8 (30.0 %)" in title["subtitle"][-1]


def test_the_title_is_the_verdict_or_that_there_is_none(result: BenchResult) -> None:
    assert result.verdict.words.partition(";")[0] in frontier_figure(result)["title"]["text"]
    assert "INVALID" in frontier_figure(replace(result, valid=False))["title"]["text"]


def test_a_tail_that_is_not_known_has_no_panel() -> None:
    few = made_bench(top1=dict.fromkeys(("dfs", "static-fp32", "static-int8"), 0.9), rounds=8)
    figure = frontier_figure(few)
    assert len(figure["hconcat"]) == 1
    assert {row["text"] for row in marks(figure["hconcat"][0], "text")} == {"DFS", "static FP32", "static INT8"}


def test_it_is_drawn(result: BenchResult) -> None:
    assert draw(frontier_figure(result), "svg").startswith(b"<svg")
    assert draw(frontier_figure(result), "png").startswith(b"\x89PNG")


def test_without_labels_there_is_nothing_to_draw() -> None:
    with refuses(UsageError, "no accuracy", "--data"):
        frontier_figure(made_bench())
