"""Top-1 against latency of all networks of a bench as a figure: dynamic ones, static ones, and the front of these."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dfs_deploy.bench.result import BUDGET, DYNAMIC, POLICY, RIVAL, STATIC, BenchResult, CaseResult
from dfs_deploy.errors import UsageError
from dfs_deploy.report.labels import FONT_SIZE, Label, Place, Spot, place_labels

WIDTH, HEIGHT = 440, 340
"""Size of a panel, in pixels."""

LOWEST = 0.2
"""Share of right answers below the most accurate case at which a case is named instead of drawn: a backbone that was
trained to skip blocks may know nothing with every block run."""

_DYNAMIC, _OTHER_DYNAMIC, _STATIC, _OWN = "#1459a8", "#7a3fa0", "#3f464e", "#9aa3ad"
_BAND = "#dff0e2"
_SHAPES = {"fp32": "square", "fp16": "triangle-up", "int8": "triangle-down", POLICY: "diamond"}
_LONGEST = 130
"""Letters of a verdict up to which it is the title."""

_SAME = 7.0
"""Distance, in pixels, within which points of one bundle share a label: FP16 runs as FP32 on many CPUs."""


def static_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of some (latency, top-1) that no other is both as fast and as accurate as, from the fastest on."""
    front: list[tuple[float, float]] = []
    for latency, top1 in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or top1 > front[-1][1]:
            front.append((latency, top1))
    return front


def frontier_figure(result: BenchResult) -> dict[str, Any]:
    """A panel for the median and one for the 95th percentile, if every case has one, as Vega-Lite.

    Raises:
        UsageError: no accuracy is known.
    """
    known = [case for case in result.compared if case.top1 is not None]
    if not known:
        raise UsageError("no accuracy to draw, expected labelled images; give some with --data")
    best = max(case.top1 or 0.0 for case in known)
    cases = [case for case in known if (case.top1 or 0.0) >= best - LOWEST]
    hidden = [f"{label_of(case, result)} ({100 * (case.top1 or 0.0):.1f} %)" for case in known if case not in cases]
    band = (100 * (best - result.max_top1_drop), 100 * best)
    panels = [_panel("median latency of a call, ms", result, cases, lambda case: case.latency_ms.p50, band)]
    if all(case.latency_ms.p95 is not None for case in cases):
        panels.append(
            _panel("95th percentile, ms", result, cases, lambda case: case.latency_ms.p95 or 0.0, band, first=False)
        )
    said = result.verdict.words.partition(";")[0]
    if not result.valid or len(said) > _LONGEST or result.verdict.choice is None:
        said = "accuracy against latency" if result.valid else "INVALID, times cannot be relied on"
    threads = "" if result.threads is None else f", {_count(result.threads, 'thread')}"
    within = f"{100 * result.max_top1_drop:g}"
    return {
        "title": {
            "text": f"{result.data}: {said}",
            "subtitle": [
                f"{result.machine.cpu}{threads}, batch {result.dynamic.batch}, {result.inputs:,} images, all networks"
                " timed in the same rounds. Up and left is better.",
                "Filled: dynamic networks. Hollow: static ones; line: the best of these. Band: equal accuracy, within"
                f" {within} point{'' if within == '1' else 's'} of the best.",
                *([f"Too low to be drawn: {', '.join(hidden)}."] if hidden else []),
            ],
            "subtitleColor": "#55606e",
            "subtitleFontSize": 11,
            "subtitlePadding": 6,
            "offset": 12,
        },
        "hconcat": panels,
        "spacing": 28,
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def label_of(case: CaseResult, result: BenchResult) -> str:
    """Short name of a case beside its point."""
    kind, _, bundle = case.name.partition(RIVAL)
    if kind.startswith(BUDGET):
        return f"{kind.removeprefix(BUDGET)} %"
    if kind == DYNAMIC:
        return bundle or (result.bundle.name if result.against else "DFS")
    precision = kind.removeprefix(STATIC)
    if precision == POLICY:
        return bundle
    owner = bundle or ("own backbone" if result.against else "static")
    return f"{owner} {precision.upper()}"


@dataclass(frozen=True)
class _Axes:
    """Ends of a panel's axes, latency in milliseconds and top-1 in percent, and what they are called."""

    left: float
    right: float
    low: float
    high: float
    title: str
    first: bool

    def place(self, ms: float, top1: float) -> Place:
        """Pixels of a value, from the upper left corner."""
        return WIDTH * (ms - self.left) / (self.right - self.left), HEIGHT * (self.high - top1) / (self.high - self.low)

    def value(self, place: Place) -> tuple[float, float]:
        """Latency and top-1 at a place in pixels."""
        x, y = place
        return self.left + x / WIDTH * (self.right - self.left), self.high - y / HEIGHT * (self.high - self.low)

    def channels(self, x: str = "x", y: str = "y") -> dict[str, Any]:
        """Encoding of both, by the fields of a row."""
        ends = {"x": [self.left, self.right], "y": [self.low, self.high]}
        titles = {"x": self.title, "y": "top-1, %" if self.first else None}
        return {
            axis: {
                "field": field,
                "type": "quantitative",
                "scale": {"domain": ends[axis], "nice": False, "zero": False},
                "axis": {"title": titles[axis], "tickCount": 6, "grid": True},
            }
            for axis, field in (("x", x), ("y", y))
        }


@dataclass(frozen=True)
class _Point:
    """A case in a panel, and its place in pixels."""

    case: CaseResult
    ms: float
    top1: float
    place: Place


def _panel(
    title: str,
    result: BenchResult,
    cases: Sequence[CaseResult],
    latency: Callable[[CaseResult], float],
    band: tuple[float, float],
    first: bool = True,
) -> dict[str, Any]:
    times, tops = [latency(case) for case in cases], [100 * (case.top1 or 0.0) for case in cases]
    axes = _Axes(*_ends(times, floor=0.0), *_ends([*tops, *band], floor=None), title, first)
    points = [_Point(case, ms, top1, axes.place(ms, top1)) for case, ms, top1 in zip(cases, times, tops, strict=True)]
    front = static_front((point.ms, point.top1) for point in points if point.case.static)
    lines: list[tuple[Sequence[tuple[float, float]], str, dict[str, Any]]] = [
        (_steps(front, axes.right), _STATIC, {"strokeWidth": 1.4, "opacity": 0.7}),
        *(
            ([(point.ms, point.top1) for point in curve], _color(curve[0].case, result), {"strokeDash": [5, 3]})
            for curve in _curves(points)
        ),
    ]
    segments = [pair for corners, *_ in lines for pair in itertools.pairwise(axes.place(*each) for each in corners)]
    labels = place_labels(_wanted(points, result, front), [point.place for point in points], WIDTH, HEIGHT, segments)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "layer": [
            {
                "data": {"values": [{"low": band[0], "high": band[1]}]},
                "mark": {"type": "rect", "color": _BAND},
                "encoding": {"y": axes.channels(y="low")["y"], "y2": {"field": "high"}},
            },
            *(_line(axes, *line) for line in lines if len(line[0]) > 1),
            *_marks(axes, [_row(point, result) for point in points]),
            *_texts(axes, labels),
        ],
    }


def _line(axes: _Axes, corners: Sequence[tuple[float, float]], color: str, look: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": {"values": [{"x": ms, "y": top1, "order": i} for i, (ms, top1) in enumerate(corners)]},
        "mark": {"type": "line", "color": color, **look},
        "encoding": {**axes.channels(), "order": {"field": "order", "type": "quantitative"}},
    }


def _marks(axes: _Axes, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Points, each with a shape, size and colours of its own."""
    yield {
        "data": {"values": rows},
        "mark": {"type": "point", "strokeWidth": 1.8, "opacity": 1},
        "encoding": {
            **axes.channels(),
            "shape": {"field": "shape", "type": "nominal", "scale": None},
            "size": {"field": "size", "type": "quantitative", "scale": None},
            "stroke": {"field": "color", "type": "nominal", "scale": None},
            "fill": {"field": "fill", "type": "nominal", "scale": None},
        },
    }


def _texts(axes: _Axes, labels: Sequence[Label]) -> Iterator[dict[str, Any]]:
    """Labels, on a white edge that keeps them legible, joined with their points if they stand apart."""
    rows = []
    for label in labels:
        (x, y), (from_x, from_y) = axes.value((label.x, label.y)), axes.value(label.anchor)
        rows.append({"x": x, "y": y, "from_x": from_x, "from_y": from_y, "text": label.text, "color": label.color})
    color = {"field": "color", "type": "nominal", "scale": None}
    yield {
        "data": {"values": [row for row, label in zip(rows, labels, strict=True) if label.far]},
        "mark": {"type": "rule", "strokeWidth": 0.8, "opacity": 0.7},
        "encoding": {**axes.channels(), "x2": {"field": "from_x"}, "y2": {"field": "from_y"}, "color": color},
    }
    font = {"type": "text", "align": "left", "baseline": "middle", "fontSize": FONT_SIZE}
    edge = {"stroke": "white", "strokeWidth": 3.5, "strokeJoin": "round", "opacity": 0.9}
    for look, colors in ((edge, {}), ({}, {"color": color})):
        yield {
            "data": {"values": rows},
            "mark": font | look,
            "encoding": {**axes.channels(), "text": {"field": "text"}, **colors},
        }


def _curves(points: Sequence[_Point]) -> list[list[_Point]]:
    """The dynamic points of each bundle, from the fastest on."""
    dynamic = sorted((point for point in points if point.case.dynamic), key=lambda point: point.ms)
    names = dict.fromkeys(point.case.bundle for point in dynamic)
    return [[point for point in dynamic if point.case.bundle == name] for name in names]


def _steps(front: Sequence[tuple[float, float]], right: float) -> list[tuple[float, float]]:
    """Corners of the line that holds the best top-1 of the static networks within each latency, up to the edge."""
    ends = [*(ms for ms, _ in front[1:]), right]
    return [corner for (ms, top1), end in zip(front, ends, strict=False) for corner in ((ms, top1), (end, top1))]


def _ends(values: Sequence[float], floor: float | None) -> tuple[float, float]:
    """Ends of an axis with some room beside the values; it begins at ``floor`` if they come near that."""
    least, most = min(values), max(values)
    span = most - least or 0.1 * abs(most) or 1.0
    start = least - 0.12 * span
    if floor is not None and least < 0.35 * most:
        start = floor
    return (start if floor is None else max(floor, start)), most + 0.1 * span


def _color(case: CaseResult, result: BenchResult) -> str:
    if case.dynamic:
        return _OTHER_DYNAMIC if case.bundle else _DYNAMIC
    return _OWN if result.against and not case.bundle else _STATIC


def _row(point: _Point, result: BenchResult) -> dict[str, Any]:
    case, color = point.case, _color(point.case, result)
    kind = case.name.partition(RIVAL)[0].removeprefix(STATIC)
    budget = case.name.startswith(BUDGET)
    return {
        "x": point.ms,
        "y": point.top1,
        "shape": "circle" if case.dynamic else _SHAPES.get(kind, "cross"),
        "size": 60 if budget else 170 if case.name == result.contender else 110 if case.dynamic else 75,
        "color": color,
        "fill": color if case.dynamic else "white",
    }


def _wanted(points: Sequence[_Point], result: BenchResult, front: Sequence[tuple[float, float]]) -> list[Spot]:
    """Labels to place, the most important first; points of one bundle that lie on each other share one."""

    def rank(point: _Point) -> int:
        if point.case.name == result.contender:
            return 0
        if point.case.dynamic:
            return 1
        return 2 if (point.ms, point.top1) in front else 4

    spots: list[Spot] = []
    taken: set[str] = set()
    for point in sorted(points, key=rank):
        if point.case.name in taken:
            continue
        same = [
            other
            for other in points
            if other.case.static
            and point.case.static
            and other.case.bundle == point.case.bundle
            and math.dist(other.place, point.place) < _SAME
        ] or [point]
        taken.update(other.case.name for other in same)
        first, *rest = (label_of(other.case, result) for other in same)
        text = ", ".join([first, *(label.rpartition(" ")[2] for label in rest)])
        spots.append(Spot(text, point.place, _color(point.case, result)))
    return spots
