from __future__ import annotations

from typing import Any

import pytest

from dfs_deploy.errors import UsageError
from dfs_deploy.options import Options
from dfs_deploy.training import Job, preset
from tests.checks import refuses


def job(recipe: dict[str, Any] | None = None, **changes: Any) -> Job:
    return Job("digits", preset("quick", **(recipe or {})), **changes)


def test_a_run_reads_the_values_of_its_stages_alone() -> None:
    assert "backbone_lr" in job().used
    alone = job(until="backbone").used
    assert {"backbone_steps", "batch", "augmentation", "momentum"} <= alone
    assert not {"options", "target", "alpha", "gate_steps", "joint_lr", "cost", "policy"} & alone
    assert not {"backbone_steps", "backbone_lr", "gate_lr", "gate_patience"} & job(start="net.pt").used
    policy = job({"policy": "8", "options": Options.parse("8,full")}).used
    assert "policy" in policy
    assert not {"target", "alpha", "alpha_sign", "gate_steps", "gate_optimizer", "joint_gate_lr"} & policy


def test_the_first_stage_that_trains_an_untrained_gate_standardizes_it() -> None:
    assert job().standardized_in == "gate"
    later = job({"gate_steps": 0})
    assert later.standardized_in == "joint"
    assert "standardize_gate" in later.used
    for none in (
        job({"gate_steps": 0}, start="net.pt"),
        job({"policy": "8", "options": Options.parse("8,full")}),
        job({"standardize_gate": False}),
        job(until="backbone"),
    ):
        assert none.standardized_in is None


def test_a_target_is_that_of_what_is_steered_to_it() -> None:
    assert job({"target": 30.0}).target == 30.0
    assert job({"target": 30.0}, until="gate").target is None
    assert job({"target": 30.0, "joint_steps": 0}).target is None
    assert job({"target": 30.0, "alpha_sign": "constant"}).target is None
    assert job({"policy": "8", "options": Options.parse("8,full")}).target is None


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2**63},
        {"threads": 0},
        {"threads": 10**6},
        {"held_out": 0},
        {"size": (0, 8)},
        {"size": (8, 10**6)},
        {"data": "caf\udce9"},
        {"backbone": "caf\udce9.pt"},
        {"held_out": 5, "evaluate_on": "val"},
        {"until": "deploy"},
        {"weights_key": "ema"},
    ],
)
def test_a_job_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with refuses(UsageError):
        Job(**{"data": "digits", "recipe": preset("quick"), **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cost": "latency.json"}, "without a table"),
        ({"costs": ((0.0, 0.1, 0.5, 1.0),) * 8}, "'flops' with a table"),
        ({"costs": ((0.0, 0.1, float("nan"), 1.0),) * 8, "cost": "latency.json"}, "finite"),
        ({"costs": ((0.0, -0.1, 0.5, 1.0),) * 8, "cost": "latency.json"}, "negative"),
        ({"blocks_per_group": 10**6}, "1 to 333"),
        ({"batch": True}, "integer"),
        ({"alpha": True}, "number"),
        ({"nesterov": "yes"}, "true or false"),
        ({"momentum": 0.0}, "nesterov"),
        ({"momentum": 1.5}, "less than 1"),
        ({"speed": 3}, "no value 'speed'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with refuses(UsageError, words):
        preset("quick", **changes)
