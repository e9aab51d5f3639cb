from __future__ import annotations

import dataclasses

import pytest

from dfs_deploy.errors import DfsDeployError, UsageError
from dfs_deploy.options import Options
from dfs_deploy.training.recipe import PRESETS, Recipe, preset


def test_the_paper_preset_is_section_4() -> None:
    recipe = preset("paper")
    assert recipe == Recipe()
    assert str(recipe.options) == "skip,8,16,full"
    assert (recipe.gate_steps, recipe.joint_steps, recipe.batch) == (64_000, 64_000, 128)
    assert (recipe.momentum, recipe.weight_decay, recipe.alpha) == (0.9, 1e-4, 5e-6)
    assert (recipe.backbone_lr, recipe.gate_lr, recipe.joint_lr, recipe.joint_gate_lr) == (0.1, 0.1, 0.01, 0.01)
    assert (recipe.alpha_sign, recipe.schedule, recipe.gate_optimizer) == ("dynamic", "steps", "sgd")
    assert (recipe.backbone_steps, recipe.gate_patience, recipe.blocks_per_group) == (64_000, 0, 6)
    assert (recipe.augmentation, recipe.cost, recipe.policy, recipe.costs) == ("crop-flip", "flops", None, None)
    ours = ("settle_share", "clip", "descent", "distill", "statistics_batches", "drop")
    assert [getattr(recipe, name) for name in ours] == [0] * len(ours)
    assert not recipe.nesterov
    assert not recipe.standardize_gate
    assert recipe.autocast == "none"
    rates = [recipe.rate("gate", step) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("name", PRESETS)
def test_rates_lie_between_nothing_and_the_peak(name: str) -> None:
    recipe = preset(name)
    for stage in ("backbone", "gate", "joint"):
        rates = [recipe.rate(stage, step) for step in range(0, recipe.steps(stage), 10)]
        assert all(0.0 < rate <= 1.0 for rate in rates)
        assert max(rates) > 0.95
        assert rates[-1] < 0.05


@pytest.mark.parametrize(("options", "dearest"), [("skip,8,full", 1.0), ("skip,8", 1 / 16), ("skip,16", 1 / 4)])
@pytest.mark.parametrize("name", ["cpu-int8", "jetson"])
def test_the_usual_target_is_a_share_of_the_dearest_path_and_alpha_is_one_for_all(
    name: str, options: str, dearest: float
) -> None:
    recipe = preset(name, options=options)
    assert recipe.dearest == dearest
    assert recipe.target == pytest.approx(60.0 * dearest)
    assert (recipe.alpha, recipe.alpha_sign) == (1.0, "controlled")
    assert preset(name, options=options, target=4.0).target == 4.0


def test_the_usual_target_of_measured_costs() -> None:
    measured = {"options": "skip,8", "costs": ((0.1, 1.2), (0.1, 0.8)), "cost": "latency"}
    assert preset("cpu-int8", **measured).target == pytest.approx(60.0)
    gates_cost_most = {**measured, "costs": ((0.7, 1.2), (0.7, 0.8))}
    assert preset("cpu-int8", **gates_cost_most).target == pytest.approx(70.0)  # the least that a path costs


@pytest.mark.parametrize(("name", "options"), [("cpu-int8", "skip,8"), ("jetson", "skip,8,16,full")])
def test_presets_for_devices_are_what_they_are_asked_for_by(name: str, options: str) -> None:
    assert preset(name) == PRESETS[name]
    assert str(PRESETS[name].options) == options


def test_the_dearest_path_of_measured_costs() -> None:
    recipe = Recipe(options=Options.parse("skip,8"), target=30.0, costs=((0.1, 0.7), (0.1, 0.5)), cost="x.json")
    assert recipe.dearest == pytest.approx(0.6)


def test_changes_that_are_none_keep_the_preset() -> None:
    assert preset("quick", target=None, batch=32) == dataclasses.replace(PRESETS["quick"], batch=32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": 101.0}, "0 to 100"),
        ({"target": 0.4}, "at least 1 %; for that share of the work give 40"),
        ({"block": 1}, "did you mean blocks_per_group"),
        ({"join_lr": 1}, "did you mean joint_"),
        ({"zzz": 1}, "no value 'zzz'; help"),
        ({"target": 3.0, "options": Options.parse("8,16,full")}, "6.25 to 100"),
        ({"target": 40.0, "options": Options.parse("skip,8")}, "0 to 6.25"),
        ({"target": float("nan")}, "target is nan"),
        ({"batch": 0}, "batch"),
        ({"joint_lr": -1.0}, "joint_lr"),
        ({"alpha": float("inf")}, "alpha"),
        ({"alpha_sign": "sometimes"}, "dynamic or constant or controlled"),
        ({"descent": 1.5}, "descent is 1.5, expected a number from 0 to 1"),
        ({"distill": -0.1}, "distill"),
        ({"temperature": 0.0}, "temperature"),
        ({"statistics_batches": -1}, "statistics_batches"),
        ({"drop": 2.0}, "drop"),
        ({"autocast": "float16"}, "none or bfloat16"),
        ({"augmentation": "cutout"}, "crop-flip"),
        ({"settle_share": 1.5}, "0 to 1"),
        ({"joint_steps": -1}, "joint_steps"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        preset("paper", **changes)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(DfsDeployError, match="paper, quick, cpu-int8 or jetson"):
        preset("slow")


def test_options_are_taken_as_text() -> None:
    assert preset("quick", options="skip,full") == preset("quick", options=Options.parse("skip,full"))
