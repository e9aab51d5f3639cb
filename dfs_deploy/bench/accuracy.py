"""Accuracy of timed cases, and the division of the images if one of several dynamic cases is to be judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from dfs_deploy.bench.result import DYNAMIC, STATIC, CaseResult
from dfs_deploy.bench.verdict import choose_contender, most_accurate
from dfs_deploy.paired import share_difference


@dataclass(frozen=True)
class Contest:
    """One dynamic case against the static ones.

    Attributes:
        cases: all cases, with their accuracy on the images that judge.
        contender: name of the dynamic case that is judged.
        chosen_from: number of dynamic cases that it was chosen from.
        sufficed: whether it was accurate enough by the images that chose; else it was the most accurate one.
        best: name of the most accurate case by the images that chose; ``None`` if there was nothing to choose.
    """

    cases: tuple[CaseResult, ...]
    contender: str = DYNAMIC
    chosen_from: int = 1
    sufficed: bool = True
    best: str | None = None


def contest(cases: Sequence[CaseResult], right: Mapping[str, NDArray[np.bool_]], max_top1_drop: float) -> Contest:
    """Chooses the dynamic case to judge, and scores the cases for that.

    Of several dynamic cases, chosen and judged by the same images, the luckiest would look better than it is. So would
    the most accurate case, which all others are measured by. One half of the images therefore names both, and only the
    other half judges.

    Args:
        cases: cases with their latencies.
        right: (N,) whether a case answered each image rightly, by name; empty without labels.
        max_top1_drop: share of right answers that may be lost against the most accurate case.
    """
    dynamic = [case.name for case in cases if case.dynamic]
    if not right or len(dynamic) == 1:
        return Contest(scored(cases, right))
    choosing, judging = ({name: each[start::2] for name, each in right.items()} for start in (0, 1))
    halved = scored(cases, choosing)
    best = most_accurate(halved).name
    contender, sufficed = choose_contender(halved, max_top1_drop)
    return Contest(scored(cases, judging, best), contender, len(dynamic), sufficed, best)


def scored(
    cases: Sequence[CaseResult], right: Mapping[str, NDArray[np.bool_]], best: str | None = None
) -> tuple[CaseResult, ...]:
    """Cases with their accuracy.

    Args:
        cases: cases with their latencies.
        right: (N,) whether a case answered each image rightly, by name; cases that are not in it stay as they are.
        best: name of the case that others are measured by; ``None`` for the most accurate one on these images.
    """
    base = next((case.name for case in cases if case.name in right and case.name.startswith(STATIC)), None)
    known = [
        case
        if case.name not in right
        else replace(
            case,
            top1=float(np.mean(right[case.name])),
            top1_change=None if base is None else share_difference(right[case.name], right[base]),
        )
        for case in cases
    ]
    if base is None:
        return tuple(known)
    top = right[most_accurate(known).name if best is None else best]
    return tuple(
        replace(case, top1_below_best=share_difference(right[case.name], top)) if case.name in right else case
        for case in known
    )
