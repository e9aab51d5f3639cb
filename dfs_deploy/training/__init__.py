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
    from dfs_deploy.training.forward import joint_forward
    from dfs_deploy.training.job import Job
    from dfs_deploy.training.metrics import Evaluation, read_metrics
    from dfs_deploy.training.recipe import PRESETS, Recipe, preset
    from dfs_deploy.training.run import TrainingResult, resume, run_job, train

_HOMES = {
    "PRESETS": "recipe",
    "Evaluation": "metrics",
    "Job": "job",
    "Recipe": "recipe",
    "TrainingResult": "run",
    "joint_forward": "forward",
    "preset": "recipe",
    "read_metrics": "metrics",
    "resume": "run",
    "run_job": "run",
    "train": "run",
}

__all__ = [
    "PRESETS",
    "Evaluation",
    "Job",
    "Recipe",
    "TrainingResult",
    "joint_forward",
    "preset",
    "read_metrics",
    "resume",
    "run_job",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
