"""Training runs, read from their metrics logs: what each was asked for, what it reached, and the tables they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dfs_deploy
from dfs_deploy.errors import DataError, UsageError
from dfs_deploy.options import Options
from dfs_deploy.training.metrics import METRICS_FILE, EvaluationRecord, RunRecord, read_metrics

FIGURES_SCHEMA = 1
"""Version of the keys of ``figures.json``."""


@dataclass(frozen=True)
class TrainingRun:
    """What one run was asked for and what it reached; shares are 0 to 1, percentages 0 to 100.

    Attributes:
        name: name of its folder.
        model: name of the network, such as ``ResNet-20``.
        method: ``DFS``, ``SkipNet``, ``static pruned``, ``static mixed``, ``static uniform`` or ``full precision``.
        data: name of the data set, as the job gives it.
        options: names of the options that the gate chooses from.
        policy: name of the option of each gated block, or ``None`` if a gate decides.
        cost: ``flops``, or the file name of the latency table that the costs are from.
        target: computation percentage that was asked for; ``None`` if nothing steered toward one.
        alpha: absolute weight of the cost; ``None`` without a gate.
        alpha_sign: ``dynamic``, ``constant`` or ``controlled``; ``None`` without a gate.
        seed: seed of every draw.
        stage: name of the last stage.
        steps: number of steps that it really took.
        split: name of the split of the last evaluation.
        images: number of its images.
        top1: share classified correctly after the last step.
        percentage: mean computation percentage after the last step.
        option_share: for each gated block, the share of images that took each option; empty without a gate.
        paths: number of different paths that were taken.
        backbone_top1: share classified correctly after the backbone's stage, if it is in the log.
    """

    name: str
    model: str
    method: str
    data: str
    options: tuple[str, ...]
    policy: tuple[str, ...] | None
    cost: str
    target: float | None
    alpha: float | None
    alpha_sign: str | None
    seed: int
    stage: str
    steps: int
    split: str
    images: int
    top1: float
    percentage: float
    option_share: tuple[tuple[float, ...], ...]
    paths: int
    backbone_top1: float | None


def is_run(path: Path) -> bool:
    """Whether a path is a training run's folder or its metrics log."""
    return path.is_file() or (path / METRICS_FILE).is_file()


def load_run(path: str | Path) -> TrainingRun:
    """Reads a run.

    Args:
        path: the run's folder, or its metrics log.

    Raises:
        DataError: the log cannot be read, is no such log, or holds no evaluation yet.
    """
    path = Path(path)
    records = read_metrics(path)
    header, evaluations = records[0], [record for record in records if isinstance(record, EvaluationRecord)]
    if not isinstance(header, RunRecord) or not evaluations:
        raise DataError(f"{path} holds no evaluation yet, expected one at the end of a stage; let the run go on")
    last, asked = evaluations[-1], header.asked
    try:
        options = Options.parse(",".join(header.options))
    except UsageError as error:
        raise DataError(f"{path} is no metrics log: {error}") from error
    if any(len(row) != len(options) for row in last.option_share):
        raise DataError(f"{path} is no metrics log: an evaluation has shares for another number of options")
    method = _method(options, header.policy, last.stage)
    gated = method in ("DFS", "SkipNet")
    backbone = [record.top1 for record in evaluations if record.stage == "backbone"]
    return TrainingRun(
        name=(path if path.is_dir() else path.parent).resolve().name,
        model=header.network.name,
        method=method,
        data=Path(asked.data).name,
        options=options.names,
        policy=None if header.policy is None else tuple(header.policy),
        cost=header.cost,
        target=asked.recipe.target if gated and last.stage != "gate" else None,
        alpha=asked.recipe.alpha if gated else None,
        alpha_sign=asked.recipe.alpha_sign if gated else None,
        seed=asked.seed,
        stage=last.stage,
        steps=last.step,
        split=last.split,
        images=last.images,
        top1=last.top1,
        percentage=last.percentage,
        option_share=tuple(map(tuple, last.option_share)) if gated else (),
        paths=last.paths,
        backbone_top1=backbone[-1] if backbone else None,
    )


def _method(options: Options, policy: Sequence[str] | None, stage: str) -> str:
    if stage == "backbone" or (policy is not None and set(policy) == {"full"}):
        return "full precision"
    if policy is not None and "skip" in policy:
        return "static pruned"
    if policy is not None:
        return "static uniform" if len(set(policy)) == 1 else "static mixed"
    return "SkipNet" if set(options.names) == {"skip", "full"} else "DFS"


def runs_json(runs: Sequence[TrainingRun]) -> dict[str, Any]:
    """Every number of the figures and tables, as plain values."""
    return {
        "schema_version": FIGURES_SCHEMA,
        "version": dfs_deploy.__version__,
        "runs": [asdict(run) for run in runs],
        **{f"table_{number}": [asdict(run) for run in rows] for number, rows in tables(runs).items()},
    }


def tables(runs: Sequence[TrainingRun]) -> dict[int, list[TrainingRun]]:
    """The runs of each of the paper's tables, by its number."""
    return {1: table_1(runs), 2: table_2(runs)}


def table_1(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """Runs with a constant alpha, and those with a dynamic one that differ from one of them only in the sign."""
    constant = {_asked(run, "alpha_sign") for run in runs if run.alpha_sign == "constant" and run.target is not None}
    dynamic = {_asked(run, "alpha_sign") for run in runs if run.alpha_sign == "dynamic" and run.target is not None}
    signed = [run for run in runs if run.alpha_sign != "controlled" and run.target is not None]
    return [run for run in signed if _asked(run, "alpha_sign") in constant & dynamic]


def table_2(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """Runs with a dynamic alpha that differ from another one only in its absolute value, by target and value."""
    dynamic = [run for run in runs if run.alpha_sign == "dynamic" and run.target is not None]
    values: dict[tuple[object, ...], set[float | None]] = {}
    for run in dynamic:
        values.setdefault(_asked(run, "alpha"), set()).add(run.alpha)
    chosen = [run for run in dynamic if len(values[_asked(run, "alpha")]) > 1]
    return sorted(chosen, key=lambda run: (run.target or 0.0, run.alpha or 0.0))


def _asked(run: TrainingRun, without: str) -> tuple[object, ...]:
    names = ("model", "data", "options", "cost", "target", "alpha", "alpha_sign")
    return tuple(getattr(run, name) for name in names if name != without)
