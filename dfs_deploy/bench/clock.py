"""Timing in interleaved rounds, and what may be concluded from it: percentiles, ratios paired by round, intervals.

Calls that follow each other are not independent: a neighbour on the machine disturbs a few hundred in a row. So rounds
are what is drawn again in a bootstrap, whole and in consecutive blocks, and both cases of a ratio together: what slows
both down cancels. It assumes nothing about how latencies are distributed.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.result import CaseResult, Latency, Ratios, Round
from dfs_deploy.paired import Interval
from dfs_deploy.progress import Progress, silent

TAIL = 10
"""Samples that must lie beyond a percentile for it to be given."""

CLOCK = (
    "one call, from a normalised float32 image in memory to logits in memory; loading, decoding and normalising are"
    " outside; cases are called in rounds, and the first calls of a round are not measured; percentiles are linear"
    f" between samples, no sample is dropped, and {TAIL} samples must lie beyond a percentile above the median"
)
"""What the clock covers, in words."""

CONFIDENCE = 0.95

MAX_SEGMENTS = 20
MIN_SEGMENTS = 6
"""The fewest values whose extremes hold their median with 95 % confidence: 1 - 2 / 2**6 is 0.97."""

MAX_BLOCKS = 20
"""Most blocks of rounds that a bootstrap draws from."""

BOOTSTRAP = 1000
"""Draws of a bootstrap."""

_NORMAL = 1.96
"""Normal quantile for the confidence."""

_BINS = 400
_WARM_UP_ROUNDS = 3
_ROUNDS_BETWEEN_COLLECTIONS = 32

Rounds = NDArray[np.int64]
"""(rounds, calls per round) nanoseconds of one case."""


@dataclass(frozen=True)
class Case:
    """Something to time.

    Attributes:
        name: name of the case.
        call: function that runs it on the input of an index.
    """

    name: str
    call: Callable[[int], object]


def round_for(call_ms: float) -> Round:
    """A round long enough for a case to settle: 15 ms or a call unmeasured, then 30 ms or four calls measured.

    Counts are powers of two, so that two benches of one network have the same rounds, and at most 128 and 64: a busy
    machine, which makes a round many times as long, leaves enough of them.

    Args:
        call_ms: time of a call of the slowest case, in milliseconds.
    """

    def calls(milliseconds: float, least: int, most: int) -> int:
        wanted = milliseconds / max(call_ms, 1e-6)
        return min(max(least, 1 << round(math.log2(max(wanted, 1.0)))), most)

    return Round(measured=calls(30.0, 4, 128), unmeasured=calls(15.0, 1, 64))


def time_interleaved(
    cases: Sequence[Case],
    inputs: Sequence[int],
    *,
    warm_up_s: float,
    min_s: float,
    min_iterations: int,
    burst: int = 16,
    unmeasured: int = 0,
    progress: Progress = silent,
    stage: str = "timing",
) -> dict[str, list[int]]:
    """Times cases in rounds on the same inputs, so that a change of the machine meets them all.

    In a round every case runs the same few inputs in a row, and the case that goes first moves on each round. Cases
    that alternate call by call would find their weights pushed out of the cache by the others, as no application would.

    Args:
        cases: cases to time.
        inputs: indices of inputs in the order in which they are drawn, again from the start when used up.
        warm_up_s: seconds of rounds that are not measured; at least three rounds are not.
        min_s: measured seconds, all cases together, at least.
        min_iterations: calls of each case, at least.
        burst: measured calls in a row of one case in a round.
        unmeasured: calls before them in each round, on the inputs that came before theirs, that are not measured.
        progress: progress of the measured calls.
        stage: name of this work in the progress.

    Returns:
        Nanoseconds of each call, by case name, in the order of the calls; no call is left out.
    """
    times: dict[str, list[int]] = {case.name: [] for case in cases}
    clock = time.perf_counter_ns
    collecting = gc.isenabled()
    gc.disable()
    try:
        start, done, drawn, measured_from = clock(), 0, 0, None
        while True:
            now = clock()
            if measured_from is None and now - start >= 1e9 * warm_up_s and done >= _WARM_UP_ROUNDS:
                measured_from, done = now, 0
            if measured_from is not None:
                share = min((now - measured_from) / (1e9 * max(min_s, 1e-9)), done * burst / min_iterations)
                if share >= 1.0 and done:
                    return times
                progress(stage, share)
            before = [inputs[(drawn - 1 - i) % len(inputs)] for i in range(unmeasured)]
            chosen = [inputs[(drawn + i) % len(inputs)] for i in range(burst)]
            for i in range(len(cases)):
                case = cases[(done + i) % len(cases)]
                call, taken = case.call, times[case.name] if measured_from is not None else []
                for index in before:
                    call(index)
                for index in chosen:
                    begin = clock()
                    call(index)
                    taken.append(clock() - begin)
            done, drawn = done + 1, drawn + burst
            if done % _ROUNDS_BETWEEN_COLLECTIONS == 0:
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


def summarize(nanoseconds: Sequence[int] | NDArray[np.int64]) -> Latency:
    """Latency figures of calls that took so many nanoseconds each."""
    ms = np.asarray(nanoseconds, np.float64).ravel() / 1e6
    mean = float(ms.mean())
    return Latency(
        p50=float(np.median(ms)),
        p90=_percentile(ms, 90),
        p95=_percentile(ms, 95),
        p99=_percentile(ms, 99),
        mean=mean,
        min=float(ms.min()),
        max=float(ms.max()),
        cov=float(ms.std() / mean),
    )


def _percentile(samples: NDArray[np.float64], percent: int) -> float | None:
    """Percentile above the median, linear between samples; ``None`` if fewer than ten samples lie beyond it."""
    if len(samples) * (100 - percent) < 100 * TAIL:
        return None
    return float(np.percentile(samples, percent))


def case_result(
    name: str,
    batch: int,
    nanoseconds: Sequence[int] | NDArray[np.int64],
    *,
    engine_ms: float | None = None,
    **figures: Any,
) -> CaseResult:
    """Figures of a case that follow from its latencies, with others beside them.

    Args:
        name: name of the case.
        batch: images per call.
        nanoseconds: latencies of its calls.
        engine_ms: median time of its engines without dispatch, if they were timed.
        figures: other fields of the result.
    """
    latency = summarize(nanoseconds)
    return CaseResult(
        name=name,
        batch=batch,
        latency_ms=latency,
        throughput_per_s=1e3 * batch / latency.mean,
        iterations=int(np.size(nanoseconds)),
        engine_ms=engine_ms,
        dispatch_efficiency=None if engine_ms is None else engine_ms / latency.p50,
        **{"ratio": None, "joules_per_image": None, **figures},
    )


def median_interval(values: NDArray[np.float64]) -> Interval | None:
    """Median of independent values with its distribution-free interval; ``None`` for fewer than six values.

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


def paired_ratios(case: Rounds, base: Rounds, over: str) -> Ratios | None:
    """Compares two cases that were timed in the same rounds.

    Args:
        case: (rounds, calls per round) nanoseconds.
        base: (rounds, calls per round) nanoseconds of the case to divide by.
        over: name of that case.

    Returns:
        The ratios, or ``None`` for fewer than six rounds.
    """
    by_round = case.mean(1, dtype=np.float64) / base.mean(1, dtype=np.float64)
    mean = _over_segments(by_round)
    if mean is None:
        return None
    # How fast the machine was in a round: dividing both by it leaves their ratio in that round as it is. A round's
    # median of a dynamic case says little about that, for it depends on the paths that its inputs take.
    speed = np.median(base, 1)[:, None]
    speed = speed / np.median(speed)
    p50 = _percentile_ratio(case / speed, base / speed, 50)
    tail = len(case) >= MIN_SEGMENTS * _tail_rounds(case.shape[1])
    return Ratios(
        over, mean, p50, _percentile_ratio(case.astype(np.float64), base.astype(np.float64), 95) if tail else None
    )


def calls_for_tail(measured: int) -> int:
    """The fewest calls of a case that give an interval of a ratio at the 95th percentile.

    Args:
        measured: calls of a case in a round.
    """
    return MIN_SEGMENTS * _tail_rounds(measured) * measured


def _tail_rounds(measured: int) -> int:
    """The fewest rounds of so many calls in which enough lie beyond the 95th percentile."""
    return math.ceil(TAIL / 0.05 / measured)


def _over_segments(by_round: NDArray[np.float64]) -> Interval | None:
    """Median of the medians of consecutive segments of at least one round each."""
    count = min(MAX_SEGMENTS, len(by_round))
    if count < MIN_SEGMENTS:
        return None
    return median_interval(np.array([np.median(part) for part in np.array_split(by_round, count)]))


def _percentile_ratio(case: NDArray[np.float64], base: NDArray[np.float64], percent: int) -> Interval:
    """Ratio of two cases at a percentile over all calls, with its bootstrap interval over blocks of rounds.

    Blocks keep what lasts for several rounds together. As there are few, the percentile interval of the logarithm is
    widened about the estimate by Student's t over the normal quantile, and by sqrt(n / (n - 1)) (Hesterberg, "What
    Teachers Should Know About the Bootstrap", The American Statistician 69(4), 2015, section 4.2).

    Args:
        case: (rounds, calls per round) times, six rounds or more.
        base: the same of the case to divide by.
        percent: percentile, 0 to 100.
    """
    blocks = min(MAX_BLOCKS, len(case))
    draws = np.random.default_rng(0).multinomial(blocks, np.full(blocks, 1 / blocks), BOOTSTRAP)
    value = math.log(float(np.percentile(case, percent)) / float(np.percentile(base, percent)))
    drawn = np.log(_drawn_percentile(case, draws, percent) / _drawn_percentile(base, draws, percent))
    low, high = np.percentile(drawn, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    wider = _student(blocks - 1) / _NORMAL * math.sqrt(blocks / (blocks - 1))
    below, above = (wider * max(0.0, width) for width in (value - float(low), float(high) - value))
    return Interval(math.exp(value), math.exp(value - below), math.exp(value + above))


def _drawn_percentile(times: NDArray[np.float64], draws: NDArray[np.int64], percent: int) -> NDArray[np.float64]:
    """Percentile over the calls of each draw of blocks of rounds, linear within bins that each hold as many calls.

    Args:
        times: (rounds, calls per round) times.
        draws: (draws, blocks) number of times that each draw takes a block.
        percent: percentile, 0 to 100.

    Returns:
        (draws,) percentiles.
    """
    edges = np.unique(np.quantile(times, np.linspace(0.0, 1.0, _BINS + 1)))
    if len(edges) == 1:
        return np.full(len(draws), edges[0])
    parts = np.array_split(times, draws.shape[1])
    counts = np.array([np.histogram(part, edges)[0] for part in parts], np.float64)
    reached = np.cumsum(draws @ counts, 1)
    wanted = reached[:, -1:] * percent / 100
    at = np.minimum((reached < wanted).sum(1), len(edges) - 2)
    rows = np.arange(len(draws))
    before = np.where(at > 0, reached[rows, at - 1], 0.0)
    within = (wanted[:, 0] - before) / np.maximum(reached[rows, at] - before, 1e-9)
    found: NDArray[np.float64] = edges[at] + np.clip(within, 0.0, 1.0) * (edges[at + 1] - edges[at])
    return found


def _student(freedom: int) -> float:
    """Quantile of Student's t for the confidence (Abramowitz and Stegun, 26.7.5)."""
    z = _NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
