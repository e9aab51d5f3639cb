"""The life of a runtime: how it is closed, what a fork does to it, and what the end of the interpreter does.

A fork copies the memory of a process and one of its threads. The threads of ONNX Runtime's pools are not copied, so in
the child a call, and even freeing a session, would wait for threads that do not exist. A runtime made before a fork
therefore refuses to run in the child, and its engines are not touched there until the process ends.

As the interpreter ends, Python stops every daemon thread that comes back from C++ code, which ends the process with an
abort. Therefore the end of the interpreter waits for running calls, and refuses new ones.
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
"""Longest time that the end of the interpreter waits for running calls."""

_HELD_BACK_S = 5.0
"""Time that a thread is held back if it calls while the interpreter ends: usually the process has ended by then."""

_CLOSED = "this Runtime was closed; make a new one, or use it inside its with block"
_FORKED = (
    "this Runtime was made before a fork, and the child has no copy of its threads; make a new Runtime in each process,"
    " or start processes with multiprocessing's spawn"
)
_ENDING = "the interpreter is ending, so this Runtime was closed; stop the threads that use it before the program ends"


class Closable(Protocol):
    """Holder of engines and memory."""

    def close(self) -> None:
        """Frees engines and memory."""


_Held = TypeVar("_Held", bound=Closable)


class Living(Generic[_Held]):
    """Holds a resource for one thread at a time, and frees it once, when nobody uses it.

    A subclass calls ``_begin`` before it makes the resource, ``_hold`` when it has it, and puts each use
    between ``_claim`` and ``_leave``.
    """

    _held: _Held | None = None
    _refusal = _CLOSED

    def _begin(self) -> None:
        """Takes this object for this thread, which makes the resource; ``_hold`` or ``_leave`` ends that."""
        # An RLock, because a signal handler may call close() in the thread that is in a call.
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
        """Takes over the resource, and opens this object for use."""
        if self._refusal is _ENDING:
            self._left = held
        else:
            self._held = held
        self._leave()

    def _claim(self) -> _Held:
        """Takes this object for this thread, which gives it back with ``_leave``, and returns the resource.

        Raises:
            RuntimeClosedError: it holds nothing; see ``_open``.
            UsageError: another thread has it, or this thread has it, further up its stack.
        """
        if not self._in_use.acquire(False):
            raise UsageError("this Runtime is in use by another thread; give each thread its own with clone()")
        if self._running:
            self._in_use.release()
            raise UsageError("this Runtime is in use by a call that this one interrupts; use a clone() here")
        self._running = True
        held = self._held
        if held is None:  # closed meanwhile, by another thread or a signal handler
            self._leave()
            self._refuse()
        return held

    def _leave(self) -> None:
        """Gives this object back, and frees the resource if the same thread closed it meanwhile."""
        self._running = False
        self._in_use.release()
        if self._left is not None:
            left, self._left = self._left, None
            left.close()

    def _open(self) -> _Held:
        """Returns the resource.

        Raises:
            RuntimeClosedError: it was closed, the process was forked, or the interpreter is ending.
        """
        if self._held is None:
            self._refuse()
        return self._held

    def _refuse(self) -> NoReturn:
        """Raises RuntimeClosedError, saying why nothing is held; not between ``_claim`` and ``_leave``."""
        if self._refusal is _ENDING and threading.current_thread() is not threading.main_thread():
            # The error of a daemon thread would be shown while the streams close. The thread is held back and ends with
            # the process; if the program waits for it at its end, it goes on after a while.
            threading.Event().wait(_HELD_BACK_S)
        raise RuntimeClosedError(self._refusal)

    def close(self) -> None:
        """Frees everything that no clone holds; closing twice is fine.

        This waits for a call of another thread. If a signal handler closes during a call of this thread, the call goes
        on to its end and frees everything then.
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
        """In the child of a fork: refuses from now on, and never frees anything."""
        for held in (self._held, self._left):
            _keep_for_ever(held)
        self._held = self._left = None
        self._refusal = _FORKED
        if self._in_use.acquire(blocking=False):
            self._in_use.release()
        else:  # held by a thread that does not exist here
            self._in_use, self._running = threading.RLock(), False

    def _end(self, held: _Held | None, deadline: float) -> None:
        """Frees the resource when the running call has ended; frees nothing if that takes too long."""
        if not self._in_use.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            _keep_for_ever(held)
            return
        try:
            made, self._held = self._held, None  # during the wait
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
    with contextlib.ExitStack() as every:  # a failure in one does not keep the others from being freed
        for each in list(_living):  # all refuse before the first wait
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
    """Lets the child of a fork end without the exit handlers that libraries registered before the fork.

    The handler of ONNX Runtime waits for the thread of its telemetry, which does not exist here. Handlers that the
    child registers still run, and so does everything that Python does at its end.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "on_exit") and hasattr(library, "__cxa_atexit"):  # glibc
        library.on_exit(library._exit, None)
        library.__cxa_atexit(library.fflush, None, None)  # the last registered is the first to run


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
