"""Graphs: the sign of what they give."""

from __future__ import annotations

import pytest

from dfs_deploy.models.graph import INPUT, Graph, Node, nonnegative


@pytest.mark.parametrize(
    ("low", "high", "always", "of_positive"),
    [(0.0, 6.0, True, True), (-1.0, 1.0, False, True), (-5.0, -1.0, False, False), (-1.0, 0.0, False, True)],
)
def test_a_clip_below_zero_makes_values_negative(low: float, high: float, always: bool, of_positive: bool) -> None:
    graph = Graph((Node("clip", "clip", (INPUT,), {}, {"low": low, "high": high}),), "clip")
    assert (nonnegative(graph), nonnegative(graph, given=True)) == (always, of_positive)
