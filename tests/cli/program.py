"""Runs the command line, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from dfs_deploy.cli import main

VERBS = (
    *("export", "blocks", "adapt", "prepare", "verify", "bench"),
    *("report", "run", "inspect", "doctor", "train", "demo"),
)


@dataclass(frozen=True)
class Ran:
    """How a run ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object that standard output holds, and nothing else."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value

    def failed(self, code: int, *words: str) -> None:
        """Expects an exit code and one line on standard error in which every word stands."""
        assert self.code == code, self
        assert self.err.startswith("error: "), self
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err, self


def run(*arguments: str | Path) -> Ran:
    """Runs ``dfs-deploy`` here, as its entry point does."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", ["dfs-deploy", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return Ran(code, out.getvalue(), err.getvalue())


def run_apart(*arguments: str | Path, cwd: Path | None = None) -> Ran:
    """Runs ``python -m dfs_deploy`` in a process of its own, its output in pipes."""
    command = [sys.executable, "-m", "dfs_deploy", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    return Ran(ran.returncode, ran.stdout, ran.stderr)
