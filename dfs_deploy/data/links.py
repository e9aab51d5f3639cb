"""Entries of a folder that somebody else filled: what does not belong to it, and links that lead out of it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from dfs_deploy.data.messages import cause
from dfs_deploy.errors import DataError
from dfs_deploy.io.files import is_litter
from dfs_deploy.io.text import one_line

_log = logging.getLogger("dfs_deploy")


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """Lists a folder, sorted by name, without hidden entries and what systems leave there (logged as passed over)."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    kept = [entry for entry in entries if not _is_passed_over(entry.name)]
    if len(kept) < len(entries):
        names = ", ".join(entry.name for entry in entries if _is_passed_over(entry.name))
        _log.info("passed over in %s: %s", one_line(folder), one_line(names))
    return kept


def _is_passed_over(name: str) -> bool:
    """Whether an entry is hidden (as ``.DS_Store``, ``._a.jpg`` and ``.nfs0001``) or one that systems leave."""
    return name.startswith(".") or is_litter(name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a loop of links is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def checked_entry(entry: Path, root: Path) -> Path:
    """Returns an entry below ``root`` that exists and leads nowhere else; raises DataError otherwise."""
    try:
        # The parents were checked on the way down, so only the entry itself can lead outside.
        inside = not entry.is_symlink() or entry.resolve(strict=True).is_relative_to(root.resolve())
        regular = entry.is_file() or entry.is_dir()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise DataError(f"{entry} is a link to nothing ({cause(error)}); remove it") from error
    if not inside:
        raise DataError(f"{entry} is a link that leads outside {root}; copy what it points to into the folder")
    if not regular:
        raise DataError(f"{entry} is neither a file nor a folder; remove it")
    return entry
