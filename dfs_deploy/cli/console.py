"""Shared parts of all verbs: how results, progress and the log are shown, and how an error ends the program.

A result on standard output may have lines ``assumed: ...`` (about the checkpoint) and ``note: ...`` (about the data or
the run: a fact that the result depends on, or a sign that it may be wrong). Standard error has progress, one
``error: ...`` at the end, and the package's log, of which only ``warning: ...`` is shown unless ``-v`` asks for more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO

import rich.progress
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dfs_deploy.cli.process import Stopped, describe_stop
from dfs_deploy.errors import (
    ArtefactError,
    DfsDeployError,
    EngineError,
    EnvironmentLacksError,
    ExportMismatchError,
    RuntimeClosedError,
    UsageError,
)
from dfs_deploy.io.text import one_line
from dfs_deploy.progress import Progress, silent
from dfs_deploy.system.libraries import CORE, broken, install_line

if TYPE_CHECKING:
    from dfs_deploy.bundle.manifest import AccuracyBudget, BudgetRecord

FAILED, USAGE, ENVIRONMENT, ARTEFACT = 1, 2, 3, 4
"""Exit codes: a check failed or dfs-deploy has a bug, the call is wrong, something is missing here, a file is unfit."""

EXIT_CODES: Final[tuple[tuple[type[DfsDeployError], int], ...]] = (
    (UsageError, USAGE),
    (RuntimeClosedError, USAGE),
    (EnvironmentLacksError, ENVIRONMENT),
    (ArtefactError, ARTEFACT),
    (EngineError, ARTEFACT),
    (DfsDeployError, FAILED),
)
"""Exit code of each kind of error; the first that fits counts."""

CLOSED_PIPE = 141
"""Exit code if nobody reads the output any more, as a shell reports it for a program that SIGPIPE ended."""

_PIPE_WIDTH = 160
_ENDLESS = 100_000
_LONGEST = 8192
"""Most characters of one line or one cell; a path may have 4,096."""


class ClosedPipeError(Exception):
    """Nobody reads the output any more; not an OSError, which Typer would turn into the exit code of a failed check."""


class _Console(Console):
    """A console that prints every string and every Text as one line without control characters.

    Several lines are several strings, or a group of them.
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
    """The text with escapes for invisible characters; visible ones keep their style."""
    if text.plain.isprintable():
        return text
    cleaned = text.blank_copy()
    hidden = [i for i, character in enumerate(text.plain) if not character.isprintable()]
    for part in text.divide(sorted({edge for i in hidden for edge in (i, i + 1)})):
        cleaned.append_text(part if part.plain.isprintable() else Text(one_line(part.plain)))
    return cleaned


def output() -> Console:
    """The console for results, on standard output; wide if that is not a terminal, so that no line is cut."""
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


def show_assumptions(assumptions: Iterable[object]) -> None:
    """Prints a line ``assumed: ...`` for each assumption about a checkpoint."""
    for assumption in assumptions:
        output().print(f"assumed: {one_line(assumption)}")


def show_notes(notes: Iterable[object]) -> None:
    """Prints a line ``note: ...`` for each note on a result."""
    for note in notes:
        output().print(f"note: {one_line(note)}")


def show_budgets(points: Sequence[BudgetRecord]) -> None:
    """Prints the operating points that export calibrated, smallest budget first."""
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
    title = f"budgets, measured at export on {points[0].samples} images"
    show_table(title, ["budget", "computation", "top-1", "latency", "bias"], rows)


def show_accuracy_budget(point: AccuracyBudget) -> None:
    """Prints the operating point that a runtime holds by default, and what its check says."""
    console, checked = output(), point.checked
    own = {"most-precise-path": "itself with every block at its most precise", "as-trained": "itself as trained"}
    reference = own.get(point.reference.kind, f"{point.reference.kind} {point.reference.name}")
    console.print(
        f"accuracy budget: bias {point.bias:.4g}, the default of this bundle (--budget trained runs it as trained);"
        f" top-1 may be {100 * point.max_top1_drop:.2f} points below that of {reference}"
    )
    rows = [
        [
            name,
            str(half.samples),
            percent(half.top1),
            percent(half.top1_reference),
            f"{100 * half.top1_change:+.2f} ({100 * half.top1_change_low:+.2f} to {100 * half.top1_change_high:+.2f})",
            percent(half.top1_trained),
            f"{half.computation_percentage:.2f} % ({half.computation_percentage_trained:.2f} %)",
            *(
                []
                if half.time_percentage is None or half.time_percentage_trained is None
                else [f"{half.time_percentage:.2f} % ({half.time_percentage_trained:.2f} %)"]
            ),
        ]
        for name, half in (("chosen on", point.chosen), ("checked on", point.checked))
    ]
    columns = ["half", "images", "top-1", "reference", "change, points", "as trained", "computation (as trained)"]
    timed = ["time (as trained)"] if checked.time_percentage is not None else []
    show_table(f"accuracy budget on {point.data}", [*columns, *timed], rows)
    if point.proved or point.refuted:
        said = "proved" if point.proved else "refuted"
    elif point.within:
        said = f"not proved: the check had a part in the choice, {point.looks} budgets were checked"
    else:
        said = "neither proved nor refuted by so few images"
    console.print(f"with 95 % confidence, the drop that is allowed is {said}")


@contextlib.contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """The progress callback of a verb: a terminal shows a bar, a pipe gets one plain line for each new stage.

    Args:
        quiet: whether nothing is shown.
    """
    console = errors()
    if quiet:
        yield silent
    elif console.is_terminal:
        columns = (
            rich.progress.TextColumn("{task.description:<32}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(),
        )
        with rich.progress.Progress(*columns, console=console, transient=True) as bar:
            tasks: dict[str, rich.progress.TaskID] = {}

            def move(stage: str, share: float) -> None:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(stage, total=1.0)
                bar.update(tasks[stage], completed=share)

            yield move
    else:
        seen: set[str] = set()

        def announce(stage: str, share: float) -> None:
            if stage not in seen:
                seen.add(stage)
                console.print(f"{stage} ...")

        yield announce


class _LogHandler(logging.Handler):
    """Shows the package's log on standard error: warnings by that word, the rest by the module that it is from."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one line for a record."""
        warning = record.levelno >= logging.WARNING
        head = "warning" if warning else record.name.removeprefix("dfs_deploy.")
        with contextlib.suppress(OSError, ClosedPipeError):  # nobody reads it; results and exit codes stay the same
            errors().print(Text.assemble((f"{head}: ", "yellow" if warning else "grey50"), record.getMessage()))


@contextlib.contextmanager
def log_shown(verbosity: int) -> Iterator[None]:
    """Shows the package's log while a verb runs.

    Args:
        verbosity: 0 for warnings, 1 for what was loaded, cached and replaced, and why, 2 for everything.
    """
    log, handler = logging.getLogger("dfs_deploy"), _LogHandler()
    before = log.level
    log.addHandler(handler)
    log.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)])
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@contextlib.contextmanager
def exit_codes(debug: bool) -> Iterator[None]:
    """Turns an error into one line on standard error and the exit code of its kind.

    Args:
        debug: whether the traceback is shown as well.
    """
    try:
        yield
        sys.stdout.flush()  # at the interpreter's end a failure would print several lines
    except DfsDeployError as error:
        mismatches = error.mismatches if isinstance(error, ExportMismatchError) else ()
        _end(exit_code(error), str(error), *(f"  {line}" for line in mismatches), trace=debug)
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        if module == "dfs_deploy":
            _end_by_fault(error)
        elif not isinstance(error, ModuleNotFoundError):
            _end(ENVIRONMENT, str(broken(error)), trace=debug)
        else:
            remedy = f"pip install {CORE[module]}" if module in CORE else install_line()
            seen = f"{module} is not installed and dfs-deploy needs it; run: {remedy}"
            _end(ENVIRONMENT, seen, trace=debug)
    except MemoryError:
        seen = "not enough memory for this; free some, raise the limit of this process, or give it less at once"
        _end(ENVIRONMENT, seen, trace=debug)
    except (ClosedPipeError, BrokenPipeError):
        _discard(sys.stdout, sys.stderr)
        sys.exit(CLOSED_PIPE)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        seen = f"{what}{error.strerror or error}; check the path, its permissions and the space left"
        _end(ENVIRONMENT, seen, trace=debug)
    except (KeyboardInterrupt, Stopped) as stop:
        how, code = describe_stop(stop)
        _end(code, how, head="")
    except Exception as error:
        _end_by_fault(error)


def exit_code(error: DfsDeployError) -> int:
    """Exit code of the program that an error ends."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def _end_by_fault(error: Exception) -> NoReturn:
    """Ends with the traceback of an unforeseen error, safe for a terminal as everything else is."""
    seen = f"{type(error).__name__}: {one_line(error)}; this is a fault of dfs-deploy: please report it"
    _end(FAILED, seen, trace=True)


def _end(code: int, *lines: str, head: str = "error: ", trace: bool = False) -> NoReturn:
    """Prints lines on standard error and ends the program, with the same code if they cannot be printed."""
    shown = traceback.format_exc().splitlines() if trace else []
    try:
        console = errors()
        for line in shown:
            console.print(line)
        console.print(Text.assemble((head, "bold red"), lines[0]))
        for line in lines[1:]:
            console.print(line)
    except (OSError, ClosedPipeError):
        _discard(sys.stderr)  # only the exit code is left to say it
    _flush(sys.stdout)
    _flush(sys.stderr)
    sys.exit(code)


def _flush(stream: TextIO) -> None:
    """Writes what is buffered; if that fails, discards it, or Python would try again at its end."""
    try:
        stream.flush()
    except OSError:
        _discard(stream)


def _discard(*streams: TextIO) -> None:
    """Discards what is still buffered: Python flushes at its end, and would complain about the closed pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())


def engine_choice(plan: str | None) -> str:
    """The engine choice that a runtime describes under the key ``plan``, in words."""
    return "as exported" if plan in (None, "none") else str(plan)


def percent(share: float | None, digits: int = 2) -> str:
    """A share, 0 to 1, in percent; a dash for none and for NaN."""
    return "-" if share is None or math.isnan(share) else f"{100.0 * share:.{digits}f} %"
