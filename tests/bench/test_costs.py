from __future__ import annotations

import math
from pathlib import Path

import pytest

from dfs_deploy.bench.costs import hardly_known, measure_costs
from dfs_deploy.bundle import Bundle
from tests.bundles import ALL_FIXED, FIXED, MASKED, Choices, Made, copied, narrowed


def test_every_option_of_every_block_is_timed(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfs_deploy.bench.costs.MAX_UNCERTAINTY", math.inf)  # however busy this machine is
    bundle = Bundle(mixed.path)
    told: list[float] = []
    table = measure_costs(bundle, plan=False, progress=lambda stage, share: told.append(share))
    assert told[-1] == 1.0
    assert (table.bundle, table.threads) == (bundle.digest, 1)
    assert [(e.block, e.option) for e in table.entries] == [(b, o) for b in (1, 2, 3) for o in bundle.options.names]
    for entry in table.entries:
        free = entry.option == "skip" and entry.block != 2  # the second block changes shape: its skip projects
        assert (entry.engine_us == 0.0) == free
        assert (entry.precision is None) == free
    assert {e.precision for e in table.entries if e.option == "8"} == {"int8"}
    assert table.gate_us > 0.0
    costs = table.costs(bundle.architecture, bundle.options)
    assert costs.shape == (3, 4)
    assert costs.min() > 0.0


@pytest.mark.parametrize("choices", [FIXED, MASKED, ALL_FIXED], ids=["fixed", "masked", "all fixed"])
def test_a_block_is_timed_for_the_options_that_it_may_run(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choices: Choices
) -> None:
    monkeypatch.setattr("dfs_deploy.bench.costs.MAX_UNCERTAINTY", math.inf)
    bundle = Bundle(narrowed(copied(mixed, tmp_path), choices))
    table = measure_costs(bundle, plan=False)
    blocks, options = bundle.architecture.blocks, bundle.options
    assert [(e.block, e.option) for e in table.entries] == [
        (block.index, option.name) for block in blocks[1:] for option in block.choices(options)
    ]
    for entry in table.entries:
        assert (entry.engine_us > 0.0) == (entry.option != "skip" or blocks[entry.block].projects)
    costs, decided = table.costs(bundle.architecture, options), bundle.architecture.decided(options)
    allowed = bundle.architecture.allowed(options)
    assert (costs[~allowed] == 0.0).all()
    for block in range(1, 4):
        assert (costs[block - 1][allowed[block - 1]] > 0.0).all() == (block in decided)


def test_a_machine_that_slows_down_for_a_round_changes_no_cost() -> None:
    """What training aims by is the time beside full precision, in the same round."""
    pace = [1.0, 1.0, 3.0, 1.0, 2.0, 1.0, 1.0]
    rounds = {(block, name): [us * p for p in pace] for block in (1, 2) for name, us in (("8", 40.0), ("full", 100.0))}
    assert hardly_known(rounds) is None
    rounds[2, "8"] = [40.0, 80.0, 20.0, 40.0, 90.0, 40.0, 40.0]
    doubt = hardly_known(rounds)
    assert doubt is not None
    assert "option 8 is known only to" in doubt
    assert "of option full, expected ±5 %" in doubt
    assert hardly_known(rounds, tolerance=0.5) is None


def test_without_full_precision_the_dearest_option_is_the_measure() -> None:
    steady, unsteady = [100.0] * 7, [40.0, 80.0, 20.0, 90.0, 10.0, 40.0, 40.0]
    doubt = hardly_known({(1, "8"): steady, (1, "skip"): unsteady})
    assert doubt is not None
    assert "option skip" in doubt
    assert "of option 8," in doubt
    assert hardly_known({(1, "8"): steady, (1, "skip"): [each / 20 for each in unsteady]}) is None


def test_an_option_that_runs_nothing_is_no_reason_to_doubt() -> None:
    assert hardly_known({(1, "full"): [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}) is None
    assert hardly_known({}) is None
