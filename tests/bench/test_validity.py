from __future__ import annotations

from typing import Any

import pytest

from dfs_deploy.bench.verdict import Evidence, unsteady
from tests.bench.made import made_bench


def test_a_steady_run_is_valid() -> None:
    assert made_bench().problems == ()
    assert made_bench().valid


@pytest.mark.parametrize(("rounds", "valid"), [(1, False), (5, False), (6, True), (40, True)])
def test_a_run_of_few_calls_is_invalid(rounds: int, valid: bool) -> None:
    result = made_bench(rounds=rounds)
    assert result.valid == valid
    if not valid:
        (problem,) = result.problems
        assert f"{16 * rounds} calls" in problem.what
        assert problem.remedy == "--min-iterations 96 or more, or raise --max-seconds"


def test_few_inputs_are_no_mixture() -> None:
    (problem,) = made_bench(inputs=7).problems
    assert "7 different inputs" in problem.what
    assert "--data" in problem.remedy
    assert made_bench(inputs=8).valid


RIVALS = {"dfs": 1.0, "static-fp32": 2.0, "static-int8": 1.01}


def test_the_ratio_that_the_verdict_reads_is_named_with_how_well_it_is_known() -> None:
    result = made_bench(RIVALS, spread=0.8, rounds=12, top1=dict.fromkeys(RIVALS, 0.9))
    assert not result.valid
    (problem,) = result.problems
    assert result.rival is not None
    ratio = result.rival.p50
    for word in ("dfs", "static-int8", f"{ratio.low:.3f}", f"{ratio.high:.3f}"):
        assert word in problem.what
    assert "--max-seconds" in problem.remedy
    assert result.verdict.choice is None


def test_a_clear_difference_is_valid_however_noisy_other_ratios_are() -> None:
    """Half the time is half the time, though no mean ratio is known to five percent."""
    ms = {"dfs": 0.5, "static-fp32": 2.0, "static-int8": 1.5}
    result = made_bench(ms, spread=0.8, rounds=12, top1=dict.fromkeys(ms, 0.9))
    assert unsteady(result.cases) is not None
    assert result.valid
    assert result.verdict.choice == "dfs"


def test_no_clock_is_needed_where_accuracy_decides() -> None:
    top1 = {"dfs": 0.7, "static-fp32": 0.9, "static-int8": 0.9}
    result = made_bench(RIVALS, spread=0.8, rounds=12, top1=top1)
    assert result.valid
    assert result.rival is None
    assert result.verdict.choice in ("static-fp32", "static-int8")


def test_a_run_is_extended_while_more_may_tell() -> None:
    def more(growth: float = 4.0, **made: Any) -> bool:
        result = made_bench(**{"top1": dict.fromkeys(RIVALS, 0.9), **made})
        return Evidence(result.cases, result.over_static, result.round, result.inputs).wants_more(growth)

    assert not more(rounds=200), "all is known"
    assert more(ms=RIVALS, spread=0.8, rounds=12), "the median is not"
    assert more(rounds=40), "the tail is not"
    assert not more(rounds=40, growth=1.5), "the tail is out of reach"
    assert not more(rounds=8, inputs=7), "no time makes up for few inputs"
    top1 = {"dfs": 0.7, "static-fp32": 0.9, "static-int8": 0.9}
    assert not more(ms=RIVALS, spread=0.8, rounds=12, top1=top1), "accuracy decides"


def test_a_baseline_needs_every_mean_ratio() -> None:
    assert unsteady(made_bench().cases) is None
    result = made_bench(spread=0.8, rounds=12)
    known = {case.name: case.ratio.mean.uncertainty for case in result.cases if case.ratio is not None}
    worst = max(known, key=lambda name: known[name])
    problem = unsteady(result.cases)
    assert problem is not None
    assert worst in problem.what
    assert f"±{100 * known[worst]:.1f} %" in problem.what
    assert "--min-seconds" in problem.remedy
