"""What becomes of a runtime when it is closed, when its process forks, and when the interpreter ends.

A fork copies a process's memory and one of its threads. The thread pools of ONNX Runtime are not among what is copied,
so in the child a call, and even freeing a session, would wait for threads that are not there. A runtime made before a
fork therefore refuses in the child, and what it held is left alone there until the process ends.

As the interpreter ends, Python stops every daemon thread that comes back from C++ code, which ends the process with an
abort. Therefore the end waits for calls that are under way, and lets no new ones begin.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
import time
import weakref
from types import TracebackType
from typing import Generic, NoReturn, Protocol, TypeVar, cast

from dfs_deploy.errors import RuntimeClosedError, UsageError

EXIT_WAIT_S = 60.0
"""How long the end of the interpreter waits for calls that are under way."""

_HELD_BACK_S = 5.0
"""How long a thread is held back that calls while the interpreter ends: it is gone before, or may go on to its end."""

_CLOSED = "this Runtime was closed; make a new one, or use it inside its with block"
_FORKED = (
    "this Runtime was made before a fork, and the child has no copy of its threads; make a new Runtime in each process,"
    " or start processes with multiprocessing's spawn"
)
_ENDING = "the interpreter is ending, so this Runtime was closed; stop the threads that use it before the program ends"


class Closable(Protocol):
    """What holds engines and memory, and can free them."""

    def close(self) -> None:
        """Frees them."""


_Held = TypeVar("_Held", bound=Closable)


class Living(Generic[_Held]):
    """Holds something for one thread at a time, and frees it once, when nobody uses it.

    A subclass calls :meth:`_begin` before it makes what is held, :meth:`_hold` when it has it, and puts each use
    between :meth:`_claim` and :meth:`_leave`.
    """

    _held: _Held | None = None
    _refusal = _CLOSED

    def _begin(self) -> None:
        """Takes this object for this thread, which makes what it holds; :meth:`_hold` or :meth:`_leave` ends that."""
        # An RLock, since close() may come from a signal handler in the very thread that is in a call.
        self._in_use = threading.RLock()
        self._running = False
        self._left: _Held | None = None
        if _ended:
            self._refusal = _ENDING
            self._refuse()
        _living.add(cast("Living[Closable]", self))
        self._in_use.acquire()
        self._running = True

    def _hold(self, held: _Held) -> None:
        """Takes over what was made, and opens this object for use."""
        if self._refusal is _ENDING:
            self._left = held
        else:
            self._held = held
        self._leave()

    def _claim(self) -> _Held:
        """Takes this object for this thread, which gives it back with :meth:`_leave`, and returns what it holds.

        Raises:
            RuntimeClosedError: it holds nothing; see :meth:`_open`.
            UsageError: another thread has it, or this one, further up its stack.
        """
        if not self._in_use.acquire(False):
            raise UsageError("this Runtime is in use by another thread; give each thread its own with clone()")
        if self._running:
            self._in_use.release()
            raise UsageError("this Runtime is in use by a call that this one interrupts; use a clone() here")
        self._running = True
        held = self._held
        if held is None:  # closed since, by another thread or a signal handler
            self._leave()
            self._refuse()
        return held

    def _leave(self) -> None:
        """Gives this object back, and frees what was closed meanwhile by the same thread."""
        self._running = False
        self._in_use.release()
        if self._left is not None:
            left, self._left = self._left, None
            left.close()

    def _open(self) -> _Held:
        """What is held.

        Raises:
            RuntimeClosedError: it was closed, the process was forked, or the interpreter ends.
        """
        if self._held is None:
            self._refuse()
        return self._held

    def _refuse(self) -> NoReturn:
        """Raises RuntimeClosedError, saying why nothing is held; not between :meth:`_claim` and :meth:`_leave`."""
        if self._refusal is _ENDING and threading.current_thread() is not threading.main_thread():
            # A daemon thread, whose error would be shown while the streams close. It is held back, and ends with the
            # process; if the program waits for it at its end, it goes on after a while.
            threading.Event().wait(_HELD_BACK_S)
        raise RuntimeClosedError(self._refusal)

    def close(self) -> None:
        """Frees everything that no clone holds; closing twice is fine.

        A call of another thread is waited for. Within a call of this thread, as from a signal handler, the call goes on
        to its end and frees then.
        """
        held, self._held = self._held, None
        if held is None:
            return
        with self._in_use:
            if self._running:
                self._left = held
            else:
                held.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _abandon(self) -> None:
        """In the child of a fork: refuses from now on, and frees nothing, ever."""
        for held in (self._held, self._left):
            _keep_for_ever(held)
        self._held = self._left = None
        self._refusal = _FORKED
        if self._in_use.acquire(blocking=False):
            self._in_use.release()
        else:  # a thread has it that is not here
            self._in_use, self._running = threading.RLock(), False

    def _end(self, held: _Held | None, deadline: float) -> None:
        """Frees what was held when the call that is under way has ended; nothing if that takes too long."""
        if not self._in_use.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            _keep_for_ever(held)
            return
        try:
            made, self._held = self._held, None  # while this was waited for
            for each in (held, made):
                if each is not None:
                    each.close()
        finally:
            self._in_use.release()


_living: weakref.WeakSet[Living[Closable]] = weakref.WeakSet()
_ended = False


def _keep_for_ever(value: object) -> None:
    """Keeps an object from being freed, also by the garbage collector and at the end of the interpreter."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _end_all() -> None:
    global _ended
    _ended = True
    deadline = time.monotonic() + EXIT_WAIT_S
    with contextlib.ExitStack() as every:  # what fails in one keeps no other from being freed
        for each in list(_living):  # all refuse before one is waited for
            if each._held is not None or each._refusal is _CLOSED:
                each._refusal = _ENDING
            held, each._held = each._held, None
            every.callback(each._end, held, deadline)


def _abandon_all() -> None:
    for each in list(_living):
        each._abandon()
    if "onnxruntime" in sys.modules and os.environ.get("ORT_DISABLE_TELEMETRY", "0").lower() in ("", "0", "false"):
        _skip_exit_handlers()


def _skip_exit_handlers() -> None:
    """Lets this process, the child of a fork, end without the exit handlers of libraries that were registered before.

    ONNX Runtime's waits for its telemetry's thread, which is not here. What this process registers still runs, and so
    does all that Python does at its end.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "on_exit") and hasattr(library, "__cxa_atexit"):  # glibc
        library.on_exit(library._exit, None)
        library.__cxa_atexit(library.fflush, None, None)  # the last registered is the first to run


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
