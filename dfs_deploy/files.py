"""Writing files whole and naming them by content."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ASIDE = ".replaced"
"""Behind the name of a folder that another one is replacing, where the two cannot change places in one step."""

_SYNCS_AT_ONCE = 8  # a file system commits several together: hundreds of small files take a tenth of the time


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path`` and renames it to ``path`` on success.

    A reader sees the old file or the new one, never a part, also after a power failure. On an error the temporary file
    is removed, and an :class:`OSError` of it names ``path``, which is what the caller knows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            sync_to_disk(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            sync_to_disk(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Makes sure that files can be made in a folder, or where it is not there yet, in the nearest one above it.

    A file without a name is made and is gone at once: permission bits do not tell of a read-only file system, and bind
    no superuser.

    Raises:
        OSError: they cannot.
    """
    there = next(each for each in (folder, *folder.parents) if each.exists())
    with tempfile.TemporaryFile(dir=there):
        pass


def write_whole(path: Path, data: bytes) -> None:
    """Writes bytes to a file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def sync_to_disk(path: Path) -> None:
    """Returns when a file's content, or a folder's list of names, would outlive a power failure."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders, and keeps names in a journal
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree_to_disk(folder: Path) -> None:
    """The same for a folder and all that is in it."""
    from concurrent.futures import ThreadPoolExecutor

    paths = [folder, *folder.rglob("*")]
    with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
        for _ in pool.map(sync_to_disk, paths):  # raises what one of them raised
            pass


def put_folder(made: Path, path: Path) -> None:
    """Renames a folder to ``path``; one that stands there already changes places with it, and then stands at ``made``.

    On Linux and macOS the two change places in one step, so that at any moment, also after a crash, one of them stands
    at ``path``. Where the system or the file system cannot, the old one is first moved to ``made`` with
    ``ASIDE`` behind it, then the new one takes its place: after a crash between these, both are there, whole, under
    the other names.

    Args:
        made: on the file system of ``path``, and on the disk (:func:`sync_tree_to_disk`).
        path: nothing, or a folder.
    """
    if not path.exists():
        made.rename(path)
    elif not _exchange(made, path):
        aside = made.with_name(made.name + ASIDE)
        path.rename(aside)
        try:
            made.rename(path)
        except BaseException:
            aside.rename(path)
            raise
        aside.rename(made)
    sync_to_disk(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Lets two names change places in one step; says whether the system could."""
    first, second = os.fsencode(one), os.fsencode(other)
    here, swap = (-100, 2)  # AT_FDCWD and RENAME_EXCHANGE of Linux (renameat2(2)); macOS has RENAME_SWAP, also 2
    if sys.platform == "win32":
        return False
    library = ctypes.CDLL(None)
    if hasattr(library, "renameat2"):
        done: int = library.renameat2(here, first, here, second, swap)
    elif hasattr(library, "renamex_np"):
        done = library.renamex_np(first, second, swap)
    else:
        return False
    return done == 0


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Lets an error of the temporary file name the file that it is for."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).name.startswith(f".{path.name}."):
            error.filename, error.filename2 = str(path), None
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
