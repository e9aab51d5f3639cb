"""What the verbs share about budgets: the list on the command line, and the table of what was calibrated."""

from __future__ import annotations

from collections.abc import Sequence

from dfs_deploy.bundle.manifest import BudgetRecord
from dfs_deploy.cli.console import percent, show_table
from dfs_deploy.errors import UsageError


def parse_budgets(text: str) -> tuple[float, ...]:
    """Reads a list such as ``0.1,0.2,0.4``.

    Raises:
        UsageError: something in it is no number.
    """
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"budgets {text!r} are no numbers, expected some as in 0.1,0.2,0.4") from error


def show_budgets(points: Sequence[BudgetRecord]) -> None:
    """Prints the operating points that were calibrated, least budget first."""
    rows = [
        [
            f"{point.budget:g}",
            f"{point.computation_percentage:.2f} %",
            percent(point.top1),
            "-" if point.latency_ms is None else f"{point.latency_ms:.3f} ms",
            f"{point.bias:.4g}",
        ]
        for point in points
    ]
    samples = f"{points[0].samples} images"
    show_table(f"budgets, measured at export on {samples}", ["budget", "computation", "top-1", "latency", "bias"], rows)
