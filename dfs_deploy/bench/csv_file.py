"""A bench as a file of comma-separated values: one row per case, for a spreadsheet or a data frame."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Final

from dfs_deploy.bench.result import BenchResult, CaseResult
from dfs_deploy.io.files import write_whole
from dfs_deploy.io.text import one_line

_OF_THE_BENCH: Final = {
    "bundle": "bundle.name",
    "digest": "bundle.digest",
    "device": "device",
    "cpu": "machine.cpu",
    "quota": "machine.quota",
    "threads": "threads",
    "data": "data",
    "seed": "seed",
    "valid": "valid",
}
_OF_A_CASE: Final = {
    **{name: name for name in ("name", "batch", "iterations")},
    **{f"{name}_ms": f"latency_ms.{name}" for name in ("p50", "p90", "p95", "p99", "mean", "min", "max")},
    "cov": "latency_ms.cov",
    "throughput_per_s": "throughput_per_s",
    "ratio_over": "ratio.over",
    "ratio_mean": "ratio.mean.value",
    "ratio_mean_low": "ratio.mean.low",
    "ratio_mean_high": "ratio.mean.high",
    "ratio_p50": "ratio.p50.value",
    "ratio_p95": "ratio.p95.value",
    "top1": "top1",
    "top1_change": "top1_change.value",
    **{name: name for name in ("computation_percentage", "engine_ms", "gate_us", "gate_share", "dispatch_efficiency")},
    "dispatch_efficiency_low": "dispatch_efficiency_interval.low",
    "dispatch_efficiency_high": "dispatch_efficiency_interval.high",
    "joules_per_image": "joules_per_image",
}
"""Columns, and the place of each in the tree; what is not known is an empty cell."""

_FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\N{FULLWIDTH EQUALS SIGN}",
    "\N{FULLWIDTH PLUS SIGN}",
    "\N{FULLWIDTH HYPHEN-MINUS}",
    "\N{FULLWIDTH COMMERCIAL AT}",
)
"""First characters of a cell that a spreadsheet computes (OWASP, CSV injection)."""


def write_csv(result: BenchResult, file: Path) -> None:
    """Writes the cases, whole; the columns are always the same."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_OF_THE_BENCH, *_OF_A_CASE))
    shared = [cell(_at(result, place)) for place in _OF_THE_BENCH.values()]
    writer.writerows((*shared, *(cell(_at(case, place)) for place in _OF_A_CASE.values())) for case in result.cases)
    write_whole(file, text.getvalue().encode())


def cell(value: str | float | None) -> str | float | None:
    """A value as it stands in the file: text that a spreadsheet would take for a formula begins with an apostrophe.

    Args:
        value: number, or text that may come from outside; numbers stay as they are.
    """
    if not isinstance(value, str):
        return value
    shown = one_line(value)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def _at(value: BenchResult | CaseResult, place: str) -> Any:
    """Value at a place of the tree, ``None`` if a part on the way is not known."""
    found: Any = value
    for name in place.split("."):
        found = None if found is None else getattr(found, name)
    return found
