"""Timing: warm-up, interleaved turns, a minimum of time and of count, and percentiles that the samples can carry."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOISY = 0.025
"""Coefficient of variation above which trtexec warns that times are unstable."""

BURST = 16
"""Calls in a row of one case before the next case has its turn."""

_WARM_UP_TURNS = 3
_TURNS_BETWEEN_COLLECTIONS = 32


@dataclass(frozen=True)
class Timing:
    """Latencies of one case, in milliseconds.

    Attributes:
        p50: median.
        p90: 90th percentile, linear between samples; likewise p95 and p99.
        mean: arithmetic mean; nothing is dropped as an outlier.
        min: least.
        max: greatest.
        cov: coefficient of variation, standard deviation over mean.
        iterations: how many were measured.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    min: float
    max: float
    cov: float
    iterations: int


def summarize(nanoseconds: Sequence[int] | NDArray[np.int64]) -> Timing:
    """Makes the figures of a case from its latencies in nanoseconds."""
    ms = np.asarray(nanoseconds, np.float64) / 1e6
    p50, p90, p95, p99 = (float(value) for value in np.percentile(ms, [50, 90, 95, 99]))
    mean = float(ms.mean())
    return Timing(p50, p90, p95, p99, mean, float(ms.min()), float(ms.max()), float(ms.std() / mean), len(ms))


@dataclass(frozen=True)
class Case:
    """Something to time.

    Attributes:
        name: of the case.
        call: runs it on the input of an index.
    """

    name: str
    call: Callable[[int], object]


def time_interleaved(
    cases: Sequence[Case],
    inputs: Sequence[int],
    *,
    warm_up_s: float,
    min_s: float,
    min_iterations: int,
    burst: int = BURST,
    progress: Callable[[float], None] | None = None,
) -> dict[str, list[int]]:
    """Times cases in turns on the same inputs, so that a change of the machine meets them all.

    In a turn every case runs the same few inputs in a row, and the case that goes first moves on each turn. Cases that
    alternate call by call would find their weights pushed out of the cache by the others, as no application would.

    Args:
        cases: what to time.
        inputs: indices of inputs in the order in which they are drawn, again from the start when used up.
        warm_up_s: seconds of turns that are not measured; at least three turns are not.
        min_s: measured seconds, all cases together, at least.
        min_iterations: calls of each case, at least.
        burst: calls in a row of one case in a turn.
        progress: called with how far it is, 0 to 1.

    Returns:
        Nanoseconds of each call, by case name, in the order of the calls; no call is left out.
    """
    times: dict[str, list[int]] = {case.name: [] for case in cases}
    clock = time.perf_counter_ns
    collecting = gc.isenabled()
    gc.disable()
    try:
        start, turn, drawn, measured_from = clock(), 0, 0, None
        while True:
            now = clock()
            if measured_from is None and now - start >= 1e9 * warm_up_s and turn >= _WARM_UP_TURNS:
                measured_from, turn = now, 0
            if measured_from is not None:
                share = min((now - measured_from) / (1e9 * max(min_s, 1e-9)), turn * burst / min_iterations)
                if share >= 1.0 and turn:
                    return times
                if progress is not None:
                    progress(share)
            chosen = [inputs[(drawn + i) % len(inputs)] for i in range(burst)]
            for i in range(len(cases)):
                case = cases[(turn + i) % len(cases)]
                call, taken = case.call, times[case.name] if measured_from is not None else []
                for index in chosen:
                    begin = clock()
                    call(index)
                    taken.append(clock() - begin)
            turn, drawn = turn + 1, drawn + burst
            if turn % _TURNS_BETWEEN_COLLECTIONS == 0:
                gc.collect()
    finally:
        if collecting:
            gc.enable()


def median_alone(call: Callable[[], object], repeats: int = 101) -> float:
    """Median time of a call run by itself again and again, in milliseconds."""
    clock = time.perf_counter_ns
    for _ in range(5):
        call()
    samples = []
    for _ in range(repeats):
        begin = clock()
        call()
        samples.append(clock() - begin)
    return float(np.median(samples)) / 1e6
