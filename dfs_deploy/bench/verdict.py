"""What to ship, in words, from a stated rule: accuracy first, then latency, if the run is VALID.

A run is INVALID if what its verdict reads cannot be relied on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from dfs_deploy.bench.clock import MIN_SEGMENTS, calls_for_tail
from dfs_deploy.bench.result import (
    BUDGET,
    DYNAMIC,
    POLICY,
    RIVAL,
    STATIC,
    CaseResult,
    Problem,
    Ratios,
    Round,
    Verdict,
)
from dfs_deploy.paired import Interval, safety_margin
from dfs_deploy.thresholds import MAX_UNCERTAINTY, MIN_INPUTS, TIE, VERDICT_MAX_TOP1_DROP

_ROUNDING = 1e-9
_INT8 = f"{STATIC}int8"


def compare(ratio: Interval) -> Literal["faster", "slower", "tie", "unknown"]:
    """Reads a ratio of latencies.

    Returns:
        ``faster`` if the whole interval lies below the line of 1 - ``TIE``; ``slower`` if it lies above one and the
        ratio is 1 + ``TIE`` or more; ``tie`` if it lies above that line otherwise; ``unknown`` if it holds the line, so
        that another run might read it otherwise.
    """
    if ratio.high < 1.0 - TIE:
        return "faster"
    if ratio.low <= 1.0 - TIE:
        return "unknown"
    return "slower" if ratio.low > 1.0 and ratio.value >= 1.0 + TIE else "tie"


@dataclass(frozen=True)
class Standing:
    """The dynamic network and the static networks, by accuracy.

    Attributes:
        best: most accurate case of all, the dynamic ones included, by the images that chose if there were some.
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


def choose_contender(cases: Sequence[CaseResult], max_top1_drop: float) -> tuple[str, bool]:
    """Name of the dynamic case that may be shipped, of several: the fastest that is surely accurate enough.

    Args:
        cases: cases with their top-1 on images that the verdict is not judged by.
        max_top1_drop: share of right answers that may be lost against the most accurate case.

    Returns:
        The fastest at the median of the dynamic cases that are accurate enough by a margin
        (``dfs_deploy.paired.safety_margin``), of several that are as fast the first; the most accurate dynamic case if
        none is. A case whose difference to the most accurate one is not known needs no margin. The second value is
        whether the case is accurate enough by that margin.
    """
    dynamic = [case for case in cases if case.dynamic and case.top1 is not None]
    sure = [
        case
        for case in dynamic
        if _accurate([case], most_accurate(cases), max_top1_drop - _margin(case, max_top1_drop))
    ]
    chosen = _fastest(sure)
    return (max(dynamic, key=_top1) if chosen is None else chosen).name, chosen is not None


def most_accurate(cases: Sequence[CaseResult]) -> CaseResult:
    """Case of the greatest top-1, dynamic or static; of several, a static one, and of these the first.

    Args:
        cases: cases, at least one of them dynamic or static and of known top-1.
    """
    known = [case for case in cases if (case.dynamic or case.static) and case.top1 is not None]
    return max(sorted(known, key=lambda case: not case.static), key=_top1)


def _margin(case: CaseResult, max_top1_drop: float) -> float:
    return 0.0 if case.top1_below_best is None else safety_margin(case.top1_below_best, max_top1_drop)


def _top1(case: CaseResult) -> float:
    return case.top1 or 0.0


def _accurate(cases: Sequence[CaseResult], best: CaseResult, max_top1_drop: float) -> tuple[CaseResult, ...]:
    """Those of some cases that lose no more than is allowed against another."""
    floor = _top1(best) - max_top1_drop - _ROUNDING
    return tuple(case for case in cases if _top1(case) >= floor)


def _fastest(cases: Sequence[CaseResult]) -> CaseResult | None:
    """Fastest case at the median; of several that are as fast, the first. ``None`` of none."""
    least = min((case.latency_ms.p50 for case in cases), default=0.0)
    return next((case for case in cases if case.latency_ms.p50 <= (1.0 + TIE) * least), None)


_Choice = tuple[str | None, str, tuple[str, ...]]
"""Choice, words and caveats of a verdict."""


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on, and what follows from it.

    Attributes:
        cases: cases with their ratios over the normaliser; dynamic and static ones are read.
        over_static: latency of the contender over that of each static case.
        size: calls of a case before the next one takes over.
        inputs: number of different images that were run.
        max_top1_drop: share of right answers that may be lost against the most accurate case.
        doubts: further reasons why the run is INVALID.
        contender: name of the dynamic case that is judged.
        chosen_from: number of dynamic cases that it was chosen from, by images that it is not judged by.
        sufficed: whether it was accurate enough by those images; else it was chosen as the most accurate.
        best: name of the most accurate case by those images; ``None`` for the most accurate one of ``cases``.
        gated: whether the bundle has a gate, so that its own static engines are of weights trained for other paths.
    """

    cases: Sequence[CaseResult]
    over_static: Sequence[Ratios]
    size: Round
    inputs: int
    max_top1_drop: float = VERDICT_MAX_TOP1_DROP
    doubts: tuple[Problem, ...] = ()
    contender: str = DYNAMIC
    chosen_from: int = 1
    sufficed: bool = True
    best: str | None = None
    gated: bool = False

    @cached_property
    def standing(self) -> Standing | None:
        """Cases by accuracy; ``None`` if there is no static case, or if the accuracy is not known."""
        known = [case for case in self.cases if (case.static or case.dynamic) and case.top1 is not None]
        statics = [case for case in known if case.static]
        if not statics or self.dynamic not in known:
            return None
        best = next((case for case in known if case.name == self.best), None) or most_accurate(known)
        accurate = _accurate(statics, best, self.max_top1_drop)
        return Standing(
            best=best,
            dynamic=bool(_accurate([self.dynamic], best, self.max_top1_drop)),
            accurate=accurate,
            choice=_fastest(accurate),
            nearest=max(statics, key=_top1),
        )

    @property
    def dynamic(self) -> CaseResult:
        """Case of the dynamic network that is judged."""
        return next(case for case in self.cases if case.name == self.contender)

    @cached_property
    def rival(self) -> Ratios | None:
        """Dynamic network's latency over that of its rival, the static case that the verdict compares it with.

        The rival is the fastest static case that is accurate enough; the first one if the accuracy is not known.
        ``None`` if accuracy decides without a clock, or if nothing can be compared.
        """
        found = self.standing
        if found is None:
            rival = next((case for case in self.cases if case.static), None)
        else:
            rival = found.choice if found.dynamic else None
        return None if rival is None else next((each for each in self.over_static if each.over == rival.name), None)

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """Reasons why the run is INVALID: what makes the figures unreliable that the verdict reads."""
        found = []
        if self.inputs < MIN_INPUTS:
            what = f"{self.inputs} different inputs, expected at least {MIN_INPUTS}"
            found.append(Problem(what, "give more images with --data", "inputs"))
        least, wanted = min(case.iterations for case in self.cases), MIN_SEGMENTS * self.size.measured
        if least < wanted:
            what = f"{least} calls per case, expected at least {wanted}"
            found.append(Problem(what, f"--min-iterations {wanted} or more, or raise --max-seconds"))
        elif self.rival is not None and compare(self.rival.p50) == "unknown":
            ratio = self.rival.p50
            what = (
                f"the median of {self.contender} over that of {self.rival.over} lies between {ratio.low:.3f} and"
                f" {ratio.high:.3f}, expected all of it on one side of {1 - TIE:.2f}, so that another run chooses alike"
            )
            found.append(Problem(what, "stop what else runs here, or raise --max-seconds"))
        return (*found, *self.doubts)

    def wants_more(self, growth: float) -> bool:
        """Whether more measuring may show what the verdict reads and does not know yet, p95 included.

        Args:
            growth: how many times as many calls there can be in the end.
        """
        if any(problem.about == "inputs" for problem in self.problems):
            return False
        if self.problems or self.rival is None:
            return bool(self.problems)
        if self.rival.p95 is None:
            return growth * min(case.iterations for case in self.cases) >= calls_for_tail(self.size.measured)
        return compare(self.rival.p95) == "unknown"

    def verdict(self, device: str = "cpu", caveats: Sequence[str] = ()) -> Verdict:
        """Chooses between the dynamic network and the static ones.

        Args:
            device: device that the run was on.
            caveats: known weaknesses of any choice, one line each.
        """
        choice, words, more = self._choose(device)
        return Verdict(choice, words, (*caveats, *more), rule_of(self.max_top1_drop))

    def _choose(self, device: str) -> _Choice:
        """Follows the rule."""
        dynamic, statics = self.dynamic, [case for case in self.cases if case.static]
        if not statics:
            return None, f"none: {_no_static(device)}", ()
        found = self.standing
        if any(problem.about == "inputs" or found is None for problem in self.problems):
            return None, "none: the run is INVALID", ()
        if found is None:
            return _unlabelled(dynamic, statics, {ratio.over: ratio for ratio in self.over_static})
        if found.choice is None and not any(case.rival for case in statics):
            words = (
                f"none: {title(found.nearest)} has a top-1 of {_points(found.nearest)} against {_points(dynamic)} of"
                f" {title(dynamic)}, more than the {self._allowed} points allowed: it is this network's own backbone"
                " with every block run, trained for the paths that the network takes, and nobody would ship it; compare"
                " with a network that was trained to be static: bench BUNDLE STATIC"
            )
            return None, words, self._chosen()
        choice, words, caveats = self._between(found)
        if self.gated and choice == dynamic.name and not any(case.rival for case in statics):
            caveats += (
                "the static engines are this network's own backbone, trained for the gate's paths; one that was trained"
                " to be static may be more accurate: compare with it, bench BUNDLE STATIC",
            )
        return choice, words, (*_caveats((dynamic, *found.accurate), self.max_top1_drop), *caveats, *self._chosen())

    def _between(self, found: Standing) -> _Choice:
        """Chooses between the dynamic network and the static networks that are to be taken seriously."""
        dynamic, choice = self.dynamic, found.choice
        ratios = {ratio.over: ratio for ratio in self.over_static}
        if choice is None:
            winner, ratio = dynamic if found.dynamic else found.best, ratios.get(found.nearest.name)
            words = (
                f"ship {title(winner)}: top-1 {_points(winner)}, and no static network comes within {self._allowed}"
                f" points of {'it' if found.best is winner else title(found.best)}; {title(found.nearest)}, the"
                f" nearest, has {_points(found.nearest)}"
            )
            if winner is dynamic and ratio is not None:
                words += f", and {title(dynamic)} takes {ratio.p50.value:.2f}x its time at the median"
            return winner.name, words, ()
        if not found.dynamic:
            lost = _top1(found.best) - _top1(dynamic)
            words = (
                f"ship {title(choice)}: {title(dynamic)} loses {100 * lost:.2f} points of top-1 on these images against"
                f" {title(found.best)}, more than the {self._allowed} allowed"
            )
            if _uncertain(dynamic, self.max_top1_drop):
                words += f"; on so few images that may be chance, see the note on {title(dynamic)}"
            return choice.name, words, self._at_its_accuracy(ratios)
        if self.problems:
            return None, "none: the run is INVALID", ()
        twin = max(
            (case for case in found.accurate if case.name.startswith(_INT8) and case is not choice),
            key=_top1,
            default=None,
        )
        return _by_latency(dynamic, choice, ratios[choice.name], twin, None if twin is None else ratios[twin.name])

    @property
    def _allowed(self) -> str:
        return f"{100 * self.max_top1_drop:.2f}"

    def _chosen(self) -> tuple[str, ...]:
        """One line about which images the dynamic case was chosen by, if there were several."""
        if self.chosen_from == 1:
            return ()
        why = (
            "the fastest that is accurate enough there by a standard error"
            if self.sufficed
            else "the most accurate, since none is accurate enough there by a standard error"
        )
        return (
            f"{title(self.dynamic)} was chosen of {self.chosen_from} dynamic cases by one half of the images, as {why};"
            " the verdict's accuracies are those of the other half",
        )

    def _at_its_accuracy(self, ratios: Mapping[str, Ratios]) -> tuple[str, ...]:
        """One line about static networks that are as accurate as a dynamic one that loses too much to be chosen."""
        dynamic = self.dynamic
        statics = [case for case in self.cases if case.static and case.top1 is not None]
        rival = _fastest(_accurate(statics, dynamic, self.max_top1_drop))
        if rival is None or rival.name not in ratios or self.problems:
            return ()
        return (
            f"at the accuracy of {title(dynamic)} ({_points(dynamic)}) the fastest static network is {title(rival)}, at"
            f" {rival.latency_ms.p50:.3g} ms; {title(dynamic)} is {times(ratios[rival.name].p50)} at the median",
        )


def unsteady(cases: Sequence[CaseResult]) -> Problem | None:
    """Looks for what makes a run no baseline: a mean ratio, which later runs are compared by, that is hardly known.

    Args:
        cases: cases, with their ratios over the normaliser.
    """
    known = [
        (case.ratio.mean.uncertainty, f"the mean ratio of {case.name} over {case.ratio.over}")
        for case in cases
        if case.ratio is not None and case.ratio.mean.uncertainty > MAX_UNCERTAINTY
    ]
    if not known:
        return None
    worst, which = max(known)
    others = f", {len(known) - 1} more as well" if len(known) > 1 else ""
    what = f"{which} is known only to ±{100 * worst:.1f} %{others}; expected ±{100 * MAX_UNCERTAINTY:.0f} % or better"
    return Problem(what, "stop what else runs here, or raise --min-seconds")


def rule_of(max_top1_drop: float) -> str:
    """The rule, in words."""
    return (
        f"A case is accurate enough if its top-1 is at most {100 * max_top1_drop:.2f} points below that of the most"
        " accurate case. Of several dynamic cases, one half of the images chooses the fastest that is accurate enough"
        " by a standard error, if one is, else the most accurate; it also says which case is the most accurate, and the"
        " other half judges. If only DFS or only static networks are accurate enough, accuracy alone decides"
        " between them. Otherwise latency decides between DFS and the fastest static network that is accurate enough,"
        f" at the median and at p95. DFS is faster if the 95 % interval of the ratio of the two latencies lies below"
        f" {1 - TIE:.2f}, and not faster if it lies above that; if it lies above one and the ratio is {1 + TIE:.2f} or"
        " more, DFS is slower. If the interval of the median holds that line, the run is INVALID. If median and p95"
        " disagree, the choice is yours. If neither differs, the static network is chosen, because it is simpler. If"
        " p95 is not known, the median decides. If no static engine of the own backbone of DFS is accurate enough,"
        " there is no verdict without a network that was trained to be static."
    )


def _no_static(device: str) -> str:
    if device == "cpu":
        return "the bundle has no static engine to compare with; export with --targets fp32,int8"
    return f"static engines run only in ONNX Runtime so far, so there is none on {device}; --device cpu compares"


def _by_latency(
    dynamic: CaseResult, rival: CaseResult, ratios: Ratios, twin: CaseResult | None, over_twin: Ratios | None
) -> _Choice:
    """Both are accurate enough.

    Args:
        dynamic: dynamic network.
        rival: fastest static network that is accurate enough.
        ratios: latency of the one over that of the other.
        twin: another static INT8 network that is accurate enough, to be named as well.
        over_twin: latency of the dynamic network over that of the twin.
    """
    ours = title(dynamic)
    median = compare(ratios.p50)
    tail = "unknown" if ratios.p95 is None else compare(ratios.p95)
    figures = f"{times(ratios.p50)} at the median"
    caveats: tuple[str, ...] = ()
    if ratios.p95 is None:
        caveats = ("too few calls to compare p95: only the median decided; raise --min-iterations",)
    elif tail == "unknown":
        caveats = (
            f"p95 is not known well enough to be compared ({times(ratios.p95)} of {title(rival)}): only the median"
            " decided; stop what else runs here, or raise --max-seconds",
        )
    else:
        figures += f", {times(ratios.p95)} at p95"
    accuracy = f"top-1 {_points(dynamic)} against {_points(rival)}"
    if {median, tail} == {"faster", "slower"}:
        first, second = (ours, title(rival)) if median == "faster" else (title(rival), ours)
        words = f"{first} if the median counts, {second} if p95 does: against {title(rival)} {ours} is {figures}"
        return None, f"{words}; {accuracy}", caveats
    best = f"the best static network of equal accuracy, at {rival.latency_ms.p50:.3g} ms"
    beside = "" if over_twin is None or twin is None else f"; {title(twin)} takes {twin.latency_ms.p50:.3g} ms"
    if "faster" in (median, tail):
        if over_twin is not None and twin is not None and compare(over_twin.p50) == "faster":
            words = (
                f"ship {ours}: {times(over_twin.p50)} at the median than {title(twin)} at equal accuracy; the best"
                f" static network of equal accuracy is {title(rival)} at {rival.latency_ms.p50:.3g} ms, and {ours}, at"
                f" {dynamic.latency_ms.p50:.3g} ms, is {figures}"
            )
        elif {median, tail} <= {"faster", "unknown"}:
            words = f"ship {ours}: {figures} than {title(rival)} at equal accuracy; that is {best}"
        else:
            words = f"ship {ours}: against {title(rival)}, {best}, it is {figures}"
        return dynamic.name, f"{words}; {accuracy}", caveats
    if "slower" in (median, tail):
        words = f"ship {title(rival)}: accurate enough at {rival.latency_ms.p50:.3g} ms, and {ours} is {figures} here"
        return rival.name, f"{words}{beside}; {accuracy}", caveats
    words = f"ship {title(rival)}: accurate enough and simpler, and {ours} gains nothing here: {figures}{beside}"
    return rival.name, f"{words}; {accuracy}", caveats


def _unlabelled(dynamic: CaseResult, statics: Sequence[CaseResult], ratios: Mapping[str, Ratios]) -> _Choice:
    """Without labels only this is known: whether DFS is slower than the engine that accuracy is measured against."""
    base, ours = statics[0], title(dynamic)
    if compare(ratios[base.name].p50) == "slower":
        words = f"ship {title(base)}: {ours} is {times(ratios[base.name].p50)} at the median even than that here"
        return base.name, words, ()
    figures = ", ".join(f"{times(ratios[case.name].p50)} against {title(case)}" for case in statics)
    words = f"none: no labels, so what each loses in accuracy is unknown; at the median {ours} is {figures}"
    return None, f"{words}; give labelled images with --data", ()


def _caveats(cases: Sequence[CaseResult], max_top1_drop: float) -> tuple[str, ...]:
    """One line for each case of which these images do not show on which side of the floor it lies."""
    return tuple(
        f"{title(case)}: on these images its top-1 differs by {100 * change.value:+.2f} points from that of the most"
        f" accurate case; on others like them, by {100 * change.low:+.2f} to {100 * change.high:+.2f} with 95 %"
        f" confidence, so more images, with --data, may put it on the other side of the {100 * max_top1_drop:.2f}"
        " points allowed"
        for case in cases
        if (change := _uncertain(case, max_top1_drop)) is not None
    )


def _uncertain(case: CaseResult, max_top1_drop: float) -> Interval | None:
    """Difference in top-1 to the most accurate case, if its 95 % interval reaches both sides of what is allowed."""
    change = case.top1_below_best
    return change if change is not None and change.low < -max_top1_drop <= change.high else None


def times(ratio: Interval) -> str:
    """A ratio of latencies in words."""
    how = compare(ratio)
    if how == "unknown" or (how == "tie" and ratio.uncertainty > MAX_UNCERTAINTY):
        return f"between {ratio.low:.2f}x and {ratio.high:.2f}x the time"
    if how == "tie":
        return f"as fast ({ratio.value:.2f}x the time)"
    return f"{1 / ratio.value:.2f}x faster" if how == "faster" else f"{ratio.value:.2f}x slower"


def title(case: CaseResult) -> str:
    """A case in words: ``static INT8``, ``static INT8 of NAME``, ``DFS``, ``DFS at budget 60 %``; ``NAME`` alone.

    The name of another bundle alone stands for its dynamic network, and for its static policy of several precisions.
    """
    kind, _, bundle = case.name.partition(RIVAL)
    if kind.startswith(BUDGET):
        return f"{bundle or DYNAMIC.upper()} at budget {kind.removeprefix(BUDGET)} %"
    if bundle and kind in (DYNAMIC, f"{STATIC}{POLICY}"):
        return bundle
    name, _, precision = kind.partition("-")
    own = name.upper() if not precision else f"{name} {precision if precision == POLICY else precision.upper()}"
    return f"{own} of {bundle}" if bundle else own


def _points(case: CaseResult) -> str:
    return "-" if case.top1 is None else f"{100 * case.top1:.2f} %"
