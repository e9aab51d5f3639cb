"""What to ship, in words, from a stated rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dfs_deploy.bench.accuracy import standing
from dfs_deploy.bench.candidates import DYNAMIC, POLICY, RIVAL
from dfs_deploy.bench.case_result import CaseResult
from dfs_deploy.bench.intervals import Interval, Ratios
from dfs_deploy.bench.validity import MAX_UNCERTAINTY, Problem, compare
from dfs_deploy.thresholds import TIE, VERDICT_MAX_TOP1_DROP


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
    max_top1_drop: float = VERDICT_MAX_TOP1_DROP,
    device: str = "cpu",
    caveats: Sequence[str] = (),
) -> Verdict:
    """Chooses between the dynamic network and the static ones.

    Args:
        cases: cases with ``dfs`` and the static ones; others are not looked at.
        over_static: the dynamic network's latency over that of each static case.
        problems: why the run is INVALID.
        max_top1_drop: share of right answers that may be lost against the most accurate case.
        device: device that the run was on.
        caveats: what is known beforehand to weaken any choice, a line each.
    """
    dynamic = next(case for case in cases if case.name == DYNAMIC)
    statics = [case for case in cases if case.static]
    rule = rule_of(max_top1_drop)

    def none(words: str) -> Verdict:
        return Verdict(None, f"none: {words}", tuple(caveats), rule)

    if not statics:
        return none(_no_static(device))
    ratios = {ratio.over: ratio for ratio in over_static}
    found = standing(cases, max_top1_drop)
    if found is None:
        return none("the run is INVALID") if problems else _unlabelled(statics, ratios, tuple(caveats), rule)
    if any(problem.about == "inputs" for problem in problems):
        return none("the run is INVALID")
    if found.choice is None and not any(case.rival for case in statics):
        return none(_jointly_trained(dynamic, found.nearest, max_top1_drop))
    told = (*caveats, *_caveats((dynamic, *found.accurate), max_top1_drop))
    if found.choice is None:
        return _by_gain(dynamic, found.nearest, ratios, max_top1_drop, told, rule)
    if not found.dynamic:
        return _by_loss(dynamic, found.choice, found.best, max_top1_drop, told, rule)
    if problems:
        return none("the run is INVALID")
    return _by_latency(dynamic, found.choice, ratios[found.choice.name], told, rule)


def _no_static(device: str) -> str:
    if device == "cpu":
        return "the bundle has no static engine to compare with; export with --targets fp32,int8"
    return f"static engines run in ONNX Runtime alone so far, so there is none on {device}; --device cpu compares"


def rule_of(max_top1_drop: float) -> str:
    """The rule, in words."""
    return (
        f"of the cases whose top-1 is at most {100 * max_top1_drop:.2f} points below that of the most accurate one, the"
        " fastest; accuracy decides without a clock where it can; DFS is faster (slower) than a static network if the"
        " 95 % interval of the ratio of their latencies lies below (above) one and the ratio is at least"
        f" {100 * TIE:.0f} % from it, and as fast if the ratio is known to ±{100 * MAX_UNCERTAINTY:.0f} % and is"
        " neither, at the median and at p95; if the two disagree, the choice is yours; if neither differs, the static"
        " network, which is simpler; a p95 that is not known leaves the choice to the median; if no static engine of"
        " the same backbone is accurate enough, there is no verdict without a network that was trained to be static"
    )


def times(ratio: Interval) -> str:
    """A ratio of latencies in words."""
    how = compare(ratio)
    if how == "tie":
        return f"as fast ({ratio.value:.2f}x the time)"
    if how == "unknown":
        return f"between {ratio.low:.2f}x and {ratio.high:.2f}x the time"
    return f"{1 / ratio.value:.2f}x faster" if how == "faster" else f"{ratio.value:.2f}x slower"


def title(case: CaseResult) -> str:
    """``static-int8`` as ``static INT8``, and ``static-int8@net`` as ``static INT8 of net``."""
    kind, _, bundle = case.name.partition(RIVAL)
    name, _, precision = kind.partition("-")
    own = name.upper() if not precision else f"{name} {precision if precision == POLICY else precision.upper()}"
    return f"{own} of {bundle}" if bundle else own


def _jointly_trained(dynamic: CaseResult, nearest: CaseResult, max_top1_drop: float) -> str:
    return (
        f"{title(nearest)} has a top-1 of {_points(nearest)} against {_points(dynamic)} of DFS, more than the"
        f" {100 * max_top1_drop:.2f} points allowed: it is this network's own backbone with every block run, trained"
        " for the paths that the network takes, and nobody would ship it; compare with a network that was trained to be"
        " static, by --against BUNDLE"
    )


def _by_loss(
    dynamic: CaseResult,
    choice: CaseResult,
    best: CaseResult,
    max_top1_drop: float,
    caveats: tuple[str, ...],
    rule: str,
) -> Verdict:
    """The dynamic network is out by its accuracy."""
    lost = (best.top1 or 0.0) - (dynamic.top1 or 0.0)
    words = (
        f"ship {title(choice)}: DFS loses {100 * lost:.2f} points of top-1 against {title(best)}, more than the"
        f" {100 * max_top1_drop:.2f} allowed"
    )
    return Verdict(choice.name, words, caveats, rule)


def _by_gain(
    dynamic: CaseResult,
    nearest: CaseResult,
    ratios: Mapping[str, Ratios],
    max_top1_drop: float,
    caveats: tuple[str, ...],
    rule: str,
) -> Verdict:
    """Every static network is out by its accuracy."""
    words = (
        f"ship DFS: top-1 {_points(dynamic)}, and no static network comes within {100 * max_top1_drop:.2f} points of"
        f" it; {title(nearest)}, the nearest, has {_points(nearest)}"
    )
    ratio = ratios.get(nearest.name)
    if ratio is not None:
        words += f", and DFS takes {ratio.p50.value:.2f}x its time at the median"
    return Verdict(dynamic.name, words, caveats, rule)


def _by_latency(dynamic: CaseResult, best: CaseResult, ratios: Ratios, caveats: tuple[str, ...], rule: str) -> Verdict:
    median = compare(ratios.p50)
    tail = "unknown" if ratios.p95 is None else compare(ratios.p95)
    figures = f"{times(ratios.p50)} at the median"
    if ratios.p95 is None:
        caveats = (*caveats, "too few calls to compare p95: decided at the median alone; raise --min-iterations")
    elif tail == "unknown":
        caveats = (
            *caveats,
            f"p95 is not known well enough to be compared ({times(ratios.p95)} of {title(best)}): decided at the median"
            " alone; stop what else runs here, or raise --max-seconds",
        )
    else:
        figures += f", {times(ratios.p95)} at p95"
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


def _unlabelled(
    statics: Sequence[CaseResult], ratios: Mapping[str, Ratios], caveats: tuple[str, ...], rule: str
) -> Verdict:
    """Without labels one thing can be told: whether DFS is slower than the engine that accuracy is measured against."""
    base = statics[0]
    if compare(ratios[base.name].p50) == "slower":
        words = f"ship {title(base)}: DFS is {times(ratios[base.name].p50)} at the median even than that here"
        return Verdict(base.name, words, caveats, rule)
    figures = ", ".join(f"{times(ratios[case.name].p50)} against {title(case)}" for case in statics)
    words = f"none: no labels, so what each loses in accuracy is unknown; at the median DFS is {figures}"
    return Verdict(None, f"{words}; give labelled images with --data", caveats, rule)


def _caveats(cases: Sequence[CaseResult], max_top1_drop: float) -> tuple[str, ...]:
    """A line for each case of which these images cannot tell on which side of the floor it lies."""
    return tuple(
        f"top-1 of {title(case)} against the most accurate case: {100 * change.value:+.2f} points, between"
        f" {100 * change.low:+.2f} and {100 * change.high:+.2f} with 95 % confidence: these images cannot tell whether"
        f" it stays within {100 * max_top1_drop:.2f}; give more with --data"
        for case in cases
        if (change := case.top1_below_best) is not None and change.low < -max_top1_drop <= change.high
    )


def _points(case: CaseResult) -> str:
    return "-" if case.top1 is None else f"{100 * case.top1:.2f} %"
