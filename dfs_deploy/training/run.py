"""A training run as a function: from what is asked for to a checkpoint, with everything in one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.costs import LatencyTable, load_costs
from dfs_deploy.errors import DataError, EnvironmentLacksError, UsageError
from dfs_deploy.io.files import check_folder, remove_leftovers, sole_use
from dfs_deploy.io.kinds import JOB_FILE
from dfs_deploy.io.text import first_line, one_line
from dfs_deploy.models import DFSNetwork
from dfs_deploy.models.threads import torch_threads
from dfs_deploy.network import Architecture
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract, parse_size
from dfs_deploy.progress import Progress, silent
from dfs_deploy.training.begin import NETWORK_FILE, begun, built, fitted, input_of
from dfs_deploy.training.job import GIVEN, Job, load_job, save_job
from dfs_deploy.training.loop import BACKBONE_FILE, CHECKPOINT_FILE, Loop
from dfs_deploy.training.metrics import Evaluation, Record, read_metrics
from dfs_deploy.training.policies import WantedPolicy, check_searchable, search_policy
from dfs_deploy.training.processes import is_first, joined, local_device
from dfs_deploy.training.recipe import FLOPS, RESIZED_CROPS, Recipe, unknown_value
from dfs_deploy.training.recipe import preset as recipe_of
from dfs_deploy.training.splits import Splits, splits_for, usual_augmentation, usual_resize
from dfs_deploy.training.state import STATE_FILE, load_state, saving

TARGET_TOLERANCE = 2.0
"""Percent of the dearest path's cost by which a run may miss its target: points, if full precision is an option."""

_JOB_VALUES = frozenset(each.name for each in dataclasses.fields(Job)) - {
    "data",
    "recipe",
    "network",
    "frozen",
    "frozen_modules",
}
_VALUES = _JOB_VALUES | {each.name for each in dataclasses.fields(Recipe)} - {"costs"}

_GEOMETRY = ("size", "resize", "interpolation")
"""Values that say how images become the network's input; what is not given is the network's."""

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
        target, tolerance = self.job.target, TARGET_TOLERANCE * self.job.recipe.dearest
        return target is not None and abs(self.evaluation.percentage - target) > tolerance

    @property
    def metrics(self) -> list[Record]:
        """Records of the metrics log: every step and every evaluation."""
        return read_metrics(self.folder)


@overload
def train(data: str | Path, out: str | Path = "run", /, **values: Any) -> TrainingResult: ...


@overload
def train(network: DFSNetwork, data: str | Path, out: str | Path = "run", /, **values: Any) -> TrainingResult: ...


@overload
def train(**values: Any) -> TrainingResult: ...


def train(*given: Any, progress: Progress = silent, **values: Any) -> TrainingResult:
    """Trains a network by the paper's two steps: its backbone, its gate, then both toward a computation percentage.

    ``train(data, "run")`` makes a CIFAR ResNet of basic blocks, or the network that ``network=`` names.
    ``train(network, data, "run")`` trains an adapted network in place; it was trained before, so stage 0 is left out.
    With ``policy=`` it is left as it is, and a copy that follows the policy is trained.

    Args:
        given: an adapted network, if one is to be trained; then ``data``, and then ``out``.
        progress: called with the stage, the step and the batch's figures, and with the share of the stage that is done.
        values: the following, and any other value of ``Job`` (``backbone=``, ``until=``, ``device=`` ...) or of
            ``Recipe`` (``target=``, ``joint_steps=`` ...); ``None`` for its default:

            - ``data``: ``digits``, or the path of a data set (``dfs_deploy.load_dataset`` describes them).
            - ``out``: folder for the run, ``run`` if it is left out; it must not hold another run yet.
            - ``preset``: ``paper``; ``quick`` for a small machine; ``cpu-int8``, the default for a network that was
              handed over or named; or ``jetson``.
            - ``network``: a network by name, such as ``torchvision:resnet18``; or an adapted one, or its checkpoint.
            - ``weights``: its weights, a state dict.
            - ``options``: options that the gate chooses from; ``None`` for those of the network, ``skip,8,16,full``, or
              the policy's own.
            - ``policy``: static policy instead of a gate: one option for all gated blocks, one per block separated by
              commas; or searched by sensitivity: ``mixed``, a bitwidth for each block, or ``pruned``, blocks that are
              always skipped, both for the target, or ``pruned:3`` for three such blocks. Of a network that was handed
              over, a copy without the gate is trained then, which is in ``checkpoint``.
            - ``cost``: ``flops`` for ``(bits / 32) ** 2`` of each block's multiply-adds, or the path of a latency table
              that ``bench`` saved.

    Raises:
        UsageError: a run is there already, another process trains there, the folder cannot be created or written to,
            or a value cannot be.
        DataError: the data or the latency table cannot be read, or do not fit.
        CheckpointError: a checkpoint to begin with cannot be read, or is of another architecture.
        EnvironmentLacksError: there is no such device, the disk is full, or memory is too small; what was saved stays.
        CheckFailedError: the loss became NaN or infinite; what was saved stays.
    """
    values = _placed(given, values)
    network, out = values.pop("network", None), values.pop("out", None)
    data, preset, policy = values.pop("data", None), values.pop("preset", None), values.get("policy")
    out = Path("run" if out is None else out)
    if data is None:
        raise TypeError("train() missing 1 required argument: 'data', the path of a data set or the word digits")
    check_new(out)
    if policy is not None and not isinstance(policy, str):
        values["policy"] = ",".join(policy)
    if values.get("cost") == FLOPS:
        del values["cost"]
    wanted = {name: value for name, value in values.items() if value is not None}
    for name in wanted:
        if name not in _VALUES:
            raise UsageError(unknown_value(name, _VALUES))
    if "size" in wanted:
        wanted["size"] = parse_size("size", wanted["size"])
    if isinstance(network, str | Path) and Path(network).is_file():
        network = load_checkpoint(network, deployable=False).network
    model = None if network is None or isinstance(network, str) else _adapted(network, wanted)
    job_values = {
        name: str(value) if isinstance(value, Path) else value for name, value in wanted.items() if name in _JOB_VALUES
    }
    if network is not None:
        job_values["network"] = network if model is None else GIVEN
    if model is not None:
        job_values["frozen"] = tuple(name for name, each in model.net.named_parameters() if not each.requires_grad)
        job_values["frozen_modules"] = tuple(sorted(model.frozen_modules))
    recipe_values = {name: value for name, value in wanted.items() if name not in _JOB_VALUES}
    if network is not None and "blocks_per_group" in recipe_values:
        raise UsageError(
            "blocks per group are given for a network that is no CIFAR ResNet of train's own; leave them out: its"
            " blocks are found, or chosen by dfs-deploy adapt --blocks, whose file train --network takes"
        )
    preset = preset or ("paper" if network is None else "cpu-int8")
    job, splits, model, assumed = _make_job(str(data), preset, recipe_values, job_values, model)
    searched = WantedPolicy.parse(values.get("policy"))
    used = job.used | ({"target"} if searched is not None and searched.aims else set())
    unused = sorted(set(recipe_values) - used - {"options"} if model else set(recipe_values) - used)
    note = f"no effect on this run: {', '.join(unused)} (a network with a {'policy' if job.recipe.policy else 'gate'};"
    notes = [*assumed, f"{note} stages: {', '.join(job.stages)})"] if unused else [*assumed]
    return run_job(job, out, progress, splits=splits, notes=notes, network=model)


def _placed(given: tuple[Any, ...], values: dict[str, Any]) -> dict[str, Any]:
    """All values by name; those without a name are network, data and folder, the network only if it is one."""
    names = ("data", "out") if not given or isinstance(given[0], str | Path) else ("network", "data", "out")
    if len(given) > len(names):
        raise UsageError(f"{len(given)} values without a name, expected {', '.join(names)} at most; name the others")
    if twice := [name for name in names[: len(given)] if values.get(name) is not None]:
        raise UsageError(f"{twice[0]} is given twice, expected one value; leave one out")
    return {**values, **dict(zip(names, given, strict=False))}


def _adapted(network: object, values: dict[str, Any]) -> DFSNetwork:
    """Checks a network that was handed over, and takes its options and policy as values."""
    if not isinstance(network, DFSNetwork):
        raise UsageError(
            f"a network of type {type(network).__name__}, expected one that adapt() made; find its blocks and adapt it"
        )
    if network.policy is None and "policy" in values:  # the gate is left out, and its options with it
        return network
    if "options" in values and Options.parse(values["options"]) != network.options:
        raise UsageError(
            f"options {values['options']} for a network with {network.options}; leave them out, or adapt anew"
        )
    values["options"] = network.options
    if network.policy is not None:
        if "policy" in values:
            raise UsageError("a policy for a network that has one of its own; leave it out, or adapt anew")
        values["policy"] = ",".join(network.options[choice].name for choice in network.policy)
    return network


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
    job: Job,
    out: str | Path,
    progress: Progress = silent,
    *,
    splits: Splits | None = None,
    notes: Sequence[str] = (),
    network: DFSNetwork | None = None,
) -> TrainingResult:
    """Runs a job from its beginning, on its data and with its network if they are there already; see ``train``."""
    check_new(Path(out))
    return _run(job, Path(out), progress, splits, new=True, notes=notes, network=network)


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
    data: str, preset: str, values: dict[str, Any], job_values: Mapping[str, Any], model: DFSNetwork | None
) -> tuple[Job, Splits | None, DFSNetwork | None, tuple[str, ...]]:
    """Makes the job; for weights, a latency table or a policy to be found, data and network are loaded already.

    The last of the results is what was assumed of the network, one line each.
    """
    policy, cost = values.get("policy"), values.get("cost")
    searched = WantedPolicy.parse(policy)
    if cost == "":
        raise UsageError(f"cost '', expected {FLOPS} or the path of a latency table; name one")
    table = None if cost is None else load_costs(cost)
    options = _parse_options(values.get("options"), policy)
    if searched is not None:  # any policy until it is found, if the target is not read
        policy = None if searched.aims else max(options, key=lambda option: option.bits).name
    wanted = {**values, "options": options, "policy": policy, "cost": None}
    # With a table, the options' reach is known once the data are; the other values are checked before.
    early = wanted if table is None else {name: wanted[name] for name in wanted if name not in _BY_COSTS}
    geometry = {name: value for name, value in job_values.items() if name in _GEOMETRY}
    others = {name: value for name, value in job_values.items() if name not in _GEOMETRY}
    job = Job(data=data, recipe=recipe_of(preset, **early), **others)
    if searched is not None:
        check_searchable(job, searched)
    contract = None
    if model is not None:
        contract = model.contract or InputContract(model.architecture.image_shape)
    elif job.network is not None:
        contract = input_of(job.network, job.weights, geometry.get("size"))
    job = fitted(job, contract, geometry)
    if "augmentation" not in values and (usual := usual_augmentation(data, job.geometry)) is not None:
        wanted["augmentation"] = usual
        job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, augmentation=usual))
    may_crop = job.resize is None and "resize" not in geometry
    if job.recipe.augmentation == RESIZED_CROPS and job.size is not None and may_crop:
        job = dataclasses.replace(job, resize=usual_resize(job.size))
    if table is None and searched is None and job.weights is None:
        return job, None, model, ()
    splits, assumed = splits_for(job), tuple[str, ...]()
    if job.network is not None and model is None:
        model, assumed, new_head = built(job.network, job, splits)
        job = dataclasses.replace(job, new_head=new_head)
    if table is not None and cost is not None:
        architecture = splits.architecture(job.recipe.blocks_per_group) if model is None else model.architecture
        costs = _costs(table, architecture, options, job.network is None, gated=values.get("policy") is None)
        recipe = recipe_of(preset, **{**wanted, "costs": costs, "cost": Path(cost).name})
        job = dataclasses.replace(job, recipe=recipe)
    if searched is not None:
        with torch_threads(job.threads), _memory():
            found = search_policy(job, searched, splits, model)
        names = ",".join(found.policy)
        if is_first():
            _LOG.info("policy %s: %.2f %% computation, by sensitivity on %s", names, found.percentage, found.images)
        job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, policy=names))
    return job, splits, model, assumed


def _parse_options(given: str | Options | None, policy: str | None) -> Options:
    """The options asked for; else the policy's own with full precision, or the paper's."""
    if given is not None:
        return Options.parse(given)
    if policy is None:
        return Options.parse("skip,8,16,full")
    if (searched := WantedPolicy.parse(policy)) is not None:
        return searched.options
    words = dict.fromkeys(word.strip() for word in f"{policy},full".split(","))
    return Options(sorted(Options.parse(",".join(words)).bits)) if len(words) > 1 else Options.parse("8,full")


def _costs(
    table: LatencyTable, architecture: Architecture, options: Options, is_cifar: bool, *, gated: bool
) -> tuple[tuple[float, ...], ...]:
    """Costs that were measured on a target, for the network that is to be trained; their mean is over all blocks."""
    blocks, expected = len(table.block_shapes), len(architecture.blocks)
    if is_cifar and blocks != expected and blocks % 3 == 0:  # train makes networks of three groups of equal length
        raise DataError(
            f"latency table of a network of {blocks} blocks, expected {expected}; add --blocks {blocks // 3}, or"
            " measure such a network with bench --save-costs"
        )
    share = architecture.gated_blocks / max(1, len(architecture.decided(options)))
    return tuple(map(tuple, (share * table.costs(architecture, options, gated=gated)).tolist()))


def _run(
    job: Job,
    folder: Path,
    progress: Progress,
    splits: Splits | None,
    new: bool,
    notes: Sequence[str] = (),
    network: DFSNetwork | None = None,
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
        begun_with, assumed = begun(job, splits, network, None if new else folder)
        home = begun_with.device
        loop = Loop(job, begun_with, folder, splits, device, processes, progress, state)
        loop.notes += [*assumed, *notes] if new else notes
        # Only now, that everything given has proved sound, is something written.
        if new and processes.first:
            with saving(folder):
                folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_only_one(folder))
            check_new(folder)  # another process may have begun one meanwhile
            with saving(folder):
                if job.network is not None:
                    begun_with.save(folder / NETWORK_FILE)
                save_job(folder, job)
        processes.wait()
        evaluation = loop.run()
        begun_with.to(home).eval()
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
        for name in (JOB_FILE, STATE_FILE, NETWORK_FILE, BACKBONE_FILE, CHECKPOINT_FILE):
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
