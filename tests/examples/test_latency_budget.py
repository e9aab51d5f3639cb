from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.examples.conftest import load_example
from tests.examples.program import run_example

BUDGETS = (0.1, 0.3, 0.6)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_example("02_latency_budget")


def test_late_frames_lower_the_budget_and_early_ones_raise_it(example: ModuleType) -> None:
    governor = example.Governor(BUDGETS, target_ms=1.0)
    assert governor.budget == 0.6
    seen = [governor.budget for latency in [2.0] * 150 + [0.5] * 150 if governor.observe(latency)]
    assert seen == [0.3, 0.1, 0.3, 0.6]


def test_a_few_late_frames_and_frames_just_in_time_change_nothing(example: ModuleType) -> None:
    governor = example.Governor(BUDGETS, target_ms=1.0)
    for latency in ([0.9] * 47 + [9.0] * 3) * 5:
        assert not governor.observe(latency)


def test_a_network_that_cannot_keep_up_ends_at_its_least_budget(digits: Path) -> None:
    words = ["digits.dfs", "--data", "digits-test.npz", "--frames", "600", "--slow-down", "2"]
    ran = run_example("02_latency_budget.py", *words, "--target-ms", "0.0001", cwd=digits)
    assert "budget 0.15" in ran.stdout.splitlines()[-4]
    assert "600 frames, 100.0 % later than 0.0001 ms" in ran.stdout
    ran = run_example("02_latency_budget.py", *words, "--target-ms", "10000", cwd=digits)
    assert ran.stdout.splitlines()[0] == "600 frames, 0.0 % later than 10000 ms"
    assert ran.stdout.splitlines()[-1] == "frames by budget: 0.6: 600"
