"""Budgets: the bias on the gate's scores that holds each of them, found by running the bundle on calibration data.

The mean computation of a data set falls as the bias rises, but not strictly: it is a step function, and a block that is
skipped changes what the gate sees after it. So the search never trusts its slope. It keeps two biases with the budget
between them and halves the interval; of all biases tried, the nearest is kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dfs_deploy.bundle.manifest import BudgetRecord
from dfs_deploy.data import AnyImages
from dfs_deploy.errors import UsageError
from dfs_deploy.exporters.reference import images_at_once
from dfs_deploy.progress import Progress, silent
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.budgets import GREATEST_BIAS

TOLERANCE = 1.0
"""Percentage points of computation that a bias may miss a budget by on the calibration data."""

_NEAR_ENOUGH = 0.05
_ROUNDING = 1e-9
_MOST_HALVINGS = 30
_MOST_SPLITS = 4
_BATCH = 128
_TIMED = 200


class _Point(NamedTuple):
    """A bias tried for a budget, and its results: computation in percent, right answers as a share."""

    budget: float
    bias: float
    percentage: float
    top1: float

    @property
    def excess(self) -> float:
        """Percentage points of computation beyond the budget."""
        return self.percentage - 100.0 * self.budget


def check_budgets(given: str | float | Sequence[float], reach: tuple[float, float]) -> tuple[float, ...]:
    """The budgets to calibrate, least first, each once; a UsageError for none, or one that no path could hold.

    Args:
        given: numbers, or text such as ``0.1,0.2,0.4``.
        reach: least and greatest share of the computation that a path takes; see ``Architecture.computation_range``.
    """
    try:
        words = given.split(",") if isinstance(given, str) else (given,) if isinstance(given, float | int) else given
        budgets = tuple(float(word) for word in words)
    except (TypeError, ValueError) as error:
        raise UsageError(f"budgets {given!r}, expected numbers separated by commas, as in 0.1,0.2,0.4") from error
    if not budgets:
        raise UsageError("no budget to calibrate; give some, as in 0.1,0.2,0.4")
    for budget in budgets:
        if not 0.0 <= budget <= 1.0:
            raise UsageError(f"budget {budget:g}, expected 0 to 1: 0.2 is a fifth of every block in full precision")
        if not reach[0] - _ROUNDING <= budget <= reach[1] + _ROUNDING:
            raise UsageError(
                f"budget {budget:g} is out of reach: with these options a path costs {reach[0]:g} to {reach[1]:g};"
                " choose from that range"
            )
    return tuple(sorted(set(budgets)))


def calibrate_budgets(
    runtime: Runtime, budgets: Sequence[float], data: AnyImages, progress: Progress = silent
) -> list[BudgetRecord]:
    """Finds the bias that holds each budget on a data set, and measures accuracy and latency with it.

    The budgets are shares of running every decided block in full precision; the runtime is left as the gate was
    trained.

    Returns:
        One record per budget, least budget first, and more between two of them if a bias interpolated in a straight
        line would miss by more than ``TOLERANCE`` points. Biases never rise.

    Raises:
        UsageError: a budget that no path could hold, that no bias comes within ``TOLERANCE`` points of, or a
            network with nothing to decide.
    """
    architecture = runtime.bundle.architecture
    if not architecture.decided(runtime.options):
        raise UsageError("the network has no block to decide about, so it always computes the same; leave budgets out")
    wanted = check_budgets(budgets, architecture.computation_range(runtime.options))
    search = _Search(runtime, data)
    asked: list[_Point] = []
    # The greatest budget first: the bias of each is where the search of the next begins, so that none can fall.
    for budget in reversed(wanted):
        progress("calibrating budgets", len(asked) / (2 * len(wanted)))
        asked.insert(0, search.held(budget, asked[0].bias if asked else None))
    points = asked[:1]
    for done, upper in enumerate(asked[1:], 1):
        progress("calibrating budgets", 0.5 + done / (2 * len(wanted)))
        points += [*search.between(points[-1], upper, _MOST_SPLITS), upper]
    records = [
        BudgetRecord(
            budget=point.budget,
            bias=point.bias,
            computation_percentage=point.percentage,
            top1=point.top1,
            latency_ms=_latency_ms(runtime, data, point.bias),
            samples=len(data),
        )
        for point in points
    ]
    runtime.set_budget(None)
    progress("calibrating budgets", 1.0)
    return records


class _Search:
    """A search for biases on one data set, which keeps every measurement."""

    def __init__(self, runtime: Runtime, data: AnyImages) -> None:
        self._runtime = runtime
        self._data = data
        self._known: dict[float, tuple[float, float]] = {}

    def held(self, budget: float, least: float | None) -> _Point:
        """The point at which a budget is held, with a bias of at least ``least``.

        Raises:
            UsageError: no bias comes near enough.
        """
        low = self._measure(budget, 0.0 if least is None else least)
        step = 1.0
        while low.excess < 0.0 and least is None and step <= GREATEST_BIAS:
            low, step = self._measure(budget, -step), 2.0 * step
        high, step = low, 1.0
        while high.excess > 0.0 and step <= GREATEST_BIAS:
            high, step = self._measure(budget, low.bias + step), 2.0 * step
        nearest, low, high = self._halve(low, high)
        if abs(nearest.excess) > TOLERANCE:
            raise UsageError(
                f"budget {budget:g} cannot be held on these images: computation jumps from {high.percentage:.2f} to"
                f" {low.percentage:.2f} %; ask for one of these, or calibrate on more images"
            )
        return nearest

    def between(self, lower: _Point, upper: _Point, splits: int) -> list[_Point]:
        """The points needed between two others for a straight line to come near enough everywhere, in order."""
        budget = round((lower.budget + upper.budget) / 2.0, 6)  # no 0.15000000000000002
        line = self._measure(budget, (lower.bias + upper.bias) / 2.0)
        if splits == 0 or abs(line.excess) <= TOLERANCE:
            return []
        middle, _, _ = self._halve(upper._replace(budget=budget), lower._replace(budget=budget))
        if abs(middle.excess) > TOLERANCE:  # computation jumps there: no bias would do
            return []
        return [*self.between(lower, middle, splits - 1), middle, *self.between(middle, upper, splits - 1)]

    def _halve(self, low: _Point, high: _Point) -> tuple[_Point, _Point, _Point]:
        """The bias between two points of one budget that holds it best, and its last neighbours."""
        nearest = min(low, high, key=lambda point: abs(point.excess))
        for _ in range(_MOST_HALVINGS):
            if abs(nearest.excess) <= _NEAR_ENOUGH:
                break
            middle = self._measure(low.budget, (low.bias + high.bias) / 2.0)
            nearest = min(nearest, middle, key=lambda point: abs(point.excess))
            low, high = (middle, high) if middle.excess > 0.0 else (low, middle)
        return nearest, low, high

    def _measure(self, budget: float, bias: float) -> _Point:
        if bias not in self._known:
            self._runtime.set_cost_bias(bias)
            right, percentages = 0, []
            for images, labels in self._data.batches(images_at_once(self._runtime.input.shape, _BATCH)):
                result = self._runtime(images)
                right += int((result.classes == labels).sum())
                percentages.append(result.computation_percentage)
            percentage = float(np.concatenate(percentages).mean(dtype=np.float64))
            self._known[bias] = percentage, right / len(self._data)
        return _Point(budget, bias, *self._known[bias])


def _latency_ms(runtime: Runtime, data: AnyImages, bias: float) -> float:
    """Median time in milliseconds of one image, over the first of them, without normalisation."""
    runtime.set_cost_bias(bias)
    images = runtime.input.normalize(data.select(slice(_TIMED)).load().images)
    runtime(images[:1])
    times = []
    for i in range(len(images)):
        begun = time.perf_counter()
        runtime(images[i : i + 1])
        times.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(times)
