"""A chain of targets: training with accuracy as the goal.

Joint training is repeated with lower and lower targets, each a tenth of the dearest path below the one before and
beginning with its weights, until the network loses more right answers than it may, with one standard error to spare as
for ``export`` (``dfs_deploy.paired.margin``). Each is a run of its own in the folder of the chain, so that each can be
stopped and resumed. The last one that held is the result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.checkpoints.reading import MAX_CHECKPOINT
from dfs_deploy.costs import save_costs
from dfs_deploy.errors import CheckFailedError
from dfs_deploy.io.files import read_file, write_whole
from dfs_deploy.io.kinds import JOB_FILE
from dfs_deploy.models import DFSNetwork
from dfs_deploy.models.threads import torch_threads
from dfs_deploy.network import Architecture
from dfs_deploy.paired import safety_margin, share_difference
from dfs_deploy.progress import Progress
from dfs_deploy.training.begin import NETWORK_FILE, begun, contract_of
from dfs_deploy.training.data import Images
from dfs_deploy.training.job import Job, load_job, save_job
from dfs_deploy.training.latency import LATENCY_FILE, predicted_time, table_of
from dfs_deploy.training.loop import BACKBONE_FILE, CHECKPOINT_FILE, answers
from dfs_deploy.training.metrics import METRICS_FILE, EvaluationRecord, read_metrics
from dfs_deploy.training.processes import Processes, joined, local_device
from dfs_deploy.training.recipe import Recipe
from dfs_deploy.training.running import Given, TrainingResult, begin_run, check_new, enough_memory, go_on, sole_run
from dfs_deploy.training.splits import Splits, splits_for
from dfs_deploy.training.state import load_state, saving
from dfs_deploy.training.targets import Targets, Tried, load_targets, save_targets
from dfs_deploy.training.teacher import FULL, TEACHER_FILE, Pupil, begun_teacher, save_teacher

STEPS = 10
"""Targets of a chain are the dearest path's cost, cut into so many steps."""

_LEAST = 1.0
"""Least percentage that a recipe takes for a target, if it is not 0."""

_ROUNDING = 1e-9

_LOG = logging.getLogger(__name__)


def chain_targets(recipe: Recipe, architecture: Architecture) -> tuple[float, ...]:
    """The targets of a chain, the highest first: tenths of the dearest path's cost down to the recipe's target."""
    high = 100.0 * recipe.reach(architecture)[1]
    steps = [high * step / STEPS for step in range(STEPS - 1, 0, -1)]
    above = [target for target in steps if target > recipe.target and target >= _LEAST]
    return (*above, recipe.target)


def begin_chain(job: Job, folder: Path, progress: Progress, given: Given) -> TrainingResult:
    """Runs a job whose goal is accuracy, from its beginning; the errors are those of ``train``.

    Raises:
        CheckFailedError: even the highest target loses more than may be lost.
    """
    with _ready(job) as processes:
        processes.from_first(lambda: check_new(folder))  # another may be late, and see what the first began
        splits = given.splits or splits_for(job)
        job.check_judge(splits.evaluation_name)
        network, assumed = begun(job, splits, given.network, None)
        pupil = Pupil(contract_of(network, splits), splits.classes, local_device(job.device))
        teacher = begun_teacher(job, network, pupil, given.teacher, folder, processes)
        given = dataclasses.replace(given, splits=splits, notes=[*assumed, *given.notes])
        with contextlib.ExitStack() as stack:

            def write() -> None:
                with saving(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(sole_run(folder))
                check_new(folder)  # another run may have begun meanwhile
                with saving(folder):
                    network.save(folder / NETWORK_FILE)
                    if given.table is not None:
                        save_costs(folder / LATENCY_FILE, given.table)
                    save_teacher(teacher, pupil, folder)
                    save_job(folder, job)

            processes.from_first(write)
            return _Chain(job, folder, progress, processes, splits, given).run()


def go_on_with_chain(job: Job, folder: Path, progress: Progress, given: Given) -> TrainingResult:
    """Goes on with such a run; arguments and errors are those of ``begin_chain``."""
    with _ready(job) as processes, contextlib.ExitStack() as stack:
        if processes.first:
            stack.enter_context(sole_run(folder))
        splits = splits_for(job)
        given = dataclasses.replace(given, splits=splits, table=table_of(folder))
        return _Chain(job, folder, progress, processes, splits, given).run()


@contextlib.contextmanager
def _ready(job: Job) -> Iterator[Processes]:
    with torch_threads(job.threads), joined(local_device(job.device)) as processes, enough_memory():
        yield processes


class _Chain:
    """A chain in its folder, which holds the job and the network that it began with."""

    def __init__(
        self, job: Job, folder: Path, progress: Progress, processes: Processes, splits: Splits, given: Given
    ) -> None:
        self._job, self._folder, self._progress = job, folder, progress
        self._processes, self._splits, self._given = processes, splits, given
        begun_with = self._begun()
        self._targets = chain_targets(job.recipe, begun_with.architecture)
        self._contract = begun_with.contract or splits.contract()
        self._images = Images(splits.evaluation, self._contract, local_device(job.device))
        self._reference: NDArray[np.bool_] | None = None

    def run(self) -> TrainingResult:
        """Tries the targets that are left, and gives the last one that held."""
        so_far = load_targets(self._folder)
        before = 0 if so_far is None else len(so_far.tried)
        notes = list(self._given.notes)
        for target in self._targets[before:]:
            if so_far is not None and so_far.ended:
                break
            result = self._train_for(target, None if so_far is None else so_far.best)
            notes += [note for note in result.notes if note not in notes]
            so_far = self._judged(target, result, so_far)
        if so_far is None or so_far.best is None:
            raise self._failed(so_far)
        best = so_far.best
        job = self._aimed_for(best.target)
        notes += self._doubts(so_far, best)
        if self._given.network is not None:
            kept = load_checkpoint(self._folder / CHECKPOINT_FILE, deployable=False).network
            self._given.network.load_state_dict(kept.state_dict())
        last = next(record for record in reversed(read_metrics(self._folder)) if isinstance(record, EvaluationRecord))
        table = table_of(self._folder)
        return TrainingResult(
            folder=self._folder,
            checkpoint=self._folder / CHECKPOINT_FILE,
            job=job,
            evaluation=last,
            split=so_far.split,
            notes=tuple(notes),
            first=self._processes.first,
            finished_before=len(so_far.tried) == before,
            predicted=None if table is None else predicted_time(table, job, last),
            targets=so_far,
        )

    def _begun(self) -> DFSNetwork:
        return load_checkpoint(self._folder / NETWORK_FILE, deployable=False).network

    def _aimed_for(self, target: float) -> Job:
        return dataclasses.replace(self._job, recipe=dataclasses.replace(self._job.recipe, target=target))

    def _train_for(self, target: float, best: Tried | None) -> TrainingResult:
        """Trains for one target, from the beginning or from where it was stopped."""
        folder = self._folder / _name_of(target)
        given, job = dataclasses.replace(self._given, notes=()), self._job_for(target, best)

        def begun_before() -> Job | None:
            if not (folder / JOB_FILE).exists():
                return None
            if load_state(folder) is not None:
                return load_job(folder)
            with saving(folder):  # it begins again, and the chain may have been moved
                save_job(folder, job)
            return job

        begun_job = self._processes.from_first(begun_before)
        if begun_job is not None:
            return go_on(begun_job, folder, self._progress, dataclasses.replace(given, network=None))
        if job.network is not None and best is not None:
            network = load_checkpoint(self._folder / best.run / CHECKPOINT_FILE, deployable=False).network
            given = dataclasses.replace(given, network=network)
        elif job.network is not None and given.network is None:
            given = dataclasses.replace(given, network=self._begun())
        return begin_run(job, folder, self._progress, given)

    def _job_for(self, target: float, best: Tried | None) -> Job:
        """The job of one target, which begins with the last one that held."""
        job, own_teacher = self._aimed_for(target), self._folder / TEACHER_FILE
        job = dataclasses.replace(job, max_top1_drop=None)
        if own_teacher.exists():
            job = dataclasses.replace(job, teacher=str(own_teacher))
        if best is None:
            return job
        if job.teacher == FULL:  # the backbone that the first run trained
            job = dataclasses.replace(job, teacher=str(self._first_run / BACKBONE_FILE))
        start = str(self._folder / best.run / CHECKPOINT_FILE)
        return dataclasses.replace(job, start=start, backbone=None, weights=None, weights_key=None, new_head=False)

    @property
    def _first_run(self) -> Path:
        return self._folder / _name_of(self._targets[0])

    def _judged(self, target: float, result: TrainingResult, so_far: Targets | None) -> Targets:
        """The targets with one more, whose checkpoint and log become the chain's if it held."""
        if self._reference is None:
            self._reference = self._right_of_reference()
        trained = load_checkpoint(result.checkpoint, deployable=False).network
        right = self._right(trained, gated=True)
        drop, most = share_difference(self._reference, right), self._job.max_top1_drop or 0.0
        tried = Tried(
            target=target,
            run=result.folder.name,
            percentage=result.evaluation.percentage,
            top1=float(right.mean()),
            drop=drop.value,
            drop_low=drop.low,
            drop_high=drop.high,
            held=drop.value + safety_margin(drop, most) <= most + _ROUNDING,
        )
        if so_far is None:
            so_far = Targets(
                max_top1_drop=most,
                reference_top1=float(self._reference.mean()),
                split=self._splits.evaluation_name,
                images=len(right),
            )
        so_far = msgspec.structs.replace(so_far, tried=(*so_far.tried, tried))
        if self._processes.first:
            _LOG.info("%s", tried)
            with saving(self._folder):
                if tried.held:
                    for name in (CHECKPOINT_FILE, METRICS_FILE):
                        write_whole(self._folder / name, read_file(result.folder / name, MAX_CHECKPOINT))
                save_targets(self._folder, so_far)
        self._processes.wait()
        return so_far

    def _right_of_reference(self) -> NDArray[np.bool_]:
        """Whether the network that the chain began with answers rightly, in full precision."""
        if "backbone" in self._job.stages:
            backbone = load_checkpoint(self._first_run / BACKBONE_FILE, deployable=False).network
            return self._right(backbone, gated=False)
        return self._right(self._begun(), gated=False)

    def _right(self, network: DFSNetwork, gated: bool) -> NDArray[np.bool_]:
        network.to(self._images.device)
        rows = answers(network, self._images, self._processes, gated)
        right: NDArray[np.bool_] = rows[:, 0] == rows[:, 1]
        return right

    def _doubts(self, targets: Targets, best: Tried) -> list[str]:
        """A line if the images cannot tell whether the result loses no more than it may."""
        if best.drop_high <= targets.max_top1_drop + _ROUNDING:
            return []
        note = (
            f"the {targets.images} {targets.split} images cannot tell whether at most"
            f" {100.0 * targets.max_top1_drop:g} points are lost: {best}; hold out more"
        )
        if self._processes.first:
            _LOG.warning("%s", note)
        return [note]

    def _failed(self, so_far: Targets | None) -> CheckFailedError:
        seen = "nothing was tried" if so_far is None else str(so_far.tried[-1])
        return CheckFailedError(
            f"{seen}, expected at most {100.0 * (self._job.max_top1_drop or 0.0):g} points lost, by one standard error;"
            f" give more --joint-steps, or a greater --max-top1-drop; the run is in {self._first_run}"
        )


def _name_of(target: float) -> str:
    return f"target-{target:.4g}"


def current_run(folder: Path) -> Path:
    """The run of a chain that was begun last; the folder itself if it holds no chain, or none has begun."""
    jobs = sorted(folder.glob(f"target-*/{JOB_FILE}"), key=lambda file: file.stat().st_mtime)
    return jobs[-1].parent if jobs else folder
