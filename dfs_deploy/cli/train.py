"""``dfs-deploy train``: a network from data, by the paper's two-step procedure."""

from __future__ import annotations

import contextlib
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from dfs_deploy.cli.arguments import (
    DataHelp,
    InterpolationOption,
    JsonOption,
    NetworkOption,
    ResizeOption,
    SeedOption,
    WeightsKeyOption,
    WeightsOption,
    refuse_given,
)
from dfs_deploy.cli.console import errors, output, percent, print_json, show_notes, show_table
from dfs_deploy.cli.process import Stopped, command, describe_stop
from dfs_deploy.cli.train_progress import training_progress
from dfs_deploy.errors import UsageError
from dfs_deploy.progress import Progress
from dfs_deploy.system.libraries import required

if TYPE_CHECKING:
    from dfs_deploy.training import TrainingResult
    from dfs_deploy.training.targets import Targets

_BOOLEANS = {"true": True, "false": False}
_KINDS = {bool: "true or false", int: "an integer", float: "a number"}
_BY_PRESET = "by preset"
_MOST_DIGITS = 9
_NOT_OF_THE_RUN = ("resume", "json", "changes")
_RENAMED = {"blocks": "blocks_per_group", "augment": "augmentation"}
"""Flags that are spelled otherwise than the recipe's value."""


def _blocks_per_group(text: str) -> int:
    """Reads a number of blocks; whoever names modules here means the flag of another verb."""
    if not text.isascii() or not text.strip().isdigit() or len(text) > _MOST_DIGITS:
        raise typer.BadParameter(
            f"{text!r}, expected N of ResNet-(6N+2); blocks of another network are chosen by adapt --blocks, whose file"
            " train --network takes"
        )
    return int(text)


def train(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help=f"{DataHelp} Or the word digits. Required without --resume.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the run; it must not hold another run yet.")
    ] = Path("run"),
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of a stopped run to continue; only --json may be given with it."),
    ] = None,
    network: NetworkOption = None,
    weights: WeightsOption = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Preset of the recipe: paper; quick for a small machine; cpu-int8 or jetson for a network that was"
            " trained, by where it will run.",
            show_default="paper; cpu-int8 with --network",
        ),
    ] = None,
    options: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Options that the gate chooses from; skip,full trains a SkipNet.",
            show_default="skip,8,16,full; skip,8 with cpu-int8",
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help="Computation to reach, in percent of full precision; with measured costs, time in percent of the"
            " slowest path's.",
            show_default="40; 60 % of the dearest path with cpu-int8 and jetson; the lowest with --max-top1-drop",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="Static policy instead of a gate: one option for all blocks (8), one per block (8,16,...), or searched"
            " by measured sensitivity: mixed, one option per block, or pruned, blocks that are always skipped, for the"
            " target; pruned:3 skips three.",
        ),
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(
            metavar="latency|flops|PATH",
            help="Cost of an option: latency for its time as deployed on this machine, measured before training; flops"
            " for (bits / 32)^2; or a latency table that bench --save-costs wrote on another machine.",
            show_default="latency with cpu-int8 and jetson, else flops",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|full",
            help="Network whose answers are learned from as well: a checkpoint, or full for the network as it begins,"
            " in full precision.",
            show_default="full if distill is more than 0, else none",
        ),
    ] = None,
    max_top1_drop: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Lower the target, run by run, until more than this share of right answers is lost on held-out images,"
            " and keep the last one that held; 0.005 is half a point. --target is then the lowest one.",
            show_default="one run for --target",
        ),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=_blocks_per_group,
            help="Blocks per group: N of ResNet-(6N+2); without --network.",
            show_default=_BY_PRESET,
        ),
    ] = None,
    backbone: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Checkpoint whose backbone is taken instead of training one.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Checkpoint whose backbone and gate are taken; only joint training is left."),
    ] = None,
    weights_key: WeightsKeyOption = None,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Last stage: backbone, gate or joint.", show_default="joint")
    ] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="Images per step.", show_default=_BY_PRESET)] = None,
    backbone_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps of the stage backbone.", show_default=_BY_PRESET)
    ] = None,
    gate_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Most steps of the stage gate.", show_default=_BY_PRESET)
    ] = None,
    joint_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps of the stage joint.", show_default=_BY_PRESET)
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Size of the cost's weight in the loss (Equation 2 of the DFS paper).",
            show_default=_BY_PRESET,
        ),
    ] = None,
    alpha_sign: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Sign of that weight: dynamic, which follows the target, constant (Table 1 of the DFS paper), or"
            " controlled, whose size follows the target too.",
            show_default="dynamic with paper, else controlled",
        ),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Variation of the images: crop-flip, crop, none, or resized-crop-flip for images larger than --size.",
            show_default="as suits the data",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any value of the recipe, by its name in dfs_deploy.training.Recipe; repeatable.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Height and width of the network's images, as in 224x224.", show_default="their own"
        ),
    ] = None,
    resize: ResizeOption = None,
    interpolation: InterpolationOption = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of training images to keep out of training and evaluate on, instead of another split.",
            show_default="a tenth if there is no other split",
        ),
    ] = None,
    evaluate_on: Annotated[
        str | None,
        typer.Option(
            metavar="SPLIT",
            help="Split to evaluate on: test, val, or held-out for a tenth of the training images.",
            show_default="test, else val",
        ),
    ] = None,
    evaluate_every: Annotated[
        int, typer.Option(metavar="N", min=0, help="Steps between evaluations; 0 for one after each stage.")
    ] = 0,
    save_every: Annotated[int, typer.Option(metavar="N", min=1, help="Steps between saved states.")] = 200,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Device to train on: cpu or cuda.", show_default="a GPU if there is one"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="CPU threads.", show_default="as the machine grants")
    ] = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Train a network: its backbone, its gate, then both toward a computation percentage."""
    with required():
        from dfs_deploy.training import run as training
    if resume is not None:
        others = [each.name for each in context.command.params if each.name and each.name not in ("resume", "json")]
        refuse_given(
            context,
            "cannot be given with --resume, which goes on with the run as it was begun; leave it out",
            *others,
        )
        with _stoppable(resume, quiet=json) as progress:
            result = training.resume(resume, progress)
        if result.finished_before and result.first and not json:
            errors().print(f"nothing left to do: the run in {resume} is finished")
    elif data is None:
        raise UsageError("neither --data nor --resume, expected one of them; --data digits needs no download")
    else:
        given = {
            _RENAMED.get(name, name): value for name, value in context.params.items() if name not in _NOT_OF_THE_RUN
        }
        values = _with_changes(given, changes or ())
        with _stoppable(out, quiet=json) as progress:
            result = training.train(progress=progress, **values)
    _report(result, json)


def _with_changes(given: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """The values of the run with those of ``--set``; each may be given once."""
    values, changed = dict(given), set()
    for name, value in map(_parse_change, changes):
        if name in changed or values.get(name) is not None:
            raise UsageError(f"{name} is given twice, expected one value, by its flag or by --set; leave one out")
        values[name] = value
        changed.add(name)
    return values


def _parse_change(change: str) -> tuple[str, Any]:
    """Reads ``NAME=VALUE`` as a value of the recipe, of the type that it has there."""
    from dfs_deploy.training import Recipe
    from dfs_deploy.training.recipe import unknown_value

    kinds = typing.get_type_hints(Recipe)
    del kinds["costs"]  # come with cost
    name, equals, text = change.partition("=")
    if not equals:
        raise UsageError(f"--set {change!r}, expected NAME=VALUE, as in momentum=0.9")
    if name not in kinds:
        raise UsageError(f"--set {change!r}: {unknown_value(name, kinds)}")
    kind = kinds[name]
    if kind not in _KINDS:
        return name, text
    try:
        return name, _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        raise UsageError(f"--set {change!r}, expected {name} as {_KINDS[kind]}") from error


@contextlib.contextmanager
def _stoppable(folder: Path, *, quiet: bool) -> Iterator[Progress]:
    """Shows a run; if it is stopped, says in one line what was saved and how to go on."""
    from dfs_deploy.training.processes import is_first

    try:
        with training_progress(quiet=quiet) as progress:
            yield progress
    except (KeyboardInterrupt, Stopped) as stop:
        how, code = describe_stop(stop)
        if is_first():
            errors().print(f"{how}: {_describe_saved(folder)}")
        sys.exit(code)


def _describe_saved(folder: Path) -> str:
    """What was saved of a run that was stopped, and how to go on."""
    from dfs_deploy.io.kinds import JOB_FILE
    from dfs_deploy.training.chain import current_run
    from dfs_deploy.training.state import load_state

    if not (folder / JOB_FILE).exists():
        return "nothing was written"
    run, go_on = current_run(folder), command("train", "--resume", folder)
    state = load_state(run)
    if state is None:
        return f"nothing was saved yet; go on with: {go_on}"
    if state.stage is None:
        return f"all stages are done and saved in {run}" + ("" if run == folder else f"; go on with: {go_on}")
    where = f"step {state.step} of stage {state.stage}" if state.step else f"the beginning of stage {state.stage}"
    return f"saved up to {where}; go on with: {go_on}"


def _show_targets(targets: Targets) -> None:
    """A table of the targets that were tried for the accuracy that was the goal; what is lost is in points."""
    rows = [
        [
            f"{each.target:g} %",
            f"{each.percentage:.2f} %",
            percent(each.top1),
            f"{100.0 * each.drop:.2f}",
            f"{100.0 * each.drop_low:.2f} to {100.0 * each.drop_high:.2f}",
            "yes" if each.held else "no",
        ]
        for each in targets.tried
    ]
    judged = f"{targets.images} {targets.split} images, from {percent(targets.reference_top1)}"
    title = f"at most {100.0 * targets.max_top1_drop:g} points of top-1 lost on {judged}"
    show_table(title, ["target", "reached", "top-1", "lost", "95 %", "held"], rows)


def _report(result: TrainingResult, json: bool) -> None:
    if not result.first:
        return
    from dfs_deploy.training.latency import LATENCY_FILE
    from dfs_deploy.training.splits import is_digits

    evaluation, target, names = result.evaluation, result.job.target, result.job.recipe.options.names
    unit = result.job.recipe.unit if result.job.stages[-1] == "joint" else "% computation"
    if json:
        print_json(
            {
                "run": str(result.folder),
                "checkpoint": str(result.checkpoint),
                "options": list(names),
                "split": result.split,
                "images": evaluation.images,
                "top1": evaluation.top1,
                "target": target,
                "target_missed": None if target is None else result.target_missed,
                "cost": result.job.recipe.cost,
                "computation_percentage": evaluation.percentage,
                "predicted_us": None if result.predicted is None else result.predicted.mean_us,
                "dearest_us": None if result.predicted is None else result.predicted.dearest_us,
                "max_top1_drop": result.job.max_top1_drop,
                "targets": None if result.targets is None else msgspec.to_builtins(result.targets),
                "option_share": evaluation.option_share,
                "paths": evaluation.paths,
                "notes": [*result.notes, *evaluation.suspicions],
            }
        )
        return
    if evaluation.option_share:
        rows = [
            [str(block), *(percent(share, 1) for share in row)]
            for block, row in enumerate(evaluation.option_share, start=1)
        ]
        show_table("share of the images by block", ["block", *names], rows)
    console = output()
    console.print(
        f"top-1 {percent(evaluation.top1)} on {evaluation.images} {result.split} images at"
        f" {evaluation.percentage:.2f} {unit}, {evaluation.paths} path(s)"
    )
    if (predicted := result.predicted) is not None:
        console.print(
            f"predicted: {predicted.mean_us:.1f} of {predicted.dearest_us:.1f} µs in the blocks and their gates"
            f" ({predicted.percentage:.1f} %), by {LATENCY_FILE}"
        )
    show_notes(evaluation.suspicions)
    if result.targets is not None:
        _show_targets(result.targets)
    if result.target_missed:
        console.print(
            f"target missed: {evaluation.percentage:.2f} {unit}, asked for {target:g} %; give more --joint-steps, or a"
            " greater --alpha"
        )
    data = [] if is_digits(result.job.data) else ["--calibration-data", result.job.data]  # export takes files only
    console.print(f"next: {command('export', result.checkpoint, *data)}")
