"""The paper's figures from training runs, drawn with Altair as SVG and PNG, and its tables in Markdown.

- Accuracy against computation percentage: Figures 3 to 7 and 11. One figure for each model and data set; a line for
  each method; the full-precision network as a rule.
- Decisions by block: Figures 8 to 10. One figure for each run with a gate.
- Table 1: runs with a constant alpha beside those with a dynamic one. Table 2: runs by the absolute value of alpha.

One JSON file holds every number.

Altair: https://altair-viz.github.io/.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from dfs_deploy.errors import UsageError
from dfs_deploy.io.files import write_whole
from dfs_deploy.options import Options
from dfs_deploy.report.runs import TrainingRun, runs_json, tables
from dfs_deploy.report.style import draw, option_colors

Spec = dict[str, Any]

FLOPS = "flops"
JSON_FILE = "figures.json"

_METHODS = {
    "DFS": "#1b5e9e",
    "SkipNet": "#c2571a",
    "static pruned": "#8a6d00",
    "static mixed": "#3d7d43",
    "static uniform": "#7d5ba6",
}
"""Colour of each method."""


def write_figures(runs: Sequence[TrainingRun], folder: str | Path) -> list[Path]:
    """Writes every figure and table that some runs make, and the JSON with their numbers.

    Args:
        runs: runs in the order in which tables show them.
        folder: folder for the files, made if it is missing.

    Returns:
        The files, ``figures.json`` first.

    Raises:
        UsageError: no runs, or a folder that cannot be written.
    """
    if not runs:
        raise UsageError("no training runs, expected at least one; give folders that dfs-deploy train wrote")
    folder = Path(folder)
    files: dict[str, bytes] = {JSON_FILE: json.dumps(runs_json(runs), indent=1, allow_nan=False).encode() + b"\n"}
    for name, spec in figures(runs).items():
        files |= {f"{name}.{kind}": draw(spec, kind) for kind in ("svg", "png")}
    files |= {f"table-{number}.md": table(rows).encode() for number, rows in tables(runs).items() if rows}
    try:
        for name, data in files.items():
            write_whole(folder / name, data)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}); give another folder") from error
    return [folder / name for name in files]


def figures(runs: Sequence[TrainingRun]) -> dict[str, Spec]:
    """Every figure as Vega-Lite, by file name without its suffix."""
    made: dict[str, Spec] = {}

    def axes(run: TrainingRun) -> tuple[str, str, str]:
        return run.model, run.data, run.cost

    comparable = sorted((run for run in runs if run.alpha_sign != "constant"), key=axes)  # a constant one: Table 1
    for (model, data, cost), group in itertools.groupby(comparable, key=axes):
        parts = [model, data] + ([] if cost == FLOPS else ["time"])
        made[_file_name(made, "accuracy", *parts)] = accuracy_figure(list(group))
    for run in runs:
        if run.option_share:
            made[_file_name(made, "decisions", run.name)] = decisions_figure(run)
    return made


def _data(rows: list[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=rows))


def accuracy_figure(runs: Sequence[TrainingRun]) -> Spec:
    """Accuracy against computation percentage, of runs of one model on one data set (Figures 3 to 7, 11)."""
    points = [
        {"method": run.method, "computation": run.percentage, "top1": 100.0 * run.top1, "run": run.name}
        for run in runs
        if run.method != "full precision"
    ]
    full = {run.top1 for run in runs if run.method == "full precision"}
    full |= {run.backbone_top1 for run in runs if run.backbone_top1 is not None}
    methods = [method for method in _METHODS if any(point["method"] == method for point in points)]
    split = ", ".join(sorted({f"{run.images:,} {run.split} images" for run in runs}))
    rules = _data([{"top1": 100.0 * value} for value in sorted(full)]).mark_rule(strokeDash=[5, 4], color="#555")
    layers = [rules.encode(y="top1:Q")]
    if points:
        line = _data(points).mark_line(point=alt.OverlayMarkDef(filled=True, size=55), strokeWidth=1.5)
        title = "computation percentage (%)" if runs[0].cost == FLOPS else "time of the blocks (%)"
        colors = alt.Scale(domain=methods, range=[_METHODS[method] for method in methods])
        layers.append(
            line.encode(
                x=alt.X("computation:Q", title=title, scale=alt.Scale(zero=True)),
                y=alt.Y("top1:Q", title="top-1 accuracy (%)", scale=alt.Scale(zero=False, padding=12)),
                color=alt.Color("method:N", title=None, scale=colors),
                shape=alt.Shape("method:N", title=None, scale=alt.Scale(domain=methods)),
                order="computation:Q",
            )
        )
    subtitle = f"{split}; dashed: every block in full precision" if full else split
    heading = alt.Title(f"{runs[0].model} on {runs[0].data}", subtitle=subtitle)
    return alt.layer(*layers).properties(title=heading, width=420, height=270).to_dict()


def decisions_figure(run: TrainingRun) -> Spec:
    """The share of images that took each option at each gated block (Figures 8 to 10)."""
    options = Options.parse(",".join(run.options))
    colors = [color.light for color in option_colors([option.bits for option in options])]
    rows = [
        {"block": block, "option": option, "share": 100.0 * share, "rank": rank}
        for block, shares in enumerate(run.option_share, start=1)
        for rank, (option, share) in enumerate(zip(run.options, shares, strict=True))
    ]
    heading = alt.Title(
        f"{run.method}-{run.model} on {run.data}: computation percentage {run.percentage:.2f} %",
        subtitle=f"{run.name}: {run.images:,} {run.split} images, {run.paths} paths, top-1 {100 * run.top1:.2f} %",
    )
    percent = alt.Scale(domain=[0, 100])
    bars: alt.Chart = (
        _data(rows)
        .mark_bar(stroke="white", strokeWidth=0.5)
        .encode(
            x=alt.X("block:O", title="gated block", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title="share of images (%)", stack="zero", scale=percent),
            color=alt.Color("option:N", title="option", scale=alt.Scale(domain=run.options, range=colors)),
            order="rank:Q",
        )
        .properties(title=heading, width=max(220, 22 * len(run.option_share)), height=220)
    )
    return bars.to_dict()


_COLUMNS = ("model", "alpha", "target cp", "actual cp", "top-1", "steps")


def table(runs: Sequence[TrainingRun]) -> str:
    """A table in Markdown: alpha with its sign, the target, what was reached, and the accuracy (Tables 1 and 2)."""
    rows = [
        (
            f"{run.method}-{run.model}",
            f"{'±' if run.alpha_sign == 'dynamic' else '+'}{run.alpha:g}",
            f"{run.target:g} %",
            f"{run.percentage:.2f} %",
            f"{100 * run.top1:.2f} %",
            f"{run.steps:,}",
        )
        for run in runs
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in (_COLUMNS, ("---",) * len(_COLUMNS), *rows))


def _file_name(taken: Container[str], *parts: str) -> str:
    """A name that any file system takes and that is not taken, made of parts that may come from anywhere."""
    name = "-".join(re.sub(r"[^A-Za-z0-9.-]+", "_", part).strip("._") or "unnamed" for part in parts)
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)
