"""Watches what a reader does: code that it runs, files that it touches, the network.

Python's own calls are seen by an audit hook. What a native library opens in the folder that nobody may touch is seen by
inotify.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
import sysconfig
from pathlib import Path
from typing import Any

from tests.fuzz import canary

CODE, OUTSIDE = "code run", "file outside"

_RUNS = frozenset(
    (
        *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "os.startfile"),
        *("subprocess.Popen", "pickle.find_class", "cpython.run_command", "cpython.run_file", "webbrowser.open"),
        *("ensurepip.bootstrap", "code.__new__", "urllib.Request"),
    )
)
_WRITES = frozenset(
    ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime", "shutil.rmtree")
)
_PAIRS = frozenset(("os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile"))
_LISTS = frozenset(("os.listdir", "os.scandir"))
_MAKES_CODE = (
    "/collections/__init__.py",
    "/dataclasses.py",
    "/enum.py",
    "/typing.py",
    "/functools.py",
    "/inspect.py",
    "/timeit.py",
)
"""Modules of the standard library that make code out of text of their own."""

_EVENT = 16  # bytes of an inotify_event before its name
_REPOSITORY = Path(__file__).parents[2]
_OPEN_READ, _OPEN_WRITE = os.O_RDONLY, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Guard:
    """Collects what a reader must not do; installed once in a process, for good.

    Args:
        work: folder in which a case's files lie, and where its temporary files go.
        outside: folder beside it that nobody may touch.
    """

    def __init__(self, work: Path, outside: Path) -> None:
        self._events: list[tuple[str, str]] = []
        self._on = False
        self._write_roots = (f"{work}/", "/dev/null")
        paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
        paths |= {sys.prefix, sys.base_prefix, str(_REPOSITORY), *(p for p in sys.path if p)}
        self._code_roots = tuple(f"{os.path.realpath(path)}/" for path in sorted(paths)) + tuple(
            f"{path}/" for path in sorted(paths)
        )
        system = ("/proc/", "/sys/", "/dev/null", "/dev/urandom", "/usr/share/", "/usr/lib/", "/lib/", "/etc/")
        self._read_roots = (*self._write_roots, *self._code_roots, *system)
        self._outside = str(outside)
        self._watch = _watched(outside)
        sys.addaudithook(self._hook)

    def begin(self) -> None:
        """From here on, everything counts."""
        self._events, canary.ran[:] = [], []
        self._native_events()
        self._on = True

    def end(self) -> list[tuple[str, str]]:
        """What was seen since: kind and detail."""
        self._on = False
        found = self._events + [(CODE, f"the canary ran: {words}") for words in canary.ran]
        found += [(OUTSIDE, f"{self._outside}/{name} was opened or changed") for name in self._native_events()]
        return found

    def _native_events(self) -> list[str]:
        """Names of files in the folder that were touched; that anyone lists the folder itself says nothing."""
        names, content, place = [], b"", 0
        with contextlib.suppress(BlockingIOError):
            content = os.read(self._watch, 1 << 16)
        while place < len(content):
            (length,) = struct.unpack_from("I", content, place + _EVENT - 4)
            if name := content[place + _EVENT : place + _EVENT + length].rstrip(b"\0"):
                names.append(os.fsdecode(name))
            place += _EVENT + length
        return names

    def _hook(self, event: str, words: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "open":
            self._opened(*words)
        elif event in _RUNS or event.startswith("socket."):
            if not event.startswith("socket.__new__"):
                self._events.append((CODE, f"{event} {words!r}"[:200]))
        elif event == "exec":
            self._executed(words[0])
        elif event in _WRITES:
            self._touched(words[0], event, self._write_roots)
        elif event in _PAIRS:
            self._touched(words[1], event, self._write_roots)
        elif event in _LISTS:
            self._touched(words[0], event, self._read_roots)
        elif event == "ctypes.dlopen" and words[0] is not None:
            self._touched(words[0], event, self._code_roots)

    def _opened(self, path: Any, mode: str | None, flags: int) -> None:
        writes = (
            bool(flags & _OPEN_WRITE)
            if isinstance(flags, int) and mode is None
            else bool(set(mode or "") & set("wax+"))
        )
        self._touched(path, "open to write" if writes else "open", self._write_roots if writes else self._read_roots)

    def _touched(self, path: Any, event: str, roots: tuple[str, ...]) -> None:
        if path is None or isinstance(path, int):
            return
        text = os.fsdecode(path)
        if "\0" in text:
            return  # refused by the system call itself
        file = Path(text)
        if not file.is_absolute():
            if event not in ("open", "open to write") and os.sep not in text:
                return  # relative to an open folder, whose own name was seen before
            file = Path.cwd() / text
        if event.startswith("open"):
            resolved = os.path.realpath(file)  # what a link leads to is what is opened
        else:
            resolved = f"{os.path.realpath(file.parent)}/{file.name}"
        if not (resolved + "/").startswith(roots):
            self._events.append((OUTSIDE, f"{event} {resolved}"[:200]))

    def _executed(self, code: Any) -> None:
        name = getattr(code, "co_filename", "")
        if name.startswith((*self._code_roots, "<frozen")):
            return
        caller = sys._getframe(2)
        while caller.f_code.co_filename.startswith("<frozen importlib") and caller.f_back is not None:
            caller = caller.f_back
        origin = caller.f_code.co_filename
        if not origin.endswith(_MAKES_CODE):
            self._events.append((CODE, f"exec of code in {name!r} by {origin}:{caller.f_lineno}"[:200]))


def _watched(folder: Path) -> int:
    """A handle that tells when something in a folder is opened, read, written, made or removed, by anyone."""
    library = ctypes.CDLL(None, use_errno=True)
    handle = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    accessed, opened, changed = 0x1, 0x20, 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200
    if handle < 0 or library.inotify_add_watch(handle, os.fsencode(folder), accessed | opened | changed) < 0:
        raise OSError(ctypes.get_errno(), "no inotify here", str(folder))
    return int(handle)
