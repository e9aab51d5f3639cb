"""Ratios of latencies, paired turn by turn, and how well a run knows them.

Calls that follow each other are not independent: a neighbour on the machine disturbs a few hundred in a row. So a run
is cut into consecutive segments, each gives its own ratio, and the order statistics of these give an interval for their
median. It assumes nothing of how latencies are distributed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.clock import TAIL

CONFIDENCE = 0.95

MAX_SEGMENTS = 20
MIN_SEGMENTS = 6
"""The fewest values whose extremes hold their median with 95 % confidence: 1 - 2 / 2**6 is 0.97."""


@dataclass(frozen=True)
class Interval:
    """An estimate and where the true value lies with 95 % confidence.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def uncertainty(self) -> float:
        """The farther end's distance from the estimate, as a share of the estimate."""
        return max(self.high - self.value, self.value - self.low) / abs(self.value)


@dataclass(frozen=True)
class Ratios:
    """Latency of one case over that of another, measured in the same turns.

    Attributes:
        over: name of the other case.
        mean: of the mean latencies in a turn, the median turn: a turn that was disturbed hardly moves it.
        p50: of the medians over calls.
        p95: of the 95th percentiles over calls; ``None`` where there are too few calls to know it.
    """

    over: str
    mean: Interval
    p50: Interval
    p95: Interval | None


def median_interval(values: NDArray[np.float64]) -> Interval | None:
    """The median of independent values and its distribution-free interval; ``None`` for fewer than six values.

    The interval runs from the k-th least to the k-th greatest value, for the greatest k whose coverage, by the binomial
    distribution with p = 1/2, is 95 % or more (David and Nagaraja, Order Statistics, 3rd edition, section 7.1).
    """
    count = len(values)
    if count < MIN_SEGMENTS:
        return None
    rank, outside = 0, 0.5**count
    while outside + math.comb(count, rank + 1) * 0.5**count <= (1.0 - CONFIDENCE) / 2:
        rank += 1
        outside += math.comb(count, rank) * 0.5**count
    ordered = np.sort(values)
    return Interval(float(np.median(ordered)), float(ordered[rank]), float(ordered[count - 1 - rank]))


def paired_ratios(case: NDArray[np.int64], base: NDArray[np.int64], over: str) -> Ratios | None:
    """Compares two cases that were timed in the same turns.

    Args:
        case: (turns, calls per turn) nanoseconds.
        base: (turns, calls per turn) nanoseconds of the case to divide by.
        over: name of that case.

    Returns:
        The ratios, or ``None`` where there are fewer than six turns.
    """
    by_turn = case.mean(1, dtype=np.float64) / base.mean(1, dtype=np.float64)
    mean = _over_segments(len(by_turn), 1, lambda rows: float(np.median(by_turn[rows])))
    p50 = _over_segments(len(by_turn), 1, lambda rows: float(np.median(case[rows])) / float(np.median(base[rows])))
    if mean is None or p50 is None:
        return None
    p95 = _over_segments(
        len(by_turn),
        _tail_turns(case.shape[1]),
        lambda rows: float(np.percentile(case[rows], 95)) / float(np.percentile(base[rows], 95)),
    )
    return Ratios(over, mean, p50, p95)


def calls_for_tail(measured: int) -> int:
    """The fewest calls of a case that give an interval of a ratio at the 95th percentile.

    Args:
        measured: calls of a case in a turn.
    """
    return MIN_SEGMENTS * _tail_turns(measured) * measured


def _tail_turns(measured: int) -> int:
    """The fewest turns of so many calls in which enough lie beyond the 95th percentile."""
    return math.ceil(TAIL / 0.05 / measured)


def share_difference(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> Interval:
    """Share of true values in one array less that in another, on the same inputs.

    Args:
        ours: (N,) whether one answered rightly.
        theirs: (N,) whether the other did.

    Returns:
        The difference, -1 to 1, with the normal interval for paired proportions (Agresti, Categorical Data Analysis,
        3rd edition, section 11.1): only inputs on which the two disagree count.
    """
    difference = ours.astype(np.float64) - theirs
    value = float(difference.mean())
    error = 1.96 * float(difference.std()) / math.sqrt(len(difference))
    return Interval(value, value - error, value + error)


def _over_segments(turns: int, least: int, ratio: Callable[[slice], float]) -> Interval | None:
    """The median over consecutive segments of at least so many turns each."""
    count = min(MAX_SEGMENTS, turns // least)
    if count < MIN_SEGMENTS:
        return None
    ends = [turns * i // count for i in range(count + 1)]
    return median_interval(np.array([ratio(slice(a, b)) for a, b in itertools.pairwise(ends)]))
