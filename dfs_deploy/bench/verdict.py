"""What to ship, in words, from a stated rule: accuracy first, then latency, if the run is VALID.

A run is INVALID if what its verdict reads cannot be relied on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from dfs_deploy.bench.clock import MIN_SEGMENTS, calls_for_tail
from dfs_deploy.bench.result import DYNAMIC, POLICY, RIVAL, CaseResult, Problem, Ratios, Round, Verdict
from dfs_deploy.paired import Interval
from dfs_deploy.thresholds import MAX_UNCERTAINTY, MIN_INPUTS, TIE, VERDICT_MAX_TOP1_DROP

_ROUNDING = 1e-9


def compare(ratio: Interval) -> Literal["faster", "slower", "tie", "unknown"]:
    """Reads a ratio of latencies: clear of one on either side, as good as one, or not known well enough."""
    if ratio.high < 1.0 and ratio.value <= 1.0 - TIE:
        return "faster"
    if ratio.low > 1.0 and ratio.value >= 1.0 + TIE:
        return "slower"
    return "tie" if ratio.uncertainty <= MAX_UNCERTAINTY else "unknown"


@dataclass(frozen=True)
class Standing:
    """The dynamic network and the static networks, by accuracy.

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


_Choice = tuple[str | None, str, tuple[str, ...]]
"""Choice, words and caveats of a verdict."""


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on, and what follows from it.

    Attributes:
        cases: cases with their ratios over the normaliser; ``dfs`` and the static ones are read.
        over_static: dynamic network's latency over that of each static case.
        size: calls of a case before the next one takes over.
        inputs: number of different images that were run.
        max_top1_drop: share of right answers that may be lost against the most accurate case.
        doubts: further reasons why the run is INVALID.
    """

    cases: Sequence[CaseResult]
    over_static: Sequence[Ratios]
    size: Round
    inputs: int
    max_top1_drop: float = VERDICT_MAX_TOP1_DROP
    doubts: tuple[Problem, ...] = ()

    @cached_property
    def standing(self) -> Standing | None:
        """Cases by accuracy; ``None`` if there is no static case, or if the accuracy is not known."""
        cases = [case for case in self.cases if case.static or case.name == DYNAMIC]
        known = {case.name: case.top1 for case in cases if case.top1 is not None}
        statics = [case for case in cases if case.static and case.name in known]
        if not statics or DYNAMIC not in known:
            return None
        best = max((*statics, self.dynamic), key=lambda case: known[case.name])
        floor = known[best.name] - self.max_top1_drop - _ROUNDING
        accurate = tuple(case for case in statics if known[case.name] >= floor)
        fastest = min((case.latency_ms.p50 for case in accurate), default=0.0)
        return Standing(
            best=best,
            dynamic=known[DYNAMIC] >= floor,
            accurate=accurate,
            choice=next((case for case in accurate if case.latency_ms.p50 <= (1.0 + TIE) * fastest), None),
            nearest=max(statics, key=lambda case: known[case.name]),
        )

    @property
    def dynamic(self) -> CaseResult:
        """Case of the dynamic network."""
        return next(case for case in self.cases if case.name == DYNAMIC)

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
            found.append(Problem(what, f"--min-iterations {wanted} or more, or leave it out"))
        elif self.rival is not None and compare(self.rival.p50) == "unknown":
            ratio = self.rival.p50
            what = (
                f"the median of dfs over that of {self.rival.over} lies between {ratio.low:.2f} and {ratio.high:.2f},"
                f" expected all of it on one side of 1, or within ±{100 * MAX_UNCERTAINTY:.0f} %"
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
        allowed = f"{100 * self.max_top1_drop:.2f}"
        if not statics:
            return None, f"none: {_no_static(device)}", ()
        ratios = {ratio.over: ratio for ratio in self.over_static}
        found = self.standing
        if any(problem.about == "inputs" or found is None for problem in self.problems):
            return None, "none: the run is INVALID", ()
        if found is None:
            return _unlabelled(statics, ratios)
        nearest, choice = found.nearest, found.choice
        if choice is None and not any(case.rival for case in statics):
            words = (
                f"none: {title(nearest)} has a top-1 of {_points(nearest)} against {_points(dynamic)} of DFS, more than"
                f" the {allowed} points allowed: it is this network's own backbone with every block run, trained for"
                " the paths that the network takes, and nobody would ship it; compare with a network that was trained"
                " to be static, by --against BUNDLE"
            )
            return None, words, ()
        caveats = _caveats((dynamic, *found.accurate), self.max_top1_drop)
        if choice is None:
            ratio = ratios.get(nearest.name)
            time = "" if ratio is None else f", and DFS takes {ratio.p50.value:.2f}x its time at the median"
            words = (
                f"ship DFS: top-1 {_points(dynamic)}, and no static network comes within {allowed} points of it;"
                f" {title(nearest)}, the nearest, has {_points(nearest)}{time}"
            )
            return dynamic.name, words, caveats
        if not found.dynamic:
            lost = (found.best.top1 or 0.0) - (dynamic.top1 or 0.0)
            words = (
                f"ship {title(choice)}: DFS loses {100 * lost:.2f} points of top-1 on these images against"
                f" {title(found.best)}, more than the {allowed} allowed"
            )
            if _uncertain(dynamic, self.max_top1_drop):
                words += "; on so few images that may be chance, see the note on DFS"
            return choice.name, words, caveats
        if self.problems:
            return None, "none: the run is INVALID", ()
        name, words, more = _by_latency(dynamic, choice, ratios[choice.name])
        return name, words, (*caveats, *more)


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
        " accurate case. If that leaves only DFS or only static networks, accuracy alone decides between them."
        " Otherwise latency decides between DFS and the fastest static network that is accurate enough, at the median"
        " and at p95. DFS is faster (slower) if the 95 % interval of the ratio of the two latencies lies below (above)"
        f" one and the ratio is at least {100 * TIE:.0f} % from one. It is as fast if it is neither and the ratio is"
        f" known to ±{100 * MAX_UNCERTAINTY:.0f} %. If median and p95 disagree, the choice is yours. If neither"
        " differs, the static network is chosen, because it is simpler. If p95 is not known, the median decides. If no"
        " static engine of the own backbone of DFS is accurate enough, there is no verdict without a network that was"
        " trained to be static."
    )


def _no_static(device: str) -> str:
    if device == "cpu":
        return "the bundle has no static engine to compare with; export with --targets fp32,int8"
    return f"static engines run only in ONNX Runtime so far, so there is none on {device}; --device cpu compares"


def _by_latency(dynamic: CaseResult, rival: CaseResult, ratios: Ratios) -> _Choice:
    """Both are accurate enough."""
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
        first, second = map(title, (dynamic, rival) if median == "faster" else (rival, dynamic))
        words = f"{first} if the median counts, {second} if p95 does: against {title(rival)} DFS is {figures}"
        return None, f"{words}; {accuracy}", caveats
    if "faster" in (median, tail):
        words = f"ship DFS: against {title(rival)}, the fastest that is accurate enough, it is {figures}; {accuracy}"
        return dynamic.name, words, caveats
    if "slower" in (median, tail):
        return rival.name, f"ship {title(rival)}: accurate enough, and DFS is {figures} here; {accuracy}", caveats
    words = f"ship {title(rival)}: accurate enough and simpler, and DFS gains nothing here: {figures}; {accuracy}"
    return rival.name, words, caveats


def _unlabelled(statics: Sequence[CaseResult], ratios: Mapping[str, Ratios]) -> _Choice:
    """Without labels only this is known: whether DFS is slower than the engine that accuracy is measured against."""
    base = statics[0]
    if compare(ratios[base.name].p50) == "slower":
        words = f"ship {title(base)}: DFS is {times(ratios[base.name].p50)} at the median even than that here"
        return base.name, words, ()
    figures = ", ".join(f"{times(ratios[case.name].p50)} against {title(case)}" for case in statics)
    words = f"none: no labels, so what each loses in accuracy is unknown; at the median DFS is {figures}"
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


def _points(case: CaseResult) -> str:
    return "-" if case.top1 is None else f"{100 * case.top1:.2f} %"
