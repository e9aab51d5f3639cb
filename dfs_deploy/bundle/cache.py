"""The on-disk cache of every runtime: what is made of a bundle once per machine.

It holds engine choices, engines prepared for a CPU, and TensorRT engines. Nothing in it is required: entries that are
missing, damaged or of another key are made again, and if nothing can be written they are made in memory at each start.

The cache is, in this order:

1. a folder per bundle in the folder that the caller names (``Runtime(cache_dir=...)``, ``--cache-dir``), or else in the
   folder that the environment variable ``DFS_DEPLOY_CACHE`` names;
2. ``NAME.dfs.cache`` next to the bundle;
3. if that is not writable, for example next to a read-only bundle: a folder per bundle in ``dfs-deploy`` in the user's
   cache folder (``XDG_CACHE_HOME``, or else ``~/.cache``). Entries next to the bundle are still read.

A folder that the caller names may be a link or below one. The folder next to the bundle may not, and neither may
anything in the cache: links there are never followed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dfs_deploy import __version__
from dfs_deploy.io.files import TEMPORARY, first_link, read_file, remove_leftovers, sole_use, whole_file
from dfs_deploy.io.text import first_line, one_line

if TYPE_CHECKING:
    from dfs_deploy.bundle import Bundle

_LOG = logging.getLogger(__name__)

PLACE = "DFS_DEPLOY_CACHE"
"""Environment variable with the folder of the caches."""

MAX_BYTES = 4 << 30
"""Most bytes in one place; entries that were used longest ago are removed first."""

MAX_FILE = 2 << 30
"""Most bytes of one file, which is also the limit of an ONNX model."""

TENSORRT = "tensorrt"
"""Subfolder for TensorRT engines."""

PREPARED = "prepared-"
"""Beginning of the name of a file with engines prepared for a CPU."""

PLAN = "plan-"
"""Beginning of the name of a file with an engine choice."""

_OF_A_BUNDLE = re.compile(r".+-[0-9a-f]{16}")
"""Name of a bundle's folder in a shared place, which may hold other files too."""

_WAIT_S = 120.0
"""Seconds that a process waits for another one that makes the same entry; then it makes its own."""

_SMALL = 64 << 10
"""Bytes of an entry that is not worth removing."""

_POLL_S = 0.02
_TOUCH_AFTER_S = 24 * 3600.0


@dataclass(frozen=True)
class _Place:
    """A folder that may hold the cache of a bundle.

    Attributes:
        root: folder below which links are refused.
        folder: folder of the bundle, in ``root``.
        shared: whether other bundles have folders in ``root``.
    """

    root: Path
    folder: Path
    shared: bool


class Cache:
    """Cache of one bundle on this machine.

    Args:
        bundle: the bundle.
        place: folder for caches, see the module; ``None`` for the one of the environment variable or the usual ones.
    """

    def __init__(self, bundle: Bundle, place: str | Path | None = None) -> None:
        # Writable places first: new entries are preferred to old ones in a place that has become read-only.
        self._places = sorted(_places(bundle, place), key=lambda each: _why_unwritable(each.folder) != "")
        self.digest = bundle.digest

    @property
    def folder(self) -> Path:
        """Folder for new entries, which need not exist."""
        return self._places[0].folder

    def read(self, name: str, limit: int = MAX_FILE) -> bytes | None:
        """Content of a file, which is marked as used; ``None`` if it does not exist or cannot be read.

        Args:
            name: path of the file in the bundle's folder, with ``/`` between parts.
            limit: most bytes that are read.
        """
        for path in self.find(name):
            with contextlib.suppress(OSError):  # unreadable entries are made again
                content = read_file(path, limit, follow=False)
                mark_used(path)
                return content
        return None

    def find(self, name: str) -> list[Path]:
        """Paths at which an entry may lie, the preferred one first; none below a link."""
        found = []
        for place in self._places:
            path = place.folder / name
            with contextlib.suppress(OSError):  # a folder above is not accessible
                if not first_link(path.parent, place.root):
                    found.append(path)
        return found

    @contextlib.contextmanager
    def writing(self, part: str = "") -> Iterator[Path]:
        """Yields the folder for new entries, created if it is missing, and locked against other processes.

        The caller checks again whether the entry exists, because another process may have made it. A lock that is held
        for minutes is ignored. After success, old entries are removed if the place is too large.

        Args:
            part: subfolder with a lock of its own.

        Raises:
            UnkeptError: no entry can be written; the text says why.
        """
        place = self._writable(part)
        folder = place.folder / part if part else place.folder
        with _unkept(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            for leftover in folder.glob(f".*{TEMPORARY}"):  # .NAME.<random>.tmp
                remove_leftovers(folder / leftover.name[1:].rsplit(".", 2)[0])
            yield folder
        _trim(place)

    def tidy(self) -> None:
        """Removes files that killed processes left, if the cache is writable."""
        with contextlib.suppress(UnkeptError), self.writing():
            pass

    def write(self, name: str, content: bytes) -> Path:
        """Writes a file, whole or not at all.

        Returns:
            Path of the file.

        Raises:
            UnkeptError: it cannot be written.
        """
        with self.writing() as folder, _unkept(folder):
            with whole_file(folder / name) as temporary:
                temporary.write_bytes(content)
            _LOG.info("cached: %s", one_line(folder / name))
            return folder / name

    def why_not(self, part: str = "") -> str:
        """Reason why the cache is not writable; empty if it is."""
        try:
            self._writable(part)
        except UnkeptError as error:
            return str(error)
        return ""

    def _writable(self, part: str) -> _Place:
        """First writable place; nothing is created there."""
        refused = []
        for place in self._places:
            folder = place.folder / part if part else place.folder
            why = _why_unwritable(folder)
            if not why:
                if link := first_link(folder, place.root):
                    raise UnkeptError(f"{link} is a link, which is not followed")
                return place
            refused.append(why)
        if len(self._places) == 1 and not self._places[0].shared:
            refused.append("there is no HOME with a cache folder")
        raise UnkeptError("; ".join(refused))


class UnkeptError(OSError):
    """Failure to write to the cache; the text is the reason, on one line."""


def cache_key(**parts: str) -> dict[str, str]:
    """Key of an entry: everything that it depends on, including this version of dfs-deploy."""
    return {**parts, "dfs_deploy": __version__}


def mark_used(path: Path) -> None:
    """Marks an entry as used, at most once a day, so that unused ones are removed first."""
    with contextlib.suppress(OSError):  # a read-only place, from which nothing is removed
        if time.time() - path.lstat().st_mtime > _TOUCH_AFTER_S:
            os.utime(path)


def _places(bundle: Bundle, given: str | Path | None) -> tuple[_Place, ...]:
    own = f"{bundle.name}-{bundle.digest[:16]}"
    named = given if given is not None else os.environ.get(PLACE)
    if named is not None and str(named):
        root = Path(named).absolute()
        return (_Place(root, root / own, shared=True),)
    path = bundle.path.absolute()
    beside = _Place(path.parent, path.with_name(f"{path.name}.cache"), shared=False)
    user = _user_cache()
    return (beside,) if user is None else (beside, _Place(user, user / "dfs-deploy" / own, shared=True))


def _user_cache() -> Path | None:
    """Cache folder of the user; ``None`` without a home."""
    for variable, below in (("XDG_CACHE_HOME", ""), ("HOME", ".cache")):
        folder = Path(os.environ.get(variable, ""))
        if folder.is_absolute():
            return folder / below
    return None


def _why_unwritable(folder: Path) -> str:
    """Reason why a folder cannot be written or created; empty if it can."""
    try:
        there = next(each for each in (folder, *folder.parents) if each.exists())
        if not there.is_dir():
            return f"{there} is not a folder"
    except OSError as error:  # a folder above is not accessible
        return f"{error.filename or folder}: {first_line(error)}"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} is not writable"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    deadline = time.monotonic() + _WAIT_S
    with contextlib.ExitStack() as held:
        while True:
            with _unkept(folder):
                try:
                    held.enter_context(sole_use(folder))
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        break
            time.sleep(_POLL_S)
        yield


@contextlib.contextmanager
def _unkept(folder: Path) -> Iterator[None]:
    try:
        yield
    except UnkeptError:
        raise
    except OSError as error:
        raise UnkeptError(f"{error.filename or folder}: {first_line(error)}") from error


def _trim(place: _Place) -> None:
    """Removes the entries that were used longest ago until the place is small enough."""
    folders = [place.folder]
    if place.shared:
        folders = [each for each in _children(place.folder.parent) if _OF_A_BUNDLE.fullmatch(each.name)]
    entries: list[Path] = []
    for folder in folders:
        entries += _children(folder / TENSORRT)
        entries += [each for each in _children(folder) if each.name.startswith((PREPARED, PLAN))]
    sized = []
    for entry in entries:
        with contextlib.suppress(OSError):  # already removed
            sized.append((entry.lstat().st_mtime, _size(entry), entry))
    excess = sum(size for _, size, _ in sized) - MAX_BYTES
    for _, size, entry in sorted(sized)[:-1]:
        if excess > 0 and size > _SMALL:
            _LOG.info("removed from the cache, which is too large: %s", one_line(entry))
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # as above
                    entry.unlink()
            excess -= size


def _children(folder: Path) -> list[Path]:
    """Entries of a folder without links and hidden ones; empty for anything that is no folder."""
    with contextlib.suppress(OSError):
        if folder.is_symlink():
            return []
        return [child for child in folder.iterdir() if not child.is_symlink() and not child.name.startswith(".")]
    return []


def _size(entry: Path) -> int:
    files = entry.rglob("*") if entry.is_dir() else [entry]
    return sum(status.st_size for status in (file.lstat() for file in files) if stat.S_ISREG(status.st_mode))
