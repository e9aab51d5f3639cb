"""Skipped work becomes skipped time: deploys networks that choose, per input and per block, what to compute.

    from dfs_deploy import Runtime

    with Runtime("model.dfs") as net:
        result = net(images)

Everything is imported when it is first asked for: importing the package costs nothing, and an application that only
runs bundles never touches PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfs_deploy import errors
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.checkpoints import CheckpointFacts
    from dfs_deploy.data import Dataset, load_dataset, load_image
    from dfs_deploy.exporters import Exported, export
    from dfs_deploy.options import Option, Options
    from dfs_deploy.runtimes import Result, Runtime, Substitution

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "CheckpointFacts",
    "Dataset",
    "Exported",
    "Option",
    "Options",
    "Result",
    "Runtime",
    "Substitution",
    "__version__",
    "errors",
    "export",
    "load_dataset",
    "load_image",
]

_HOMES = {
    "Bundle": "bundle",
    "CheckpointFacts": "checkpoints",
    "Dataset": "data",
    "Exported": "exporters",
    "Option": "options",
    "Options": "options",
    "Result": "runtimes",
    "Runtime": "runtimes",
    "Substitution": "runtimes",
    "export": "exporters",
    "load_dataset": "data",
    "load_image": "data",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("dfs_deploy.errors")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'dfs_deploy' has no attribute {name!r}")
    if home in ("checkpoints", "exporters"):
        from dfs_deploy.system.extras import required

        with required():
            return getattr(import_module(f"dfs_deploy.{home}"), name)
    return getattr(import_module(f"dfs_deploy.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
