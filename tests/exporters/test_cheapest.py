"""The search for the cheapest sufficient bias, on made trade-offs of accuracy and cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs_deploy.exporters.cheapest import FINE, MOST_POINTS, Search, cheapest_of, rising

VALUES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12)


@dataclass(frozen=True)
class Made:
    bias: float
    cost: float
    accuracy: float


def curve(middle: float, width: float) -> Callable[[float], float]:
    """Cost by bias, from 1 down to 0."""
    return lambda bias: float(1.0 / (1.0 + np.exp(np.clip((bias - middle) / width, -500, 500))))


def searched(cost: Callable[[float], float], accuracy: Callable[[float], float]) -> tuple[Search[Made], list[float]]:
    asked: list[float] = []

    def measure(bias: float) -> Made:
        asked.append(bias)
        return Made(bias, cost(bias), accuracy(cost(bias)))

    return Search(measure, (0.0, 1.0), 1.0), asked


@settings(max_examples=80)
@given(st.floats(-50, 50), st.floats(0.2, 20), st.floats(0.05, 0.95), st.floats(0.2, 4.0))
def test_of_a_smooth_trade_off_the_cheapest_sufficient_point_is_found(
    middle: float, width: float, wanted: float, power: float
) -> None:
    """Accuracy rises with cost, so that the answer is known: the cost at which it reaches the floor."""
    floor = wanted**power
    search, asked = searched(curve(middle, width), lambda cost: cost**power)
    found = search.cheapest(floor)
    assert found is not None
    assert found.accuracy >= floor - 1e-9
    assert wanted - 1e-9 <= found.cost <= wanted + 2 * FINE
    assert len(asked) == len(set(asked)) <= MOST_POINTS + 20
    assert [point.bias for point in search.points] == sorted(asked)


@given(st.floats(0.1, 0.9), st.floats(0.0, 0.4))
def test_a_network_that_loses_too_much_as_trained_may_compute_more(trained: float, more: float) -> None:
    """At bias 0 it costs ``trained``; what is asked for needs more than that."""
    floor = trained + more * (1.0 - trained) + 0.01 * (1.0 - trained)
    middle = float(np.log(trained / (1.0 - trained)))
    search, asked = searched(curve(middle, 1.0), lambda cost: cost)
    found = search.cheapest(floor)
    assert found is not None
    assert found.bias < 0.0
    assert floor - 1e-9 <= found.cost <= floor + 2 * FINE
    assert max(asked) == 0.0, "nothing cheaper is tried"


@given(st.floats(-5, 5), st.floats(0.0, 0.9))
def test_without_a_sufficient_point_there_is_none_and_all_were_looked_at(middle: float, most: float) -> None:
    search, _ = searched(curve(middle, 1.0), lambda cost: most * cost)
    assert search.cheapest(most + 0.05) is None
    costs = [point.cost for point in search.points]
    assert costs[0] == pytest.approx(1.0), "the dearest path is among them"


def test_an_accuracy_that_falls_beyond_the_trained_cost_is_no_obstacle() -> None:
    """The paths that were trained are at half the cost; what is dearer is worse, what is cheaper too."""
    search, _ = searched(curve(0.0, 2.0), lambda cost: 0.9 - abs(cost - 0.5))
    found = search.cheapest(0.8)
    assert found is not None
    assert found.cost == pytest.approx(0.4, abs=2 * FINE)


def test_a_jump_is_not_measured_for_ever() -> None:
    search, asked = searched(lambda bias: 1.0 if bias < 3.3 else 0.0, lambda cost: 0.5 + cost / 2)
    found = search.cheapest(0.9)
    assert found is not None
    assert found.cost == 1.0
    assert len(asked) < MOST_POINTS


# The choice


def test_a_lucky_cheap_point_is_not_believed() -> None:
    points = [Made(-cost, cost, accuracy) for cost, accuracy in [(0.1, 0.80), (0.2, 0.91), (0.3, 0.86), (0.4, 0.95)]]
    chosen = cheapest_of(points, 0.9)
    assert chosen is not None
    assert chosen.cost == 0.4, "0.91 and 0.86 are 0.885 on average"
    lower = cheapest_of(points, 0.87)
    assert lower is not None
    assert lower.cost == 0.2


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12), st.floats(0, 1))
def test_a_choice_suffices_and_the_most_accurate_is_chosen_if_nothing_else(
    made: list[tuple[float, float]], floor: float
) -> None:
    points = [Made(-cost, cost, accuracy) for cost, accuracy in made]
    chosen = cheapest_of(points, floor)
    best = max(point.accuracy for point in points)
    assert (chosen is None) == (best < floor - 1e-9)
    if chosen is not None:
        assert chosen.accuracy >= floor - 1e-9
        assert chosen.cost <= min(point.cost for point in points if point.accuracy == best)
    assert cheapest_of(points[::-1], floor) in (chosen, *[p for p in points if p == chosen])


@given(VALUES)
def test_the_rising_fit_rises_and_keeps_the_mean(values: list[float]) -> None:
    fit = rising(values)
    assert all(low <= high + 1e-12 for low, high in itertools.pairwise(fit))
    assert sum(fit) == pytest.approx(sum(values))
    assert rising(sorted(values)) == pytest.approx(sorted(values))


@given(VALUES, VALUES)
def test_no_rising_values_are_nearer(values: list[float], others: list[float]) -> None:
    rivals = np.resize(sorted(others), len(values))
    rivals.sort()
    assert np.sum((np.array(rising(values)) - values) ** 2) <= np.sum((rivals - values) ** 2) + 1e-9
