"""Reading files that others wrote, and writing files whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fnmatch
import hashlib
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

from dfs_deploy.io.kinds import kind_of

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

ASIDE = ".replaced"
"""Suffix of a folder that another one is replacing, if the two cannot change places in one step."""

TEMPORARY = ".tmp"
"""Suffix of a file or folder that is still being written: ``.NAME.<random>.tmp``, beside ``NAME``."""

_LITTER = (
    *(
        ".ds_store",
        "._*",
        "__macosx",
        ".appledouble",
        ".localized",
        ".fseventsd",
        ".spotlight-v100",
        ".trashes",
    ),  # macOS
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),  # Windows
    *(".nfs*", ".fuse_hidden*", ".trash-*", ".directory", "lost+found", "@eadir"),  # file systems and desktops
    *("*~", ".*.sw[a-p]", ".#*", "#*#", ".goutputstream-*"),  # editors
)
"""Names, in small letters, of what systems and programs leave in any folder."""

_SYNCS_AT_ONCE = 8  # a file system commits several together: hundreds of small files take a tenth of the time

_UNSUPPORTED = frozenset((errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM))
"""What network file systems answer to fsync if they have none, for folders above all (EIO is not among them)."""

_NO_RENAMES = frozenset((errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV, errno.EINVAL, errno.EMFILE))
"""What file systems answer that cannot rename a folder with files in it, as object stores cannot."""

_PIECE = 1 << 20

_ABANDONED_S = 24 * 3600.0
"""Age of a leftover after which it is removed, on file systems without locks."""


class UnfitFileError(OSError):
    """A path that is no regular file, or a file that is too large for what it is read as; nothing of it was read."""


def is_litter(name: str) -> bool:
    """Whether a file or folder is, by its name, what a system or an editor leaves anywhere, and nobody's content."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in _LITTER)


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content, which is read in pieces."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def check_file(path: Path, limit: int, *, follow: bool = True) -> int:
    """Checks that a path is a regular file of bounded size, and neither opens nor waits for anything else.

    Args:
        path: a file; a device, FIFO, socket or folder is refused.
        limit: most bytes that it may hold.
        follow: whether a symbolic link is followed.

    Returns:
        Its size in bytes.

    Raises:
        UnfitFileError: it is of another kind, or larger.
        OSError: it is not there, or cannot be looked at.
    """
    return _checked(path.stat() if follow else path.lstat(), path, limit)


def read_file(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """Content of a regular file of bounded size. A FIFO does not block it, and a sparse file takes no memory.

    Args:
        path: as in :func:`check_file`.
        limit: most bytes that are read.
        follow: whether a symbolic link is followed.

    Raises:
        UnfitFileError: it is no regular file, or larger.
        OSError: it is not there, or cannot be read.
    """
    check_file(path, limit, follow=follow)  # opening a device can already do something
    with _opened(path, follow=follow) as stream:
        size = _checked(os.fstat(stream.fileno()), path, limit)
        content = stream.read(size + 1)  # as much is allocated as is asked for
        while len(content) > size and len(content) <= limit and (more := stream.read(_PIECE)):
            content += more
    if len(content) > limit:  # it grew, or says another size than it has, as files of /proc do
        raise UnfitFileError(errno.EFBIG, f"holds more than {limit:,} bytes, the most for such a file", str(path))
    return content


def first_link(path: Path, root: Path) -> Path | None:
    """The first part of a path below a folder that is a symbolic link; ``None`` if none is.

    Args:
        path: path in ``root``; it need not be there.
        root: folder, which may be reached through links.
    """
    at = root
    for part in path.relative_to(root).parts:
        at /= part
        if at.is_symlink():
            return at
    return None


class OversizedReadError(ValueError):
    """A read of more bytes at once than a file of its kind has reason for."""


class BoundedReads:
    """A file of which no single read takes more than a limit, for readers that believe the lengths in a file.

    Args:
        stream: the file.
        limit: most bytes of a read; one of more raises :class:`OversizedReadError`.
    """

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1, /) -> bytes:
        """Reads as a file does."""
        content = self._stream.read(self._limit + 1 if size < 0 else min(size, self._limit + 1))
        if len(content) > self._limit:
            raise OversizedReadError(f"a part of more than {self._limit:,} bytes")
        return content


def _opened(path: Path, *, follow: bool = True) -> BinaryIO:
    """Opens a file for reading, and waits for nothing."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0)), "rb")


def _checked(status: os.stat_result, path: Path, limit: int) -> int:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFLNK: "link", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "device")
        number = errno.EISDIR if kind == "folder" else errno.EINVAL
        told = kind_of(path) if kind == "folder" else None
        seen = f"a {kind}" if told is None else told.name
        raise UnfitFileError(number, f"is {seen}, expected a regular file", str(path))
    if status.st_size > limit:
        told = kind_of(path)
        seen = f"holds {status.st_size:,} bytes, the most for such a file is {limit:,}"
        raise UnfitFileError(errno.EFBIG, seen if told is None else f"is {told.name} and {seen}", str(path))
    return status.st_size


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path`` and renames it to ``path`` on success.

    A reader sees the old file or the new one, never a part, also after a power failure. On an error the temporary file
    is removed, and an :class:`OSError` of it names ``path``, which is what the caller knows. What a killed writer of
    the same file left is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path), _temporary(path, _make_file, _remove_file) as temporary:
        yield temporary
        sync_to_disk(temporary)
        temporary.replace(path)
        sync_to_disk(path.parent)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside ``path`` for what is to be put there, and removes it in the end.

    It is locked while it is in use: what a killed process left is removed by the next one that writes ``path``.
    """
    with _temporary(path, _make_folder, _remove_folder) as folder:
        yield folder


@contextlib.contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Keeps a folder for this caller: no other process or thread that asks for it gets it until the end, or a crash.

    No file is left for that. A file system without locks lets everybody pass.

    Args:
        folder: one that is there; it may be read-only.

    Raises:
        BlockingIOError: another one has it.
        OSError: it is not there, or cannot be opened.
    """
    if fcntl is None:
        yield  # Windows opens no folders
        return
    handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        if _lock(handle, wait=False) is False:
            raise BlockingIOError(errno.EWOULDBLOCK, "in use by another process", str(folder))
        yield
    finally:
        os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Removes temporary files and folders that a killed writer of ``path`` left beside it.

    One that is in use is locked and stays; one that holds the only copy of what was being replaced stays too.
    """
    for leftover in _temporaries(path):
        if not path.exists() and (leftover / f"{path.name}{ASIDE}").exists():
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            _remove_if_abandoned(leftover)


def _temporaries(path: Path) -> list[Path]:
    prefix = f".{path.name}."
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        return [
            Path(entry.path) for entry in entries if entry.name.startswith(prefix) and entry.name.endswith(TEMPORARY)
        ]
    return []


def _remove_if_abandoned(leftover: Path) -> None:
    status = leftover.lstat()
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        return  # not ours
    handle = os.open(leftover, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        held = _lock(handle, wait=False)
        if held is False or (held is None and time.time() - status.st_mtime < _ABANDONED_S):
            return
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    finally:
        os.close(handle)


@contextlib.contextmanager
def _temporary(path: Path, make: Callable[[Path], int], remove: Callable[[Path], None]) -> Iterator[Path]:
    """Gives a new temporary file or folder, locked. It is removed in the end, also if a signal comes as it is made."""
    remove_leftovers(path)
    while True:
        made = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")  # a name that nobody else draws
        handle = None
        try:
            handle = make(made)
            _lock(handle, wait=True)
            if _is_at(handle, made):  # else another process took it for a leftover before it was locked
                yield made
                return
        finally:
            remove(made)
            if handle is not None:
                os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _remove_file(path: Path) -> None:
    path.unlink(missing_ok=True)


def _remove_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _make_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)


def _make_folder(path: Path) -> int:
    path.mkdir(mode=0o700)
    return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))


def _lock(handle: int, wait: bool) -> bool | None:
    """Locks an open file or folder until it is closed; ``False`` if another holds it, ``None`` without locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def nameless_file() -> IO[bytes]:
    """A file for reading and writing that has no name and is gone when it is closed: in memory on Linux.

    Other processes can be given its handle. Elsewhere it lies where temporary files do.
    """
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("dfs-deploy"), "w+b")
    return tempfile.TemporaryFile()


def check_folder(folder: Path) -> None:
    """Makes sure that files can be made in a folder or, if it is not there yet, in the nearest one above it.

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
    """Returns when a file's content, or a folder's list of names, would outlive a power failure.

    A file system that has no such call (SMB, sshfs, object stores) is passed over: the file is written, and nothing
    better can be had there.
    """
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return  # Windows opens no folders, and keeps names in a journal
    try:
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    except PermissionError:
        if is_folder:
            return  # one that may be written to and not be listed
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise OSError(error.errno, error.strerror, str(path)) from error
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
    the other names. A file system that cannot rename a folder is given a copy, if nothing stands at ``path``.

    Args:
        made: on the file system of ``path``, and on the disk (:func:`sync_tree_to_disk`).
        path: nothing, or a folder.

    Raises:
        OSError: it cannot be put there; what stood there before still does.
    """
    if not path.exists() and _put_first(made, path):
        pass
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


def _put_first(made: Path, path: Path) -> bool:
    """Puts a folder where nothing stands; ``False`` if another process was first."""
    try:
        made.rename(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        if error.errno not in _NO_RENAMES:
            raise
        _copy(made, path)
    return True


def _copy(made: Path, path: Path) -> None:
    """Copies a folder's files, and neither modes nor times, which such a file system may not have."""
    path.mkdir()
    try:
        for entry in sorted(made.rglob("*")):
            target = path / entry.relative_to(made)
            if entry.is_dir():
                target.mkdir()
            else:
                shutil.copyfile(entry, target)
        sync_tree_to_disk(path)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def can_rename_folders(folder: Path) -> bool:
    """Whether a folder with something in it can be renamed here; one of the same name could then be replaced."""
    with temporary_folder(folder / "renamed") as temporary:
        (temporary / "old").mkdir()
        (temporary / "old" / "file").touch()
        try:
            (temporary / "old").rename(temporary / "new")
        except OSError as error:
            if error.errno not in _NO_RENAMES:
                raise
            return False
    return True


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
