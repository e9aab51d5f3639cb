"""A training run as a function: from what is asked for to a checkpoint, with everything in one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dfs_deploy.costs import LatencyTable, load_costs
from dfs_deploy.errors import DataError, EnvironmentLacksError, UsageError
from dfs_deploy.io.files import check_folder, remove_leftovers, sole_use
from dfs_deploy.io.kinds import JOB_FILE
from dfs_deploy.io.text import first_line, one_line
from dfs_deploy.models.threads import torch_threads
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import parse_size
from dfs_deploy.progress import Progress, silent
from dfs_deploy.training.job import Job, load_job, save_job
from dfs_deploy.training.loop import BACKBONE_FILE, CHECKPOINT_FILE, Loop
from dfs_deploy.training.metrics import Evaluation, Record, read_metrics
from dfs_deploy.training.processes import is_first, joined, local_device
from dfs_deploy.training.recipe import FLOPS, RESIZED_CROPS, Recipe, unknown_value
from dfs_deploy.training.recipe import preset as recipe_of
from dfs_deploy.training.sensitivity import search_policy
from dfs_deploy.training.splits import Splits, splits_for, usual_augmentation, usual_resize
from dfs_deploy.training.state import STATE_FILE, load_state, saving

MIXED = "mixed"
"""Policy that is to be searched: by measured sensitivity, for the target."""

TARGET_TOLERANCE = 2.0
"""Points of computation percentage by which a run may miss its target."""

_JOB_VALUES = frozenset(each.name for each in dataclasses.fields(Job)) - {"data", "recipe"}
_VALUES = _JOB_VALUES | {each.name for each in dataclasses.fields(Recipe)} - {"costs"}

_BY_COSTS = ("options", "policy", "target")
"""Values that are held against the options' costs."""

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
    """

    folder: Path
    checkpoint: Path
    job: Job
    evaluation: Evaluation
    split: str
    notes: tuple[str, ...] = ()
    first: bool = True
    finished_before: bool = False

    def __repr__(self) -> str:
        measured = f"top-1 {100 * self.evaluation.top1:.2f} % at {self.evaluation.percentage:.2f} % computation"
        return f"<TrainingResult {one_line(self.checkpoint)}: {measured}>"

    @property
    def target_missed(self) -> bool:
        """Whether the computation ended more than ``TARGET_TOLERANCE`` away from the target."""
        target = self.job.target
        return target is not None and abs(self.evaluation.percentage - target) > TARGET_TOLERANCE

    @property
    def metrics(self) -> list[Record]:
        """Records of the metrics log: every step and every evaluation."""
        return read_metrics(self.folder)


def train(
    data: str | Path,
    out: str | Path = "run",
    *,
    preset: str = "paper",
    options: str | Options | None = None,
    policy: str | Sequence[str] | None = None,
    cost: str | Path = FLOPS,
    progress: Progress = silent,
    **values: Any,
) -> TrainingResult:
    """Trains a network by the paper's two steps: its backbone, its gate, then both toward a computation percentage.

    Args:
        data: ``digits``, or the path of a data set (``dfs_deploy.load_dataset`` describes them).
        out: folder for the run; it must not hold another run yet.
        preset: ``paper``, or ``quick`` for a small machine.
        options: options that the gate chooses from; ``None`` for ``skip,8,16,full``, or for the policy's own.
        policy: static policy instead of a gate: one option for all gated blocks, one per block separated by commas, or
            ``mixed`` for a search by sensitivity for the target; ``None`` for a gate.
        cost: ``flops`` for ``(bits / 32) ** 2``, or the path of a latency table that ``bench`` saved.
        progress: called with the stage, the step and the batch's figures, and with the share of the stage that is done.
        values: any other value of ``Job`` (``backbone=``, ``until=``, ``device=`` ...) or of ``Recipe``
            (``target=``, ``joint_steps=`` ...); ``None`` for its default.

    Raises:
        UsageError: a run is there already, another process trains there, the folder cannot be created or written to,
            or a value cannot be.
        DataError: the data or the latency table cannot be read, or do not fit.
        CheckpointError: a checkpoint to begin with cannot be read, or is of another architecture.
        EnvironmentLacksError: there is no such device, the disk is full, or memory is too small; what was saved stays.
        CheckFailedError: the loss became NaN or infinite; what was saved stays.
    """
    check_new(Path(out))
    if policy is not None and not isinstance(policy, str):
        policy = ",".join(policy)
    given = {"options": options, "policy": policy, "cost": None if cost == FLOPS else cost, **values}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in _VALUES:
            raise UsageError(unknown_value(name, _VALUES))
    if "size" in given:
        given["size"] = parse_size("size", given["size"])
    job_values = {
        name: str(value) if isinstance(value, Path) else value for name, value in given.items() if name in _JOB_VALUES
    }
    recipe_values = {name: value for name, value in given.items() if name not in job_values}
    job, splits = _make_job(str(data), preset, recipe_values, job_values)
    used = job.used | ({"target"} if policy == MIXED else set())
    unused = sorted(set(recipe_values) - used)
    note = f"no effect on this run: {', '.join(unused)} (a network with a {'policy' if job.recipe.policy else 'gate'};"
    notes = [f"{note} stages: {', '.join(job.stages)})"] if unused else []
    return run_job(job, out, progress, splits=splits, notes=notes)


def resume(out: str | Path, progress: Progress = silent) -> TrainingResult:
    """Goes on with a run that was stopped, from its last saved state, as if it had never stopped.

    On a CPU, with the threads that the run had, the metrics are those of a run that never stopped, step for step.

    Raises:
        CheckpointError: no run is there, it is damaged, or its job was changed.
        DataError: the data cannot be read, or are not those that the run was begun with.
        DfsDeployError: as for ``train``.
    """
    return _run(load_job(Path(out)), Path(out), progress, None, new=False)


def run_job(
    job: Job, out: str | Path, progress: Progress = silent, *, splits: Splits | None = None, notes: Sequence[str] = ()
) -> TrainingResult:
    """Runs a job from its beginning, on its data if they are loaded already; see ``train``."""
    check_new(Path(out))
    return _run(job, Path(out), progress, splits, new=True, notes=notes)


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


def _make_job(
    data: str, preset: str, values: dict[str, Any], job_values: Mapping[str, Any]
) -> tuple[Job, Splits | None]:
    """Makes the job; for a latency table or a policy to be found, its data are loaded for that already."""
    policy, cost = values.get("policy"), values.get("cost")
    if cost == "":
        raise UsageError(f"cost '', expected {FLOPS} or the path of a latency table; name one")
    table = None if cost is None else load_costs(cost)
    options = _parse_options(values.get("options"), policy)
    wanted = {**values, "options": options, "policy": None if policy == MIXED else policy, "cost": None}
    # With a table, the options' reach is known once the data are; the other values are checked before.
    early = wanted if table is None else {name: wanted[name] for name in wanted if name not in _BY_COSTS}
    resize = job_values.get("resize")  # 0 for no crop
    job = Job(data=data, recipe=recipe_of(preset, **early), **{**job_values, "resize": resize or None})
    if policy == MIXED and job.backbone is None:
        raise UsageError(
            "policy mixed without a backbone, whose sensitivity it measures; train one, then --backbone it"
        )
    if "augmentation" not in values and (usual := usual_augmentation(data, job.geometry)) is not None:
        wanted["augmentation"] = usual
        job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, augmentation=usual))
    if job.recipe.augmentation == RESIZED_CROPS and job.size is not None and resize is None:
        job = dataclasses.replace(job, resize=usual_resize(job.size))
    if table is None and policy != MIXED:
        return job, None
    splits = splits_for(job)
    if table is not None and cost is not None:
        costs = _costs(table, job.recipe, splits, options)
        recipe = recipe_of(preset, **{**wanted, "costs": costs, "cost": Path(cost).name})
        job = dataclasses.replace(job, recipe=recipe)
    if policy == MIXED:
        with torch_threads(job.threads), _memory():
            found = search_policy(job, splits)
        names = ",".join(found.policy)
        if is_first():
            _LOG.info("policy %s: %.2f %% computation, by sensitivity on %s", names, found.percentage, found.images)
        job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, policy=names))
    return job, splits


def _parse_options(given: str | Options | None, policy: str | None) -> Options:
    """The options asked for; else the policy's own with full precision, or the paper's."""
    if given is not None:
        return Options.parse(given)
    if policy is None:
        return Options.parse("skip,8,16,full")
    if policy == MIXED:
        return Options.parse("8,16,full")
    words = dict.fromkeys(word.strip() for word in f"{policy},full".split(","))
    return Options(sorted(Options.parse(",".join(words)).bits)) if len(words) > 1 else Options.parse("8,full")


def _costs(table: LatencyTable, recipe: Recipe, splits: Splits, options: Options) -> tuple[tuple[float, ...], ...]:
    """Costs that were measured on a target, for the network that is to be trained."""
    architecture = splits.architecture(recipe.blocks_per_group)
    blocks, expected = len(table.block_shapes), len(architecture.blocks)
    if blocks != expected and blocks % 3 == 0:  # a network that train can make has three groups of equal length
        raise DataError(
            f"latency table of a network of {blocks} blocks, expected {expected}; add --blocks {blocks // 3}, or"
            " measure such a network with bench --save-costs"
        )
    return tuple(map(tuple, table.costs(architecture, options).tolist()))


def _run(
    job: Job, folder: Path, progress: Progress, splits: Splits | None, new: bool, notes: Sequence[str] = ()
) -> TrainingResult:
    device = local_device(job.device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_threads(job.threads))
        processes = stack.enter_context(joined(device))
        if job.recipe.batch % processes.count:
            raise UsageError(
                f"a batch of {job.recipe.batch} for {processes.count} processes, expected a multiple of their number"
            )
        stack.enter_context(_memory())
        if not new and processes.first:
            stack.enter_context(_only_one(folder))
        state = None if new else load_state(folder)
        if state is not None and state.stage is not None and processes.first:
            _LOG.info("going on in %s after step %d of stage %s", folder, state.step, state.stage)
        splits = splits or splits_for(job)
        if state is not None:
            state.check(folder, job, splits.identity)
        loop = Loop(job, folder, splits, device, processes, progress, state)
        loop.notes += notes
        # Only now, that everything given has proved sound, is something written.
        if new and processes.first:
            with saving(folder):
                folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_only_one(folder))
            check_new(folder)  # another process may have begun one meanwhile
            with saving(folder):
                save_job(folder, job)
        processes.wait()
        evaluation = loop.run()
        return TrainingResult(
            folder=folder,
            checkpoint=folder / (BACKBONE_FILE if job.stages[-1] == "backbone" else CHECKPOINT_FILE),
            job=job,
            evaluation=evaluation,
            split=splits.evaluation_name,
            notes=tuple(loop.notes),
            first=processes.first,
            finished_before=state is not None and state.stage is None,
        )


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keeps a run's folder for this process, and removes what a killed one left half written there."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(sole_use(folder))
        except BlockingIOError as error:
            raise UsageError(
                f"another process trains in {folder}; wait until it ends, or choose another folder with --out"
            ) from error
        for name in (JOB_FILE, STATE_FILE, BACKBONE_FILE, CHECKPOINT_FILE):
            remove_leftovers(folder / name)
        yield


@contextlib.contextmanager
def _memory() -> Iterator[None]:
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
