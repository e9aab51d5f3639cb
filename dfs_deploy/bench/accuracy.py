"""Which cases are accurate enough to be shipped: what a verdict can decide without a clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dfs_deploy.bench.candidates import DYNAMIC
from dfs_deploy.bench.case_result import CaseResult
from dfs_deploy.thresholds import TIE, VERDICT_MAX_TOP1_DROP

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Standing:
    """The dynamic network and the static networks by accuracy.

    Attributes:
        best: most accurate case of all, the dynamic network included.
        dynamic: whether the dynamic network is accurate enough.
        accurate: static cases that are accurate enough, in the order in which they were given.
        choice: fastest of these at the median; of several that are as fast, the first, which is the most precise.
        nearest: most accurate static case, accurate enough or not.
    """

    best: CaseResult
    dynamic: bool
    accurate: tuple[CaseResult, ...]
    choice: CaseResult | None
    nearest: CaseResult


def standing(cases: Sequence[CaseResult], max_top1_drop: float = VERDICT_MAX_TOP1_DROP) -> Standing | None:
    """Sorts cases by accuracy.

    Args:
        cases: cases with ``dfs`` and static ones; others are passed over.
        max_top1_drop: share of right answers that may be lost against the most accurate case.

    Returns:
        How they stand, or ``None`` if there is no static case, or if the accuracy is not known.
    """
    known = {case.name: case.top1 for case in cases if (case.static or case.name == DYNAMIC) and case.top1 is not None}
    statics = [case for case in cases if case.static and case.name in known]
    dynamic = next(case for case in cases if case.name == DYNAMIC)
    if not statics or dynamic.name not in known:
        return None
    best = max((*statics, dynamic), key=lambda case: known[case.name])
    floor = known[best.name] - max_top1_drop - _ROUNDING
    accurate = tuple(case for case in statics if known[case.name] >= floor)
    fastest = min((case.timing.p50 for case in accurate), default=0.0)
    return Standing(
        best=best,
        dynamic=known[dynamic.name] >= floor,
        accurate=accurate,
        choice=next((case for case in accurate if case.timing.p50 <= (1.0 + TIE) * fastest), None),
        nearest=max(statics, key=lambda case: known[case.name]),
    )


def rival(cases: Sequence[CaseResult], max_top1_drop: float = VERDICT_MAX_TOP1_DROP) -> CaseResult | None:
    """The static case whose latency the verdict compares the dynamic network with.

    Args:
        cases: see :func:`standing`.
        max_top1_drop: see :func:`standing`.

    Returns:
        The fastest that is accurate enough; the first static case if the accuracy is not known; ``None`` if accuracy
        alone decides, or if there is no static case.
    """
    found = standing(cases, max_top1_drop)
    if found is not None:
        return found.choice if found.dynamic else None
    return next((case for case in cases if case.static), None)
