"""Whether what a verdict reads of a run can be relied on: VALID, or INVALID with the reason and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dfs_deploy.bench.accuracy import rival
from dfs_deploy.bench.case_result import CaseResult
from dfs_deploy.bench.clock import Turn
from dfs_deploy.bench.intervals import MIN_SEGMENTS, Interval, Ratios, calls_for_tail
from dfs_deploy.thresholds import TIE, VERDICT_MAX_TOP1_DROP

MAX_UNCERTAINTY = 0.05
"""Of a ratio: half of the least difference that a bench is asked to tell, a tenth."""

MIN_INPUTS = 8
"""Different inputs below which a path mixture is an anecdote."""

Comparison = Literal["faster", "slower", "tie", "unknown"]


@dataclass(frozen=True)
class Problem:
    """A reason why a run is INVALID.

    Attributes:
        what: what was seen, and what was expected.
        remedy: what to do.
        about: ``inputs`` if every figure is doubtful, ``clock`` if the times alone are.
    """

    what: str
    remedy: str
    about: Literal["inputs", "clock"] = "clock"


def compare(ratio: Interval) -> Comparison:
    """Reads a ratio of latencies: clear of one on either side, as good as one, or not known well enough to tell."""
    if ratio.high < 1.0 and ratio.value <= 1.0 - TIE:
        return "faster"
    if ratio.low > 1.0 and ratio.value >= 1.0 + TIE:
        return "slower"
    return "tie" if ratio.uncertainty <= MAX_UNCERTAINTY else "unknown"


def rival_ratios(
    cases: Sequence[CaseResult], over_static: Sequence[Ratios], max_top1_drop: float = VERDICT_MAX_TOP1_DROP
) -> Ratios | None:
    """The dynamic network's latency over that of the static case that the verdict compares it with.

    Args:
        cases: see :func:`find_problems`.
        over_static: see :func:`find_problems`.
        max_top1_drop: see :func:`find_problems`.

    Returns:
        The ratios, or ``None`` if accuracy alone decides, or if nothing can be compared.
    """
    against = rival(cases, max_top1_drop)
    return None if against is None else next((each for each in over_static if each.over == against.name), None)


def find_problems(
    cases: Sequence[CaseResult],
    over_static: Sequence[Ratios],
    turn: Turn,
    inputs: int,
    max_top1_drop: float = VERDICT_MAX_TOP1_DROP,
) -> tuple[Problem, ...]:
    """Looks for what makes the figures unreliable that the verdict reads.

    Args:
        cases: cases, with their ratios over the normaliser.
        over_static: the dynamic network's latency over that of each static case.
        turn: calls of a case before the next one's.
        inputs: different images that were run.
        max_top1_drop: share of right answers that the verdict lets a case lose.
    """
    found = []
    if inputs < MIN_INPUTS:
        what = f"{inputs} different inputs, expected at least {MIN_INPUTS}"
        found.append(Problem(what, "give more images with --data", "inputs"))
    least = min(case.timing.iterations for case in cases)
    wanted = MIN_SEGMENTS * turn.measured
    if least < wanted:
        what = f"{least} calls a case, expected at least {wanted}"
        return (*found, Problem(what, f"--min-iterations {wanted} or more, or leave it out"))
    against = rival_ratios(cases, over_static, max_top1_drop)
    if against is not None and compare(against.p50) == "unknown":
        ratio = against.p50
        what = (
            f"the median of dfs over that of {against.over} lies between {ratio.low:.2f} and {ratio.high:.2f}, which"
            f" neither tells them apart nor is ±{100 * MAX_UNCERTAINTY:.0f} % or better"
        )
        found.append(Problem(what, "stop what else runs here, or raise --max-seconds"))
    return tuple(found)


def wants_more(
    problems: Sequence[Problem],
    cases: Sequence[CaseResult],
    over_static: Sequence[Ratios],
    turn: Turn,
    growth: float,
    max_top1_drop: float = VERDICT_MAX_TOP1_DROP,
) -> bool:
    """Whether more measuring may tell what the verdict reads and does not know yet, the 95th percentile included.

    Args:
        problems: why the run is INVALID so far.
        cases: see :func:`find_problems`.
        over_static: see :func:`find_problems`.
        turn: calls of a case before the next one's.
        growth: how many times as many calls there can be in the end.
        max_top1_drop: see :func:`find_problems`.
    """
    if any(problem.about == "inputs" for problem in problems):
        return False
    against = rival_ratios(cases, over_static, max_top1_drop)
    if problems or against is None:
        return bool(problems)
    if against.p95 is None:
        return growth * min(case.timing.iterations for case in cases) >= calls_for_tail(turn.measured)
    return compare(against.p95) == "unknown"


def unsteady(cases: Sequence[CaseResult]) -> Problem | None:
    """Looks for what makes a run no baseline: a mean ratio, which later runs are compared by, that is hardly known.

    Args:
        cases: cases, with their ratios over the normaliser.
    """
    known = [
        (case.ratios.mean.uncertainty, f"the mean ratio of {case.name} over {case.ratios.over}")
        for case in cases
        if case.ratios is not None and case.ratios.mean.uncertainty > MAX_UNCERTAINTY
    ]
    if not known:
        return None
    worst, which = max(known)
    others = f", {len(known) - 1} more as well" if len(known) > 1 else ""
    what = f"{which} is known only to ±{100 * worst:.1f} %{others}; expected ±{100 * MAX_UNCERTAINTY:.0f} % or better"
    return Problem(what, "stop what else runs here, or raise --min-seconds")
