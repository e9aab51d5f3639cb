"""Entries of a folder that came from elsewhere: which to ignore, which links to refuse, and what errors become."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from dfs_deploy.errors import DataError
from dfs_deploy.io.files import UnfitFileError, is_litter
from dfs_deploy.io.text import first_line, one_line

_P = ParamSpec("_P")
_R = TypeVar("_R")

_LOG = logging.getLogger(__name__)


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """Lists a folder, sorted by name, without hidden entries and files that operating systems leave (both logged)."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    kept = [entry for entry in entries if not _is_ignored(entry.name)]
    if len(kept) < len(entries):
        names = ", ".join(entry.name for entry in entries if _is_ignored(entry.name))
        _LOG.info("ignored in %s: %s", one_line(folder), one_line(names))
    return kept


def _is_ignored(name: str) -> bool:
    """Whether an entry is hidden (such as ``.DS_Store``, ``._a.jpg`` and ``.nfs0001``) or left by a system."""
    return name.startswith(".") or is_litter(name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a loop of links is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def checked_entry(entry: Path, root: Path) -> Path:
    """Returns an entry below ``root``; raises DataError unless it exists and stays inside ``root``."""
    try:
        # The parents were checked on the way down, so only the entry itself can lead outside.
        inside = not entry.is_symlink() or entry.resolve(strict=True).is_relative_to(root.resolve())
        regular = entry.is_file() or entry.is_dir()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise DataError(f"{entry} is a broken link ({first_line(error)}); remove it") from error
    if not inside:
        raise DataError(f"{entry} is a link that leads outside {root}; copy what it points to into the folder")
    if not regular:
        raise DataError(f"{entry} is neither a file nor a folder; remove it")
    return entry


def os_errors_as_data_errors(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator that turns any error of the file system during a call into a DataError."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            raise unreadable(error) from error

    return wrapped


def unreadable(error: OSError) -> DataError:
    """The DataError for a file or folder that the file system refused to read."""
    where = error.filename or "a file"
    remedy = "give another" if isinstance(error, UnfitFileError) else "check that it exists and may be read"
    return DataError(f"cannot read {where} ({first_line(error)}); {remedy}")
