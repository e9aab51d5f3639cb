"""Finds and runs the examples, as a newcomer does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs an example in a process of its own and expects it to end well."""
    command = [sys.executable, str(EXAMPLES / name), *words]
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    return ran
