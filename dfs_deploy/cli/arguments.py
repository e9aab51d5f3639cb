"""Arguments that several verbs take, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    """The bundle that was named, or the one in the current directory."""
    from dfs_deploy.bundle import find_bundle

    return given or find_bundle()
