"""A training run as a function: from what is asked for to a checkpoint, with everything in one folder."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from torch import nn

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.costs import LatencyTable, load_costs
from dfs_deploy.data import splits_of
from dfs_deploy.errors import DataError, UsageError
from dfs_deploy.models import DFSNetwork
from dfs_deploy.models.threads import torch_threads
from dfs_deploy.network import Architecture
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract, parse_size
from dfs_deploy.progress import Progress, silent
from dfs_deploy.training.begin import built, fitted, input_of
from dfs_deploy.training.chain import begin_chain, go_on_with_chain
from dfs_deploy.training.job import GIVEN, Job, load_job
from dfs_deploy.training.latency import LATENCY, measure_here, usual_cost
from dfs_deploy.training.policies import WantedPolicy, check_searchable, search_policy
from dfs_deploy.training.processes import Processes, is_first, joined, local_device
from dfs_deploy.training.recipe import FLOPS, RESIZED_CROPS, STAGES, Recipe, reach_of, unknown_value, usual_target
from dfs_deploy.training.recipe import preset as recipe_of
from dfs_deploy.training.running import Given, TrainingResult, begin_run, check_new, enough_memory, go_on
from dfs_deploy.training.splits import HELD_OUT, Splits, is_digits, splits_for, usual_augmentation, usual_resize
from dfs_deploy.training.teacher import FULL, USUAL_DISTILL, digest_of

_JOB_VALUES = frozenset(each.name for each in dataclasses.fields(Job)) - {
    "data",
    "recipe",
    "network",
    "frozen",
    "frozen_modules",
    "teacher_digest",
}
_VALUES = _JOB_VALUES | {each.name for each in dataclasses.fields(Recipe)} - {"costs"}

_GEOMETRY = ("size", "resize", "interpolation")
"""Values that say how images become the network's input; what is not given is the network's."""

_BY_COSTS = ("options", "policy", "target")
"""Values that are held against the options' costs."""

_ROUNDING = 1e-9

_LOG = logging.getLogger(__name__)


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
            - ``cost``: ``latency`` for the time of each option as deployed on this machine, measured before training;
              ``flops`` for ``(bits / 32) ** 2`` of each block's multiply-adds; or the path of a latency table that
              ``bench`` saved. ``None`` for the preset's.
            - ``teacher``: network whose answers are learned from as well: a checkpoint, ``full`` for the network as it
              is at the beginning, in full precision, or a module that takes the run's normalised images.
            - ``max_top1_drop``: share of right answers that may be lost: targets are lowered, in a chain of runs, until
              more is lost on images that are not of the test split; ``target`` is then the lowest one.

    Raises:
        UsageError: a run is there already, another process trains there, the folder cannot be created or written to,
            or a value cannot be.
        DataError: the data or the latency table cannot be read, or do not fit.
        CheckpointError: a checkpoint to begin with cannot be read, or is of another architecture.
        EnvironmentLacksError: there is no such device, the disk is full, or memory is too small; what was saved stays.
        CheckFailedError: the loss became NaN or infinite, or every target loses more than ``max_top1_drop``; what was
            saved stays. Or times say nothing, or the network cannot be exported to measure them.
        MissingExtraError: a library that exports is not installed, and times are to be measured.
    """
    values = _placed(given, values)
    network, out = values.pop("network", None), values.pop("out", None)
    data, preset, policy = values.pop("data", None), values.pop("preset", None), values.get("policy")
    out = Path("run" if out is None else out)
    if data is None:
        raise TypeError("train() missing 1 required argument: 'data', the path of a data set or the word digits")
    if policy is not None and not isinstance(policy, str):
        values["policy"] = ",".join(policy)
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
    teacher = job_values.get("teacher")
    if isinstance(teacher, nn.Module):
        job_values["teacher"] = GIVEN
        job_values["teacher_digest"] = None if isinstance(teacher, DFSNetwork) else digest_of(teacher)
    with joined(local_device(job_values.get("device"))) as processes:
        processes.from_first(lambda: check_new(out))  # before data are read, or times are measured
        job, asked = _make_job(str(data), preset, recipe_values, job_values, model, processes, progress)
        notes = [*asked.notes, *_without_effect(job, recipe_values, values.get("policy"), model is not None)]
        module = teacher if isinstance(teacher, nn.Module) else None
        return _begin(job, out, progress, dataclasses.replace(asked, notes=notes, teacher=module))


def _without_effect(job: Job, values: Mapping[str, Any], policy: str | None, adapted: bool) -> list[str]:
    """A line about the values that no stage of the run reads, if there are any."""
    searched = WantedPolicy.parse(policy)
    used = job.used | ({"target"} if searched is not None and searched.aims else set())
    unused = sorted(set(values) - used - ({"options"} if adapted else set()))
    unused += ["teacher"] if job.teacher is not None and "joint" not in job.stages else []
    if not unused:
        return []
    kind = "policy" if job.recipe.policy else "gate"
    return [f"no effect on this run: {', '.join(unused)} (a network with a {kind}; stages: {', '.join(job.stages)})"]


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


def resume(out: str | Path, progress: Progress = silent, *, teacher: nn.Module | None = None) -> TrainingResult:
    """Goes on with a run that was stopped, from its last saved state, as if it had never stopped.

    On a CPU, with the threads that the run had, the metrics are those of a run that never stopped, step for step.

    Args:
        out: folder of the run.
        progress: as for ``train``.
        teacher: the module that the run was begun with as its teacher, if no file can hold it: one that is neither a
            ``DFSNetwork`` nor a checkpoint's.

    Raises:
        CheckpointError: no run is there, it is damaged, or its job was changed.
        DataError: the data cannot be read, or are not those that the run was begun with.
        UsageError: the teacher is needed, or is another one.
        DfsDeployError: as for ``train``.
    """
    out = Path(out)
    job, given = load_job(out), Given(teacher=teacher)
    if teacher is not None and job.teacher_digest is None:
        raise UsageError(f"a teacher is given, and the run in {out} keeps its own, if it has one; leave it out")
    return (go_on if job.max_top1_drop is None else go_on_with_chain)(job, out, progress, given)


def run_job(
    job: Job,
    out: str | Path,
    progress: Progress = silent,
    *,
    splits: Splits | None = None,
    notes: Sequence[str] = (),
    network: DFSNetwork | None = None,
    teacher: nn.Module | None = None,
) -> TrainingResult:
    """Runs a job from its beginning, on its data and with its network if they are there already; see ``train``."""
    return _begin(job, Path(out), progress, Given(splits, network, teacher=teacher, notes=notes))


def _begin(job: Job, out: Path, progress: Progress, given: Given) -> TrainingResult:
    return (begin_run if job.max_top1_drop is None else begin_chain)(job, out, progress, given)


def _make_job(
    data: str,
    preset: str,
    values: dict[str, Any],
    job_values: Mapping[str, Any],
    model: DFSNetwork | None,
    processes: Processes,
    progress: Progress,
) -> tuple[Job, Given]:
    """Makes the job; for weights, times, an accuracy or a policy to be found, data and network are loaded already.

    The notes of the second result are what was assumed, one line each.
    """
    policy, chain = values.get("policy"), job_values.get("max_top1_drop") is not None
    searched = WantedPolicy.parse(policy)
    cost, assumed = _cost(values, job_values, preset)
    table = load_costs(cost) if cost not in (FLOPS, LATENCY) else None
    options = _parse_options(values.get("options"), policy, preset)
    if searched is not None:  # any policy until it is found, if the target is not read
        policy = None if searched.aims else max(options, key=lambda option: option.bits).name
    wanted = {**values, "options": options, "policy": policy, "cost": None}
    if job_values.get("teacher") is not None and not values.get("distill", recipe_of(preset).distill):
        if "distill" in values:
            raise UsageError("a teacher is given and distill is 0, so that it teaches nothing; leave one of them out")
        wanted["distill"] = USUAL_DISTILL
    # With times, the options' reach is known once the data are, as is a target to aim for if accuracy is the goal, or
    # if it is a share of what blocks reach that need not be alike.
    unlike = policy is None and job_values.get("network") is not None and usual_target(preset, (0.0, 1.0)) is not None
    by_network = cost != FLOPS or chain or (unlike and "target" not in values)
    early = {name: wanted[name] for name in wanted if not by_network or name not in _BY_COSTS}
    geometry = {name: value for name, value in job_values.items() if name in _GEOMETRY}
    others = {name: value for name, value in job_values.items() if name not in _GEOMETRY}
    if chain and job_values.get("evaluate_on") is None and job_values.get("held_out") is None:
        others["evaluate_on"] = "val" if not is_digits(data) and "val" in splits_of(data) else HELD_OUT
    job = Job(data=data, recipe=recipe_of(preset, **early), **others)
    if job.teacher is None and job.recipe.distill and "joint" in job.stages:
        job = dataclasses.replace(job, teacher=FULL)
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
    if not by_network and searched is None and job.weights is None:
        return job, Given(network=model, notes=assumed)
    splits = splits_for(job)
    if job.network is not None and model is None:
        model, found_out, new_head = built(job.network, job, splits, options)
        assumed = (*assumed, *found_out)
        job = dataclasses.replace(job, new_head=new_head)
    if by_network:
        architecture = splits.architecture(job.recipe.blocks_per_group) if model is None else model.architecture
        if cost == LATENCY:
            with enough_memory():
                table = processes.from_first(lambda: measure_here(job, options, splits, model, preset, progress))
        if table is not None:
            wanted["cost"] = cost if cost == LATENCY else Path(cost).name
            wanted["costs"] = _costs(table, architecture, options, job.network is None, gated=True)
        if "target" not in values:  # the preset's is a share of a path with gates, for a policy as well
            reach = reach_of(architecture, options, wanted.get("costs"))
            wanted["target"] = _least_target(reach[0]) if chain else usual_target(preset, reach)
        if table is not None and values.get("policy") is not None:
            wanted["costs"] = _costs(table, architecture, options, job.network is None, gated=False)
        job = dataclasses.replace(job, recipe=recipe_of(preset, **wanted))
    if searched is not None:
        with torch_threads(job.threads), enough_memory():
            found = search_policy(job, searched, splits, model)
        names = ",".join(found.policy)
        if is_first():
            _LOG.info(
                "policy %s: %.2f %s, by sensitivity on %s", names, found.percentage, job.recipe.unit, found.images
            )
        job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, policy=names))
    return job, Given(splits, model, table, notes=assumed)


def _cost(values: Mapping[str, Any], job_values: Mapping[str, Any], preset: str) -> tuple[str, tuple[str, ...]]:
    """The cost that is asked for, or the preset's if it makes a difference; and what is to be said, one line each."""
    given = values.get("cost")
    if given is not None:
        if not str(given):
            raise UsageError(f"cost '', expected {LATENCY}, {FLOPS} or the path of a latency table; name one")
        if given not in (LATENCY, FLOPS) and not os.path.lexists(given):
            raise UsageError(
                f"cost {str(given)!r} is neither {LATENCY}, {FLOPS} nor a file, expected one of the two or a latency"
                " table that bench --save-costs wrote; check the spelling"
            )
        return str(given), ()
    policy, until = values.get("policy"), job_values.get("until", STAGES[-1])
    searched = WantedPolicy.parse(policy)
    fixed = policy is not None and (searched is None or not searched.aims)
    if fixed or until != STAGES[-1]:  # nothing is chosen by cost
        return FLOPS, ()
    return usual_cost(preset)


def _least_target(least: float) -> float:
    """Lowest target of a chain: the least percentage that paths reach, but at least 1."""
    return max(1.0, 100.0 * least * (1.0 + _ROUNDING))


def _parse_options(given: str | Options | None, policy: str | None, preset: str) -> Options:
    """The options asked for; else the policy's own with full precision, or the preset's."""
    if given is not None:
        return Options.parse(given)
    if policy is None:
        return recipe_of(preset).options
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
