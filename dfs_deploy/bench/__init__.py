"""Measuring on the machine where it will run."""

from dfs_deploy.bench.bench import BenchResult, CaseResult, run_bench
from dfs_deploy.bench.clock import Timing
from dfs_deploy.bench.machine import Machine, check_device, describe_machine

__all__ = ["BenchResult", "CaseResult", "Machine", "Timing", "check_device", "describe_machine", "run_bench"]
