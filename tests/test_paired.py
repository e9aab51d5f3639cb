from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.paired import Interval, safety_margin, share_difference

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def test_only_inputs_on_which_two_disagree_make_a_difference_uncertain() -> None:
    ours = np.array([True] * 90 + [False] * 10)
    found = share_difference(ours, np.array([True] * 92 + [False] * 8))
    assert found.value == pytest.approx(-0.02)
    # Agresti and Min: half an input more in each cell, so 0.5 won, 2.5 lost, of 102.
    assert found.low == pytest.approx(-2 / 102 - 1.96 * np.sqrt((3 - 4 / 102) / 102**2), rel=1e-6)
    other = share_difference(ours, np.array([False] * 8 + [True] * 90 + [False] * 2))
    assert (other.value, other.high - other.low) == (0.0, pytest.approx(2 * 1.96 * np.sqrt(17) / 102))


def test_a_thing_differs_from_itself_by_nothing_and_from_its_like_by_little() -> None:
    ours = np.array([True] * 9 + [False])
    assert share_difference(ours, ours) == Interval(0.0, 0.0, 0.0)
    few, many = (share_difference(np.repeat(ours, n), np.repeat(ours, n)) for n in (1, 100))
    assert few.low < -0.1 < many.low < 0.0 < many.high < 0.1 < few.high


@given(PAIRS)
def test_a_difference_turned_round_is_its_negative(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = (np.array(side) for side in zip(*pairs, strict=True))
    one, other = share_difference(ours, theirs), share_difference(theirs, ours)
    assert one.value == pytest.approx(-other.value)
    assert one.low == pytest.approx(-other.high)
    assert -1.0 <= one.low <= one.value <= one.high <= 1.0


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random, held = np.random.default_rng(0), 0
    for _ in range(2000):
        draw = random.random(120)
        found = share_difference(draw > 0.12, (draw > 0.07) & (draw < 0.97))
        held += found.low <= -0.02 <= found.high
    assert 0.93 <= held / 2000 <= 0.985


def test_the_margin_of_a_choice_is_a_standard_error_but_no_more_than_is_allowed() -> None:
    ours, theirs = np.arange(400) % 20 != 0, np.arange(400) % 20 != 1
    change = share_difference(ours, theirs)
    assert safety_margin(change, 0.5) == pytest.approx(np.sqrt(0.1 / 400), rel=0.05), "one in ten images differs"
    assert safety_margin(change, 0.003) == 0.003
    assert safety_margin(share_difference(ours, ours), 0.5) == 0.0
