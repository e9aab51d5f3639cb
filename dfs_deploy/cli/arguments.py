"""Arguments that several verbs take, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfs_deploy.errors import BundleError

BundleArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[BUNDLE]", help="A NAME.dfs directory; the one in the current directory when left out."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads that one engine may use.")]
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


def bundle_path(given: Path | None) -> Path:
    """The bundle that was named, or the one in the current directory.

    Raises:
        BundleError: something else was named; the message says what it is and which argument takes it.
        UsageError: none was named, and none or several are in the current directory.
    """
    from dfs_deploy.bundle import find_bundle
    from dfs_deploy.kinds import given_instead

    if given is None:
        return find_bundle()
    other = given_instead(given, "a bundle (a NAME.dfs folder)", "bundle")
    if other is not None:
        raise BundleError(other)
    return given
