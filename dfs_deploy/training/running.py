"""One training run in its folder: begun, or gone on with from where it stopped."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dfs_deploy.costs import LatencyTable, save_costs
from dfs_deploy.errors import EnvironmentLacksError, UsageError
from dfs_deploy.io.files import check_folder, remove_leftovers, sole_use
from dfs_deploy.io.kinds import JOB_FILE
from dfs_deploy.io.text import first_line, one_line
from dfs_deploy.models import DFSNetwork
from dfs_deploy.models.threads import torch_threads
from dfs_deploy.progress import Progress, silent
from dfs_deploy.training.begin import NETWORK_FILE, begun, contract_of
from dfs_deploy.training.job import Job, save_job
from dfs_deploy.training.latency import LATENCY_FILE, Predicted, predicted_time, table_of
from dfs_deploy.training.loop import BACKBONE_FILE, CHECKPOINT_FILE, Loop
from dfs_deploy.training.metrics import Evaluation, Record, read_metrics
from dfs_deploy.training.processes import joined, local_device
from dfs_deploy.training.splits import Splits, splits_for
from dfs_deploy.training.state import STATE_FILE, load_state, saving
from dfs_deploy.training.targets import Targets
from dfs_deploy.training.teacher import TEACHER_FILE, Pupil, begun_teacher, kept_teacher, save_teacher

TARGET_TOLERANCE = 2.0
"""Percent of the dearest path's cost by which a run may miss its target: points, if full precision is an option."""

_FILES = (JOB_FILE, STATE_FILE, NETWORK_FILE, TEACHER_FILE, LATENCY_FILE, BACKBONE_FILE, CHECKPOINT_FILE)
"""Files of a run that are written whole."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training run.

    Attributes:
        folder: folder of the run.
        checkpoint: the file to export; the backbone's if the run ended with stage 0.
        job: the job that was run.
        evaluation: evaluation after the last stage.
        split: name of the split that was evaluated on: ``test`` or ``val``, or ``held-out`` training images.
        notes: assumptions, values without an effect, and oddities that may be intended; one line each.
        first: whether this process is the one that wrote it; true if there is only one.
        finished_before: whether it was resumed with nothing left to do.
        predicted: time that the run's latency table predicts for the network; ``None`` without one.
        targets: targets that were tried if accuracy was the goal; the lowest one that held is this result.
    """

    folder: Path
    checkpoint: Path
    job: Job
    evaluation: Evaluation
    split: str
    notes: tuple[str, ...] = ()
    first: bool = True
    finished_before: bool = False
    predicted: Predicted | None = None
    targets: Targets | None = None

    def __repr__(self) -> str:
        measured = (
            f"top-1 {100 * self.evaluation.top1:.2f} % at {self.evaluation.percentage:.2f} {self.job.recipe.unit}"
        )
        return f"<TrainingResult {one_line(self.checkpoint)}: {measured}>"

    @property
    def target_missed(self) -> bool:
        """Whether the computation ended more than ``TARGET_TOLERANCE`` away from the target."""
        target, tolerance = self.job.target, TARGET_TOLERANCE * self.job.recipe.dearest
        return target is not None and abs(self.evaluation.percentage - target) > tolerance

    @property
    def metrics(self) -> list[Record]:
        """Records of the metrics log: every step and every evaluation."""
        return read_metrics(self.folder)


@dataclass(frozen=True, eq=False)
class Given:
    """What a run is given beside its job, and need not load or make.

    Attributes:
        splits: its data.
        network: the network that it begins with.
        table: latency table that its costs were taken from.
        teacher: module that was handed over to learn from.
        notes: notes of whoever made the job, one line each.
    """

    splits: Splits | None = None
    network: DFSNetwork | None = None
    table: LatencyTable | None = None
    teacher: nn.Module | None = None
    notes: Sequence[str] = ()


def begin_run(job: Job, folder: Path, progress: Progress = silent, given: Given | None = None) -> TrainingResult:
    """Runs a job of one target from its beginning; the errors are those of ``train``."""
    return _run(job, folder, progress, given or Given(), new=True)


def go_on(job: Job, folder: Path, progress: Progress = silent, given: Given | None = None) -> TrainingResult:
    """Goes on with a run of one target, as ``load_job`` gave its job; the errors are those of ``resume``."""
    return _run(job, folder, progress, given or Given(), new=False)


def check_new(folder: Path) -> None:
    """Makes sure that a run can begin in a folder; writes nothing. The errors are those of ``train``."""
    if (folder / JOB_FILE).exists():
        raise UsageError(f"{folder} has a training run already, expected a new folder; choose another, or --resume it")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is no folder, expected a new one for the run; choose another with --out")
    try:
        check_folder(folder)
    except OSError as error:
        raise UsageError(
            f"the folder {folder} cannot be {'written to' if folder.exists() else 'created'} ({first_line(error)});"
            " choose another for the run"
        ) from error


def _run(job: Job, folder: Path, progress: Progress, given: Given, *, new: bool) -> TrainingResult:
    device = local_device(job.device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_threads(job.threads))
        processes = stack.enter_context(joined(device))
        if new:
            processes.from_first(lambda: check_new(folder))  # another may be late, and see what the first began
        if job.recipe.batch % processes.count:
            raise UsageError(
                f"a batch of {job.recipe.batch} for {processes.count} processes, expected a multiple of their number"
            )
        stack.enter_context(enough_memory())
        if not new and processes.first:
            stack.enter_context(sole_run(folder))
        state = None if new else load_state(folder)
        if state is not None and state.stage is not None and processes.first:
            _LOG.info("going on in %s after step %d of stage %s", folder, state.step, state.stage)
        splits = given.splits or splits_for(job)
        if state is not None:
            state.check(folder, job, splits.identity)
        # A CIFAR ResNet is made anew, and takes what it begins with, until a state of it is saved.
        kept = None if new or (state is None and job.network is None) else folder
        begun_with, assumed = begun(job, splits, given.network, kept)
        home, finished = begun_with.device, state is not None and state.stage is None
        pupil = Pupil(contract_of(begun_with, splits), splits.classes, device)
        teacher = None
        if new:
            teacher = begun_teacher(job, begun_with, pupil, given.teacher, folder, processes)
        elif not finished:
            teacher = kept_teacher(job, pupil, given.teacher, folder, processes)
        loop = Loop(job, begun_with, folder, splits, device, processes, progress, state, teacher)
        loop.notes += [*assumed, *given.notes] if new else given.notes

        def write() -> None:
            with saving(folder):
                folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(sole_run(folder))
            check_new(folder)  # another run may have begun meanwhile
            with saving(folder):
                if job.network is not None:
                    begun_with.save(folder / NETWORK_FILE)
                if given.table is not None:
                    save_costs(folder / LATENCY_FILE, given.table)
                save_teacher(teacher, pupil, folder)
                save_job(folder, job)

        # Only now, that everything given has proved sound, is something written.
        if new:
            processes.from_first(write)
        evaluation = loop.run()
        begun_with.to(home).eval()
        table = given.table if new else table_of(folder)
        return TrainingResult(
            folder=folder,
            checkpoint=folder / (BACKBONE_FILE if job.stages[-1] == "backbone" else CHECKPOINT_FILE),
            job=job,
            evaluation=evaluation,
            split=splits.evaluation_name,
            notes=tuple(loop.notes),
            first=processes.first,
            finished_before=finished,
            predicted=None if table is None else predicted_time(table, job, evaluation),
        )


@contextlib.contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Keeps a run's folder for this process, and removes what a killed one left half written there."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(sole_use(folder))
        except BlockingIOError as error:
            raise UsageError(
                f"another process trains in {folder}; wait until it ends, or choose another folder with --out"
            ) from error
        for name in _FILES:
            remove_leftovers(folder / name)
        yield


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Turns an error of exhausted memory into one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # PyTorch has a class of its own only for GPUs; on a CPU it is a RuntimeError like any other.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise EnvironmentLacksError(
            f"memory is too small for this run ({first_line(error, 120)}); lower --batch or --size; what was saved"
            " before is whole"
        ) from error
