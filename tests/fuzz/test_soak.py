"""A short soak: a share of what ``make soak`` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.examples.conftest import load_example
from tests.fuzz import soak


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("soak")
    load_example("digits_bundle").make_digits_bundle(made)
    return made


def test_memory_and_handles_stay_and_results_are_equal(folder: Path) -> None:
    results = soak.soak(folder, 0.002, 0)
    assert [result.name for result in results] == list(soak.COUNTS)
    assert [result for result in results if not result.sound] == []


def test_it_sees_memory_handles_and_results_that_change() -> None:
    kept: list[object] = []
    watch = soak.Watch(4)
    for _ in range(4):
        kept.append(np.ones(40 << 20, np.uint8))  # too large for what earlier tests freed
        watch.step()
    grown = watch.result("x", 0)
    assert grown.grown > soak.FLAT
    assert not grown.sound

    watch = soak.Watch(4)
    for _ in range(4):
        kept.append(Path("/dev/null").open())  # noqa: SIM115
        watch.step()
    leaked = watch.result("x", 0)
    assert leaked.files[1] > leaked.files[0]
    assert not leaked.sound
    kept.clear()

    watch = soak.Watch(1)
    watch.step()
    assert watch.result("x", 0).sound
    assert not watch.result("x", 1).sound
