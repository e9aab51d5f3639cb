"""Arguments that several verbs take, spelled once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dfs_deploy.cache import PLACE


def _use_cache(context: typer.Context, folder: Path | None) -> Path | None:
    """Names the folder of the caches for this verb, and for the processes that it starts."""
    if folder is not None:
        before = os.environ.get(PLACE)
        os.environ[PLACE] = str(folder.absolute())
        context.call_on_close(lambda: _name_cache(before))
    return folder


def _name_cache(folder: str | None) -> None:
    if folder is None:
        os.environ.pop(PLACE, None)
    else:
        os.environ[PLACE] = folder


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
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="DIR",
        callback=_use_cache,
        help="Folder for what is made once on a machine; else $DFS_DEPLOY_CACHE, else beside the bundle.",
        show_default=False,
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of every draw.")]
DataHelp = "An .npz with x and y, a folder of images by class, or a CIFAR archive's folder."


def bundle_path(given: Path | None) -> Path:
    """The bundle that was named, or the one in the current directory."""
    from dfs_deploy.bundle import find_bundle

    return given or find_bundle()
