"""Search for the cheapest bias on the gate's scores at which a network keeps a given accuracy.

Cost falls as the bias rises; accuracy follows it down, but on a few hundred images not without luck: some cheap point
is right by chance where dearer ones are not. So accuracy is first made to rise with cost, by isotonic regression
(Barlow et al., Statistical Inference under Order Restrictions, 1972) up to the most accurate point, and the cheapest
point is taken of which both the measured and the fitted accuracy suffice.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from dfs_deploy.runtimes.budgets import GREATEST_BIAS

COARSE = 0.04
"""Difference in cost, of the dearest path, below which neighbouring points are near enough to see the trade-off."""

FINE = 0.004
"""Difference in cost to which the cheapest sufficient point is told from the next cheaper one."""

MOST_POINTS = 48
"""Points that are measured in one search, those that look for the ends not counted."""

_FIRST_STEP = 4.0
_STEP_GROWTH = 4.0
_LEAST_STEP = 1e-4
_ROUNDING = 1e-9


class Point(Protocol):
    """A bias that was measured: its cost, 1 for the dearest path, and its accuracy, 0 to 1."""

    @property
    def bias(self) -> float: ...
    @property
    def cost(self) -> float: ...
    @property
    def accuracy(self) -> float: ...


P = TypeVar("P", bound=Point)


class Search(Generic[P]):
    """A search among the points that a function measures.

    Args:
        measure: measures one bias.
        ends: least and greatest cost of a path.
        unit: bias that is small for this network: the reciprocal of a usual price.

    Attributes:
        points: points measured so far, by rising bias.
    """

    def __init__(self, measure: Callable[[float], P], ends: tuple[float, float], unit: float) -> None:
        self._measure, self._ends, self._unit = measure, ends, unit
        self.points: list[P] = []

    def cheapest(self, floor: float) -> P | None:
        """The cheapest point whose accuracy reaches a floor; ``None`` if there is none.

        The gate as trained is looked at first. If that suffices, cheaper points are tried, else dearer ones.

        Args:
            floor: accuracy to reach, 0 to 1.
        """
        trained = self._add(0.0)
        self._reach_end(1.0 if trained.accuracy >= floor - _ROUNDING else -1.0)
        for _ in range(MOST_POINTS):
            between = self._next(floor)
            if between is None:
                break
            self._add(between)
        return cheapest_of(self.points, floor)

    def _add(self, bias: float) -> P:
        point = self._measure(bias)
        bisect.insort(self.points, point, key=lambda each: each.bias)
        return point

    def _reach_end(self, sign: float) -> None:
        """Goes on to the cheapest path with sign +1, to the dearest with -1."""
        bias, wanted = _FIRST_STEP * self._unit, self._ends[0 if sign > 0 else 1]
        while abs(self._add(sign * bias).cost - wanted) > _ROUNDING and bias < GREATEST_BIAS:
            bias = min(_STEP_GROWTH * bias, GREATEST_BIAS)

    def _next(self, floor: float) -> float | None:
        """The bias to measure next: in the widest gap, then beside the choice; ``None`` if the choice is settled.

        Gaps between points that are both below the floor say nothing, unless all points are.
        """
        enough = [point.accuracy >= floor - _ROUNDING for point in self.points]
        gaps = {
            i: self.points[i].cost - self.points[i + 1].cost
            for i in range(len(self.points) - 1)
            if self.points[i + 1].bias - self.points[i].bias > _LEAST_STEP * self._unit
            and (enough[i] or enough[i + 1] or not any(enough))
        }
        if not gaps:
            return None
        widest = max(gaps, key=lambda i: abs(gaps[i]))
        if abs(gaps[widest]) <= COARSE:
            chosen = cheapest_of(self.points, floor)
            if chosen is None:
                return None
            widest = next(i for i, point in enumerate(self.points) if point is chosen)
            if abs(gaps.get(widest, 0.0)) <= FINE:
                return None
        return (self.points[widest].bias + self.points[widest + 1].bias) / 2.0


def cheapest_of(points: Sequence[P], floor: float) -> P | None:
    """The cheapest point that reaches a floor, in its own accuracy and in that fitted to all; ``None`` without one.

    Args:
        points: points in any order, at least one.
        floor: accuracy to reach, 0 to 1.
    """
    ordered = sorted(points, key=lambda point: (point.cost, -point.accuracy))
    values = [point.accuracy for point in ordered]
    mode = values.index(max(values))
    for point, fit in zip(ordered, rising(values[: mode + 1]), strict=False):
        if min(point.accuracy, fit) >= floor - _ROUNDING:
            return point
    return None


def rising(values: Sequence[float]) -> list[float]:
    """The values that never fall and are nearest to the given ones in the square: neighbours that fall are averaged."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] >= mean:
            before, several = pools.pop()
            mean, count = (before * several + mean * count) / (several + count), several + count
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]
