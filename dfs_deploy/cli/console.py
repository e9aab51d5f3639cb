"""What every verb shares: where results and progress go, and how an error ends the program."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dfs_deploy.cli.process import Stopped, describe_stop
from dfs_deploy.errors import DfsDeployError, EnvironmentLacksError, ExportMismatchError, InternalError
from dfs_deploy.io.text import one_line
from dfs_deploy.system.extras import CORE, broken

CLOSED_PIPE = 141
"""Exit code where nobody reads the output any more: what a shell reports of a program that SIGPIPE ended."""

_PIPE_WIDTH = 160
_ENDLESS = 100_000
_LONGEST = 8192
"""Most characters of one line or one cell; a path may have 4,096."""

Report = Callable[[str, float], None]


class ClosedPipeError(Exception):
    """Whoever read the output stopped; no OSError, which Typer would turn into the exit code of a failed check."""


class _Console(Console):
    """A console on which every string and every Text is one line that moves no cursor, whoever wrote what is in it.

    What is of several lines is printed as several, or as a group of them.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(one_line(text, _LONGEST), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        return super().render(_clean(renderable) if isinstance(renderable, Text) else renderable, options)

    def on_broken_pipe(self) -> None:
        """Called by Rich while it handles the BrokenPipeError of a write."""
        self.quiet = True
        raise ClosedPipeError


def _clean(text: Text) -> Text:
    """Text whose invisible characters are escapes; the styles of what is visible stay."""
    if text.plain.isprintable():
        return text
    cleaned = text.blank_copy()
    hidden = [i for i, character in enumerate(text.plain) if not character.isprintable()]
    for part in text.divide(sorted({edge for i in hidden for edge in (i, i + 1)})):
        cleaned.append_text(part if part.plain.isprintable() else Text(one_line(part.plain)))
    return cleaned


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


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text | Group]]) -> None:
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
        columns = (
            TextColumn("{task.description:<32}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
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
    """Turns an error into one line on standard error and the exit code that its class carries.

    Args:
        debug: whether the traceback is shown as well.
    """
    try:
        yield
        sys.stdout.flush()  # now rather than at the interpreter's end, which prints several lines if it fails
    except DfsDeployError as error:
        mismatches = error.mismatches if isinstance(error, ExportMismatchError) else ()
        _end(error.exit_code, str(error), *(f"  {line}" for line in mismatches), trace=debug)
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        if module == "dfs_deploy":
            _end_by_fault(error)
        elif not isinstance(error, ModuleNotFoundError):
            _end(EnvironmentLacksError.exit_code, str(broken(error)), trace=debug)
        else:
            from dfs_deploy.system.installed import install_line

            remedy = f"pip install {CORE[module]}" if module in CORE else install_line()
            seen = f"{module} is not installed and dfs-deploy needs it; run: {remedy}"
            _end(EnvironmentLacksError.exit_code, seen, trace=debug)
    except MemoryError:
        seen = "not enough memory for this; free some, raise the limit of this process, or give it less at once"
        _end(EnvironmentLacksError.exit_code, seen, trace=debug)
    except (ClosedPipeError, BrokenPipeError):
        _discard(sys.stdout, sys.stderr)
        sys.exit(CLOSED_PIPE)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        seen = f"{what}{error.strerror or error}; check the path, its permissions and the space left"
        _end(EnvironmentLacksError.exit_code, seen, trace=debug)
    except (KeyboardInterrupt, Stopped) as stop:
        how, code = describe_stop(stop)
        _end(code, how, head="")
    except Exception as error:
        _end_by_fault(error)


def _end_by_fault(error: Exception) -> NoReturn:
    """Ends with the traceback of an error that nobody foresaw, made fit for a terminal as everything else is."""
    seen = f"{type(error).__name__}: {one_line(error)}; this is a fault of dfs-deploy: please report it"
    _end(InternalError.exit_code, seen, trace=True)


def _end(code: int, *lines: str, head: str = "error: ", trace: bool = False) -> NoReturn:
    """Prints lines on standard error and ends the program; with the same code if they cannot be printed."""
    shown = traceback.format_exc().splitlines() if trace else []
    try:
        console = errors()
        for line in shown:
            console.print(line)
        console.print(Text.assemble((head, "bold red"), lines[0]))
        for line in lines[1:]:
            console.print(line)
    except (OSError, ClosedPipeError):
        _discard(sys.stderr)  # there is nowhere left to say it; the exit code does
    _flush(sys.stdout)
    _flush(sys.stderr)
    sys.exit(code)


def _flush(stream: TextIO) -> None:
    """Writes what is buffered; if that cannot be, lets it go, since the interpreter would try again as it ends."""
    try:
        stream.flush()
    except OSError:
        _discard(stream)


def _discard(*streams: TextIO) -> None:
    """Lets what is still buffered go nowhere: Python flushes as it ends, and would complain of the closed pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())


def percent(share: float | None, digits: int = 2) -> str:
    """A share, 0 to 1, in percent; a dash for none and for NaN."""
    return "-" if share is None or math.isnan(share) else f"{100.0 * share:.{digits}f} %"
