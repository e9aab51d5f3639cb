from __future__ import annotations

import pytest

from tests.bench.made import made_bench


def test_a_steady_run_is_valid() -> None:
    assert made_bench().problems == ()
    assert made_bench().valid


@pytest.mark.parametrize(("turns", "valid"), [(1, False), (5, False), (6, True), (40, True)])
def test_a_run_of_few_calls_is_invalid(turns: int, valid: bool) -> None:
    result = made_bench(turns=turns)
    assert result.valid == valid
    if not valid:
        (problem,) = result.problems
        assert f"{16 * turns} calls" in problem.what
        assert "--min-iterations 96" in problem.remedy


def test_few_inputs_are_no_mixture() -> None:
    (problem,) = made_bench(inputs=7).problems
    assert "7 different inputs" in problem.what
    assert "--data" in problem.remedy
    assert made_bench(inputs=8).valid


def test_the_least_steady_ratio_is_named_with_how_well_it_is_known() -> None:
    result = made_bench(spread=0.4)
    assert not result.valid
    (problem,) = result.problems
    known = {case.name: case.ratios.mean.uncertainty for case in result.cases if case.ratios is not None}
    worst = max(known, key=lambda name: known[name])
    assert f"the mean ratio of {worst} over static-fp32 is known only to ±{100 * known[worst]:.1f} %" in problem.what
    assert ("1 more" in problem.what) == (sum(each > 0.05 for each in known.values()) == 2)
    assert "--min-seconds" in problem.remedy
    assert result.verdict.choice is None
