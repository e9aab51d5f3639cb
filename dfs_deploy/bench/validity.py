"""Whether a run can be relied on: VALID, or INVALID with the reason and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dfs_deploy.bench.case_result import CaseResult
from dfs_deploy.bench.clock import Turn
from dfs_deploy.bench.intervals import MIN_SEGMENTS

MAX_UNCERTAINTY = 0.05
"""Of a ratio: half of the least difference that a bench is asked to tell, a tenth."""

MIN_INPUTS = 8
"""Different inputs below which a path mixture is an anecdote."""


@dataclass(frozen=True)
class Problem:
    """A reason why a run is INVALID.

    Attributes:
        what: was seen, and what was expected.
        remedy: what to do.
    """

    what: str
    remedy: str


def find_problems(cases: Sequence[CaseResult], turn: Turn, inputs: int) -> tuple[Problem, ...]:
    """Looks for what makes ratios unreliable.

    Args:
        cases: with their ratios over the normaliser.
        turn: calls of a case before the next one's.
        inputs: different images that were run.
    """
    found = []
    if inputs < MIN_INPUTS:
        what = f"{inputs} different inputs, expected at least {MIN_INPUTS}"
        found.append(Problem(what, "give more images with --data"))
    least = min(case.timing.iterations for case in cases)
    wanted = MIN_SEGMENTS * turn.measured
    if least < wanted:
        what = f"{least} calls a case, expected at least {wanted}"
        return (*found, Problem(what, f"--min-iterations {wanted} or more, or leave it out"))
    known = [
        (case.ratios.mean.uncertainty, f"the mean ratio of {case.name} over {case.ratios.over}")
        for case in cases
        if case.ratios is not None and case.ratios.mean.uncertainty > MAX_UNCERTAINTY
    ]
    if known:
        worst, which = max(known)
        others = f", {len(known) - 1} more likewise" if len(known) > 1 else ""
        expected = f"±{100 * MAX_UNCERTAINTY:.0f} % or better"
        what = f"{which} is known only to ±{100 * worst:.1f} %{others}; expected {expected}"
        found.append(Problem(what, "stop what else runs here, or raise --min-seconds"))
    return tuple(found)
