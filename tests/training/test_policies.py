"""Searched policies, from what is asked for to the bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from dfs_deploy.costs import LatencyTable, OptionCost, save_costs
from dfs_deploy.errors import EnvironmentLacksError, UsageError
from dfs_deploy.options import Options
from dfs_deploy.training import read_metrics, run_job
from dfs_deploy.training.metrics import RunRecord
from dfs_deploy.training.policies import SEARCH_IMAGES, WantedPolicy, search_policy
from dfs_deploy.training.run import train
from tests.checks import refuses
from tests.training.small import RECIPE, job

MIXED = WantedPolicy("mixed")


def header(run: Path) -> RunRecord:
    first = read_metrics(run)[0]
    assert isinstance(first, RunRecord)
    return first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("8", None),
        ("8,skip", None),
        ("mixed", MIXED),
        ("pruned", WantedPolicy("pruned")),
        (" pruned:12", WantedPolicy("pruned", 12)),
        ("mixed:2", None),
    ],
)
def test_a_policy_is_searched_if_its_name_says_so(text: str | None, expected: WantedPolicy | None) -> None:
    assert WantedPolicy.parse(text) == expected


@pytest.mark.parametrize("text", ["pruned:", "pruned:0", "pruned:-1", "pruned:two", "pruned:2,8", "pruned:99999"])
def test_a_number_of_blocks_that_is_none_is_refused(text: str) -> None:
    with refuses(UsageError, repr(text), "as in pruned:3"):
        WantedPolicy.parse(text)


def test_a_policy_is_searched_on_held_out_images(folder: Path, backbone: Path) -> None:
    options = Options.parse("8,16,full")
    wanted = job(folder, backbone=backbone, held_out=24, options=options, target=20.0)
    searched = search_policy(wanted, MIXED)
    assert searched.images == "24 held-out images"
    assert searched.percentage <= 20.0
    assert len(searched.policy) == 2
    assert set(searched.policy) <= set(options.names)
    assert search_policy(wanted, MIXED) == searched


def test_no_more_images_than_needed_are_measured_on(
    folder: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SEARCH_IMAGES >= 1000
    monkeypatch.setattr("dfs_deploy.training.policies.SEARCH_IMAGES", 10)
    asked = job(folder, backbone=backbone, held_out=24, options=Options.parse("skip,8"), target=5.0)
    assert search_policy(asked, WantedPolicy("pruned", 1)).images == "10 held-out images"


def test_a_search_keeps_to_the_jobs_threads_and_names_a_memory_that_is_too_small(
    folder: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def search(*_: object) -> None:
        seen.append(torch.get_num_threads())
        raise MemoryError

    monkeypatch.setattr("dfs_deploy.training.run.search_policy", search)
    before = torch.get_num_threads()
    asked = job(folder, backbone=backbone, held_out=24)
    with refuses(EnvironmentLacksError, "memory"):
        train(asked.data, tmp_path / "run", policy="mixed", backbone=backbone, held_out=24, threads=before + 2)
    assert seen == [before + 2]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("wanted", [MIXED, WantedPolicy("pruned", 1)])
def test_a_search_needs_a_backbone(folder: Path, wanted: WantedPolicy) -> None:
    with refuses(UsageError, str(wanted), "backbone"):
        search_policy(job(folder), wanted)


VALUES: dict[str, Any] = {
    "preset": "quick",
    "blocks_per_group": 1,
    "batch": 16,
    "joint_steps": 4,
    "threads": 1,
    "device": "cpu",
    "seed": 1,
    "held_out": 24,
}


def test_a_pruned_network_is_trained_as_any_policy(folder: Path, backbone: Path, tmp_path: Path) -> None:
    """One block of two: with 8 bits that is 3.125 % of full precision, if the blocks weigh as much."""
    data = job(folder).data
    result = train(data, tmp_path / "one", policy="pruned:1", backbone=backbone, **VALUES)
    assert result.notes == ()
    policy = header(tmp_path / "one").policy
    assert sorted(policy or ()) == ["8", "skip"]
    assert header(tmp_path / "one").options == ["skip", "8"]
    assert result.job.recipe.policy == ",".join(policy or ())
    assert 2.0 < result.evaluation.percentage < 4.5
    with pytest.MonkeyPatch.context() as patch:  # a number of blocks is no target that times could decide
        patch.setattr("dfs_deploy.training.run.measure_here", lambda *given: pytest.fail("nothing is to be measured"))
        timeless = train(
            data, tmp_path / "again", policy="pruned:1", backbone=backbone, **{**VALUES, "preset": "cpu-int8"}
        )
    assert timeless.job.recipe.cost == "flops"
    assert timeless.job.recipe.policy == result.job.recipe.policy
    half = train(data, tmp_path / "half", policy="pruned", target=4.5, backbone=backbone, **VALUES)
    assert half.notes == ()
    assert half.evaluation.percentage <= 4.5
    assert header(tmp_path / "half").policy == policy
    full = train(data, tmp_path / "full", policy="pruned:1", options="skip,8,full", backbone=backbone, **VALUES)
    assert sorted(header(tmp_path / "full").policy or ()) == ["full", "skip"]
    assert full.evaluation.percentage > 40.0


def test_a_pruned_network_of_measured_costs_pays_for_no_gate(folder: Path, backbone: Path, tmp_path: Path) -> None:
    times = {(1, "skip"): 0.0, (1, "8"): 30.0, (2, "skip"): 0.0, (2, "8"): 60.0, (1, "full"): 30.0, (2, "full"): 60.0}
    table = LatencyTable(
        bundle="0" * 64,
        machine="a machine",
        runtime="onnxruntime",
        threads=1,
        image_shape=(3, 8, 8),
        block_shapes=((16, 8, 8), (32, 4, 4), (64, 2, 2)),
        gate_us=5.0,
        entries=[
            OptionCost(block=block, option=option, engine_us=time, precision=None)
            for (block, option), time in times.items()
        ],
    )
    save_costs(tmp_path / "latency.json", table)
    result = train(
        job(folder).data,
        tmp_path / "run",
        policy="pruned",
        target=60.0,
        cost=str(tmp_path / "latency.json"),
        backbone=backbone,
        **VALUES,
    )
    policy = header(tmp_path / "run").policy or []
    spent = sum(times[block, option] for block, option in enumerate(policy, start=1))
    assert result.evaluation.percentage == pytest.approx(100.0 * spent / (30 + 60 + 2 * 5))
    assert policy[1:] == ["skip"] or spent == 60.0
    values = {**VALUES, "preset": "cpu-int8", "policy": "pruned", "cost": str(tmp_path / "latency.json")}
    default = train(job(folder).data, tmp_path / "default", backbone=backbone, **values)
    assert default.job.recipe.target == pytest.approx(60.0), "of a path with gates, as for a network that has one"


def test_a_target_that_skips_nothing_or_too_many_blocks_are_refused(
    folder: Path, backbone: Path, tmp_path: Path
) -> None:
    data = job(folder).data
    with refuses(UsageError, "target 40", "6.25"):
        train(data, tmp_path / "run", policy="pruned", target=40, backbone=backbone, **VALUES)
    with refuses(UsageError, "pruned:3", "1 to 2", "choose another number"):
        train(data, tmp_path / "run", policy="pruned:3", backbone=backbone, **VALUES)
    with refuses(UsageError, "8,full", "add skip"):
        train(data, tmp_path / "run", policy="pruned:1", options="8,full", backbone=backbone, **VALUES)
    assert not (tmp_path / "run").exists()


def test_a_found_policy_is_that_of_the_recipe(folder: Path, backbone: Path, tmp_path: Path) -> None:
    """Whoever resumes the run searches no more."""
    found = search_policy(
        job(folder, backbone=backbone, held_out=24, options=Options.parse("skip,8"), target=5.0),
        WantedPolicy("pruned", 1),
    )
    recipe = dataclasses.replace(RECIPE, options=Options.parse("skip,8"), policy=",".join(found.policy), joint_steps=2)
    trained = run_job(dataclasses.replace(job(folder, backbone=backbone), recipe=recipe), tmp_path / "run")
    assert trained.evaluation.percentage == pytest.approx(found.percentage)
