"""What every verb shares: where results and progress go, and how an error ends the program."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dfs_deploy.errors import DfsDeployError, EnvironmentLacksError, ExportMismatchError

CORE = ("numpy", "onnxruntime", "msgspec", "PIL")
"""Modules that every install has, by import name."""

INTERRUPTED = 130
CLOSED_PIPE = 141
"""Exit code where nobody reads the output any more: what a shell reports of a program that SIGPIPE ended."""

_PIPE_WIDTH = 160
_ENDLESS = 100_000

Report = Callable[[str, float], None]


class ClosedPipeError(Exception):
    """Whoever read the output stopped; no OSError, which Typer would turn into the exit code of a failed check."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Called by Rich while it handles the BrokenPipeError of a write."""
        self.quiet = True
        raise ClosedPipeError


def output() -> Console:
    """The console for results, on standard output; wide where nobody watches, so that a log is never cut."""
    console = _Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def errors() -> Console:
    """The console for progress and errors, on standard error."""
    return _Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """Writes the one JSON object of a ``--json`` run; standard output holds nothing else.

    JSON has no NaN and no infinity: they become ``null``.
    """
    try:
        sys.stdout.write(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ClosedPipeError from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Prints a table; columns after the first are aligned to the right. A pipe gets every row on one line."""
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = output()
    if not console.is_terminal:
        endless = console.options.update(width=_ENDLESS)
        console.width = max(console.width, Measurement.get(console, endless, table).maximum)
    console.print(table)


@contextlib.contextmanager
def progress(quiet: bool = False) -> Iterator[Report]:
    """Gives a function that reports what is being done and how far it is.

    A terminal shows a bar; a pipe gets a plain line for each new task; ``quiet`` shows nothing.
    """
    console = errors()
    if quiet:
        yield lambda what, share: None
    elif console.is_terminal:
        columns = (TextColumn("{task.description:<32}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            tasks: dict[str, Any] = {}

            def show(what: str, share: float) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=1.0)
                bar.update(tasks[what], completed=share)

            yield show
    else:
        seen: set[str] = set()

        def say(what: str, share: float) -> None:
            if what not in seen:
                seen.add(what)
                console.print(f"{what} ...")

        yield say


@contextlib.contextmanager
def exit_codes(debug: bool) -> Iterator[None]:
    """Turns an error into one line on standard error and the exit code that its class carries."""
    try:
        yield
    except DfsDeployError as error:
        if debug:
            traceback.print_exc()
        console = errors()
        console.print(Text.assemble(("error: ", "bold red"), str(error)))
        if isinstance(error, ExportMismatchError):
            for line in error.mismatches:
                console.print(Text(f"  {line}"))
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if debug or error.name not in CORE:
            raise
        errors().print(f"error: {error.name} is not installed and dfs-deploy needs it; run: pip install dfs-deploy")
        sys.exit(EnvironmentLacksError.exit_code)
    except (ClosedPipeError, BrokenPipeError):
        _discard_output()
        sys.exit(CLOSED_PIPE)
    except OSError as error:
        if debug:
            raise
        what = f"{error.filename}: " if error.filename else ""
        errors().print(f"error: {what}{error.strerror or error}; check the path, its permissions and the space left")
        sys.exit(EnvironmentLacksError.exit_code)
    except KeyboardInterrupt:
        errors().print("interrupted")
        sys.exit(INTERRUPTED)


def _discard_output() -> None:
    """Lets what is still buffered go nowhere: Python flushes as it ends, and would complain of the closed pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def percent(share: float | None, digits: int = 2) -> str:
    """A share, 0 to 1, in percent; a dash for none and for NaN."""
    return "-" if share is None or math.isnan(share) else f"{100.0 * share:.{digits}f} %"
