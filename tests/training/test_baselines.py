"""Networks with a static policy, costs that were measured, and the stage of the deployed quantiser."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.errors import OptionError, UsageError
from dfs_deploy.exporters import export
from dfs_deploy.options import Options
from dfs_deploy.runtimes import Runtime
from dfs_deploy.training import read_metrics, resume, train
from dfs_deploy.training.loss import with_costs
from tests.bundles import normal_images, settled_network
from tests.checks import refuses
from tests.training.small import RECIPE, colour_patches, job

BITS = Options.parse("8,16,full")


def steps(run: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run / "metrics.jsonl") if record["event"] != "time"]


@pytest.mark.parametrize(
    ("options", "policy", "names", "percentage"),
    [
        ("8,16,full", "8", ["8", "8"], 6.25),
        ("8,16,full", "16,8", ["16", "8"], 15.625),
        ("10,full", "10", ["10", "10"], 100 * (10 / 32) ** 2),
    ],
)
def test_a_policy_is_trained_exported_and_run(
    folder: Path, tmp_path: Path, backbone: Path, options: str, policy: str, names: list[str], percentage: float
) -> None:
    wanted = job(folder, backbone=backbone, options=Options.parse(options), policy=policy)
    trained = train(wanted, tmp_path / "run")
    assert trained.evaluation.percentage == pytest.approx(percentage)
    header, *records = steps(tmp_path / "run")
    assert header["policy"] == names
    assert {record["stage"] for record in records} == {"joint"}
    assert {record["alpha"] for record in records if record["event"] == "step"} == {0.0}
    network = load_checkpoint(trained.checkpoint).network
    assert [network.options[choice].name for choice in network.policy or ()] == names
    made = export(trained.checkpoint, tmp_path / "net.dfs", calibration_data=colour_patches(48, seed=1))
    assert made.bundle.manifest.policy == names
    with Runtime(made.bundle) as runtime:
        result = runtime(colour_patches(6, seed=2).images)
    assert result.path.tolist() == [list(network.policy or ())] * 6


def test_the_backbone_learns_what_the_policy_computes(folder: Path, tmp_path: Path, backbone: Path) -> None:
    trained = train(job(folder, backbone=backbone, options=BITS, policy="8"), tmp_path / "run")
    before = load_checkpoint(backbone).network.backbone.state_dict()
    after = trained.network.backbone.state_dict()
    assert not torch.equal(before["blocks.1.conv1.weight"], after["blocks.1.conv1.weight"])
    assert after["blocks.1.conv1.high"] > after["blocks.1.conv1.low"]


def test_policies_that_cannot_be_are_refused(folder: Path, backbone: Path) -> None:
    with refuses(OptionError, "3 options for 2 gated blocks"):
        job(folder, options=BITS, policy="8,8,8")
    with refuses(OptionError, "'4'"):
        job(folder, options=BITS, policy="4")
    with refuses(UsageError, "no gate to start with"):
        dataclasses.replace(job(folder, options=BITS, policy="8"), start=str(backbone))


def test_costs_replace_the_papers_and_keep_its_gradient() -> None:
    network = settled_network()
    costs = torch.rand(3, 4)
    output = network(normal_images(6))
    again = with_costs(output, torch.tensor([network.options.costs] * 3))
    torch.testing.assert_close(again.expected_cost, output.expected_cost)
    for cost in (output.expected_cost, again.expected_cost):
        network.zero_grad()
        cost.sum().backward(retain_graph=True)
        gradients = [p.grad.clone() for p in network.gate.parameters() if p.grad is not None]
        assert gradients
    measured = with_costs(output, costs).expected_cost
    chosen = torch.stack([costs[block, output.path[:, block]] for block in range(3)], 1)
    torch.testing.assert_close(measured, chosen.mean(1))


def test_a_target_is_of_the_costs_that_were_measured(folder: Path, tmp_path: Path, backbone: Path) -> None:
    """Eight bits save nothing on this device, so only skipping does."""
    costs = ((0.1, 1.0, 1.0, 1.0), (0.2, 1.0, 1.0, 1.0))
    trained = train(job(folder, backbone=backbone, costs=costs, cost="latency.json", target=50.0), tmp_path / "run")
    header, *records = steps(tmp_path / "run")
    assert header["cost"] == "latency.json"
    assert header["job"]["recipe"]["costs"] == [list(row) for row in costs]
    spent = torch.tensor(trained.evaluation.option_share) * torch.tensor(costs)
    assert trained.evaluation.percentage == pytest.approx(100.0 * spent.sum(1).mean().item())
    percentages = [r["percentage"] for r in records if r["event"] == "step" and r["stage"] == "joint"]
    assert min(percentages) >= 15.0 - 1e-4
    assert max(percentages) <= 100.0 + 1e-4


def test_stage_1_goes_up_to_full_bitwidth_whatever_that_costs(folder: Path, tmp_path: Path, backbone: Path) -> None:
    costs = ((0.1, 1.0, 2.0, 1.0),) * 2
    wanted = job(folder, backbone=backbone, costs=costs, cost="latency.json", target=50.0)
    result = train(dataclasses.replace(wanted, until="gate"), tmp_path / "run").evaluation
    spent = torch.tensor(result.option_share) * torch.tensor(wanted.recipe.options.costs)
    assert result.percentage == pytest.approx(100.0 * spent.sum(1).mean().item())


def test_a_target_out_of_the_measured_reach_is_refused(folder: Path) -> None:
    costs = ((0.1, 1.0, 1.0, 1.0), (0.2, 1.0, 1.0, 1.0))
    with refuses(UsageError, "expected 15 to 100"):
        dataclasses.replace(RECIPE, costs=costs, cost="latency.json", target=10.0)
    with refuses(UsageError, "costs of 1 blocks"):
        dataclasses.replace(RECIPE, costs=costs[:1], cost="latency.json")


def test_the_last_stage_trains_in_the_engines_arithmetic(folder: Path, tmp_path: Path, backbone: Path) -> None:
    wanted = job(folder, backbone=backbone, deploy_steps=12, target=30.0)
    trained = train(wanted, tmp_path / "run")
    records = steps(tmp_path / "run")
    assert [r["step"] for r in records if r["event"] == "step" and r["stage"] == "deploy"] == list(range(1, 13))
    assert records[-1]["stage"] == "deploy"
    before = train(dataclasses.replace(wanted, until="joint"), tmp_path / "without").network.state_dict()
    after = trained.network.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert any(key.endswith("conv1.weight") for key in changed)
    assert not any(key.endswith(("running_mean", "running_var", "low", "high")) for key in changed)


def test_the_last_stage_resumes_with_the_ranges_it_began_with(folder: Path, tmp_path: Path, backbone: Path) -> None:
    wanted = job(folder, backbone=backbone, deploy_steps=12, target=30.0)
    train(wanted, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(record: Any) -> None:
        if record["event"] == "step" and record["stage"] == "deploy" and record["step"] >= 8:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(wanted, tmp_path / "stopped", stop)
    resume(tmp_path / "stopped")
    assert json.dumps(steps(tmp_path / "stopped")) == json.dumps(steps(tmp_path / "whole"))
