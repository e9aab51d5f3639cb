"""What is made of a bundle once on a machine, kept on disk: the one cache of every runtime.

It holds plans, engines prepared for a CPU and TensorRT's engines. Nothing in it is needed: what is missing, damaged or
of another key is made anew, and where nothing can be kept it is made in memory at each start.

Where it lies, in this order:

1. the folder that the caller names (``Runtime(cache_dir=...)``, ``--cache-dir``), else the one that the environment
   variable ``DFS_DEPLOY_CACHE`` names: each bundle has a folder of its own in it;
2. ``NAME.dfs.cache`` beside the bundle;
3. where nothing can be written there, as beside a read-only bundle: ``dfs-deploy`` in the user's cache folder
   (``XDG_CACHE_HOME``, else ``~/.cache``), in the same way as in 1. What lies beside the bundle is still read.

A folder that was named may be a link, and what leads to it. The folder beside the bundle may not, nor may anything in
the cache: no reader and no writer follows a link there.
"""

from __future__ import annotations

import contextlib
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
from dfs_deploy.io.text import first_line

if TYPE_CHECKING:
    from dfs_deploy.bundle import Bundle

PLACE = "DFS_DEPLOY_CACHE"
"""Environment variable that names the folder of the caches."""

MAX_BYTES = 4 << 30
"""Most bytes that one place keeps; what was used longest ago is removed first."""

MAX_FILE = 2 << 30
"""Most bytes of one kept file: ONNX allows no larger model."""

TENSORRT = "tensorrt"
"""Subfolder of TensorRT's engines."""

PREPARED = "prepared-"
"""How the name of a folder of engines prepared for a CPU begins."""

PLAN = "plan-"
"""How the name of a plan's file begins."""

_OF_A_BUNDLE = re.compile(r".+-[0-9a-f]{16}")
"""Name of a bundle's folder in a place that others share: whoever names a place may have other files there."""

_WAIT_S = 120.0
"""How long a process waits for another one that is making the same; then it makes its own."""

_SMALL = 64 << 10
"""Entries below this are not worth removing."""

_POLL_S = 0.02
_TOUCH_AFTER_S = 24 * 3600.0


@dataclass(frozen=True)
class _Place:
    """A folder that may hold the cache of a bundle.

    Attributes:
        root: it must not be left by a link below.
        folder: folder of the bundle, in ``root``.
        shared: whether other bundles have folders in ``root``.
    """

    root: Path
    folder: Path
    shared: bool


class Cache:
    """The cache of one bundle on this machine.

    Args:
        bundle: whose cache it is.
        place: folder that the caller names; see the module. ``None`` for the environment's, or the usual places.
    """

    def __init__(self, bundle: Bundle, place: str | Path | None = None) -> None:
        # What is kept from now on goes before what was kept where nothing can be written any more.
        self._places = sorted(_places(bundle, place), key=lambda each: _why_unwritable(each.folder) != "")
        self.digest = bundle.digest

    @property
    def folder(self) -> Path:
        """Folder in which files are kept; it need not be there."""
        return self._places[0].folder

    def read(self, name: str, limit: int = MAX_FILE) -> bytes | None:
        """Content of a kept file; ``None`` if there is none, or one that cannot be read.

        Args:
            name: relative to the bundle's folder, with ``/`` between parts.
            limit: most bytes that are read.
        """
        for place in self._places:
            path = place.folder / name
            with contextlib.suppress(OSError):  # of a cache: what cannot be read is made anew
                if not first_link(path.parent, place.root):
                    return read_file(path, limit, follow=False)
        return None

    def folders(self, name: str) -> list[Path]:
        """Kept folders of a name, the preferred one first; none behind a link."""
        found = []
        for place in self._places:
            folder = place.folder / name
            with contextlib.suppress(OSError):  # of a cache, as above
                if folder.is_dir() and not first_link(folder, place.root):
                    found.append(folder)
        return found

    @contextlib.contextmanager
    def writing(self, part: str = "") -> Iterator[Path]:
        """Gives the folder in which files are kept, made if it is missing, and locked against other processes.

        Look again for what is wanted once inside: another process may have made it meanwhile. One that holds the lock
        for minutes is not waited for any longer. When it ends well, old entries are removed if the place is too large.

        Args:
            part: a subfolder that has a lock of its own.

        Raises:
            UnkeptError: nothing can be kept; it says why.
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
        """Removes what killed processes left; nothing if nothing can be kept here."""
        with contextlib.suppress(UnkeptError), self.writing():
            pass

    def write(self, name: str, content: bytes) -> Path:
        """Keeps a file, whole or not at all, and returns where.

        Raises:
            UnkeptError: it cannot be kept.
        """
        with self.writing() as folder, _unkept(folder):
            with whole_file(folder / name) as temporary:
                temporary.write_bytes(content)
            return folder / name

    def why_not(self, part: str = "") -> str:
        """Why nothing can be kept here; empty if something can."""
        try:
            self._writable(part)
        except UnkeptError as error:
            return str(error)
        return ""

    def _writable(self, part: str) -> _Place:
        """The first place that can be written; nothing is made there."""
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
    """Nothing can be kept on disk; its text says why, on one line."""


def cache_key(**parts: str) -> dict[str, str]:
    """A key: what something depends on, this version of dfs-deploy among it."""
    return {**parts, "dfs_deploy": __version__}


def mark_used(path: Path) -> None:
    """Notes that a kept file or folder is in use, once a day, so that it outlives what is not."""
    with contextlib.suppress(OSError):  # a read-only place, where nothing is removed either
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
    """The user's cache folder; ``None`` without a home."""
    for variable, below in (("XDG_CACHE_HOME", ""), ("HOME", ".cache")):
        folder = Path(os.environ.get(variable, ""))
        if folder.is_absolute():
            return folder / below
    return None


def _why_unwritable(folder: Path) -> str:
    """Why a folder cannot be written or made; empty if it can."""
    try:
        there = next(each for each in (folder, *folder.parents) if each.exists())
        if not there.is_dir():
            return f"{there}: is no folder"
    except OSError as error:  # a folder above may not be entered
        return f"{error.filename or folder}: {first_line(error)}"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there}: cannot be written"


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
    """Removes what was used longest ago until the rest is no larger than a place may be."""
    folders = [place.folder]
    if place.shared:
        folders = [each for each in _children(place.folder.parent) if _OF_A_BUNDLE.fullmatch(each.name)]
    entries: list[Path] = []
    for folder in folders:
        entries += _children(folder / TENSORRT)
        entries += [each for each in _children(folder) if each.name.startswith((PREPARED, PLAN))]
    sized = []
    for entry in entries:
        with contextlib.suppress(OSError):  # gone meanwhile
            sized.append((entry.lstat().st_mtime, _size(entry), entry))
    excess = sum(size for _, size, _ in sized) - MAX_BYTES
    for _, size, entry in sorted(sized)[:-1]:
        if excess > 0 and size > _SMALL:
            _remove(entry)
            excess -= size


def _children(folder: Path) -> list[Path]:
    """What is in a folder, links and hidden entries aside; nothing if it is none, or a link."""
    with contextlib.suppress(OSError):
        if folder.is_symlink():
            return []
        return [child for child in folder.iterdir() if not child.is_symlink() and not child.name.startswith(".")]
    return []


def _size(entry: Path) -> int:
    files = entry.rglob("*") if entry.is_dir() else [entry]
    return sum(status.st_size for status in (file.lstat() for file in files) if stat.S_ISREG(status.st_mode))


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            entry.unlink()
