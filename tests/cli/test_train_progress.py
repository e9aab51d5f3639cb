from __future__ import annotations

import itertools
from typing import Any

import pytest

from dfs_deploy.cli.train_progress import LEAST_WAIT_S, MOST_WAIT_S, Lines, describe_duration

RUN = {"event": "run", "job": {"recipe": {"backbone_steps": 20_000, "gate_steps": 10, "target": 40.0}}}


def step(number: int, stage: str = "backbone") -> dict[str, Any]:
    return {"event": "step", "stage": stage, "step": number, "loss": 0.5, "accuracy": 0.875, "percentage": 100.0}


class Log:
    """Lines said, by a clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.said: list[tuple[float, str]] = []
        self.observe = Lines(lambda line: self.said.append((self.now, line)), clock=lambda: self.now).progression
        self.observe(RUN)

    def steps(self, count: int, seconds_each: float, stage: str = "backbone") -> None:
        for number in range(1, count + 1):
            self.observe(step(number, stage))
            self.now += seconds_each


def test_a_line_comes_every_so_often_and_not_with_every_step() -> None:
    log = Log()
    log.steps(4000, 0.1)
    times = [time for time, _ in log.said]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[0] == 0.0
    assert min(gaps) >= LEAST_WAIT_S
    assert max(gaps) <= MOST_WAIT_S
    assert 10 < len(gaps) <= 400.0 / LEAST_WAIT_S


def test_a_line_comes_at_least_once_a_minute_however_long_it_takes() -> None:
    log = Log()
    log.steps(20_000, 2.0)
    times = [time for time, _ in log.said]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= MOST_WAIT_S + 2.0
    assert len(times) < 40_000 / MOST_WAIT_S * 1.2


def test_a_line_says_step_loss_accuracy_computation_and_time_left() -> None:
    log = Log()
    log.steps(195, 0.5)
    assert log.said[0][1] == "backbone step 1/20000: loss 0.500, accuracy 87.5 %, computation 100.0 %"
    assert log.said[-1][1].startswith("backbone step 181/20000: ")
    # 19,819 steps of half a second.
    assert log.said[-1][1].endswith(", about 2 h 45 min left of this stage")


def test_each_stage_begins_with_a_line_and_its_own_pace() -> None:
    log = Log()
    log.steps(30, 0.1)
    log.steps(10, 2.0, "gate")
    lines = [line for _, line in log.said]
    assert lines[1] == "gate step 1/10: loss 0.500, accuracy 87.5 %, computation 100.0 %"
    assert lines[2].endswith("about 8 s left of this stage")


def test_notes_are_shown_on_one_line_whatever_is_in_them() -> None:
    log = Log()
    log.observe({"event": "note", "text": "class a\nb\x1b[31m"})
    assert log.said == [(0.0, "note: class a\\nb\\x1b[31m")]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89.0, "89 s"), (91.0, "2 min"), (3_599.0, "1 h 0 min"), (7_500.0, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert describe_duration(seconds) == text
