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

LEAST_WAIT_S = 10.0
"""Seconds between two lines at the beginning; they grow with the time that the run has taken."""

MOST_WAIT_S = 60.0
"""Most seconds between two lines: fewer than a build server takes for a hang."""

_TRAINING = "dfs_deploy.training"


class Lines:
    """Progress of a training run as a line from time to time, for logs and pipes.

    Args:
        show: called with each line.
        clock: seconds, from any beginning.
    """

    def __init__(self, show: Callable[[str], object], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._show = show
        self._clock = clock
        self._began = self._due = clock()
        self._stage = ""
        self._first = (0.0, 0.0)

    def __call__(self, text: str, share: float) -> None:
        """Takes in a step of the run; the first word of its text is the stage that the share is of."""
        now, stage = self._clock(), text.partition(" ")[0]
        if stage != self._stage:
            self._stage, self._first = stage, (share, now)
        elif now < self._due:
            return
        self._due = now + min(max(LEAST_WAIT_S, (now - self._began) / 20.0), MOST_WAIT_S)
        done, seconds = share - self._first[0], now - self._first[1]
        left = f", about {describe_duration(seconds / done * (1.0 - share))} left of this stage" if done > 0.0 else ""
        self._show(text + left)


@contextlib.contextmanager
def training_progress(*, quiet: bool) -> Iterator[Progress]:
    """Shows a run and the log of its training: a bar on a terminal, lines in a pipe, nothing if ``quiet``."""
    console = errors()
    with contextlib.ExitStack() as stack:
        if quiet:
            yield silent
            return
        if not console.is_terminal:
            progress: Progress = Lines(console.print)
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


def describe_duration(seconds: float) -> str:
    """A duration in words: ``40 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60.0)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
