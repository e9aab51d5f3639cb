"""A short run of the fuzzing suite: a few cases for each reader. ``make fuzz`` runs ten thousand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.pool import GOOD
from tests.fuzz.readers import READERS

CASES = 24
ROOT = Path(__file__).parents[2]

Outcomes = dict[str, list[list[str]]]


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """By reader: number, outcome, seed, changes and detail of each case; all in one process of its own."""
    file = tmp_path_factory.mktemp("fuzz") / "outcomes.json"
    command = [sys.executable, "-m", "tests.fuzz", "--cases", str(CASES), "--seed", "1", "--json", str(file)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert file.is_file(), ran.stderr[-3000:]
    made: Outcomes = json.loads(file.read_text())
    return made


@pytest.mark.parametrize("name", READERS)
def test_hostile_files_end_in_a_result_or_a_named_error(name: str, outcomes: Outcomes) -> None:
    assert len(outcomes[name]) == CASES
    bad = [
        f"make fuzz READER={name} SEED=1 CASE={case[0]}: {case[1:]}" for case in outcomes[name] if case[1] not in GOOD
    ]
    assert not bad, "\n".join(bad)


def test_the_mutations_get_past_the_first_checks(outcomes: Outcomes) -> None:
    """Where all are refused, or none is, the cases say little."""
    kinds = [case[1] for cases in outcomes.values() for case in cases]
    for kind in GOOD:
        assert kinds.count(kind) > len(kinds) // 20, kind
