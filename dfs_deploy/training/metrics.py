"""The metrics log of a run, ``metrics.jsonl``: its records, its writer and its reader.

One JSON object per line, told apart by ``event``. The first is a ``RunRecord``. All but ``time`` depend
on the job only: a run that was stopped and resumed writes the lines that one that never stopped writes. Reading needs
no PyTorch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from dfs_deploy.errors import CheckpointError, DataError
from dfs_deploy.io.files import UnfitFileError, check_file, read_file
from dfs_deploy.io.json_files import MAX_LOG, MalformedError, Share, decode_json
from dfs_deploy.io.text import first_line
from dfs_deploy.network import Architecture, cifar_resnet

METRICS_FILE = "metrics.jsonl"
SCHEMA = 2
"""Version 2 describes the network by its blocks; version 1, by groups and widths, is still read."""

_Percentage = Annotated[float, Meta(ge=0.0)]  # of measured costs it may exceed 100
_Count = Annotated[int, Meta(ge=0)]


class AskedRecipe(msgspec.Struct, frozen=True):
    """Hyperparameters that say what joint training was steered to; see ``Recipe``."""

    target: float
    alpha: float
    alpha_sign: str


class Asked(msgspec.Struct, frozen=True):
    """The part of a job that every version of the log has; see ``Job``."""

    data: str
    seed: int
    recipe: AskedRecipe


class _Groups(msgspec.Struct, frozen=True):
    """A network in a log of version 1."""

    groups: tuple[int, ...]
    widths: tuple[int, ...] = (16, 32, 64)
    classes: int = 10
    image_shape: tuple[int, int, int] = (3, 32, 32)


class _Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    pass


class RunRecord(_Record, frozen=True, kw_only=True, tag="run"):
    """First record: the run as it was begun.

    Attributes:
        schema: version of the log's format.
        version: version of dfs-deploy.
        job: the job, as plain values; see ``Job``.
        architecture: the network, as plain values; see ``network``.
        options: names of the options.
        policy: name of the option of each gated block, or ``None`` if a gate decides.
        cost: name of the costs: ``flops``, or the latency table's file.
        images: number of images of each split.
        processes: processes that share the work.
    """

    schema: int
    version: str = ""
    job: dict[str, Any]
    architecture: dict[str, Any]
    options: list[str]
    policy: list[str] | None = None
    cost: str = "flops"
    images: dict[str, int] = {}
    processes: int = 1

    def __post_init__(self) -> None:
        # Raises msgspec.ValidationError or UsageError, which a decoder turns into an error of the whole record.
        _ = self.asked, self.network

    @property
    def asked(self) -> Asked:
        """The job, as far as every version of the log has it."""
        return msgspec.convert(self.job, Asked)

    @property
    def network(self) -> Architecture:
        """Description of the network."""
        if "groups" not in self.architecture:
            return msgspec.convert(self.architecture, Architecture)
        groups = msgspec.convert(self.architecture, _Groups)
        return cifar_resnet(groups.groups, groups.widths, groups.classes, groups.image_shape)


class StepRecord(_Record, frozen=True, kw_only=True, tag="step"):
    """One step of a stage.

    Attributes:
        stage: name of the stage.
        step: steps taken in it, this one included.
        loss: the loss that is minimised.
        accuracy: share of the batch classified correctly.
        cost: cost of the batch, in full-precision blocks.
        percentage: the same as a computation percentage.
        alpha: weight of the cost, with its sign.
        lr: learning rate of each optimizer, the backbone's before the gate's.
        target: computation percentage that this step was steered to; ``None`` if nothing steered it.
    """

    stage: str
    step: _Count
    loss: float
    accuracy: Share
    cost: float
    percentage: _Percentage
    alpha: float
    lr: list[float]
    target: float | None = None


class Evaluation(_Record, frozen=True, kw_only=True, omit_defaults=True):
    """Accuracy and computation on images that were not trained on, each routed by its own choices.

    Attributes:
        images: number of images.
        top1: share classified correctly, 0 to 1.
        percentage: mean computation percentage (Section 4, Metrics).
        option_share: for each gated block, the share of images that took each option; empty for the backbone only.
        paths: number of different sequences of options that were taken.
        suspicions: hints at a mistake rather than at a weak network, one line each.
    """

    images: _Count
    top1: Share
    percentage: _Percentage
    option_share: list[list[Share]]
    paths: _Count
    suspicions: list[str] = []


class EvaluationRecord(Evaluation, frozen=True, kw_only=True, omit_defaults=True, tag="evaluation"):
    """An evaluation after some steps.

    Attributes:
        stage: name of the stage.
        step: steps taken in it.
        split: name of the split that the images are of.
    """

    stage: str
    step: _Count
    split: str

    def __str__(self) -> str:
        return self.in_words("% computation")

    def in_words(self, unit: str) -> str:
        """The evaluation in one line, with the percentage in a unit as ``Recipe.unit`` gives it."""
        return (
            f"{self.stage} step {self.step}: top-1 {100.0 * self.top1:.2f} % of {self.images} {self.split} images at"
            f" {self.percentage:.2f} {unit}, {self.paths} path(s)"
        )


class TimeRecord(_Record, frozen=True, kw_only=True, tag="time"):
    """Time of a stage since the run was begun or resumed, without evaluations.

    Attributes:
        stage: name of the stage.
        step: steps taken in it.
        seconds: seconds that the steps took.
        steps: number of those steps.
    """

    stage: str
    step: _Count
    seconds: float
    steps: _Count


Record = RunRecord | StepRecord | EvaluationRecord | TimeRecord


def read_metrics(path: str | Path) -> list[Record]:
    """Reads a metrics log; a last line that was cut off by a stop is left out.

    Args:
        path: folder of a run, or its ``metrics.jsonl``.

    Returns:
        The records, in order: a ``RunRecord``, then what followed.

    Raises:
        DataError: it cannot be read, or is no metrics log of this schema.
    """
    path = Path(path)
    file = path / METRICS_FILE if path.is_dir() else path
    try:
        lines = read_file(file, MAX_LOG, follow=file is path).split(b"\n")[:-1]  # a link in a folder may lead anywhere
    except OSError as error:
        raise DataError(f"{file} cannot be read ({first_line(error)}); give the folder of a training run") from error
    records: list[Record] = []
    try:
        for line in lines:
            records.append(decode_json(line, Record))  # type: ignore[arg-type]  # noqa: PERF401 (their number is said)
    except MalformedError as error:
        raise DataError(
            f"{file} is no metrics log: line {len(records) + 1} is malformed ({error}); give the folder of a training"
            " run"
        ) from error
    if not records or not isinstance(records[0], RunRecord):
        raise DataError(f"{file} is no metrics log: its first line is no 'run' record; give the folder of a run")
    if not 1 <= records[0].schema <= SCHEMA:
        raise DataError(
            f"{file} is a metrics log of schema {records[0].schema}, expected 1 to {SCHEMA}; update dfs-deploy"
        )
    return records


class MetricsLog:
    """The writer of a metrics log.

    Args:
        folder: folder of the run.
        keep: bytes of the log that stand; later ones, by a run that was stopped, are cut off.

    Raises:
        CheckpointError: fewer bytes are there than are to stand, or no regular file.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        path = folder / METRICS_FILE
        with contextlib.suppress(FileNotFoundError):
            try:
                check_file(path, MAX_LOG, follow=False)
            except UnfitFileError as error:  # opening a FIFO would wait, and a link may lead anywhere
                raise CheckpointError(f"{path} {first_line(error)}; move it away and begin a new run") from error
        self._stream = path.open("ab")
        there = os.fstat(self._stream.fileno()).st_size
        if there < keep:  # truncating would fill it up with zeros
            self._stream.close()
            raise CheckpointError(
                f"{path} holds {there} bytes, expected at least the {keep} that the saved state counts on; put it back,"
                " or begin a new run"
            )
        self._stream.truncate(keep)
        self._stream.seek(0, os.SEEK_END)

    def write(self, records: Iterable[Record]) -> None:
        """Appends records, and hands them to the system."""
        for record in records:
            self._stream.write(msgspec.json.encode(record) + b"\n")
        self._stream.flush()

    def sync(self) -> int:
        """Waits until all of it is on disk; gives its size in bytes."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return self._stream.tell()

    def close(self) -> None:
        """Ends writing."""
        self._stream.close()
