"""Commands that a verb prints for the user to run next: they can be copied as they stand."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from dfs_deploy.io.text import one_line

_SCRIPT = "dfs-deploy"


def command(*words: str | Path) -> str:
    """A command line of this program, as this process could be started again.

    Args:
        words: verb and arguments; quoted for a shell if they need it.

    Returns:
        The line. It begins with ``dfs-deploy`` if a shell finds that, and it is the one that runs now; else with the
        script's path, or with ``python -m dfs_deploy``.
    """
    return one_line(f"{_program()} {shlex.join(map(str, words))}")


def _program() -> str:
    called = Path(sys.argv[0])
    if called.stem != _SCRIPT:
        found = (name for name in ("python", "python3") if shutil.which(name) == sys.executable)
        return f"{next(found, shlex.quote(sys.executable))} -m dfs_deploy"
    on_path = shutil.which(_SCRIPT)
    if not called.exists() or (on_path is not None and called.samefile(on_path)):
        return _SCRIPT
    return shlex.quote(str(called))
