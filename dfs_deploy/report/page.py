"""The page: one HTML file that asks the network for nothing, made from a report's JSON.

Numbers reach the page only through ``_Numbers``, which looks each up in the JSON and marks where it stands; text
is escaped by Jinja, and the embedded JSON cannot end its script element. The content security policy lets the page's
own scripts run, by their digests, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dfs_deploy.report.charts import BUNDLE_COLORS, axis_end, charts, runtime_script
from dfs_deploy.report.data import Point, Report
from dfs_deploy.report.style import OptionColor, option_colors

_TEMPLATES = "templates"
_UNKNOWN = "\N{EN DASH}"


def render_page(report: Report) -> str:
    """Makes the page.

    Args:
        report: at least one bundle.

    Returns:
        A whole HTML document.
    """
    value = report.as_json()
    vega, own = runtime_script(), _template_text("report.js")
    environment = Environment(
        loader=PackageLoader("dfs_deploy.report", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=_short, colors=_colors, indices=_indices)
    template = environment.get_template("report.html.j2")
    return template.render(
        report=value,
        reports=report.bundles,
        number=_Numbers(value),
        frontier_caption=frontier_caption,
        latency_caption=latency_caption,
        points=[point for bundle in report.bundles for point in bundle.frontier],
        accuracy_known=any(point.top1 is not None for bundle in report.bundles for point in bundle.frontier),
        bundle_colors=BUNDLE_COLORS,
        style=Markup(_template_text("report.css")),  # noqa: S704 (ours)
        vega=Markup(vega),  # noqa: S704 (the library's)
        script=Markup(own),  # noqa: S704 (ours)
        script_digests=[_csp_digest(vega), _csp_digest(own)],
        report_json=_embedded(value),
        charts_json=_embedded(charts(report)),
    )


def frontier_caption(points: Sequence[Point], one_run: bool = True) -> str:
    """Caption of the chart of accuracy against latency, of points of one run or of several."""
    shown = [point for point in points if point.top1 is not None]
    parts = ["Accuracy against latency: up and to the left is better. Point: median; line: to the 95th percentile."]
    if any(point.kind == "static" for point in shown):
        parts.append("Hollow: static networks.")
    if one_run and any(point.front for point in shown):
        parts.append("Grey line: the best static networks. Band: equal accuracy.")
    if any(point.kind == "budget" for point in shown):
        parts.append("Joined by a dashed line: the network at its budgets, timed in the same rounds.")
    return " ".join([*parts, *_arrows(shown)])


def latency_caption(points: Sequence[Point]) -> str:
    """Caption of the chart of latencies."""
    return " ".join(["Latency of a call, by case. Bar: median; mark: 95th percentile.", *_arrows(points)])


def _arrows(points: Sequence[Point]) -> list[str]:
    if any(point.p95_ms is not None and point.p95_ms > axis_end(points) for point in points):
        return ["Arrow at the edge: the 95th percentile lies beyond it; the table gives its value."]
    return []


class _Numbers:
    """Shows numbers of a report, each with its JSON pointer (RFC 6901)."""

    def __init__(self, report: dict[str, Any]) -> None:
        self._report = report

    def __call__(self, at: str, kind: str = "plain") -> Markup:
        """The number that a pointer names, formatted by its kind, one of ``FORMATS``; a dash for ``None``."""
        value: Any = self._report
        for part in at.strip("/").split("/"):
            # A bench leaves out keys whose value is not known.
            value = value[int(part)] if isinstance(value, Sequence) else value.get(part)
        if value is None:
            return Markup('<span class="unknown" title="not known">{}</span>').format(_UNKNOWN)
        shown = FORMATS[kind](value)
        return Markup('<data value="{}" data-at="{}" data-kind="{}">{}</data>').format(
            json.dumps(value), at, kind, shown
        )


FORMATS: dict[str, Callable[[Any], str]] = {
    "plain": lambda value: f"{value:g}",
    "count": lambda value: f"{value:,}",
    "whole": lambda value: f"{value:,.0f}",
    "ms": lambda value: f"{value:.3f} ms",
    "us": lambda value: f"{value:.1f} \N{MICRO SIGN}s",
    "share": lambda value: f"{100.0 * value:.1f} %",
    "top1": lambda value: f"{100.0 * value:.2f} %",
    "points": lambda value: f"{100.0 * value:+.2f} points",
    "percentage": lambda value: f"{value:.1f} %",
    "ratio": lambda value: f"{value:.2f}\N{MULTIPLICATION SIGN}",
    "error": lambda value: f"{value:.2e}",
    "fixed": lambda value: f"{value:.2f}",
    "megabytes": lambda value: f"{value / 1e6:.2f} MB",
    "length": lambda value: f"{len(value):,}",
}
"""How each kind of number is written."""


def _short(option: str) -> str:
    """An option's name for a narrow cell."""
    return {"skip": _UNKNOWN, "full": "F"}.get(option, option)


def _indices(options: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Index of each option among the options, by name."""
    return {option["name"]: index for index, option in enumerate(options)}


def _colors(options: Sequence[dict[str, Any]]) -> list[OptionColor]:
    return option_colors([option["bits"] for option in options])


def _embedded(value: Any) -> Markup:
    """JSON for a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 (escaped above)


def _csp_digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _template_text(name: str) -> str:
    return (resources.files("dfs_deploy.report") / _TEMPLATES / name).read_text("utf-8")
