"""Training by the paper's two-step procedure: a backbone, its gate, then both toward a computation percentage.

    from dfs_deploy.training import train

    result = train("digits", "run", preset="quick", target=30.0)
    result.checkpoint  # the file to export

Names are imported when they are first asked for: reading a metrics log needs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfs_deploy.training.job import Job as Job
    from dfs_deploy.training.metrics import read_metrics as read_metrics
    from dfs_deploy.training.recipe import Recipe as Recipe
    from dfs_deploy.training.recipe import preset as preset
    from dfs_deploy.training.run import resume as resume
    from dfs_deploy.training.run import run_job as run_job
    from dfs_deploy.training.run import train as train
    from dfs_deploy.training.running import TrainingResult as TrainingResult

_HOMES = {
    "Job": "job",
    "Recipe": "recipe",
    "TrainingResult": "running",
    "preset": "recipe",
    "read_metrics": "metrics",
    "resume": "run",
    "run_job": "run",
    "train": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
