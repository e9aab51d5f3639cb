from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.bench.clock import MIN_SEGMENTS, median_interval, paired_ratios
from dfs_deploy.bench.result import Ratios
from dfs_deploy.paired import Interval
from tests.bench.made import rounds_of

# The median


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(6, 0, 5), (8, 0, 7), (9, 1, 7), (12, 2, 9), (20, 5, 14), (30, 9, 20)],
)
def test_the_interval_is_that_of_the_sign_test(count: int, low: int, high: int) -> None:
    """Ranks from a table of the binomial distribution: the 6th and 15th of 20, and so on."""
    values = np.random.default_rng(0).permutation(count).astype(np.float64)
    assert median_interval(values) == Interval((count - 1) / 2, low, high)


def test_too_few_values_have_no_interval() -> None:
    assert median_interval(np.arange(MIN_SEGMENTS - 1.0)) is None
    assert median_interval(np.arange(MIN_SEGMENTS + 0.0)) is not None


@pytest.mark.parametrize("count", [6, 13, 20])
def test_the_interval_holds_the_median_of_any_distribution_nineteen_times_of_twenty(count: int) -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        found = median_interval(random.lognormal(0.0, 2.0, count))
        assert found is not None
        held += found.low <= 1.0 <= found.high
    assert held / 2000 >= 0.94


# Ratios


@given(st.floats(0.2, 5.0), st.integers(6, 200), st.integers(0, 5))
def test_a_known_ratio_is_found(ratio: float, rounds: int, seed: int) -> None:
    base = rounds_of(1.0, rounds, seed)
    found = paired_ratios(np.rint(base * ratio).astype(np.int64), base, "base")
    assert found is not None
    for interval in (found.mean, found.p50, *([] if found.p95 is None else [found.p95])):
        assert interval.value == pytest.approx(ratio, rel=1e-4)
        assert interval.uncertainty < 1e-4


def test_few_turns_give_no_ratio() -> None:
    assert paired_ratios(rounds_of(1.0, 5), rounds_of(2.0, 5), "base") is None


def test_a_machine_that_slows_down_for_a_while_moves_no_ratio() -> None:
    case, base = rounds_of(1.0, 120, 1), rounds_of(2.0, 120, 2)
    quiet = paired_ratios(case, base, "base")
    slow = np.ones((120, 1))
    slow[30:90] = 1.7
    busy = paired_ratios((case * slow).astype(np.int64), (base * slow).astype(np.int64), "base")
    assert quiet is not None
    assert busy is not None
    assert busy.mean.value == pytest.approx(quiet.mean.value, rel=1e-6)
    assert busy.p50.value == pytest.approx(quiet.p50.value, rel=0.01)


def test_a_few_disturbed_turns_move_no_ratio() -> None:
    case, base = rounds_of(1.0, 120, 1), rounds_of(2.0, 120, 2)
    disturbed = case.copy()
    disturbed[::7, 3] *= 40
    found, quiet = paired_ratios(disturbed, base, "base"), paired_ratios(case, base, "base")
    assert found is not None
    assert quiet is not None
    assert found.mean.value == pytest.approx(quiet.mean.value, rel=0.01)


@pytest.mark.parametrize("rounds", [8, 24])
def test_the_interval_of_a_ratio_holds_it_on_a_machine_that_drifts(rounds: int) -> None:
    """A dynamic case of three paths over a static one; true ratio by a run that is very long."""
    random = np.random.default_rng(4)

    def run(count: int) -> Ratios:
        speed = np.exp(np.cumsum(random.normal(0, 0.02, (count, 1)), 0))
        own = np.exp(random.normal(0, 0.05, (2, count, 1)))
        path = random.choice([0.6, 0.9, 1.3], (count, 16), p=[0.4, 0.4, 0.2])
        case = 1e6 * path * np.exp(random.normal(0, 0.05, path.shape)) * speed * own[0]
        base = 1e6 * np.exp(random.normal(0, 0.02, path.shape)) * speed * own[1]
        found = paired_ratios(np.rint(case).astype(np.int64), np.rint(base).astype(np.int64), "base")
        assert found is not None
        return found

    true = run(8000).p50.value
    held = sum(found.p50.low <= true <= found.p50.high for found in (run(rounds) for _ in range(100)))
    assert held >= 88


def test_an_interval_widens_with_what_the_turns_show() -> None:
    steady = paired_ratios(rounds_of(1.0, seed=1), rounds_of(1.0, seed=2), "base")
    shaky = paired_ratios(rounds_of(1.0, seed=1, spread=0.2), rounds_of(1.0, seed=2, spread=0.2), "base")
    assert steady is not None
    assert shaky is not None
    assert steady.mean.uncertainty < 0.02 < shaky.mean.uncertainty
