"""Figures and tables from the metrics logs of finished runs, each with the steps that were really run."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paper.exhibits import Exhibit
from benchmarks.paper.runs import STAGES, Run, runs_of, state_of
from dfs_deploy.io.files import write_whole
from dfs_deploy.report.figures import accuracy_figure, decisions_figure, table
from dfs_deploy.report.runs import TrainingRun, load_run, runs_json, table_1, table_2
from dfs_deploy.report.style import draw
from dfs_deploy.training.metrics import EvaluationRecord, read_metrics

INDEX_FILE = "paper.md"
NUMBERS_FILE = "paper.json"


@dataclass(frozen=True)
class Drawn:
    """An exhibit as far as its runs are finished.

    Attributes:
        exhibit: the exhibit.
        finished: its finished runs that show something, those of the gate alone left out.
        conditions: the steps that were really run, and alpha, in words.
        missing: names of runs that are not finished.
    """

    exhibit: Exhibit
    finished: tuple[TrainingRun, ...]
    conditions: str
    missing: tuple[str, ...]


def gather(exhibit: Exhibit, network: str, out: Path) -> Drawn:
    """Reads the finished runs of an exhibit."""
    runs = runs_of(exhibit, network)
    finished = [run for run in runs if state_of(out / run.name) == "finished"]
    shown = tuple(load_run(out / run.name) for run in finished if run.stages != ("gate",))
    missing = tuple(run.name for run in runs if run not in finished)
    return Drawn(exhibit, shown, conditions(finished, shown, out), missing)


def conditions(runs: Sequence[Run], shown: Sequence[TrainingRun], out: Path) -> str:
    """The steps that runs took, by stage, and alpha: ``steps: backbone 640, gate 59 to 72, joint 640; alpha 5e-4``."""
    taken: dict[str, set[int]] = {stage: set() for stage in STAGES}
    for run in runs:
        for record in read_metrics(out / run.name):
            if isinstance(record, EvaluationRecord) and record.stage in run.stages:
                taken[record.stage].add(record.step)
    spans = {stage: f"{min(steps):,}" for stage, steps in taken.items() if steps}
    spans |= {stage: f"{min(steps):,} to {max(steps):,}" for stage, steps in taken.items() if len(steps) > 1}
    alphas = sorted({run.alpha for run in shown if run.alpha is not None})
    return "; ".join(
        [
            "steps: " + ", ".join(f"{stage} {span}" for stage, span in spans.items()),
            *(["alpha " + ", ".join(f"{alpha:g}" for alpha in alphas)] if alphas else []),
        ]
    )


def write_all(exhibits: Mapping[Exhibit, str], out: Path, to: Path) -> list[Path]:
    """Draws exhibits as far as their runs are finished, and writes an index of all.

    Args:
        exhibits: each with the network that it is trained on.
        out: folder of the runs.
        to: folder for the files, made if it is missing.

    Returns:
        The files, the index first.
    """
    drawn = [gather(exhibit, network, out) for exhibit, network in exhibits.items()]
    files = {name: data for each in drawn if each.finished for name, data in _files(each).items()}
    every = {run.name: run for each in drawn for run in each.finished}
    index = "# The paper's figures and tables, as far as they were run\n\n" + "\n".join(
        _section(each, files) for each in drawn
    )
    numbers = json.dumps(runs_json(list(every.values())), indent=1, allow_nan=False) + "\n"
    files = {INDEX_FILE: index.encode(), NUMBERS_FILE: numbers.encode(), **files}
    for name, data in files.items():
        write_whole(to / name, data)
    return [to / name for name in files]


def _files(drawn: Drawn) -> dict[str, bytes]:
    name, drawing = drawn.exhibit.name, drawn.exhibit.drawing
    if drawing == "index":
        return {}
    if drawing in ("table-1", "table-2"):
        return {f"{name}.md": _table(drawn).encode()}
    if drawing == "accuracy":
        spec = accuracy_figure(drawn.finished)
    else:
        decided = [run for run in drawn.finished if run.option_share]
        if not decided:
            return {}
        spec = decisions_figure(decided[0])
    title = spec["title"]
    title["subtitle"] = [drawn.exhibit.title, title["subtitle"], drawn.conditions]
    return {f"{name}.{kind}": draw(spec, kind) for kind in ("svg", "png")}


def _table(drawn: Drawn) -> str:
    rows = (table_1 if drawn.exhibit.drawing == "table-1" else table_2)(drawn.finished)
    whole = [f"Backbone: top-1 {100 * r.top1:.2f} %\n" for r in drawn.finished if r.method == "full precision"]
    return "\n".join([f"{drawn.exhibit.title} ({drawn.conditions})\n", table(rows), *whole])


def _section(drawn: Drawn, files: Collection[str]) -> str:
    exhibit = drawn.exhibit
    lines = [f"## {exhibit.title}", "", f"The paper: {exhibit.claim}", ""]
    lines += (
        [f"{drawn.conditions}; {len(drawn.finished)} network(s)", ""]
        if drawn.finished
        else ["Nothing finished yet.", ""]
    )
    if drawn.missing:
        lines += [f"Not finished: {', '.join(drawn.missing)}", ""]
    if not drawn.finished:
        return "\n".join(lines)
    lines += ["| run | network | target | computation | top-1 | steps |", "|---|---|---|---|---|---|"]
    for run in drawn.finished:
        target = "" if run.target is None else f"{run.target:g} %"
        lines.append(
            f"| {run.name} | {run.method} {run.model} | {target} | {run.percentage:.2f} % | {100 * run.top1:.2f} % |"
            f" {run.steps:,} |"
        )
    image = f"\n![{exhibit.title}]({exhibit.name}.svg)\n" if f"{exhibit.name}.svg" in files else ""
    return "\n".join([*lines, image])
