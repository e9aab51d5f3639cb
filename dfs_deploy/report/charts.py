"""The charts of the page as Vega-Lite, compiled to Vega here so that a page opens with nothing left to compile.

A chart holds no data: the page hands it rows of the embedded report, so a chart cannot show another number than the
JSON. Colours are CSS variables, which SVG takes: the charts follow the page from light to dark and onto paper.

Vega-Lite: https://vega.github.io/vega-lite/docs/.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import vl_convert

from dfs_deploy.bench.result import DYNAMIC, RIVAL
from dfs_deploy.report.results import BundleReport, Point, Report

Spec = dict[str, Any]

ROWS = "rows"
"""The data set that the page fills in."""

BUNDLE_COLORS = 6
"""Colours that bundles are told apart by; after that they repeat."""

_TAIL_ROOM = 1.5
"""Range of latencies over the greatest median: a busy machine's tail would press the medians together, so an arrow at
the edge stands for it; the tables tell it."""

_KINDS = ("dynamic", "budget", "static")

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
    specs = {"frontier": frontier([point for bundle in report.bundles for point in bundle.frontier])}
    for index, bundle in enumerate(report.bundles):
        specs |= {f"{name}-{index}": spec for name, spec in bundle_charts(bundle).items()}
    return {name: _compiled(json.dumps(spec)) for name, spec in specs.items()}


def bundle_charts(bundle: BundleReport) -> dict[str, Spec]:
    """The charts of one bundle, as Vega-Lite."""
    options = [option.name for option in bundle.options]
    standing_by = any(not engine.serves for engine in bundle.engines)
    return {
        "latency": latency(bundle.frontier),
        "decisions": decisions(options),
        "tree": tree(options, bundle.paths_share),
        "times": times(options, standing_by),
        "errors": errors(options),
        "budgets": budgets(),
    }


@functools.lru_cache(maxsize=64)
def _compiled(spec: str) -> Spec:
    return vl_convert.vegalite_to_vega(spec)


def _chart(description: str, height: int, layers: Sequence[Spec], **rest: Any) -> Spec:
    return {
        "description": description,
        "data": {"name": ROWS},
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": _CONFIG,
        "layer": list(layers),
        **rest,
    }


def _option_colors(options: Sequence[str]) -> Spec:
    # The page lists the options beside the charts once, so no chart repeats them.
    scale = {"domain": list(options), "range": [f"var(--option-{i})" for i in range(len(options))]}
    return {"field": "option", "type": "nominal", "scale": scale, "legend": None}


def _block_axis() -> Spec:
    axis = {"title": "block", "labelAngle": 0, "labelOverlap": True, "grid": False}
    return {"field": "block", "type": "ordinal", "axis": axis}


def _share(title: str) -> Spec:
    return {"type": "quantitative", "axis": {"format": ".0%", "title": title, "tickCount": 5}}


def axis_end(points: Sequence[Point]) -> float:
    """Where the axis of latencies ends, in milliseconds; what lies beyond it has an arrow there."""
    return _TAIL_ROOM * max(point.p50_ms for point in points)


def _latency_axis(points: Sequence[Point]) -> Spec:
    return {
        "type": "quantitative",
        "scale": {"domain": [0.0, axis_end(points)], "nice": False},
        "axis": {
            "title": "latency of a call, ms",
            "tickCount": 8,
            "labelFlush": 24,
            "labelSeparation": 6,
            "labelOverlap": True,
        },
    }


def _beyond(points: Sequence[Point], tooltip: list[Spec]) -> list[Spec]:
    """An arrow at the end of the axis for each 95th percentile beyond it; a layer without marks has no name to read."""
    end = axis_end(points)
    if not any(point.p95_ms is not None and point.p95_ms > end for point in points):
        return []
    return [
        {
            "mark": {"type": "point", "shape": "triangle-right", "filled": True, "size": 70, "xOffset": -5},
            "transform": [{"filter": f"datum.p95_ms > {end!r}"}, {"calculate": "true", "as": "beyond"}],
            "encoding": {"x": {"datum": end, **_latency_axis(points)}, "tooltip": tooltip},
        }
    ]


def frontier(points: Sequence[Point]) -> Spec:
    """Top-1 against median latency: up and to the left is better.

    Points of one bundle have a colour per case, those of several a colour per bundle. Static networks are hollow and of
    sizes that fit into each other: on a CPU without float16, FP16 lies where FP32 does.
    """
    points = [point for point in points if point.top1 is not None] or points
    bundles = list(dict.fromkeys(point.bundle for point in points))
    known = [point.top1 for point in points if point.top1 is not None] or [0.0]
    margin = max(0.005, 0.15 * (max(known) - min(known)))
    top1 = {
        "field": "top1",
        "type": "quantitative",
        "scale": {"domain": [max(0.0, min(known) - margin), max(known) + margin], "nice": False},
        "axis": {"format": ".1%", "title": "top-1", "tickCount": 5},
    }
    looks = {name: _look(name) for name in sorted(dict.fromkeys(map(_case, points)), key=_rank)}

    def by_case(values: Sequence[Any], **rest: Any) -> Spec:
        return {"field": "case", "type": "nominal", "scale": {"domain": list(looks), "range": list(values)}, **rest}

    legend = {"legend": {"title": None, "columns": 2}}
    shape = by_case([look.shape for look in looks.values()], **legend)
    size = by_case([look.size for look in looks.values()], legend=None)
    color = by_case(_case_colors(looks), **legend)
    if len(bundles) > 1:
        colors = [f"var(--bundle-{i % BUNDLE_COLORS})" for i in range(len(bundles))]
        # The page names bundles beside their colours once, where it lets them be left out.
        color = {"field": "bundle", "type": "nominal", "scale": {"domain": bundles, "range": colors}, "legend": None}
    tooltip = _tooltip("bundle", "name", "p50_ms", "p95_ms", "top1", "computation_percentage")
    budgets = {
        "mark": {"type": "line", "strokeDash": [4, 3], "strokeWidth": 1.5},
        "transform": [{"filter": "datum.kind !== 'static'"}],
        "encoding": {
            "order": {"field": "computation_percentage", "type": "quantitative"},
            "detail": {"field": "bundle"},
            "color": {"value": "var(--muted)"} if len(bundles) == 1 else color,
        },
    }
    marks = {"shape": shape, "size": size, "tooltip": tooltip}
    return _chart(
        "Accuracy against latency of the dynamic network and of static networks",
        300,
        [
            {
                "mark": {"type": "rule", "opacity": 0.5, "strokeWidth": 2, "clip": True},
                "encoding": {"x2": {"field": "p95_ms"}},
            },
            *([budgets] if any(point.kind == "budget" for point in points) else []),
            *(
                [
                    {
                        "mark": {"type": "point", "filled": False, "strokeWidth": 2, "opacity": 1},
                        "transform": [{"filter": "datum.kind === 'static'"}],
                        "encoding": marks,
                    }
                ]
                if any(point.kind == "static" for point in points)
                else []
            ),
            {
                "mark": {"type": "point", "filled": True, "opacity": 1, "stroke": "var(--page)"},
                "transform": [{"filter": "datum.kind !== 'static'"}],
                "encoding": marks,
            },
            *_beyond(points, tooltip),
        ],
        transform=[{"filter": "isValid(datum.top1)"}, {"calculate": _CASE_OF, "as": "case"}],
        encoding={"x": {"field": "p50_ms", **_latency_axis(points)}, "y": top1, "color": color},
    )


_CASE_OF = "datum.kind === 'budget' ? 'dfs at a budget' : datum.name"


def _case(point: Point) -> str:
    return "dfs at a budget" if point.kind == "budget" else point.name


@dataclass(frozen=True)
class _Look:
    """Shape and size of the points of a case; static ones are hollow, and a smaller one shows within a larger."""

    shape: str
    size: int


_LOOKS = {
    "dfs": _Look("circle", 130),
    "dfs at a budget": _Look("diamond", 90),
    "static-fp32": _Look("square", 330),
    "static-fp16": _Look("triangle-up", 140),
    "static-int8": _Look("triangle-down", 320),
    "static-policy": _Look("cross", 360),
}


_OTHER = _Look("wedge", 200)
"""Of a case that a newer version named."""


def _look(case: str) -> _Look:
    return _LOOKS.get(case.partition(RIVAL)[0], _OTHER)


def _rank(case: str) -> tuple[str, int]:
    """The bundle's own cases first, then those of other bundles, each in the order of the looks."""
    kind, _, bundle = case.partition(RIVAL)
    return bundle, list(_LOOKS).index(kind) if kind in _LOOKS else len(_LOOKS)


def _case_colors(cases: Iterable[str]) -> list[str]:
    """The dynamic network in the accent's colour at any budget, and each static network in one of its own."""
    others = itertools.cycle(range(1, BUNDLE_COLORS))
    return ["var(--bundle-0)" if case.startswith(DYNAMIC) else f"var(--bundle-{next(others)})" for case in cases]


def latency(points: Sequence[Point]) -> Spec:
    """Latency by case, for where no accuracy is known."""
    names = [point.name for point in points]
    y = {"field": "name", "type": "nominal", "sort": names, "axis": {"title": None, "labelLimit": 220}}
    x = _latency_axis(points)
    kinds = {"domain": list(_KINDS), "range": ["var(--accent)", "var(--accent)", "var(--bar)"]}
    tooltip = _tooltip("name", "p50_ms", "p95_ms")
    return _chart(
        "Median latency of the dynamic network and of static networks",
        28 * len(points) + 10,
        [
            {
                "mark": {"type": "bar", "cornerRadiusEnd": 3, "height": {"band": 0.6}},
                "encoding": {"x": {"field": "p50_ms", **x}, "tooltip": tooltip},
            },
            {
                "mark": {"type": "tick", "thickness": 2, "clip": True},
                "encoding": {"x": {"field": "p95_ms", **x}, "color": {"value": "var(--text)"}},
            },
            *_beyond(points, tooltip),
        ],
        encoding={"y": y, "color": {"field": "kind", "type": "nominal", "scale": kinds, "legend": None}},
    )


def decisions(options: Sequence[str]) -> Spec:
    """The share of inputs that took each option, block by block: the paper's Figures 8 to 10."""
    order = {"field": "option", "type": "nominal", "sort": list(options)}
    bars = {
        "mark": {"type": "bar", "stroke": "var(--page)", "strokeWidth": 1},
        "encoding": {
            "x": _block_axis(),
            "y": {"field": "share", "stack": "zero", **_share("share of inputs"), "scale": {"domain": [0, 1]}},
            "color": _option_colors(options),
            "order": {**order, "field": "rank", "type": "quantitative"},
            "tooltip": _tooltip("block", "group", "option", "share"),
        },
    }
    rank = {"calculate": f"indexof({json.dumps(list(options))}, datum.option)", "as": "rank"}
    return _chart("Share of inputs by option, for each gated block", 240, [bars], transform=[rank])


def tree(options: Sequence[str], share: float) -> Spec:
    """The commonest paths from the first decision to the last; a branch is as high as the share that came that way."""
    y = {"domain": [0, share], "nice": False, "reverse": True}
    cells = {
        "mark": {"type": "rect", "stroke": "var(--page)", "strokeWidth": 0.8},
        "encoding": {
            "x": {**_block_axis(), "scale": {"paddingInner": 0, "paddingOuter": 0}},
            "y": {"field": "start", "scale": y, **_share("share of inputs")},
            "y2": {"field": "end"},
            "color": _option_colors(options),
            "tooltip": _tooltip("block", "option", "inputs", "share"),
        },
    }
    return _chart("Tree of the commonest paths: branches by block, as high as their share of the inputs", 280, [cells])


def times(options: Sequence[str], standing_by: bool) -> Spec:
    """Median time of each engine: filled where it serves its option here, hollow where another does.

    Args:
        options: of the gate.
        standing_by: whether there are engines that serve nothing here; a layer without marks has no name to read out.
    """
    y = {"field": "median_us", "type": "quantitative", "axis": {"title": "median of the engine alone, \N{MICRO SIGN}s"}}
    serving = {"filter": "datum.serves"}
    tooltip = _tooltip("block", "option", "precision", "serves", "median_us")
    line = {
        "mark": {"type": "line", "strokeWidth": 1.5},
        # A skip has an engine only where the block projects, so a line would cross blocks where nothing runs.
        "transform": [serving, {"filter": "datum.option !== 'skip'"}],
        "encoding": {"detail": {"field": "option"}},
    }
    filled = {
        # The edge keeps the pale points of a skip visible.
        "mark": {
            "type": "point",
            "filled": True,
            "size": 46,
            "opacity": 1,
            "stroke": "var(--muted)",
            "strokeWidth": 0.7,
        },
        "transform": [serving],
        "encoding": {"tooltip": tooltip},
    }
    hollow = {
        "mark": {"type": "point", "filled": False, "size": 40, "strokeWidth": 1.4},
        "transform": [{"filter": "!datum.serves"}],
        "encoding": {"tooltip": tooltip},
    }
    return _chart(
        "Time of each engine by itself, by block and option",
        260,
        [line, filled, hollow] if standing_by else [line, filled],
        encoding={"x": _block_axis(), "y": y, "color": _option_colors(options)},
    )


def errors(options: Sequence[str]) -> Spec:
    """Relative error of each engine that has a float32 engine to compare with."""
    y = {
        "field": "relative_rms_error",
        "type": "quantitative",
        "scale": {"type": "log", "nice": True},
        "axis": {"title": "relative error (rms, log)", "format": ".0e", "values": [10.0**k for k in range(-8, 3)]},
    }
    shape = {
        "field": "precision",
        "type": "nominal",
        "scale": {"domain": ["int8", "fp16"], "range": ["circle", "triangle-up"]},
        "legend": {"title": None},
    }
    tooltip = _tooltip("block", "option", "precision", "relative_rms_error", "relative_max_error", "samples")
    return _chart(
        "Error of each engine relative to the float32 engine of the same option, by block",
        260,
        [
            {
                "mark": {"type": "line", "strokeWidth": 1.5},
                "encoding": {"detail": [{"field": "option"}, {"field": "precision"}]},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {"shape": shape, "tooltip": tooltip},
            },
        ],
        transform=[{"filter": "datum.relative_rms_error > 0"}],
        encoding={"x": _block_axis(), "y": y, "color": _option_colors(options)},
    )


def budgets() -> Spec:
    """Top-1 against the computation measured at each calibrated budget."""
    x = {
        "field": "computation_percentage",
        "type": "quantitative",
        "axis": {"title": "computation, % of every block in full precision", "tickCount": 8},
    }
    y = {
        "field": "top1",
        "type": "quantitative",
        "scale": {"zero": False, "padding": 12},
        "axis": {"format": ".1%", "title": "top-1", "tickCount": 5},
    }
    tooltip = _tooltip("budget_percentage", "computation_percentage", "top1", "latency_ms", "bias")
    return _chart(
        "Top-1 against computation at the budgets that the bundle was calibrated for",
        240,
        [
            {
                "mark": {
                    "type": "line",
                    "point": {"size": 70, "fill": "var(--accent)", "stroke": "var(--page)"},
                    "stroke": "var(--accent)",
                    "color": "var(--accent)",
                }
            }
        ],
        transform=[{"filter": "isValid(datum.top1)"}],
        encoding={"x": x, "y": y, "tooltip": tooltip, "order": {**x, "axis": None}},
    )


def _tooltip(*fields: str) -> list[Spec]:
    return [{"field": field, "title": field.replace("_", " ")} for field in fields]


@functools.cache
def runtime_script() -> str:
    """Vega and vega-embed as one script that fetches nothing and defines ``window.vegaEmbed``."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
