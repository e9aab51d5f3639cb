"""A few kills; ``make kill`` does it before every change of the file system, and at a hundred random moments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import kills
from tests.fuzz.kills import Harness, Work

ROOT = Path(__file__).parents[2]


def test_what_was_killed_leaves_the_old_or_the_new_one_and_no_orphan() -> None:
    command = [sys.executable, "-m", "tests.fuzz.kills", "--random", "2", "--every", "60", "--seed", "5"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("\n") == 2 + len(kills.NAMES)


class Careless(Work):
    """Writes a file in place, by way of another that stays after a kill."""

    name = "careless"

    def begin(self, folder: Path) -> None:
        (folder / "file").write_text("old")

    def command(self, folder: Path) -> list[str]:
        return []

    def result(self, folder: Path) -> str:
        return (folder / "file").read_text()


def test_it_sees_broken_files_and_orphans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(words: list[str]) -> int:
        with Path("file").open("w") as stream:
            stream.write("ne")
            stream.flush()
            Path("scratch-file").mkdir()
            stream.write("w")
        Path("scratch-file").rmdir()
        return 0

    monkeypatch.setattr(kills, "_command_line", write)
    harness = Harness(Careless(), tmp_path)
    assert harness.changes == 3
    harness.kill_before_change(1)
    assert harness.tally.breaches == []
    assert harness.tally.old == 1
    harness.kill_before_change(2)
    assert "neither the old nor the new one" in harness.tally.breaches.pop()
    monkeypatch.setattr(kills, "_command_line", lambda words: write(words) if not Path("scratch-file").exists() else 0)
    harness.kill_before_change(3)
    assert any("orphans work/scratch-file" in line for line in harness.tally.breaches)
