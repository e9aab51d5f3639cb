"""``dfs-deploy train``: a network from data, by the paper's two-step procedure."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dfs_deploy.cli.arguments import DataHelp, JsonOption, SeedOption, parse_size, refuse_given
from dfs_deploy.cli.console import errors, output, percent, print_json, show_table
from dfs_deploy.cli.next_step import command
from dfs_deploy.cli.process import Stopped, describe_stop
from dfs_deploy.cli.train_progress import Progression, training_progress
from dfs_deploy.errors import DataError, UsageError
from dfs_deploy.options import Options
from dfs_deploy.system.extras import required

if TYPE_CHECKING:
    from dfs_deploy.costs import LatencyTable
    from dfs_deploy.training import Job, Recipe, Splits, Trained
    from dfs_deploy.training.recipe import StageName

_BOOLEANS = {"true": True, "false": False}
_KINDS = {bool: "true or false", int: "an integer", float: "a number"}
_MIXED = "mixed"
_BY_PRESET = "by preset"
_BESIDE_RESUME = ("resume", "json")
_BY_COSTS = ("options", "policy", "target")
"""Values that are held against what the options cost."""

_FLAG_OF = {"blocks_per_group": "--blocks", "augmentation": "--augment"}
"""Flags that are spelled otherwise than the recipe's value."""


@dataclass(frozen=True)
class _Given:
    """What the user gave a value of the recipe.

    Attributes:
        value: of the type that it has in the recipe; text for ``options``, ``policy`` and ``cost``.
        spelled: how it was given, for messages.
    """

    value: Any
    spelled: str


def train(
    context: typer.Context,
    data: Annotated[str | None, typer.Option(help=f"{DataHelp} Or the word digits.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Folder for the run, without one in it.")] = Path("run"),
    resume: Annotated[
        Path | None, typer.Option(help="Folder of a run that was stopped: go on with it. Stands alone.")
    ] = None,
    preset: Annotated[str, typer.Option(help="paper, or quick for a small machine.")] = "paper",
    options: Annotated[
        str | None,
        typer.Option(help="What the gate chooses from; skip,full trains a SkipNet.", show_default="skip,8,16,full"),
    ] = None,
    target: Annotated[float | None, typer.Option(help="Computation percentage to reach.", show_default="40")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="No gate but a static policy: an option for all blocks (8), one for each (8,16,...), or mixed, chosen"
            " by measured sensitivity for the target."
        ),
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(
            help="flops, (bits / 32)^2; or a latency table that bench --save-costs wrote on the target.",
            show_default="flops",
        ),
    ] = None,
    blocks: Annotated[int | None, typer.Option(help="n of ResNet-(6n+2).", show_default=_BY_PRESET)] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="Checkpoint whose backbone is taken, in place of training one.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Checkpoint whose backbone and gate are taken: only joint training is left.")
    ] = None,
    until: Annotated[str, typer.Option(help="Last stage: backbone, gate, joint or deploy.")] = "deploy",
    batch: Annotated[int | None, typer.Option(help="Images in a step.", show_default=_BY_PRESET)] = None,
    backbone_steps: Annotated[int | None, typer.Option(help="Of stage 0.", show_default=_BY_PRESET)] = None,
    gate_steps: Annotated[int | None, typer.Option(help="Of stage 1, at most.", show_default=_BY_PRESET)] = None,
    joint_steps: Annotated[int | None, typer.Option(help="Of stage 2.", show_default=_BY_PRESET)] = None,
    deploy_steps: Annotated[
        int | None,
        typer.Option(help="Of stage 3, in the arithmetic of the deployed INT8 engines.", show_default=_BY_PRESET),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Absolute weight of the cost (Equation 2).", show_default=_BY_PRESET)
    ] = None,
    alpha_sign: Annotated[
        str | None, typer.Option(help="dynamic, or constant (Table 1).", show_default="dynamic")
    ] = None,
    augment: Annotated[
        str | None, typer.Option(help="crop-flip, crop or none.", show_default="crop-flip; crop for digits")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any value of the recipe, by its name there; repeatable."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Height and width to resize images to, as 32x32.")] = None,
    held_out: Annotated[
        int | None,
        typer.Option(help="Evaluate on so many training images, held out.", show_default="on a split of its own"),
    ] = None,
    evaluate_on: Annotated[
        str | None, typer.Option(help="Split to evaluate on: test or val.", show_default="test, else val")
    ] = None,
    evaluate_every: Annotated[int, typer.Option(min=0, help="Steps between evaluations; 0: after each stage.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between saved states.")] = 200,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="a GPU if there is one")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.", show_default="as the machine grants")
    ] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Convolutions in bfloat16.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Compile stage 0 by torch.compile.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard's events too.")] = False,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Train a network: its backbone, its gate, then both toward a computation percentage."""
    with required():
        from dfs_deploy import training
    if resume is not None:
        others = [each.name for each in context.command.params if each.name and each.name not in _BESIDE_RESUME]
        refuse_given(
            context,
            "beside --resume, which goes on with the run as it was begun; leave it out, or begin a new run",
            *others,
        )
        with _stoppable(resume, quiet=json) as observer:
            trained = training.resume(resume, observer)
        if trained.finished_before and trained.first and not json:
            errors().print(f"nothing left to do: the run in {resume} is finished")
        _report(trained, observer.notes, json)
        return
    if data is None:
        raise UsageError("neither --data nor --resume, expected one of them; --data digits needs no download")
    by_flag = {
        "options": options,
        "target": target,
        "policy": policy,
        "cost": cost,
        "blocks_per_group": blocks,
        "batch": batch,
        "backbone_steps": backbone_steps,
        "gate_steps": gate_steps,
        "joint_steps": joint_steps,
        "deploy_steps": deploy_steps,
        "alpha": alpha,
        "alpha_sign": alpha_sign,
        "augmentation": augment,
    }
    given = _gather(by_flag, changes or ())
    job_values = {
        "data": data,
        "seed": seed,
        "size": None if size is None else parse_size("--size", size),
        "held_out": held_out,
        "evaluate_on": evaluate_on,
        "backbone": None if backbone is None else str(backbone),
        "start": None if start is None else str(start),
        "until": _parse_stage(until),
        "evaluate_every": evaluate_every,
        "save_every": save_every,
        "device": device,
        "threads": threads,
        "amp": amp,
        "compile": compile,
        "tensorboard": tensorboard,
    }
    training.check_new(out)
    job, splits = _make_job(preset, {name: each.value for name, each in given.items()}, job_values, quiet=json)
    _say_unused(job, given)
    with _stoppable(out, quiet=json) as observer:
        trained = training.train(job, out, observer, splits=splits)
    _report(trained, observer.notes, json)


def _gather(by_flag: Mapping[str, Any], changes: Iterable[str]) -> dict[str, _Given]:
    """Brings the values of the recipe together, whichever way they were given; each may be given once."""
    given = {
        name: _Given(value, _FLAG_OF.get(name, f"--{name.replace('_', '-')}"))
        for name, value in by_flag.items()
        if value is not None
    }
    for change in changes:
        name, value = _parse_change(change)
        spelled = f"--set {name}"
        if name in given:
            raise UsageError(f"{spelled} beside {given[name].spelled}, expected one value of {name}; leave one out")
        given[name] = _Given(value, spelled)
    return given


def _parse_change(change: str) -> tuple[str, Any]:
    """Reads ``NAME=VALUE`` as a value of the recipe, of the type that it has there."""
    from dfs_deploy.training import Recipe

    kinds = typing.get_type_hints(Recipe)
    del kinds["costs"]  # come with cost
    name, equals, text = change.partition("=")
    if name not in kinds or not equals:
        raise UsageError(f"--set {change!r}, expected NAME=VALUE with one of {', '.join(sorted(kinds))}")
    kind = kinds[name]
    if kind not in _KINDS:
        return name, text
    try:
        return name, _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        raise UsageError(f"--set {change!r}, expected {name} as {_KINDS[kind]}") from error


def _make_job(
    preset: str, values: dict[str, Any], job_values: dict[str, Any], *, quiet: bool
) -> tuple[Job, Splits | None]:
    """Makes the job; with a latency table or a policy to be found, its data are loaded for that already.

    Args:
        preset: name of it.
        values: of the recipe, as given.
        job_values: the job's other values.
        quiet: whether nothing is said of the splits.
    """
    from dfs_deploy import training
    from dfs_deploy.costs import load_costs
    from dfs_deploy.training.recipe import FLOPS

    data, policy = job_values["data"], values.pop("policy", None)
    cost = values.pop("cost", FLOPS)
    table = None if cost == FLOPS else load_costs(cost)
    values["options"] = _parse_options(values.get("options"), policy)
    if training.is_digits(data):
        values.setdefault("augmentation", "crop")
    wanted = {**values, "policy": None if policy == _MIXED else policy}
    # With a table, what the options reach is known when the data are; the other values can be told wrong before.
    early = wanted if table is None else {name: wanted[name] for name in wanted if name not in _BY_COSTS}
    job = training.Job(recipe=training.preset(preset, **early), **job_values)
    if policy == _MIXED and job.backbone is None:
        raise UsageError("--policy mixed without --backbone, whose sensitivity it measures; train one, then give it")
    choice = training.choose_splits(data, job.held_out, job.evaluate_on)
    if not quiet:
        _say(str(choice))
    if table is None and policy != _MIXED:
        return job, None
    splits = training.load_splits(data, job.size, job.held_out, job.seed, job.evaluate_on)
    if table is not None:
        costs = _costs(table, job.recipe, splits, wanted["options"])
        recipe = training.preset(preset, **wanted, costs=costs, cost=Path(cost).name)
        job = dataclasses.replace(job, recipe=recipe)
    if policy == _MIXED:
        found = training.search_policy(job, splits)
        names = ",".join(found.policy)
        _say(f"policy {names}: {found.percentage:.2f} % computation, by sensitivity on {found.images}")
        job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, policy=names))
    return job, splits


def _costs(table: LatencyTable, recipe: Recipe, splits: Splits, options: Options) -> tuple[tuple[float, ...], ...]:
    """What was measured on a target, for the network that is to be trained."""
    from dfs_deploy.training.beginning import new_architecture

    architecture = new_architecture(recipe, splits)
    blocks, others = len(table.block_shapes), len(architecture.blocks)
    if blocks != others and blocks % 3 == 0:  # a network that train can make has three groups of equal length
        raise DataError(
            f"latency table of a network of {blocks} blocks, and one of {others} is to be trained; add"
            f" --blocks {blocks // 3}, or measure such a network with bench --save-costs"
        )
    return tuple(map(tuple, table.costs(architecture, options).tolist()))


def _say_unused(job: Job, given: Mapping[str, _Given]) -> None:
    """Names what was given and has no effect, rather than to let it pass in silence."""
    # A policy that was searched was searched for the target.
    used = job.used | ({"target"} if "policy" in given and given["policy"].value == _MIXED else set())
    unused = [each.spelled for name, each in given.items() if name not in used]
    unused += ["--compile"] if job.compile and "backbone" not in job.stages else []
    if unused:
        network = "a network with a policy" if job.recipe.policy is not None else "a network with a gate"
        _say(f"note: no effect on this run: {', '.join(unused)} ({network}; stages: {', '.join(job.stages)})")


def _say(line: str) -> None:
    """Prints a line on the run before it begins; of several processes, one does."""
    from dfs_deploy.training.processes import is_first

    if is_first():
        errors().print(line)


def _parse_options(text: str | None, policy: str | None) -> Options:
    """The options asked for; else the policy's own with full precision, or the paper's."""
    if text is not None:
        return Options.parse(text)
    if policy is None:
        return Options.parse("skip,8,16,full")
    if policy == _MIXED:
        return Options.parse("8,16,full")
    words = dict.fromkeys(word.strip() for word in f"{policy},full".split(","))
    return Options(sorted(Options.parse(",".join(words)).bits)) if len(words) > 1 else Options.parse("8,full")


def _parse_stage(text: str) -> StageName:
    from dfs_deploy.training.recipe import STAGES

    for stage in STAGES:
        if stage == text:
            return stage
    raise UsageError(f"stage {text!r}, expected {', '.join(STAGES)}")


@contextlib.contextmanager
def _stoppable(folder: Path, *, quiet: bool) -> Iterator[Progression]:
    """Gives the observer that shows a run; if the run is stopped, says in a line what stands and how to go on."""
    from dfs_deploy.training.processes import is_first

    try:
        with training_progress(quiet=quiet) as progression:
            yield progression
    except (KeyboardInterrupt, Stopped) as stop:
        how, code = describe_stop(stop)
        if is_first():
            errors().print(f"{how}: {_describe_saved(folder)}")
        sys.exit(code)


def _describe_saved(folder: Path) -> str:
    """What stands of a run that was stopped, as its folder tells, and how to go on."""
    from dfs_deploy.training.job import JOB_FILE
    from dfs_deploy.training.state import load_state

    if not (folder / JOB_FILE).exists():
        return "nothing was written"
    state, go_on = load_state(folder), command("train", "--resume", folder)
    if state is None:
        return f"nothing was saved yet; go on with: {go_on}"
    if state.stage is None:
        return f"all stages are done and saved in {folder}"
    where = f"step {state.step} of stage {state.stage}" if state.step else f"the beginning of stage {state.stage}"
    return f"saved up to {where}; go on with: {go_on}"


def _report(trained: Trained, notes: Sequence[str], json: bool) -> None:
    if not trained.first:
        return
    result = trained.evaluation
    if json:
        print_json(
            {
                "run": str(trained.folder),
                "checkpoint": str(trained.checkpoint),
                "options": list(trained.network.options.names),
                "split": trained.split,
                "images": result.images,
                "top1": result.top1,
                "target": trained.target,
                "target_missed": trained.target_missed if trained.target is not None else None,
                "computation_percentage": result.percentage,
                "option_share": [list(row) for row in result.option_share],
                "paths": result.paths,
                "notes": [*notes, *result.suspicions],
            }
        )
        return
    if result.option_share:
        rows = [
            [str(block), *(percent(share, 1) for share in row)]
            for block, row in enumerate(result.option_share, start=1)
        ]
        show_table("share of the images by block", ["block", *trained.network.options.names], rows)
    console = output()
    console.print(
        f"top-1 {percent(result.top1)} on {result.images} {trained.split} images at {result.percentage:.2f} %"
        f" computation, {result.paths} path(s)"
    )
    for suspicion in result.suspicions:
        console.print(f"warning: {suspicion}")
    if trained.target_missed:
        console.print(
            f"target missed: {result.percentage:.2f} % computation, asked for {trained.target:g} %; give more"
            " --joint-steps, or a greater --alpha"
        )
    from dfs_deploy.training.job import load_job

    # Trained to deploy, it was trained for ranges that are measured on its own data.
    data = load_job(trained.folder).data
    console.print(f"next: {command('export', trained.checkpoint, '--calibration-data', data)}")
