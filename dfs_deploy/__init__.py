"""Skipped work becomes skipped time: deploys networks that choose, per input and per block, what to compute.

    import dfs_deploy

    dfs_deploy.export("net.pt", "net.dfs", calibration_data="data.npz")     # needs PyTorch: the extra "export"
    dfs_deploy.verify("net.dfs", "net.pt", "data.npz").passed
    with dfs_deploy.Runtime("net.dfs") as net:                              # needs numpy and onnxruntime
        result = net(images)

Every name is imported when it is first used: importing the package is cheap, and an application that only runs bundles
never imports PyTorch. Errors are in ``dfs_deploy.errors``.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfs_deploy import errors
    from dfs_deploy.bench import BenchResult, bench
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.checkpoints import CheckpointFacts
    from dfs_deploy.data import Dataset, load_dataset, load_image
    from dfs_deploy.exporters import Exported, export
    from dfs_deploy.models import DFSNetwork, Plan, adapt, find_blocks
    from dfs_deploy.options import Option, Options
    from dfs_deploy.preprocessing import InputContract
    from dfs_deploy.report import Report, report
    from dfs_deploy.runtimes import Result, Runtime, Substitution
    from dfs_deploy.runtimes.preparation import Prepared, prepare
    from dfs_deploy.training import TrainingResult, train
    from dfs_deploy.verify import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "BenchResult",
    "Bundle",
    "CheckpointFacts",
    "DFSNetwork",
    "Dataset",
    "Exported",
    "InputContract",
    "Option",
    "Options",
    "Plan",
    "Prepared",
    "Report",
    "Result",
    "Runtime",
    "Substitution",
    "TrainingResult",
    "Verification",
    "__version__",
    "adapt",
    "bench",
    "errors",
    "export",
    "find_blocks",
    "load_dataset",
    "load_image",
    "prepare",
    "report",
    "train",
    "verify",
]

_HOMES = {
    "BenchResult": "bench",
    "Bundle": "bundle",
    "CheckpointFacts": "checkpoints",
    "DFSNetwork": "models",
    "Dataset": "data",
    "Exported": "exporters",
    "InputContract": "preprocessing",
    "Option": "options",
    "Options": "options",
    "Plan": "models",
    "Prepared": "runtimes.preparation",
    "Report": "report",
    "Result": "runtimes",
    "Runtime": "runtimes",
    "Substitution": "runtimes",
    "TrainingResult": "training",
    "Verification": "verify",
    "adapt": "models",
    "export": "exporters",
    "find_blocks": "models",
    "load_dataset": "data",
    "load_image": "data",
    "prepare": "runtimes.preparation",
    "train": "training",
}
"""Module of each public name."""

_MODULES = ("bench", "errors", "report", "verify")
"""Public modules; those of verbs can be called (see ``dfs_deploy.verbs``)."""

_NEED_EXTRAS = ("checkpoints", "exporters", "models", "training")


logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent, warnings included, until somebody listens


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"dfs_deploy.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'dfs_deploy' has no attribute {name!r}")
    if home not in _NEED_EXTRAS:
        return getattr(import_module(f"dfs_deploy.{home}"), name)
    from dfs_deploy.system.libraries import required

    with required():
        return getattr(import_module(f"dfs_deploy.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
