"""Measuring on the machine that is to run the network. The package can be called like ``bench``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dfs_deploy.verbs import make_callable

if TYPE_CHECKING:
    from dfs_deploy.bench.result import BenchResult, load_bench
    from dfs_deploy.bench.run import bench

__all__ = ["BenchResult", "bench", "load_bench"]

_HOMES = {"BenchResult": "result", "bench": "run", "load_bench": "result"}

make_callable(__name__)


def __getattr__(name: str) -> Any:
    """Imports on demand: ``doctor`` looks at the machine even if onnxruntime is missing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dfs_deploy.bench' has no attribute {name!r}")
    return getattr(import_module(f"dfs_deploy.bench.{_HOMES[name]}"), name)
