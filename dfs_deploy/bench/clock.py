"""Timing: warm-up, interleaved turns, a minimum of time and of count, and percentiles that the samples can carry."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOISY = 0.025
"""Coefficient of variation above which trtexec warns that times are unstable."""

BURST = 16
"""Calls in a row of one case before the next case has its turn."""

TAIL = 10
"""Samples that must lie beyond a percentile for it to be given."""

_WARM_UP_TURNS = 3
_TURNS_BETWEEN_COLLECTIONS = 32


@dataclass(frozen=True)
class Timing:
    """Latencies of one case, in milliseconds.

    Attributes:
        p50: median.
        p90: 90th percentile, linear between samples; p95 and p99 in the same way. ``None`` if fewer than ten samples
            lie beyond it: p90 takes 100 samples, p95 200, p99 1000.
        mean: arithmetic mean; nothing is dropped as an outlier.
        min: least.
        max: greatest.
        cov: coefficient of variation, standard deviation over mean.
        iterations: how many were measured.
    """

    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    mean: float
    min: float
    max: float
    cov: float
    iterations: int


def summarize(nanoseconds: Sequence[int] | NDArray[np.int64]) -> Timing:
    """Makes the figures of a case from its latencies in nanoseconds."""
    ms = np.asarray(nanoseconds, np.float64) / 1e6
    mean = float(ms.mean())
    return Timing(
        p50=float(np.median(ms)),
        p90=percentile(ms, 90),
        p95=percentile(ms, 95),
        p99=percentile(ms, 99),
        mean=mean,
        min=float(ms.min()),
        max=float(ms.max()),
        cov=float(ms.std() / mean),
        iterations=len(ms),
    )


def percentile(samples: NDArray[np.float64], percent: int) -> float | None:
    """A percentile above the median, linear between samples; ``None`` where fewer than ten samples lie beyond it."""
    if len(samples) * (100 - percent) < 100 * TAIL:
        return None
    return float(np.percentile(samples, percent))


@dataclass(frozen=True)
class Turn:
    """How many calls a case makes before the next case has its turn.

    Attributes:
        measured: in a row.
        unmeasured: before them. They bring what the case reads back into the cache: a dynamic network, whose inputs
            take different engines, needs dozens of calls, and would look a tenth slower than it is in an application.
    """

    measured: int = BURST
    unmeasured: int = 0


def turn_for(call_ms: float) -> Turn:
    """A turn long enough for a case to settle: 15 ms or a call unmeasured, then 30 ms or four calls measured.

    Counts are powers of two, so that two benches of one network have the same turns, and at most 256 and 128.

    Args:
        call_ms: time of a call of the slowest case, in milliseconds.
    """

    def calls(milliseconds: float, least: int, most: int) -> int:
        wanted = milliseconds / max(call_ms, 1e-6)
        return min(max(least, 1 << round(math.log2(max(wanted, 1.0)))), most)

    return Turn(measured=calls(30.0, 4, 256), unmeasured=calls(15.0, 1, 128))


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
    unmeasured: int = 0,
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
        burst: measured calls in a row of one case in a turn.
        unmeasured: calls before them in each turn, on the inputs that came before theirs, that are not measured.
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
            before = [inputs[(drawn - 1 - i) % len(inputs)] for i in range(unmeasured)]
            chosen = [inputs[(drawn + i) % len(inputs)] for i in range(burst)]
            for i in range(len(cases)):
                case = cases[(turn + i) % len(cases)]
                call, taken = case.call, times[case.name] if measured_from is not None else []
                for index in before:
                    call(index)
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
