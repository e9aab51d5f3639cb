"""Reading files that others wrote, and writing files whole or not at all."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from dfs_deploy.errors import UsageError

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

ASIDE = ".replaced"
"""Suffix of a folder while another one replaces it, on systems that cannot swap them in one step."""

TEMPORARY = ".tmp"
"""Suffix of a file or folder that is still being written: ``.NAME.<random>.tmp``, next to ``NAME``."""

_LITTER = (
    *(".ds_store", "._*", "__macosx", ".localized", ".fseventsd", ".spotlight-v100", ".trashes"),  # macOS
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),  # Windows
    *(".nfs*", ".fuse_hidden*", ".trash-*", ".directory", "lost+found", "@eadir"),  # file systems and desktops
    *("*~", ".*.sw[a-p]", ".#*", "#*#", ".goutputstream-*"),  # editors
)
"""Names, in small letters, of files that systems and programs leave in any folder."""

_SYNCS_AT_ONCE = 8  # file systems commit several together, which takes a tenth of the time for hundreds of small files

_UNSUPPORTED = frozenset((errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM))
"""Errors of network file systems without fsync, mostly for folders; EIO is not among them."""

_CLOSED_IN_CHILDREN = getattr(os, "O_CLOEXEC", 0)

_PIECE = 1 << 20

_ABANDONED_S = 24 * 3600.0
"""Age of a leftover after which it is removed, on file systems without locks."""


class UnfitFileError(OSError):
    """A path that is no regular file, or a file that is too large; nothing of it was read."""


def is_litter(name: str) -> bool:
    """Whether a name is one that an operating system or an editor leaves in any folder."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in _LITTER)


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content, which is read in pieces."""
    with path.open("rb") as stream:
        return sha256_stream(stream)


def sha256_stream(stream: BinaryIO) -> str:
    """Hexadecimal SHA-256 of the rest of a stream, which is read in pieces."""
    digest = hashlib.sha256()
    while piece := stream.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def check_file(path: Path, limit: int, *, follow: bool = True) -> int:
    """Checks that a path is a regular file of at most ``limit`` bytes, without opening it or waiting for anything.

    Returns:
        Size of the file in bytes.

    Raises:
        UnfitFileError: it is no regular file, or larger.
        OSError: it does not exist or is not accessible.
    """
    return _checked(path.stat() if follow else path.lstat(), path, limit)


def read_file(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """Content of a file, which ``check_file`` checked. A FIFO does not block it; a sparse file takes no memory."""
    with opened_file(path, limit, follow=follow) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(size + 1)  # read() allocates what it is asked for
        while len(content) > size and len(content) <= limit and (more := stream.read(_PIECE)):
            content += more
    if len(content) > limit:  # it grew, or has a wrong size, like files of /proc
        raise UnfitFileError(errno.EFBIG, f"holds more than {limit:,} bytes, the most for such a file", str(path))
    return content


@contextlib.contextmanager
def opened_file(path: Path, limit: int, *, follow: bool = True) -> Iterator[BinaryIO]:
    """Yields a file, opened for reading and checked as in ``read_file``."""
    check_file(path, limit, follow=follow)  # merely opening a device can have effects
    with _opened(path, follow=follow) as stream:
        _checked(os.fstat(stream.fileno()), path, limit)
        yield stream


def read_head(path: Path, size: int, *, follow: bool = True) -> bytes:
    """First bytes of a regular file; empty for anything else, which is not opened.

    Args:
        path: path of the file.
        size: most bytes that are read.
        follow: whether the path may be a link.
    """
    if not path.is_file() or (path.is_symlink() and not follow):
        return b""
    with _opened(path, follow=follow) as stream:
        return stream.read(size) if stat.S_ISREG(os.fstat(stream.fileno()).st_mode) else b""


def first_link(path: Path, root: Path) -> Path | None:
    """First part of a path below ``root`` that is a symbolic link, or ``None``; ``root`` itself may be one."""
    at = root
    for part in path.relative_to(root).parts:
        at /= part
        if at.is_symlink():
            return at
    return None


class OversizedReadError(ValueError):
    """A read of more bytes at once than the limit."""


class BoundedReads:
    """File that refuses to read more than ``limit`` bytes at once, for readers that trust the lengths in a file."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1, /) -> bytes:
        """Same as the method of a file."""
        content = self._stream.read(self._limit + 1 if size < 0 else min(size, self._limit + 1))
        if len(content) > self._limit:
            raise OversizedReadError(f"a part of more than {self._limit:,} bytes")
        return content


def _opened(path: Path, *, follow: bool = True) -> BinaryIO:
    """Opens a file for reading without waiting for anything."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _CLOSED_IN_CHILDREN | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0)), "rb")


def _checked(status: os.stat_result, path: Path, limit: int) -> int:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFLNK: "link", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "device")
        number = errno.EISDIR if kind == "folder" else errno.EINVAL
        raise UnfitFileError(number, f"is a {kind}, expected a regular file", str(path))
    if status.st_size > limit:
        seen = f"holds {status.st_size:,} bytes, the most for such a file is {limit:,}"
        raise UnfitFileError(errno.EFBIG, seen, str(path))
    return status.st_size


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to ``path``, and renames it to ``path`` on success.

    A reader sees the old file or the new one, never a part, even after a power failure. On an error the temporary file
    is removed, and an ``OSError`` names ``path`` instead of it. Files that a killed writer of the same path left
    are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path), _temporary(path, folder=False) as temporary:
        yield temporary
        sync_to_disk(temporary)
        temporary.replace(path)
        sync_to_disk(path.parent)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder next to ``path``, and removes it at the end.

    The folder is locked while it is in use; a folder that a killed process left is removed by the next writer.
    """
    with _temporary(path, folder=True) as folder:
        yield folder


@contextlib.contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes and threads that lock it too, until the end or a crash.

    The lock leaves no file behind. On a file system without locks, every caller succeeds.

    Args:
        folder: an existing folder, which may be read-only.

    Raises:
        BlockingIOError: the folder is locked already.
        OSError: it does not exist or cannot be opened.
    """
    if fcntl is None:
        yield  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _CLOSED_IN_CHILDREN)
    try:
        if _lock(handle, wait=False) is False:
            raise BlockingIOError(errno.EWOULDBLOCK, "in use by another process", str(folder))
        yield
    finally:
        os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Removes temporary files and folders that killed writers of ``path`` left next to it.

    Those in use are locked and stay; so does a folder with the only copy of what was being replaced.
    """
    with contextlib.suppress(OSError):  # a folder that is missing or cannot be listed
        for leftover in sorted(path.parent.iterdir()):
            if not (leftover.name.startswith(f".{path.name}.") and leftover.name.endswith(TEMPORARY)):
                continue
            if path.exists() or not (leftover / f"{path.name}{ASIDE}").exists():
                with contextlib.suppress(OSError):  # already removed, or another user's
                    _remove_if_abandoned(leftover)


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
def _temporary(path: Path, *, folder: bool) -> Iterator[Path]:
    """Yields a new, locked temporary file or folder; it is removed at the end, even after a signal."""
    remove_leftovers(path)
    while True:
        made = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")  # unique
        handle = None
        try:
            if folder:
                made.mkdir(mode=0o700)
                handle = os.open(made, os.O_RDONLY | _CLOSED_IN_CHILDREN)
            else:
                handle = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | _CLOSED_IN_CHILDREN, 0o666)
            _lock(handle, wait=True)
            if _is_at(handle, made):  # otherwise another process removed it before it was locked
                yield made
                return
        finally:
            if folder:
                shutil.rmtree(made, ignore_errors=True)
            else:
                made.unlink(missing_ok=True)
            if handle is not None:
                os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _lock(handle: int, wait: bool) -> bool | None:
    """Locks an open file or folder until it is closed; ``False`` if it is locked, ``None`` if locks do not exist."""
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
    """Temporary file without a name, removed when it is closed; in memory on Linux.

    Child processes can inherit its handle.
    """
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("dfs-deploy"), "w+b")
    return tempfile.TemporaryFile()


def check_folder(folder: Path) -> None:
    """Checks that files can be created in a folder or, if it does not exist, in the nearest existing one above it.

    A temporary file is created and removed: permission bits do not show a read-only file system, and do not apply to
    a superuser.

    Raises:
        OSError: no file can be created.
    """
    there = next(each for each in (folder, *folder.parents) if each.exists())
    with tempfile.TemporaryFile(dir=there):
        pass


def check_files_writable(*paths: Path | None) -> None:
    """Makes sure that files can be written, before any work is done for them.

    Args:
        paths: files, which may exist; ``None`` is ignored.

    Raises:
        UsageError: a path is a folder, or nothing can be written beside it.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise UsageError(f"{path} cannot be written (it is a folder, expected a file); name another file")
        try:
            check_folder(path.parent)
        except OSError as error:
            raise UsageError(f"{path} cannot be written ({error.strerror}); name another file") from error


def write_whole(path: Path, data: bytes) -> None:
    """Writes bytes to a file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def sync_to_disk(path: Path) -> None:
    """Flushes the content of a file, or the list of names of a folder, to the disk.

    File systems without such a call (SMB, sshfs, object stores) are ignored.
    """
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return  # Windows cannot open folders, and journals names itself
    try:
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    except PermissionError:
        if is_folder:
            return  # writable, but not readable
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


def sync_tree_to_disk(folder: Path) -> None:
    """Flushes a folder and everything in it to the disk."""
    from concurrent.futures import ThreadPoolExecutor

    paths = [folder, *folder.rglob("*")]
    with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
        for _ in pool.map(sync_to_disk, paths):  # raises their errors
            pass


def put_folder(made: Path, path: Path) -> None:
    """Renames a folder to ``path``; a folder that exists there is swapped with it and then is at ``made``.

    On Linux and macOS the swap is one step, so that one of them is at ``path`` at any moment, even after a crash.
    Elsewhere the old folder is first renamed to ``made`` with the suffix ``ASIDE``, then the new one to ``path``: a
    crash in between leaves both, whole, under the other names.

    Args:
        made: a folder on the file system of ``path``, flushed by ``sync_tree_to_disk``.
        path: a folder, or nothing.

    Raises:
        OSError: the folder cannot be put there; ``path`` is unchanged.
    """
    if (path.exists() or not _put_first(made, path)) and not _exchange(made, path):
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
    """Renames a folder to where nothing is; ``False`` if another process was first."""
    try:
        made.rename(path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; returns whether the system could."""
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
    """Makes an error of the temporary file name the final file."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).name.startswith(f".{path.name}."):
            error.filename, error.filename2 = str(path), None
        raise
