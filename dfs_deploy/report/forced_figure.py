"""Forced paths as a figure: latency over the share of blocks run, dispatched, as one engine, and static."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dfs_deploy.bench.result import BenchResult, ForcedPath

_LINES = ("dispatch", "trace: the same path as one engine", "static: every block")
_COLORS = ("#1b5e9e", "#c2571a", "#555555")


def forced_figure(result: BenchResult) -> dict[str, Any]:
    """A panel for each precision, as Vega-Lite; latencies start at zero."""
    precisions = list(dict.fromkeys(path.precision for path in result.forced))
    how = f"{result.threads} thread(s), batch {result.dynamic.batch}"
    return {
        "title": {
            "text": f"{result.bundle.name}, {result.bundle.architecture}: does skipped work become skipped time?",
            "subtitle": f"{result.machine.cpu}, {how}; median of a call",
        },
        "hconcat": [
            _panel(precision, [path for path in result.forced if path.precision == precision])
            for precision in precisions
        ],
        "resolve": {"scale": {"color": "shared", "strokeDash": "shared"}},
    }


def _panel(precision: str, paths: Sequence[ForcedPath]) -> dict[str, Any]:
    rows = [
        {"share": path.share, "line": line, "ms": ms}
        for path in paths
        for line, ms in zip(_LINES, (path.dispatch_ms, path.trace_ms, path.static_ms), strict=True)
        if ms is not None
    ]
    shares = [path.share for path in paths]
    dashes = {"domain": list(_LINES), "range": [[1, 0], [1, 0], [5, 4]]}
    return {
        "title": f"the blocks that run at {precision.upper()}",
        "width": 300,
        "height": 230,
        "data": {"values": rows},
        "mark": {"type": "line", "point": {"size": 45}, "strokeWidth": 1.5},
        "encoding": {
            "x": {
                "field": "share",
                "type": "quantitative",
                "title": "blocks run, of those that may be skipped (%)",
                "axis": {"values": shares},
            },
            "y": {"field": "ms", "type": "quantitative", "title": "median latency (ms)", "scale": {"zero": True}},
            "color": {
                "field": "line",
                "type": "nominal",
                "title": None,
                "scale": {"domain": list(_LINES), "range": list(_COLORS)},
                "legend": {"orient": "bottom", "labelLimit": 260},
            },
            "strokeDash": {"field": "line", "type": "nominal", "title": None, "scale": dashes},
        },
    }
