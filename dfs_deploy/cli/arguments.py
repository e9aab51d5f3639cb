"""Arguments that several verbs take, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfs_deploy.errors import UsageError

BundleArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[BUNDLE]", help="A NAME.dfs directory; the one in the current directory when left out."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads that one engine may use.")]
TorchThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="CPU threads of PyTorch and of an engine.",
        show_default="as the machine grants PyTorch, 1 for an engine",
    ),
]
PlanOption = Annotated[
    bool, typer.Option("--plan/--no-plan", help="Use the plan that bench --save-plan measured on this machine.")
]
PreparedOption = Annotated[
    bool,
    typer.Option("--prepared/--no-prepared", help="Run engines prepared for this machine, made where there are none."),
]
BudgetOption = Annotated[
    float | None,
    typer.Option("--budget", help="Computation to hold, 0 to 1, as calibrated at export.", show_default="as trained"),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of every draw.")]
DataHelp = "An .npz with x and y, a folder of images by class, or a CIFAR archive's folder."


AgainstOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--against",
        help="A bundle of a network that was trained to be static, which the verdict takes in; may be given again.",
        show_default="none",
    ),
]


def refuse_given(context: typer.Context, why: str, *names: str) -> None:
    """Refuses options that would change nothing, so that nobody believes they did.

    Args:
        context: context of the verb.
        why: what they mean nothing with or without, and what to do.
        names: names of the verb's parameters.

    Raises:
        UsageError: one of them was given on the command line.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            flag = next(option.opts[0] for option in context.command.params if option.name == name)
            raise UsageError(f"{flag} {why}")


def bundle_path(given: Path | None) -> Path:
    """The bundle that was named, or the one in the current directory."""
    from dfs_deploy.bundle import find_bundle

    return given or find_bundle()
