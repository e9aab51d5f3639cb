"""The command line as a process: its standard streams, and the signals that are to end it.

Only the standard library is imported, since a signal may come while the rest is: as process 1 of a container, whatever
has no handler of its own is ignored.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130
"""Exit code of a process that Ctrl-C ended."""

SIGNALED = 128
"""Exit code of a process that a signal ended, less the signal's number, as shells report it."""

_STOPS = ("SIGTERM", "SIGHUP")
"""Signals that ask a process to end, apart from that of Ctrl-C, which Python turns into KeyboardInterrupt."""

_ENCODING_ERRORS = "dfs-deploy"

_PLAIN = {"·": ".", "±": "+-", "°": " deg ", "…": "...", "━": "-", "─": "-", "│": "|", "┃": "|", "╇": "+", "╸": "-"}
"""What stands for our own signs in an encoding that lacks them."""


class Stopped(SystemExit):
    """A signal asked this process to end; raised where it was, so that everything is put away on the way out.

    Attributes:
        name: name of the signal, such as ``SIGTERM``.
    """

    def __init__(self, number: int) -> None:
        super().__init__(SIGNALED + number)
        self.name = signal.Signals(number).name


def describe_stop(stop: Stopped | KeyboardInterrupt) -> tuple[str, int]:
    """What ends this process, in words, and its exit code."""
    if isinstance(stop, Stopped):
        return f"stopped by {stop.name}", SIGNALED + signal.Signals[stop.name]
    return "interrupted", INTERRUPTED


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP raise :class:`Stopped`; a second one ends the process at once.

    Python runs the handler in the main thread as soon as a native call there returns. A signal that is ignored already,
    as ``nohup`` sees to, stays ignored, and a handler that somebody else installed stays as well.
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


def open_streams() -> None:
    """Makes standard streams usable: what an encoding cannot carry is escaped, and closed ones do not lead elsewhere.

    A closed descriptor would be given to the next file that is opened, and what is printed would end in that file.

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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ENCODING_ERRORS)
    if closed:
        sys.stderr.write("error: standard output is closed, so no result can be shown; redirect it to a file\n")
        sys.exit(3)


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Spells what an encoding lacks: our own signs by others, and what came from outside by escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    spelled = (_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode("ascii") for sign in lacking)
    return "".join(spelled), error.end
