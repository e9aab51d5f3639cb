"""Measuring on the machine where it will run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfs_deploy.bench.bench import run_bench
    from dfs_deploy.bench.case_result import CaseResult
    from dfs_deploy.bench.clock import Timing
    from dfs_deploy.bench.devices import check_device
    from dfs_deploy.bench.machine import Machine, describe_machine
    from dfs_deploy.bench.results import BenchResult

__all__ = ["BenchResult", "CaseResult", "Machine", "Timing", "check_device", "describe_machine", "run_bench"]

_HOMES = {
    "BenchResult": "results",
    "CaseResult": "case_result",
    "Machine": "machine",
    "Timing": "clock",
    "check_device": "devices",
    "describe_machine": "machine",
    "run_bench": "bench",
}


def __getattr__(name: str) -> Any:
    """Imports on demand: ``doctor`` looks at the machine where onnxruntime may be missing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dfs_deploy.bench' has no attribute {name!r}")
    return getattr(import_module(f"dfs_deploy.bench.{_HOMES[name]}"), name)
