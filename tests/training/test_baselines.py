"""Networks with a static policy, and costs that were measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.errors import OptionError, UsageError
from dfs_deploy.exporters import export
from dfs_deploy.options import Options
from dfs_deploy.runtimes import Runtime
from dfs_deploy.training import read_metrics, run_job
from dfs_deploy.training.metrics import RunRecord, StepRecord
from dfs_deploy.training.stages import with_costs
from tests.checks import refuses
from tests.settled import normal_images, settled_network
from tests.training.small import RECIPE, colour_patches, job

BITS = Options.parse("8,16,full")


def header(run: Path) -> RunRecord:
    first = read_metrics(run)[0]
    assert isinstance(first, RunRecord)
    return first


def joint_steps(run: Path) -> list[StepRecord]:
    steps = [record for record in read_metrics(run) if isinstance(record, StepRecord)]
    assert {record.stage for record in steps} <= {"gate", "joint"}
    return [record for record in steps if record.stage == "joint"]


@pytest.mark.parametrize(
    ("options", "policy", "names", "percentage"),
    [
        ("8,16,full", "16,8", ["16", "8"], 15.625),
        ("10,full", "10", ["10", "10"], 100 * (10 / 32) ** 2),
    ],
)
def test_a_policy_is_trained_exported_and_run(
    folder: Path, tmp_path: Path, backbone: Path, options: str, policy: str, names: list[str], percentage: float
) -> None:
    wanted = job(folder, backbone=backbone, options=Options.parse(options), policy=policy)
    trained = run_job(wanted, tmp_path / "run")
    assert trained.evaluation.percentage == pytest.approx(percentage)
    assert header(tmp_path / "run").policy == names
    assert {getattr(record, "stage", "joint") for record in trained.metrics} == {"joint"}
    assert {record.alpha for record in joint_steps(tmp_path / "run")} == {0.0}
    network = load_checkpoint(trained.checkpoint).network
    assert [network.options[choice].name for choice in network.policy or ()] == names
    made = export(trained.checkpoint, tmp_path / "net.dfs", calibration_data=colour_patches(48, seed=1))
    assert made.bundle.manifest.policy == names
    with Runtime(made.bundle) as runtime:
        result = runtime(colour_patches(6, seed=2).images)
    assert result.path.tolist() == [list(network.policy or ())] * 6


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
    again = with_costs(output, network.block_costs)
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
    trained = run_job(job(folder, backbone=backbone, costs=costs, cost="latency.json", target=50.0), tmp_path / "run")
    assert header(tmp_path / "run").cost == "latency.json"
    assert header(tmp_path / "run").job["recipe"]["costs"] == [list(row) for row in costs]
    spent = torch.tensor(trained.evaluation.option_share) * torch.tensor(costs)
    assert trained.evaluation.percentage == pytest.approx(100.0 * spent.sum(1).mean().item())
    percentages = [record.percentage for record in joint_steps(tmp_path / "run")]
    assert min(percentages) >= 15.0 - 1e-4
    assert max(percentages) <= 100.0 + 1e-4


def test_stage_1_goes_up_to_full_bitwidth_whatever_that_costs(folder: Path, tmp_path: Path, backbone: Path) -> None:
    costs = ((0.1, 1.0, 2.0, 1.0),) * 2
    wanted = job(folder, backbone=backbone, costs=costs, cost="latency.json", target=50.0)
    result = run_job(dataclasses.replace(wanted, until="gate"), tmp_path / "run").evaluation
    spent = torch.tensor(result.option_share) * torch.tensor(wanted.recipe.options.costs)
    assert result.percentage == pytest.approx(100.0 * spent.sum(1).mean().item())


def test_a_target_out_of_the_measured_reach_is_refused(folder: Path) -> None:
    costs = ((0.1, 1.0, 1.0, 1.0), (0.2, 1.0, 1.0, 1.0))
    with refuses(UsageError, "expected 15 to 100"):
        dataclasses.replace(RECIPE, costs=costs, cost="latency.json", target=10.0)
    with refuses(UsageError, "costs of 1 blocks"):
        job(folder, costs=costs[:1], cost="latency.json")
