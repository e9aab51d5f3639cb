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
    from dfs_deploy.training.data import Splits, load_splits
    from dfs_deploy.training.evaluation import evaluate
    from dfs_deploy.training.forward import joint_forward
    from dfs_deploy.training.job import Job
    from dfs_deploy.training.metrics import Evaluation, read_metrics
    from dfs_deploy.training.recipe import PRESETS, Recipe, preset
    from dfs_deploy.training.run import TrainingResult, resume, run_job, train
    from dfs_deploy.training.sensitivity import PolicySearch, search_policy

_HOMES = {
    "data": ("Splits", "load_splits"),
    "evaluation": ("evaluate",),
    "forward": ("joint_forward",),
    "job": ("Job",),
    "metrics": ("Evaluation", "read_metrics"),
    "recipe": ("PRESETS", "Recipe", "preset"),
    "run": ("TrainingResult", "resume", "run_job", "train"),
    "sensitivity": ("PolicySearch", "search_policy"),
}

__all__ = [
    "PRESETS",
    "Evaluation",
    "Job",
    "PolicySearch",
    "Recipe",
    "Splits",
    "TrainingResult",
    "evaluate",
    "joint_forward",
    "load_splits",
    "preset",
    "read_metrics",
    "resume",
    "run_job",
    "search_policy",
    "train",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
