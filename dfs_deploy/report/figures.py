"""The paper's figures and tables from training runs: Vega-Lite, as SVG and PNG, with every number in one JSON file.

- Accuracy against computation percentage: Figures 3 to 7 and 11. One figure for each model and data set; a line for
  each method; the full-precision network as a rule.
- Decisions by block: Figures 8 to 10. One figure for each run with a gate.
- Table 1: runs with a constant alpha beside those with a dynamic one. Table 2: runs by the absolute value of alpha.

Vega-Lite: https://vega.github.io/vega-lite/docs/.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import dfs_deploy
from dfs_deploy.errors import UsageError
from dfs_deploy.io.files import write_whole
from dfs_deploy.options import Options
from dfs_deploy.report.palette import option_colors
from dfs_deploy.report.runs import TrainingRun
from dfs_deploy.system.libraries import required

SCHEMA = 1
FLOPS = "flops"
JSON_FILE = "figures.json"

Spec = dict[str, Any]

_METHODS = ("DFS", "SkipNet", "static mixed", "static uniform")
_COLORS = ("#1b5e9e", "#c2571a", "#3d7d43", "#7d5ba6")
SCALE = 2.0
"""Of a PNG: pixels an SVG unit."""

CONFIG: Spec = {
    "background": "white",
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500, "gridColor": "#e3e6ea"},
    "legend": {"labelFontSize": 11, "titleFontSize": 12},
    "title": {"fontSize": 13, "anchor": "start"},
}


def write_figures(runs: Sequence[TrainingRun], folder: str | Path) -> list[Path]:
    """Writes every figure that some runs make, and the JSON with their numbers.

    Args:
        runs: in the order in which tables show them.
        folder: made where it is missing.

    Returns:
        The files, ``figures.json`` first.

    Raises:
        UsageError: no runs, or a folder that cannot be written.
        MissingExtraError: what draws is not installed.
    """
    if not runs:
        raise UsageError("no training runs, expected at least one; give folders that dfs-deploy train wrote")
    with required():
        import vl_convert

    folder = Path(folder)
    files: dict[str, bytes] = {JSON_FILE: json.dumps(as_json(runs), indent=1, allow_nan=False).encode() + b"\n"}
    for name, spec in specs(runs).items():
        text = json.dumps(spec)
        files[f"{name}.svg"] = vl_convert.vegalite_to_svg(text).encode()
        files[f"{name}.png"] = vl_convert.vegalite_to_png(text, scale=SCALE)
    try:
        for name, data in files.items():
            write_whole(folder / name, data)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}); give another folder") from error
    return [folder / name for name in files]


def as_json(runs: Sequence[TrainingRun]) -> dict[str, Any]:
    """Every number of the figures and tables, as plain values."""
    return {
        "schema_version": SCHEMA,
        "version": dfs_deploy.__version__,
        "runs": [dataclasses.asdict(run) for run in runs],
        "table_1": [dataclasses.asdict(run) for run in table_1(runs)],
        "table_2": [dataclasses.asdict(run) for run in table_2(runs)],
    }


def table_1(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """Runs with a constant alpha, and those with a dynamic one that differ from one of them in the sign alone."""
    constant = {_asked(run, "alpha_sign") for run in runs if run.alpha_sign == "constant" and run.target is not None}
    dynamic = {_asked(run, "alpha_sign") for run in runs if run.alpha_sign == "dynamic" and run.target is not None}
    return [run for run in runs if run.target is not None and _asked(run, "alpha_sign") in constant & dynamic]


def table_2(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """Runs with a dynamic alpha that differ from another one in its absolute value alone, by target and value."""
    dynamic = [run for run in runs if run.alpha_sign == "dynamic" and run.target is not None]
    values: dict[tuple[object, ...], set[float | None]] = {}
    for run in dynamic:
        values.setdefault(_asked(run, "alpha"), set()).add(run.alpha)
    chosen = [run for run in dynamic if len(values[_asked(run, "alpha")]) > 1]
    return sorted(chosen, key=lambda run: (run.target or 0.0, run.alpha or 0.0))


def _asked(run: TrainingRun, without: str) -> tuple[object, ...]:
    names = ("model", "data", "options", "cost", "target", "alpha", "alpha_sign")
    return tuple(getattr(run, name) for name in names if name != without)


def specs(runs: Sequence[TrainingRun]) -> dict[str, Spec]:
    """Every figure as Vega-Lite, by file name without its suffix."""
    made: dict[str, Spec] = {}
    comparable = [run for run in runs if run.alpha_sign != "constant"]  # Table 1 shows what a constant one does
    for (model, data, cost), group in _grouped(comparable):
        parts = [model, data] + ([] if cost == FLOPS else ["time"])
        made[_file_name(made, "accuracy", *parts)] = accuracy_figure(group)
    for run in runs:
        if run.option_share:
            made[_file_name(made, "decisions", run.name)] = decisions_figure(run)
    for number, rows in ((1, table_1(runs)), (2, table_2(runs))):
        if rows:
            made[f"table-{number}"] = table_figure(rows)
    return made


def _grouped(runs: Sequence[TrainingRun]) -> list[tuple[tuple[str, str, str], list[TrainingRun]]]:
    """Runs whose percentages can stand on one axis: of one model, data set and kind of cost."""

    def key(run: TrainingRun) -> tuple[str, str, str]:
        return run.model, run.data, run.cost

    return [(of, list(group)) for of, group in itertools.groupby(sorted(runs, key=key), key=key)]


def accuracy_figure(runs: Sequence[TrainingRun]) -> Spec:
    """Accuracy against computation percentage, of runs of one model on one data set (Figures 3 to 7, 11)."""
    points = [
        {"method": run.method, "computation": run.percentage, "top1": 100.0 * run.top1, "run": run.name}
        for run in runs
        if run.method != "full precision"
    ]
    full = [run.top1 for run in runs if run.method == "full precision"]
    full += [run.backbone_top1 for run in runs if run.backbone_top1 is not None]
    methods = [method for method in _METHODS if any(point["method"] == method for point in points)]
    split = ", ".join(sorted({f"{run.images:,} {run.split} images" for run in runs}))
    layers: list[Spec] = [
        {
            "data": {"values": [{"top1": 100.0 * value} for value in sorted(set(full))]},
            "mark": {"type": "rule", "strokeDash": [5, 4], "color": "#555"},
            "encoding": {"y": {"field": "top1", "type": "quantitative"}},
        },
        {
            "data": {"values": points},
            "mark": {"type": "line", "point": {"filled": True, "size": 55}, "strokeWidth": 1.5},
            "encoding": {
                "x": {
                    "field": "computation",
                    "type": "quantitative",
                    "title": "computation percentage (%)" if runs[0].cost == FLOPS else "time of the blocks (%)",
                    "scale": {"zero": True},
                },
                "y": {
                    "field": "top1",
                    "type": "quantitative",
                    "title": "top-1 accuracy (%)",
                    "scale": {"zero": False, "padding": 12},
                },
                "color": {
                    "field": "method",
                    "type": "nominal",
                    "title": None,
                    "scale": {"domain": methods, "range": [_COLORS[_METHODS.index(method)] for method in methods]},
                },
                "shape": {"field": "method", "type": "nominal", "title": None, "scale": {"domain": methods}},
                "order": {"field": "computation"},
            },
        },
    ]
    title = {
        "text": f"{runs[0].model} on {runs[0].data}",
        "subtitle": f"{split}; dashed: every block in full precision" if full else split,
    }
    return {"title": title, "width": 420, "height": 270, "layer": layers if points else layers[:1], "config": CONFIG}


def decisions_figure(run: TrainingRun) -> Spec:
    """The share of images that took each option at each gated block (Figures 8 to 10)."""
    options = Options.parse(",".join(run.options))
    colors = option_colors([{"name": option.name, "bits": option.bits} for option in options])
    rows = [
        {"block": block, "option": option, "share": 100.0 * share, "place": place}
        for block, shares in enumerate(run.option_share, start=1)
        for place, (option, share) in enumerate(zip(run.options, shares, strict=True))
    ]
    return {
        "title": {
            "text": f"{run.method}-{run.model} on {run.data}: computation percentage {run.percentage:.2f} %",
            "subtitle": (
                f"{run.name}: {run.images:,} {run.split} images, {run.paths} paths, top-1 {100 * run.top1:.2f} %"
            ),
        },
        "width": max(220, 22 * len(run.option_share)),
        "height": 220,
        "data": {"values": rows},
        "mark": {"type": "bar", "stroke": "white", "strokeWidth": 0.5},
        "encoding": {
            "x": {"field": "block", "type": "ordinal", "title": "gated block", "axis": {"labelAngle": 0}},
            "y": {
                "field": "share",
                "type": "quantitative",
                "title": "share of images (%)",
                "stack": "zero",
                "scale": {"domain": [0, 100]},
            },
            "color": {
                "field": "option",
                "type": "nominal",
                "title": "option",
                "scale": {"domain": list(run.options), "range": [color.light for color in colors]},
            },
            "order": {"field": "place"},
        },
        "config": CONFIG,
    }


_COLUMNS = ("model", "alpha", "target cp", "actual cp", "top-1", "steps")


def table_rows(runs: Sequence[TrainingRun]) -> list[list[str]]:
    """A table's cells, under :data:`_COLUMNS`, a run a row."""
    return [
        [
            f"{run.method}-{run.model}",
            f"{'±' if run.alpha_sign == 'dynamic' else '+'}{run.alpha:g}",
            f"{run.target:g} %",
            f"{run.percentage:.2f} %",
            f"{100 * run.top1:.2f} %",
            f"{run.steps:,}",
        ]
        for run in runs
    ]


def table_figure(runs: Sequence[TrainingRun]) -> Spec:
    """A table as a figure: alpha with its sign, the target, what was reached, and the accuracy (Tables 1 and 2)."""
    cells = [
        {"row": row, "column": column, "text": text}
        for row, texts in enumerate([list(_COLUMNS), *table_rows(runs)])
        for column, text in zip(_COLUMNS, texts, strict=True)
    ]
    return {
        "data": {"values": cells},
        "width": 110 * len(_COLUMNS),
        "height": 22 * (len(runs) + 1),
        "mark": {"type": "text", "fontSize": 12},
        "encoding": {
            "x": {"field": "column", "type": "ordinal", "sort": list(_COLUMNS), "axis": None},
            "y": {"field": "row", "type": "ordinal", "axis": None},
            "text": {"field": "text"},
            "opacity": {"condition": {"test": "datum.row === 0", "value": 0.6}, "value": 1.0},
        },
        "config": CONFIG,
    }


def _file_name(taken: Container[str], *parts: str) -> str:
    """A name that any file system takes and that is not taken, made of parts that may come from anywhere."""
    name = "-".join(re.sub(r"[^A-Za-z0-9.-]+", "_", part).strip("._") or "unnamed" for part in parts)
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)
