"""Files that a verb is to write when its work is done, looked at before it."""

from __future__ import annotations

from pathlib import Path

from dfs_deploy.errors import UsageError
from dfs_deploy.io.files import check_folder


def check_writable(*paths: Path | None) -> None:
    """Makes sure that files can be written, before anything is measured for it.

    Args:
        paths: of files that may be there already; ``None`` is passed over.

    Raises:
        UsageError: a folder stands at a path, or nothing can be written beside it.
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
