from __future__ import annotations

from pathlib import Path

from tests.examples.program import run_example


def test_threads_give_the_same_classes(digits: Path) -> None:
    ran = run_example("03_threads.py", "digits.dfs", "--data", "digits-test.npz", "--threads", "3", cwd=digits)
    assert "3 threads:" in ran.stdout
    assert ran.stdout.endswith("same classes: yes\n")
