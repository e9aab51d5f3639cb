"""The charts of the page: Vega-Lite built with Altair, compiled to Vega here, so that an opened page only draws.

A chart holds no data: the page hands it rows of the embedded report, so a chart cannot show another number than the
JSON. Colours are CSS variables, which SVG takes: the charts follow the page from light to dark and onto paper.

Vega-Lite: https://vega.github.io/vega-lite/docs/. Altair: https://altair-viz.github.io/.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import vl_convert

from dfs_deploy.bench.result import DYNAMIC, RIVAL
from dfs_deploy.report.data import BundleReport, Point, Report

Spec = dict[str, Any]

ROWS = "rows"
"""Name of the data set that the page fills in."""

BUNDLE_COLORS = 6
"""Number of colours of bundles; after that they repeat."""

_TAIL_ROOM = 1.5
"""Range of latencies over the greatest median: a busy machine's tail would press the medians together, so an arrow at
the edge stands for it; the tables give its value."""

_CONFIG: Spec = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--text)",
        "titleFontWeight": 500,
        "titlePadding": 8,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "gridColor": "var(--rule)",
        "domainColor": "var(--rule)",
        "tickColor": "var(--rule)",
    },
    "legend": {
        "labelColor": "var(--text)",
        "titleColor": "var(--muted)",
        "titleFontWeight": 500,
        "symbolStrokeColor": "var(--text)",
        "symbolFillColor": "var(--muted)",
        "labelFontSize": 11,
        "orient": "top",
        "symbolOpacity": 1,
    },
}


def charts(report: Report) -> dict[str, Spec]:
    """Every chart of a page as Vega, by the name under which the page asks for it."""
    points = [point for bundle in report.bundles for point in bundle.frontier]
    one_run = report.together or len(report.bundles) == 1
    specs = {"frontier": frontier(points, report.bundles[0].bench.max_top1_drop if one_run else None)}
    for index, bundle in enumerate(report.bundles):
        specs |= {f"{name}-{index}": spec for name, spec in bundle_charts(bundle).items()}
    return {name: _compiled(json.dumps(spec)) for name, spec in specs.items()}


def bundle_charts(bundle: BundleReport) -> dict[str, Spec]:
    """The charts of one bundle, as Vega-Lite."""
    options = [option.name for option in bundle.options]
    return {
        "latency": latency(bundle.frontier),
        "decisions": decisions(options),
        "tree": tree(options, bundle.paths_share),
        "times": times(options, any(not engine.serves for engine in bundle.engines)),
        "errors": errors(options),
        "budgets": budgets(),
    }


@functools.lru_cache(maxsize=64)
def _compiled(spec: str) -> Spec:
    return vl_convert.vegalite_to_vega(spec)


@functools.cache
def runtime_script() -> str:
    """Vega and vega-embed as one script that fetches nothing and defines ``window.vegaEmbed``."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _rows() -> alt.Chart:
    return alt.Chart(alt.NamedData(ROWS))


def _chart(description: str, height: int, *layers: alt.Chart) -> Spec:
    chart = alt.layer(*layers).properties(description=description, width="container", height=height)
    fit = {"autosize": {"type": "fit-x", "contains": "padding"}, "config": _CONFIG}
    return chart.to_dict() | fit


def _option_color(options: Sequence[str]) -> alt.Color:
    # The page lists the options beside the charts once, so no chart repeats them.
    colors = [f"var(--option-{index})" for index in range(len(options))]
    return alt.Color("option:N", scale=alt.Scale(domain=options, range=colors), legend=None)


def _block() -> alt.X:
    return alt.X("block:O", title="block", axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False))


def _share(title: str) -> alt.Axis:
    return alt.Axis(format=".0%", title=title, tickCount=5)


def _top1() -> alt.Axis:
    return alt.Axis(format=".1%", title="top-1", tickCount=5)


def _tooltip(*fields: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{field}:N", title=field.replace("_", " ")) for field in fields]


def axis_end(points: Sequence[Point]) -> float:
    """End of the axis of latencies, in milliseconds; what lies beyond it has an arrow there."""
    return _TAIL_ROOM * max(point.p50_ms for point in points)


def _latency(points: Sequence[Point]) -> dict[str, Any]:
    """Scale and axis of latencies."""
    return {
        "scale": alt.Scale(domain=[0.0, axis_end(points)], nice=False),
        "axis": alt.Axis(
            title="latency of a call, ms", tickCount=8, labelFlush=24, labelSeparation=6, labelOverlap=True
        ),
    }


def _beyond(points: Sequence[Point], base: alt.Chart) -> list[alt.Chart]:
    """An arrow at the end of the axis for each 95th percentile beyond it; a layer without marks has no name to read."""
    end = axis_end(points)
    if not any(point.p95_ms is not None and point.p95_ms > end for point in points):
        return []
    arrows = base.transform_filter(f"datum.p95_ms > {end!r}").transform_calculate(beyond="true")
    marks = arrows.mark_point(shape="triangle-right", filled=True, size=70, xOffset=-5)
    return [marks.encode(x=alt.XDatum(end, type="quantitative", **_latency(points)))]


_LOOKS = {
    "dfs": ("circle", 130),
    "dfs at a budget": ("diamond", 90),
    "static-fp32": ("square", 330),
    "static-fp16": ("triangle-up", 140),
    "static-int8": ("triangle-down", 320),
    "static-policy": ("cross", 360),
}
"""Shape and size of the points of a case; static ones are hollow, and a smaller one shows within a larger."""

_OTHER_LOOK = ("wedge", 200)
"""Shape and size of a case that a newer version named."""

_CASE_OF = "datum.kind === 'budget' ? 'dfs at a budget' : datum.name"


def _cases(points: Sequence[Point]) -> list[str]:
    """The cases of some points: the bundle's own first, then those of other bundles, each in the order of the looks."""

    def rank(case: str) -> tuple[str, int]:
        kind, _, bundle = case.partition(RIVAL)
        return bundle, list(_LOOKS).index(kind) if kind in _LOOKS else len(_LOOKS)

    cases = ("dfs at a budget" if point.kind == "budget" else point.name for point in points)
    return sorted(dict.fromkeys(cases), key=rank)


def frontier(points: Sequence[Point], max_top1_drop: float | None = None) -> Spec:
    """Top-1 against median latency: up and to the left is better.

    Points of one bundle have a colour per case, those of several a colour per bundle. Static networks are hollow and of
    sizes that fit into each other: on a CPU without float16, FP16 lies where FP32 does.

    Args:
        points: points to draw.
        max_top1_drop: share of right answers that a verdict lets a case lose, if all points are of one run: the chart
            then has a band of equal accuracy, and a line that joins the best static networks.
    """
    points = [point for point in points if point.top1 is not None] or points
    bundles = list(dict.fromkeys(point.bundle for point in points))
    known = [point.top1 for point in points if point.top1 is not None] or [0.0]
    margin = max(0.005, 0.15 * (max(known) - min(known)))
    cases = _cases(points)
    looks = [_LOOKS.get(case.partition(RIVAL)[0], _OTHER_LOOK) for case in cases]
    legend = alt.Legend(title=None, columns=2)
    if len(bundles) == 1:  # the dynamic network in the accent's colour, and each static network in one of its own
        others = itertools.cycle(range(1, BUNDLE_COLORS))
        colors = [f"var(--bundle-{0 if case.startswith(DYNAMIC) else next(others)})" for case in cases]
        color = alt.Color("case:N", scale=alt.Scale(domain=cases, range=colors), legend=legend)
    else:  # the page names bundles beside their colours once, where it lets them be left out
        colors = [f"var(--bundle-{index % BUNDLE_COLORS})" for index in range(len(bundles))]
        color = alt.Color("bundle:N", scale=alt.Scale(domain=bundles, range=colors), legend=None)
    floor = max(known) - (max_top1_drop or 0.0)
    top1 = alt.Scale(domain=[max(0.0, min(*known, floor) - margin), max(known) + margin], nice=False)
    base = (
        _rows()
        .transform_filter("isValid(datum.top1)")
        .transform_calculate(case=_CASE_OF)
        .encode(
            x=alt.X("p50_ms:Q", **_latency(points)),
            y=alt.Y("top1:Q", scale=top1, axis=_top1()),
            color=color,
        )
    )
    tooltip = _tooltip("bundle", "name", "p50_ms", "p95_ms", "top1", "computation_percentage")
    dynamic, static = base.transform_filter("datum.kind !== 'static'"), base.transform_filter("datum.kind === 'static'")
    layers = []
    if max_top1_drop is not None:
        band = (
            alt.Chart(alt.NamedData(ROWS))
            .transform_aggregate(rows="count()")
            .mark_rect(fill="var(--good)", opacity=0.13)
        )
        start = alt.YDatum(floor, type="quantitative", scale=top1, axis=_top1())
        layers.append(band.encode(y=start, y2=alt.Y2Datum(max(known))))
    layers.append(base.mark_rule(opacity=0.5, strokeWidth=2, clip=True).encode(x2="p95_ms"))
    if max_top1_drop is not None and sum(point.front for point in points) > 1:
        best = static.transform_filter("datum.front").mark_line(strokeWidth=1.5, interpolate="step-after")
        layers.append(best.encode(color=alt.value("var(--muted)"), order=alt.Order("p50_ms:Q")))
    if any(point.kind == "budget" for point in points):
        line = dynamic.mark_line(strokeDash=[4, 3], strokeWidth=1.5)
        order = alt.Order("computation_percentage:Q")
        joined = alt.value("var(--muted)") if len(bundles) == 1 else color
        layers.append(line.encode(order=order, detail="bundle:N", color=joined))
    shape = alt.Shape("case:N", scale=alt.Scale(domain=cases, range=[shape for shape, _ in looks]), legend=legend)
    size = alt.Size("case:N", scale=alt.Scale(domain=cases, range=[size for _, size in looks]), legend=None)
    if any(point.kind == "static" for point in points):
        hollow = static.mark_point(filled=False, strokeWidth=2, opacity=1)
        layers.append(hollow.encode(shape=shape, size=size, tooltip=tooltip))
    filled = dynamic.mark_point(filled=True, opacity=1, stroke="var(--page)")
    layers.append(filled.encode(shape=shape, size=size, tooltip=tooltip))
    layers += _beyond(points, base.encode(tooltip=tooltip))
    return _chart("Accuracy against latency of the dynamic network and of static networks", 300, *layers)


def latency(points: Sequence[Point]) -> Spec:
    """Latency by case, for data without labels."""
    kinds = alt.Scale(domain=["dynamic", "budget", "static"], range=["var(--accent)", "var(--accent)", "var(--bar)"])
    base = _rows().encode(
        y=alt.Y("name:N", sort=[point.name for point in points], axis=alt.Axis(title=None, labelLimit=220)),
        color=alt.Color("kind:N", scale=kinds, legend=None),
    )
    pointed = base.encode(tooltip=_tooltip("name", "p50_ms", "p95_ms"))
    bars = pointed.mark_bar(cornerRadiusEnd=3, height=alt.RelativeBandSize(0.6))
    ticks = base.mark_tick(thickness=2, clip=True)
    return _chart(
        "Median latency of the dynamic network and of static networks",
        28 * len(points) + 10,
        bars.encode(x=alt.X("p50_ms:Q", **_latency(points))),
        ticks.encode(x=alt.X("p95_ms:Q", **_latency(points)), color=alt.value("var(--text)")),
        *_beyond(points, pointed),
    )


def decisions(options: Sequence[str]) -> Spec:
    """The share of inputs that took each option, block by block: the paper's Figures 8 to 10."""
    bars = (
        _rows()
        .transform_calculate(rank=f"indexof({json.dumps(list(options))}, datum.option)")
        .mark_bar(stroke="var(--page)", strokeWidth=1)
        .encode(
            x=_block(),
            y=alt.Y("share:Q", stack="zero", axis=_share("share of inputs"), scale=alt.Scale(domain=[0, 1])),
            color=_option_color(options),
            order="rank:Q",
            tooltip=_tooltip("block", "group", "option", "share"),
        )
    )
    return _chart("Share of inputs by option, for each gated block", 240, bars)


def tree(options: Sequence[str], share: float) -> Spec:
    """The commonest paths from the first decision to the last; a branch is as high as the share that came that way."""
    down = alt.Scale(domain=[0, share], nice=False, reverse=True)
    cells = (
        _rows()
        .mark_rect(stroke="var(--page)", strokeWidth=0.8)
        .encode(
            x=_block().scale(paddingInner=0, paddingOuter=0),
            y=alt.Y("start:Q", scale=down, axis=_share("share of inputs")),
            y2="end",
            color=_option_color(options),
            tooltip=_tooltip("block", "option", "inputs", "share"),
        )
    )
    return _chart("Tree of the commonest paths: branches by block, as high as their share of the inputs", 280, cells)


def times(options: Sequence[str], standing_by: bool) -> Spec:
    """Median time of each engine: filled if it serves its option here, hollow if another does.

    Args:
        options: names of the gate's options.
        standing_by: whether there are engines that serve nothing here; a layer without marks has no name to read.
    """
    base = _rows().encode(
        x=_block(),
        y=alt.Y("median_us:Q", title="median of the engine by itself, \N{MICRO SIGN}s"),
        color=_option_color(options),
    )
    tooltip = _tooltip("block", "option", "precision", "serves", "median_us")
    serving = base.transform_filter("datum.serves")
    # A skip has an engine only at a block that projects, so a line would cross blocks where nothing runs.
    line = serving.transform_filter("datum.option !== 'skip'").mark_line(strokeWidth=1.5).encode(detail="option:N")
    # The edge keeps the pale points of a skip visible.
    filled = serving.mark_point(filled=True, size=46, opacity=1, stroke="var(--muted)", strokeWidth=0.7)
    layers = [line, filled.encode(tooltip=tooltip)]
    if standing_by:
        hollow = base.transform_filter("!datum.serves").mark_point(filled=False, size=40, strokeWidth=1.4)
        layers.append(hollow.encode(tooltip=tooltip))
    return _chart("Time of each engine by itself, by block and option", 260, *layers)


def errors(options: Sequence[str]) -> Spec:
    """Relative error of each engine that has a float32 engine to compare with."""
    powers = alt.Axis(title="relative error (rms, log)", format=".0e", values=[10.0**k for k in range(-8, 3)])
    base = (
        _rows()
        .transform_filter("datum.relative_rms_error > 0")
        .encode(
            x=_block(),
            y=alt.Y("relative_rms_error:Q", scale=alt.Scale(type="log", nice=True), axis=powers),
            color=_option_color(options),
        )
    )
    shapes = alt.Scale(domain=["int8", "fp16"], range=["circle", "triangle-up"])
    fields = ("block", "option", "precision", "relative_rms_error", "relative_max_error", "samples")
    return _chart(
        "Error of each engine relative to the float32 engine of the same option, by block",
        260,
        base.mark_line(strokeWidth=1.5).encode(detail=["option:N", "precision:N"]),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            shape=alt.Shape("precision:N", scale=shapes, legend=alt.Legend(title=None)), tooltip=_tooltip(*fields)
        ),
    )


def budgets() -> Spec:
    """Top-1 against the computation measured at each calibrated budget."""
    points = alt.OverlayMarkDef(size=70, fill="var(--accent)", stroke="var(--page)")
    cost = alt.Axis(title="computation, % of every block in full precision", tickCount=8)
    line = (
        _rows()
        .transform_filter("isValid(datum.top1)")
        .mark_line(point=points, stroke="var(--accent)", color="var(--accent)")
        .encode(
            x=alt.X("computation_percentage:Q", axis=cost),
            y=alt.Y("top1:Q", scale=alt.Scale(zero=False, padding=12), axis=_top1()),
            order="computation_percentage:Q",
            tooltip=_tooltip("budget", "computation_percentage", "top1", "latency_ms", "bias"),
        )
    )
    return _chart("Top-1 against computation at the budgets that the bundle was calibrated for", 240, line)
