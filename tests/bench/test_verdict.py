from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.bench.case_result import CaseResult
from dfs_deploy.bench.clock import summarize
from dfs_deploy.bench.intervals import Interval
from dfs_deploy.bench.validity import Problem
from dfs_deploy.bench.verdict import TIE, Verdict, compare, decide, times
from tests.bench.made import exactly, made_bench, ratios_of

SURE = {"dfs": 0.95, "static-fp32": 0.95, "static-fp16": 0.95, "static-int8": 0.95}


def verdict(
    p50: Mapping[str, float],
    p95: Mapping[str, float] | None = None,
    top1: Mapping[str, float] | None = SURE,
    width: float = 0.005,
    drop: float = 0.01,
) -> Verdict:
    """Of cases that take so many ms at the median and at p95."""
    p95 = p50 if p95 is None else p95
    cases = [
        CaseResult(
            name,
            1,
            summarize([round(1e6 * ms)] * 300),
            top1=None if top1 is None else top1[name],
            top1_change=None if top1 is None else Interval(*[top1[name] - top1["static-fp32"]] * 3),
        )
        for name, ms in p50.items()
    ]
    over = [
        ratios_of(name, exactly(p50["dfs"] / p50[name], width), exactly(p95["dfs"] / p95[name], width))
        for name in p50
        if name != "dfs"
    ]
    return decide(cases, over, [], drop)


def test_the_dynamic_network_is_shipped_where_it_is_fastest_and_accurate() -> None:
    found = verdict({"dfs": 1.0, "static-fp32": 3.0, "static-int8": 1.4})
    assert found.choice == "dfs"
    for word in ("ship DFS", "static INT8", "1.40x faster at the median", "1.40x faster at p95", "95.00 %"):
        assert word in found.words, word


def test_a_faster_static_engine_that_is_accurate_enough_is_shipped_instead() -> None:
    found = verdict({"dfs": 1.3, "static-fp32": 3.0, "static-int8": 1.0})
    assert found.choice == "static-int8"
    for word in ("ship static INT8", "accurate enough", "1.30x slower at the median"):
        assert word in found.words, word


def test_a_static_engine_that_loses_too_much_is_no_rival() -> None:
    found = verdict({"dfs": 1.3, "static-fp32": 3.0, "static-int8": 1.0}, top1={**SURE, "static-int8": 0.93})
    assert found.choice == "dfs"
    assert "static FP32" in found.words


def test_the_floor_itself_is_allowed_and_can_be_moved() -> None:
    p50 = {"dfs": 1.3, "static-fp32": 3.0, "static-int8": 1.0}
    assert verdict(p50, top1={**SURE, "static-int8": 0.94}).choice == "static-int8"
    assert verdict(p50, top1={**SURE, "static-int8": 0.94}, drop=0.005).choice == "dfs"


def test_a_dynamic_network_that_loses_too_much_is_not_shipped_however_fast() -> None:
    found = verdict({"dfs": 0.1, "static-fp32": 3.0, "static-int8": 1.0}, top1={**SURE, "dfs": 0.90})
    assert found.choice == "static-int8"
    assert "DFS loses 5.00 points" in found.words
    assert "1.00 allowed" in found.words


def test_a_tie_goes_to_the_simpler_one() -> None:
    found = verdict({"dfs": 1.0, "static-fp32": 3.0, "static-int8": 1.0})
    assert found.choice == "static-int8"
    assert "gains nothing" in found.words


def test_median_and_tail_that_disagree_leave_the_choice_to_the_user() -> None:
    p50 = {"dfs": 0.8, "static-fp32": 3.0, "static-int8": 1.0}
    found = verdict(p50, {**p50, "dfs": 1.5, "static-int8": 1.1})
    assert found.choice is None
    assert found.words.startswith("DFS where the median counts, static INT8 where p95 does")
    found = verdict({**p50, "dfs": 1.2}, {**p50, "dfs": 0.9, "static-int8": 1.1})
    assert found.choice is None
    assert found.words.startswith("static INT8 where the median counts, DFS where p95 does")


def test_one_that_ties_and_one_that_does_not_decide_together() -> None:
    p50 = {"dfs": 1.0, "static-fp32": 3.0, "static-int8": 1.0}
    assert verdict(p50, {**p50, "dfs": 1.2}).choice == "static-int8"
    assert verdict(p50, {**p50, "dfs": 0.8}).choice == "dfs"


def test_without_labels_only_what_is_slower_than_the_reference_can_be_told() -> None:
    p50 = {"dfs": 1.0, "static-fp32": 2.0, "static-int8": 1.5}
    found = verdict(p50, top1=None)
    assert found.choice is None
    for word in ("no labels", "2.00x faster against static FP32", "--data"):
        assert word in found.words, word
    found = verdict({**p50, "dfs": 2.5}, top1=None)
    assert found.choice == "static-fp32"
    assert "1.25x slower" in found.words


def test_an_invalid_run_decides_nothing() -> None:
    cases = made_bench().cases
    found = decide(cases, [], [Problem("it rained", "wait")])
    assert found.choice is None
    assert "INVALID" in found.words


def test_without_a_static_engine_there_is_nothing_to_compare_with() -> None:
    found = made_bench({"dfs": 1.0}).verdict
    assert found.choice is None
    assert "--targets" in found.words


def test_a_device_without_static_engines_is_not_told_to_export_for_a_cpu() -> None:
    found = decide(made_bench({"dfs": 1.0}).cases, [], [], device="jetson")
    assert found.choice is None
    assert "none on jetson" in found.words
    assert "--targets" not in found.words


def test_too_few_calls_for_a_tail_are_a_caveat() -> None:
    result = made_bench(turns=8, top1=dict.fromkeys(("dfs", "static-fp32", "static-int8"), 0.9))
    assert result.verdict.choice == "dfs"
    assert any("too few calls to compare p95" in line for line in result.verdict.caveats)
    assert "p95" not in result.verdict.words


def test_an_accuracy_that_the_images_cannot_tell_is_a_caveat() -> None:
    timing = summarize([1_000_000] * 300)
    cases = [
        CaseResult("dfs", 1, timing, top1=0.945, top1_change=Interval(-0.005, -0.02, 0.01)),
        CaseResult("static-fp32", 1, timing, top1=0.95, top1_change=Interval(0.0, 0.0, 0.0)),
    ]
    found = decide(cases, [ratios_of("static-fp32", exactly(0.5), exactly(0.5))], [])
    assert found.choice == "dfs"
    (caveat,) = found.caveats
    for word in ("DFS", "-0.50 points", "between -2.00 and +1.00", "1.00"):
        assert word in caveat, word


def test_the_rule_states_its_figures() -> None:
    assert "1.00 points" in verdict({"dfs": 1.0, "static-fp32": 2.0}).rule
    assert "2.50 points" in verdict({"dfs": 1.0, "static-fp32": 2.0}, drop=0.025).rule
    assert "2 %" in verdict({"dfs": 1.0, "static-fp32": 2.0}).rule


@given(st.floats(0.1, 10.0), st.floats(0.0, 0.3))
def test_a_difference_counts_where_it_is_known_and_more_than_a_tie(value: float, width: float) -> None:
    ratio = exactly(value, width)
    found = compare(ratio)
    assert (found == "faster") == (ratio.high < 1.0 and value <= 1.0 - TIE)
    assert (found == "slower") == (ratio.low > 1.0 and value >= 1.0 + TIE)
    assert {"faster": "faster", "slower": "slower", "tie": "as fast"}[found] in times(ratio)


@pytest.mark.parametrize(("value", "words"), [(0.5, "2.00x faster"), (2.0, "2.00x slower"), (1.0, "as fast")])
def test_ratios_in_words(value: float, words: str) -> None:
    assert words in times(exactly(value, 0.001))
