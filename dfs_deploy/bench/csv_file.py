"""A bench as a file of comma-separated values: a row a case, for a spreadsheet or a data frame."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from dfs_deploy.bench.case_result import CaseResult
from dfs_deploy.bench.results import BenchResult
from dfs_deploy.io.files import write_whole
from dfs_deploy.io.text import one_line

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
"""What a cell begins with that a spreadsheet computes (OWASP, CSV injection)."""


def write_csv(result: BenchResult, file: Path) -> None:
    """Writes the cases, whole; the columns are always the same, and what is unknown is empty."""
    rows = [_row(result, case) for case in result.cases]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
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


def _row(result: BenchResult, case: CaseResult) -> dict[str, str | int | float | None]:
    timing, ratios = case.timing, case.ratios
    return {
        "bundle": result.bundle.name,
        "digest": result.bundle.digest,
        "device": result.device,
        "cpu": result.machine.cpu,
        "quota": result.machine.quota,
        "threads": result.threads,
        "data": result.data,
        "seed": result.seed,
        "valid": result.valid,
        "name": case.name,
        "batch": case.batch,
        "iterations": timing.iterations,
        "p50_ms": timing.p50,
        "p90_ms": timing.p90,
        "p95_ms": timing.p95,
        "p99_ms": timing.p99,
        "mean_ms": timing.mean,
        "min_ms": timing.min,
        "max_ms": timing.max,
        "cov": timing.cov,
        "throughput_per_s": case.throughput_per_s,
        "ratio_over": None if ratios is None else ratios.over,
        "ratio_mean": None if ratios is None else ratios.mean.value,
        "ratio_mean_low": None if ratios is None else ratios.mean.low,
        "ratio_mean_high": None if ratios is None else ratios.mean.high,
        "ratio_p50": None if ratios is None else ratios.p50.value,
        "ratio_p95": None if ratios is None or ratios.p95 is None else ratios.p95.value,
        "top1": case.top1,
        "top1_change": None if case.top1_change is None else case.top1_change.value,
        "computation_percentage": case.computation_percentage,
        "engine_ms": case.engine_ms,
        "gate_us": case.gate_us,
        "gate_share": case.gate_share,
        "dispatch_efficiency": case.dispatch_efficiency,
        "dispatch_efficiency_low": None if case.efficiency is None else case.efficiency.low,
        "dispatch_efficiency_high": None if case.efficiency is None else case.efficiency.high,
        "joules_per_image": case.joules_per_image,
    }
