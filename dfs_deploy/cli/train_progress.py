"""What ``train`` shows while it trains: a bar on a terminal, and in a pipe a line from time to time."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from dfs_deploy.cli.console import errors
from dfs_deploy.progress import Progress, silent

WAIT_S = 30.0
"""Seconds between two lines: fewer than a build server takes for a hang."""

_TRAINING = "dfs_deploy.training"


def lines(show: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> Progress:
    """Progress as a line at the beginning of each stage and then every half minute, for logs and pipes.

    Args:
        show: called with each line.
        clock: seconds, from any beginning.
    """
    shown, due = "", 0.0

    def progress(text: str, share: float) -> None:
        nonlocal shown, due
        stage = text.partition(" ")[0]
        if stage != shown or clock() >= due:
            shown, due = stage, clock() + WAIT_S
            show(text)

    return progress


@contextlib.contextmanager
def training_progress(*, quiet: bool) -> Iterator[Progress]:
    """Shows a run and the log of its training: a bar on a terminal, lines in a pipe, nothing if ``quiet``."""
    console = errors()
    with contextlib.ExitStack() as stack:
        if quiet:
            yield silent
            return
        if not console.is_terminal:
            progress = lines(console.print)
        else:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
            bar = stack.enter_context(Bar(*columns, TimeRemainingColumn(), console=console, transient=True))
            task = bar.add_task("starting", total=1.0)

            def progress(text: str, share: float) -> None:
                bar.update(task, description=text, completed=share)

        stack.enter_context(_shown_log(console.print))
        yield progress


@contextlib.contextmanager
def _shown_log(show: Callable[[str], object]) -> Iterator[None]:
    """Shows what training logs, notes as such."""

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            head = "note: " if record.levelno >= logging.WARNING else ""
            show(head + record.getMessage())

    logger, handler = logging.getLogger(_TRAINING), Shown(logging.INFO)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # --verbose would show it twice
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
