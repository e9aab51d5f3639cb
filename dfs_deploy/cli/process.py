"""The command line as a process: its standard streams, the signals that end it, and how to start it again.

Only the standard library is imported, since a signal may arrive while the rest is being imported: process 1 of a
container ignores every signal that it has no handler for.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""Exit code of a process that Ctrl-C ended."""

SIGNALED = 128
"""Exit code of a process that a signal ended, minus the signal's number, as shells report it."""

_SCRIPT = "dfs-deploy"

_STOPS = ("SIGTERM", "SIGHUP")
"""Signals that ask a process to end; Python turns that of Ctrl-C into KeyboardInterrupt by itself."""

_ENCODING_ERRORS = "dfs-deploy"

_PLAIN = {"·": ".", "±": "+-", "°": " deg ", "…": "...", "━": "-", "─": "-", "│": "|", "┃": "|", "╇": "+", "╸": "-"}
"""Replacements for our own signs in an encoding that lacks them."""


class Stopped(SystemExit):
    """A signal asked this process to end; raised wherever it was, so that it cleans up on the way out.

    Attributes:
        name: name of the signal, such as ``SIGTERM``.
    """

    def __init__(self, number: int) -> None:
        super().__init__(SIGNALED + number)
        self.name = signal.Signals(number).name


def describe_stop(stop: Stopped | KeyboardInterrupt) -> tuple[str, int]:
    """The reason why this process ends, in words, and its exit code."""
    if isinstance(stop, Stopped):
        return f"stopped by {stop.name}", SIGNALED + signal.Signals[stop.name]
    return "interrupted", INTERRUPTED


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise ``Stopped``; a second one ends the process at once.

    Python runs the handler in the main thread as soon as a native call there returns. A signal that is already ignored,
    as under ``nohup``, stays ignored, and a handler that somebody else installed stays installed.
    """
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            os._exit(SIGNALED + number)
        stopping = True
        raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in _STOPS:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Output(io.FileIO):
    """Standard output whose errors say that they are its own; an error of a write otherwise names no file."""

    def write(self, data: Any, /) -> int:
        """Writes as a file does."""
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "standard output"
            raise


def open_streams() -> None:
    """Makes the standard streams usable: characters that an encoding lacks are escaped, and closed streams are opened.

    The number of a closed stream would be given to the next file that is opened, and output would end up in that file.

    Raises:
        SystemExit: standard output is closed, so that no result can be shown; with code 3.
    """
    closed = sys.stdout is None
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)  # the lowest free number: that of the stream, in this order
            os.set_inheritable(handle, True)
            setattr(sys, name, os.fdopen(handle, mode, encoding="utf-8"))
    codecs.register_error(_ENCODING_ERRORS, _spelled)
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(sys.stdout.fileno(), "wb", closefd=False)),
            encoding=sys.stdout.encoding,
            line_buffering=sys.stdout.line_buffering or sys.stdout.write_through,
        )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ENCODING_ERRORS)
    if closed:
        sys.stderr.write("error: standard output is closed, so no result can be shown; redirect it to a file\n")
        sys.exit(3)


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Replaces what an encoding lacks: our own signs by plain ones, text from outside by escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    spelled = (_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode("ascii") for sign in lacking)
    return "".join(spelled), error.end


def command(*words: str | Path) -> str:
    """A command line of this program for the user to run next, which can be copied as it stands.

    Args:
        words: verb and arguments; they are quoted for a shell if they need it.

    Returns:
        One line. It begins with ``dfs-deploy`` if a shell finds that and it is the program that runs now; else with
        the script's path, or with ``python -m dfs_deploy``.
    """
    from dfs_deploy.io.text import one_line

    return one_line(f"{_program()} {shlex.join(map(str, words))}")


def _program() -> str:
    called = Path(sys.argv[0])
    if called.stem != _SCRIPT:
        found = (name for name in ("python", "python3") if shutil.which(name) == sys.executable)
        return f"{next(found, shlex.quote(sys.executable))} -m dfs_deploy"
    on_path = shutil.which(_SCRIPT)
    if not called.exists() or (on_path is not None and called.samefile(on_path)):
        return _SCRIPT
    return shlex.quote(str(called))
