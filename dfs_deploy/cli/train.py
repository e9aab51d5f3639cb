"""``dfs-deploy train``: a network from data, by the paper's two-step procedure."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dfs_deploy.cli.arguments import DataHelp, JsonOption, SeedOption
from dfs_deploy.cli.console import errors, output, percent, print_json, show_table
from dfs_deploy.errors import UsageError
from dfs_deploy.extras import required
from dfs_deploy.options import Options
from dfs_deploy.text import one_line

if TYPE_CHECKING:
    from dfs_deploy.training import Observer, Recipe, Trained
    from dfs_deploy.training.recipe import StageName

_BOOLEANS = {"true": True, "false": False}
_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
_MIXED = "mixed"
_BY_PRESET = "by preset"
_BESIDE_RESUME = ("resume", "json")


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
    target: Annotated[float, typer.Option(help="Computation percentage to reach.")] = 40.0,
    policy: Annotated[
        str | None,
        typer.Option(
            help="No gate but a static policy: an option for all blocks (8), one for each (8,16,...), or mixed, chosen"
            " by measured sensitivity for the target."
        ),
    ] = None,
    cost: Annotated[
        str, typer.Option(help="flops, (bits / 32)^2; or a latency table that bench --save-costs wrote on the target.")
    ] = "flops",
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
    alpha_sign: Annotated[str, typer.Option(help="dynamic, or constant (Table 1).")] = "dynamic",
    augment: Annotated[
        str | None, typer.Option(help="crop-flip, crop or none.", show_default="crop-flip; crop for digits")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other value of the recipe; repeatable.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Height and width to resize images to, as 32x32.")] = None,
    held_out: Annotated[
        int | None,
        typer.Option(help="Evaluate on so many training images, held out.", show_default="on the test split"),
    ] = None,
    evaluate_every: Annotated[int, typer.Option(min=0, help="Steps between evaluations; 0: after each stage.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between saved states.")] = 200,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="a GPU where there is one")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="PyTorch's choice")] = None,
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
        _check_alone(context)
        with _progress(quiet=json) as observer:
            trained = training.resume(resume, observer)
        if trained.finished_before and trained.first and not json:
            errors().print(f"nothing left to do: the run in {resume} is finished")
        _report(trained, json)
        return
    if data is None:
        raise UsageError("neither --data nor --resume, expected one of them; --data digits needs no download")
    chosen = _parse_options(options, policy)
    resized = None if size is None else _parse_size(size)
    recipe = training.preset(
        preset,
        options=chosen,
        target=target,
        policy=None if policy == _MIXED else policy,
        blocks_per_group=blocks,
        batch=batch,
        backbone_steps=backbone_steps,
        gate_steps=gate_steps,
        joint_steps=joint_steps,
        deploy_steps=deploy_steps,
        alpha=alpha,
        alpha_sign=alpha_sign,
        augmentation=augment or ("crop" if data == training.DIGITS else None),
        **_latencies(cost, training.preset(preset, blocks_per_group=blocks), chosen, data, resized),
        **_parse_changes(changes or (), training.preset(preset)),
    )
    job = training.Job(
        data=data,
        recipe=recipe,
        seed=seed,
        size=resized,
        held_out=held_out,
        backbone=None if backbone is None else str(backbone),
        start=None if start is None else str(start),
        until=_parse_stage(until),
        evaluate_every=evaluate_every,
        save_every=save_every,
        device=device,
        threads=threads,
        amp=amp,
        compile=compile,
        tensorboard=tensorboard,
    )
    if policy == _MIXED:
        found = training.search_policy(job)
        errors().print(
            f"policy {','.join(found.policy)}: {found.percentage:.2f} % computation, by sensitivity on {found.images}"
        )
        recipe = dataclasses.replace(recipe, policy=",".join(found.policy))
        job = dataclasses.replace(job, recipe=recipe)
    with _progress(quiet=json) as observer:
        trained = training.train(job, out, observer)
    _report(trained, json)


def _check_alone(context: typer.Context) -> None:
    """Raises UsageError where ``--resume`` has company that it would have to ignore."""
    for parameter in context.command.params:
        source = None if parameter.name is None else context.get_parameter_source(parameter.name)
        if parameter.name not in _BESIDE_RESUME and source is not None and source.name == "COMMANDLINE":
            raise UsageError(
                f"--resume with {parameter.opts[0]}, expected --resume alone: the run goes on as it was begun; leave"
                f" {parameter.opts[0]} out, or begin a new run"
            )


def _parse_changes(changes: Iterable[str], recipe: Recipe) -> dict[str, object]:
    """Reads ``NAME=VALUE`` as values of a recipe, each of the type that it has there."""
    known = {key: value for key, value in vars(recipe).items() if isinstance(value, int | float | str)}
    parsed: dict[str, object] = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in known:
            raise UsageError(f"--set {change!r}, expected NAME=VALUE with one of {', '.join(sorted(known))}")
        kind = type(known[name])
        try:
            parsed[name] = _BOOLEANS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError) as error:
            raise UsageError(f"--set {change!r}, expected {name} as {_KINDS[kind]}") from error
    return parsed


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


def _latencies(
    cost: str, recipe: Recipe, options: Options, data: str, size: tuple[int, int] | None
) -> dict[str, object]:
    """What a recipe says of its costs: nothing for FLOPs, else what was measured on a target."""
    from dfs_deploy.costs import load_costs
    from dfs_deploy.training import load_splits
    from dfs_deploy.training.beginning import new_architecture
    from dfs_deploy.training.recipe import FLOPS

    if cost == FLOPS:
        return {}
    table = load_costs(cost)
    measured = table.costs(new_architecture(recipe, load_splits(data, size)), options)
    return {"costs": tuple(map(tuple, measured.tolist())), "cost": Path(cost).name}


def _parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UsageError(f"size {text!r}, expected height and width, as in 32x32")
    return int(height), int(width)


def _parse_stage(text: str) -> StageName:
    from dfs_deploy.training.recipe import STAGES

    for stage in STAGES:
        if stage == text:
            return stage
    raise UsageError(f"stage {text!r}, expected {', '.join(STAGES)}")


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Observer]:
    """Gives what shows the metrics log while it grows: a bar on a terminal, a line an evaluation in a pipe."""
    console = errors()
    if quiet:
        yield lambda record: None
    elif not console.is_terminal:
        yield lambda record: console.print(_describe(record)) if record["event"] in ("evaluation", "note") else None
    else:
        steps: dict[str, int] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting", total=None)

            def show(record: Mapping[str, Any]) -> None:
                if record["event"] == "run":
                    recipe = record["job"]["recipe"]
                    steps.update({stage: recipe[f"{stage}_steps"] for stage in ("backbone", "gate", "joint", "deploy")})
                elif record["event"] == "step":
                    text = (
                        f"{record['stage']:<8} loss {record['loss']:7.3f}  accuracy {record['accuracy']:6.1%}"
                        f"  computation {record['percentage']:5.1f} %"
                    )
                    bar.update(task, description=text, completed=record["step"], total=steps.get(record["stage"]))
                elif record["event"] in ("evaluation", "note"):
                    console.print(_describe(record))

            yield show


def _describe(record: Mapping[str, Any]) -> str:
    if record["event"] == "note":
        return one_line(record["text"])
    return (
        f"{record['stage']} step {record['step']}: top-1 {percent(record['top1'])} of {record['images']}"
        f" {record['split']} images at {record['percentage']:.2f} % computation, {record['paths']} path(s)"
    )


def _report(trained: Trained, json: bool) -> None:
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
                "computation_percentage": result.percentage,
                "option_share": [list(row) for row in result.option_share],
                "paths": result.paths,
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
    from dfs_deploy.training.job import load_job

    # Trained to deploy, it was trained for ranges that are measured on its own data.
    data = load_job(trained.folder).data
    command = ["dfs-deploy", "export", str(trained.checkpoint), "--calibration-data", data]
    console.print(f"next: {shlex.join(command)}")
