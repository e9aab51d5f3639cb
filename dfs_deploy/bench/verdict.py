"""What to ship, in words, from a stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dfs_deploy.bench.candidates import DYNAMIC
from dfs_deploy.bench.case_result import CaseResult
from dfs_deploy.bench.intervals import Interval, Ratios
from dfs_deploy.bench.validity import Problem

MAX_TOP1_DROP = 0.01
"""Share of right answers that may be lost against the most precise static engine."""

TIE = 0.02
"""Ratios nearer to one than this decide nothing, however well they are known."""

_ROUNDING = 1e-9

Comparison = Literal["faster", "slower", "tie"]


@dataclass(frozen=True)
class Verdict:
    """What to ship.

    Attributes:
        choice: name of a case, or ``None`` where this run cannot tell.
        words: the verdict and the figures that decide it, one sentence.
        caveats: what it does not rest on firmly, a line each.
        rule: that it follows from.
    """

    choice: str | None
    words: str
    caveats: tuple[str, ...]
    rule: str


def decide(
    cases: Sequence[CaseResult],
    over_static: Sequence[Ratios],
    problems: Sequence[Problem],
    max_top1_drop: float = MAX_TOP1_DROP,
    device: str = "cpu",
) -> Verdict:
    """Chooses between the dynamic network and its static baselines.

    Args:
        cases: with ``dfs`` and the static engines, from the most precise on; others are not looked at.
        over_static: the dynamic network's latency over that of each static engine.
        problems: why the run is INVALID.
        max_top1_drop: share of right answers that may be lost against the most precise static engine.
        device: that the run was on.
    """
    dynamic = next(case for case in cases if case.name == DYNAMIC)
    statics = [case for case in cases if case.static]
    rule = rule_of(max_top1_drop)

    def none(words: str) -> Verdict:
        return Verdict(None, f"none: {words}", (), rule)

    if not statics:
        return none(_no_static(device))
    if problems:
        return none("the run is INVALID")
    ratios = {ratio.over: ratio for ratio in over_static}
    base = statics[0]
    if dynamic.top1 is None or base.top1 is None:
        return _unlabelled(statics, ratios, rule)
    floor = base.top1 - max_top1_drop - _ROUNDING
    accurate = [case for case in statics if case.top1 is not None and case.top1 >= floor]
    best = min(accurate, key=lambda case: case.timing.p50)
    caveats = _caveats((dynamic, *accurate), base, max_top1_drop)
    if dynamic.top1 < floor:
        words = (
            f"ship {title(best)}: DFS loses {100 * (base.top1 - dynamic.top1):.2f} points of top-1 against"
            f" {title(base)}, more than the {100 * max_top1_drop:.2f} allowed"
        )
        return Verdict(best.name, words, caveats, rule)
    return _by_latency(dynamic, best, ratios[best.name], caveats, rule)


def _no_static(device: str) -> str:
    if device == "cpu":
        return "the bundle has no static engine to compare with; export with --targets fp32,int8"
    return f"static engines run in ONNX Runtime alone so far, so there is none on {device}; --device cpu compares"


def rule_of(max_top1_drop: float) -> str:
    """The rule, in words."""
    return (
        f"of the cases whose top-1 is at most {100 * max_top1_drop:.2f} points below that of the most precise static"
        " engine, the fastest; DFS is faster (slower) than a static engine where the 95 % interval of the ratio of"
        f" their latencies lies below (above) one and the ratio is at least {100 * TIE:.0f} % from it, at the median"
        " and at p95; where the two disagree, the choice is yours; where neither differs, the static engine, which is"
        " simpler"
    )


def compare(ratio: Interval) -> Comparison:
    """Reads a ratio of latencies."""
    if ratio.high < 1.0 and ratio.value <= 1.0 - TIE:
        return "faster"
    if ratio.low > 1.0 and ratio.value >= 1.0 + TIE:
        return "slower"
    return "tie"


def times(ratio: Interval) -> str:
    """A ratio of latencies in words."""
    how = compare(ratio)
    if how == "tie":
        return f"as fast ({ratio.value:.2f}x the time)"
    return f"{1 / ratio.value:.2f}x faster" if how == "faster" else f"{ratio.value:.2f}x slower"


def title(case: CaseResult) -> str:
    """``static-int8`` as ``static INT8``."""
    name, _, precision = case.name.partition("-")
    return f"{name} {precision.upper()}" if precision else name.upper()


def _by_latency(dynamic: CaseResult, best: CaseResult, ratios: Ratios, caveats: tuple[str, ...], rule: str) -> Verdict:
    median = compare(ratios.p50)
    tail = "tie" if ratios.p95 is None else compare(ratios.p95)
    if ratios.p95 is None:
        caveats = (*caveats, "too few calls to compare p95: decided at the median alone; raise --min-iterations")
    figures = f"{times(ratios.p50)} at the median" + ("" if ratios.p95 is None else f", {times(ratios.p95)} at p95")
    accuracy = f"top-1 {_points(dynamic)} against {_points(best)}"
    if {median, tail} == {"faster", "slower"}:
        first, second = (title(dynamic), title(best)) if median == "faster" else (title(best), title(dynamic))
        words = f"{first} where the median counts, {second} where p95 does: against {title(best)} DFS is {figures}"
        return Verdict(None, f"{words}; {accuracy}", caveats, rule)
    if "faster" in (median, tail):
        words = f"ship DFS: against {title(best)}, the fastest that is accurate enough, it is {figures}; {accuracy}"
        return Verdict(dynamic.name, words, caveats, rule)
    if "slower" in (median, tail):
        words = f"ship {title(best)}: accurate enough, and DFS is {figures} here; {accuracy}"
        return Verdict(best.name, words, caveats, rule)
    words = f"ship {title(best)}: accurate enough and simpler, and DFS gains nothing here: {figures}; {accuracy}"
    return Verdict(best.name, words, caveats, rule)


def _unlabelled(statics: Sequence[CaseResult], ratios: dict[str, Ratios], rule: str) -> Verdict:
    """Without labels one thing can be told: whether DFS is slower than the engine that accuracy is measured against."""
    base = statics[0]
    if compare(ratios[base.name].p50) == "slower":
        words = f"ship {title(base)}: DFS is {times(ratios[base.name].p50)} at the median even than that here"
        return Verdict(base.name, words, (), rule)
    figures = ", ".join(f"{times(ratios[case.name].p50)} against {title(case)}" for case in statics)
    words = f"none: no labels, so what each loses in accuracy is unknown; at the median DFS is {figures}"
    return Verdict(None, f"{words}; give labelled images with --data", (), rule)


def _caveats(cases: Sequence[CaseResult], base: CaseResult, max_top1_drop: float) -> tuple[str, ...]:
    """A line for each case of which these images cannot tell on which side of the floor it lies."""
    return tuple(
        f"top-1 of {title(case)} against {title(base)}: {100 * change.value:+.2f} points, between"
        f" {100 * change.low:+.2f} and {100 * change.high:+.2f} with 95 % confidence: these images cannot tell whether"
        f" it stays within {100 * max_top1_drop:.2f}; give more with --data"
        for case in cases
        if (change := case.top1_change) is not None and change.low < -max_top1_drop <= change.high
    )


def _points(case: CaseResult) -> str:
    return "-" if case.top1 is None else f"{100 * case.top1:.2f} %"
