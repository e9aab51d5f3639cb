"""Training runs, read from their metrics logs: what each was asked for and what it reached, and the tables they make.

The log is written by ``dfs-deploy train`` (:mod:`dfs_deploy.training.metrics` says what stands in it); it is read here
without PyTorch, so that figures can be made anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

import dfs_deploy
from dfs_deploy.errors import DataError, UsageError
from dfs_deploy.io.files import read_file
from dfs_deploy.io.json_files import MAX_LOG, UNREADABLE, Share
from dfs_deploy.io.text import first_line
from dfs_deploy.options import Options

METRICS_FILE = "metrics.jsonl"
FIGURES_SCHEMA = 1
"""Version of the keys of ``figures.json``."""

SCHEMA = 1


_Percentage = Annotated[float, Meta(ge=0.0)]
_Count = Annotated[int, Meta(ge=0)]


class _Recipe(msgspec.Struct, frozen=True):
    target: float
    alpha: float
    alpha_sign: str


class _Job(msgspec.Struct, frozen=True):
    data: str
    recipe: _Recipe
    seed: int


class _Architecture(msgspec.Struct, frozen=True):
    groups: list[Annotated[int, Meta(ge=1, le=1000)]]


class _Record(msgspec.Struct, frozen=True, tag_field="event"):
    """A line of the log; keys that are not asked for here may stand in it as well."""


class _Run(_Record, frozen=True, tag="run"):
    schema: int
    job: _Job
    architecture: _Architecture
    options: list[str]
    policy: list[str] | None = None
    cost: str = "flops"


class _Step(_Record, frozen=True, tag="step"):
    stage: str
    step: _Count


class _Evaluation(_Record, frozen=True, tag="evaluation"):
    stage: str
    step: _Count
    split: str
    images: _Count
    top1: Share
    percentage: _Percentage
    option_share: list[list[Share]]
    paths: _Count


class _Time(_Record, frozen=True, tag="time"):
    stage: str


_DECODER: msgspec.json.Decoder[_Run | _Step | _Evaluation | _Time] = msgspec.json.Decoder(
    _Run | _Step | _Evaluation | _Time
)


@dataclass(frozen=True)
class TrainingRun:
    """What one run was asked for and what it reached; shares are 0 to 1, percentages 0 to 100.

    Attributes:
        name: of its folder.
        model: ``ResNet-20`` and the like.
        method: ``DFS``, ``SkipNet``, ``static mixed``, ``static uniform`` or ``full precision``.
        data: as the job names it.
        options: names of what the gate chooses from.
        policy: for each gated block the name of its option, or ``None`` where a gate decides.
        cost: ``flops``, or what the latency table was measured on.
        target: computation percentage that was asked for; ``None`` where nothing steered toward one.
        alpha: absolute weight of the cost; ``None`` without a gate.
        alpha_sign: ``dynamic`` or ``constant``; ``None`` without a gate.
        seed: of every draw.
        stage: the last stage.
        steps: really run in it.
        split: what was evaluated on.
        images: how many.
        top1: share classified correctly after the last step.
        percentage: mean computation percentage after the last step.
        option_share: for each gated block, the share of images that took each option; empty without a gate.
        paths: how many different paths were taken.
        backbone_top1: after stage 0, where it is in the log.
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
    file = path / METRICS_FILE if path.is_dir() else path
    try:
        content = read_file(file, MAX_LOG, follow=file is path)  # a link in a folder may lead anywhere
    except OSError as error:
        raise DataError(f"{file} cannot be read ({first_line(error)}); give the folder of a training run") from error
    lines = content.split(b"\n")[:-1]  # a last line without its end was cut off by a stop
    header: _Run | None = None
    last: _Evaluation | None = None
    backbone_top1 = None
    for number, line in enumerate(lines, start=1):
        record = _decode(line, file, number)
        if number == 1:
            header = _check_header(record, file)
        elif isinstance(record, _Evaluation):
            last = record
            backbone_top1 = record.top1 if record.stage == "backbone" else backbone_top1
    if header is None or last is None:
        raise DataError(f"{file} holds no evaluation yet, expected one at the end of a stage; let the run go on")
    return _summarize(path, file, header, last, backbone_top1)


def _decode(line: bytes, file: Path, number: int) -> Any:
    try:
        return _DECODER.decode(line)
    except UNREADABLE as error:
        raise DataError(f"{file} is no metrics log: line {number} is malformed ({first_line(error)})") from error


def _check_header(record: Any, file: Path) -> _Run:
    if not isinstance(record, _Run):
        raise DataError(f"{file} is no metrics log: its first line is no 'run' record")
    if record.schema != SCHEMA:
        raise DataError(f"{file} is a metrics log of schema {record.schema}, expected {SCHEMA}; update dfs-deploy")
    return record


def _summarize(path: Path, file: Path, header: _Run, last: _Evaluation, backbone_top1: float | None) -> TrainingRun:
    try:
        options = Options.parse(",".join(header.options))
    except UsageError as error:
        raise DataError(f"{file} is no metrics log: {error}") from error
    if any(len(row) != len(options) for row in last.option_share):
        raise DataError(f"{file} is no metrics log: an evaluation has shares for another number of options")
    policy = None if header.policy is None else tuple(header.policy)
    method = _method(options, policy, last.stage)
    recipe, gated = header.job.recipe, method in ("DFS", "SkipNet")
    return TrainingRun(
        name=(path if path.is_dir() else path.parent).resolve().name,
        model=f"ResNet-{2 * sum(header.architecture.groups) + 2}",
        method=method,
        data=Path(header.job.data).name,
        options=options.names,
        policy=policy,
        cost=header.cost,
        target=recipe.target if gated and last.stage != "gate" else None,
        alpha=recipe.alpha if gated else None,
        alpha_sign=recipe.alpha_sign if gated else None,
        seed=header.job.seed,
        stage=last.stage,
        steps=last.step,
        split=last.split,
        images=last.images,
        top1=last.top1,
        percentage=last.percentage,
        option_share=tuple(tuple(row) for row in last.option_share) if gated else (),
        paths=last.paths,
        backbone_top1=backbone_top1,
    )


def _method(options: Options, policy: Sequence[str] | None, stage: str) -> str:
    if stage == "backbone" or (policy is not None and set(policy) == {"full"}):
        return "full precision"
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
    return [run for run in runs if run.target is not None and _asked(run, "alpha_sign") in constant & dynamic]


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
