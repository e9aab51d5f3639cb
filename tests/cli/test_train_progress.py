from __future__ import annotations

import logging

import pytest

from dfs_deploy.cli.train_progress import WAIT_S, lines, training_progress


def test_a_line_comes_with_each_stage_and_then_every_so_often() -> None:
    now, said = [0.0], []
    progress = lines(lambda line: said.append((now[0], line)), lambda: now[0])
    for stage, steps in (("backbone", 1000), ("gate", 5)):
        for step in range(1, steps + 1):
            progress(f"{stage} step {step}/{steps}: loss 0.500", step / steps)
            now[0] += 0.5
    assert [time for time, _ in said] == [*range(0, 500, int(WAIT_S)), 500.0]
    assert said[1][1] == f"backbone step {int(2 * WAIT_S) + 1}/1000: loss 0.500"
    assert said[-1][1] == "gate step 1/5: loss 0.500"


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
