from __future__ import annotations

import itertools
import logging

import pytest

from dfs_deploy.cli.train_progress import LEAST_WAIT_S, MOST_WAIT_S, Lines, describe_duration, training_progress

STEPS = {"backbone": 20_000, "gate": 10}


class Log:
    """Lines said, by a clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.said: list[tuple[float, str]] = []
        self.lines = Lines(lambda line: self.said.append((self.now, line)), clock=lambda: self.now)

    def steps(self, count: int, seconds_each: float, stage: str = "backbone") -> None:
        for number in range(1, count + 1):
            self.lines(f"{stage} step {number}/{STEPS[stage]}: loss 0.500", number / STEPS[stage])
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


def test_a_line_says_the_step_and_the_time_left() -> None:
    log = Log()
    log.steps(195, 0.5)
    assert log.said[0][1] == "backbone step 1/20000: loss 0.500"
    assert log.said[-1][1].startswith("backbone step 181/20000: ")
    # 19,819 steps of half a second.
    assert log.said[-1][1].endswith(", about 2 h 45 min left of this stage")


def test_each_stage_begins_with_a_line_and_its_own_pace() -> None:
    log = Log()
    log.steps(30, 0.1)
    log.steps(10, 2.0, "gate")
    lines = [line for _, line in log.said]
    assert lines[1] == "gate step 1/10: loss 0.500"
    assert lines[2].endswith("about 8 s left of this stage")


def test_the_log_of_training_is_shown_on_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("dfs_deploy.training.loop")
    before = logging.getLogger("dfs_deploy.training").level
    with training_progress(quiet=False):
        log.warning("%s", "class a\nb\x1b[31m")
        log.info("gate step 3: top-1 50 %")
        log.debug("no matter")
    with training_progress(quiet=True):
        log.info("silent")
    assert capsys.readouterr().err == "note: class a\\nb\\x1b[31m\ngate step 3: top-1 50 %\n"
    assert logging.getLogger("dfs_deploy.training").level == before


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89.0, "89 s"), (91.0, "2 min"), (3_599.0, "1 h 0 min"), (7_500.0, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert describe_duration(seconds) == text
