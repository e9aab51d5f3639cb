"""Costs that are measured here before training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfs_deploy.costs import LatencyTable, load_costs
from dfs_deploy.data import save_npz
from dfs_deploy.errors import CheckFailedError, DfsDeployError, ExportMismatchError, UsageError
from dfs_deploy.models import adapt, find_blocks
from dfs_deploy.training import TrainingResult, read_metrics, resume, train
from dfs_deploy.training.latency import usual_cost
from dfs_deploy.training.metrics import RunRecord
from dfs_deploy.training.processes import Processes
from tests.checks import refuses
from tests.nets import user_images, user_net
from tests.test_imports import BLOCK
from tests.training.small import colour_patches

SHORT: dict[str, Any] = {
    "preset": "cpu-int8",
    "blocks_per_group": 1,
    "batch": 16,
    "backbone_steps": 3,
    "gate_steps": 2,
    "joint_steps": 3,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latency") / "patches.npz"
    save_npz(path, colour_patches())
    return path


@pytest.fixture(scope="module")
def result(data: Path) -> TrainingResult:
    """A run with the preset's own cost, however busy this machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfs_deploy.training.latency.TOLERANCE", 1e9)
        return train(data, data.parent / "run", **SHORT)


def test_the_preset_for_a_cpu_measures_here_and_keeps_the_table(result: TrainingResult) -> None:
    table, recipe = load_costs(result.folder / "latency.json"), result.job.recipe
    assert recipe.cost == "latency"
    assert recipe.options.names == ("skip", "8")
    header = read_metrics(result.folder)[0]
    assert isinstance(header, RunRecord)
    assert header.cost == "latency"
    assert {entry.precision for entry in table.entries if entry.option == "8"} == {"int8"}
    costs = np.array(recipe.costs or ())
    np.testing.assert_allclose(costs, table.costs(header.network, recipe.options))
    assert costs.max(1).mean() == pytest.approx(1.0), "all blocks in 8 bits are the whole"
    assert recipe.target == pytest.approx(60.0)


def test_a_result_says_what_the_table_predicts(result: TrainingResult) -> None:
    assert result.predicted is not None
    assert result.predicted.percentage == pytest.approx(result.evaluation.percentage)
    assert "% of the time" in repr(result)
    table = load_costs(result.folder / "latency.json")
    assert result.predicted.dearest_us == pytest.approx(table.dearest_us(result.job.recipe.options))


def test_a_run_that_goes_on_measures_nothing_again(result: TrainingResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfs_deploy.training.run.measure_here", lambda *given: pytest.fail("it is measured already"))
    again = resume(result.folder)
    assert again.finished_before
    assert again.predicted == result.predicted


def test_what_costs_time_by_default() -> None:
    assert usual_cost("cpu-int8") == ("latency", ())
    assert usual_cost("paper") == usual_cost("quick") == ("flops", ())


def test_without_a_gpu_the_preset_for_one_counts_bits_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfs_deploy.bench.jetson.is_jetson", lambda: False)
    monkeypatch.setattr("dfs_deploy.bench.devices.has_gpu", lambda root: False)
    cost, (note,) = usual_cost("jetson")
    assert cost == "flops"
    assert "no NVIDIA driver" in note
    assert "--cost" in note
    monkeypatch.setattr("dfs_deploy.bench.devices.check_device", lambda device: None)
    assert usual_cost("jetson") == ("latency", ())


def test_a_static_policy_has_no_choice_to_be_timed(data: Path, tmp_path: Path) -> None:
    net = user_net("basic", 3)
    model = adapt(net, find_blocks(net, user_images(2)), "skip,8").with_policy([1] * 4)
    with refuses(UsageError, "static policy", "leave the cost out"):
        train(model, data, tmp_path / "run", cost="latency", size="12x12", threads=1)
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_be_exported_is_named_before_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **values: object) -> None:
        raise ExportMismatchError("block 2 differs")

    monkeypatch.setattr("dfs_deploy.exporters.export", fail)
    with refuses(CheckFailedError, "block 2 differs", "--cost flops"):
        train(data, tmp_path / "run", **SHORT)
    assert not (tmp_path / "run").exists()


def test_a_machine_too_busy_to_say_anything_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs_deploy.training.latency.TOLERANCE", -1.0)
    monkeypatch.setattr("dfs_deploy.bench.costs._MOST_ROUNDS", 7)
    with refuses(CheckFailedError, "INVALID", "measure again"):
        train(data, tmp_path / "run", **SHORT)
    assert not (tmp_path / "run").exists()


def test_without_the_exporting_extra_the_remedy_is_said(data: Path, tmp_path: Path) -> None:
    blocked = BLOCK.replace(BLOCK[BLOCK.index("in (") + 3 : BLOCK.index("):\n            raise")] + ")", "('onnx',)")
    script = (
        f"{blocked}\nfrom dfs_deploy.training import train\nfrom dfs_deploy.errors import MissingExtraError\n"
        f"try:\n    train({str(data)!r}, {str(tmp_path / 'run')!r}, **{SHORT!r})\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "onnx is not installed" in ran.stdout
    assert "pip install" in ran.stdout


class _First(Processes):
    """The first of two processes, whose exchange gives what it gives."""

    def gather(self, value: Any) -> list[Any]:
        return [value, (None, None)]


class _Second(Processes):
    """The other one, which receives what the first made."""

    def gather(self, value: Any) -> list[Any]:
        assert value == (None, None), "the second process makes nothing"
        return [("made by the first", None), value]


def test_what_differs_from_time_to_time_is_made_by_the_first_process_only() -> None:
    assert Processes().from_first(lambda: 3) == 3
    assert _First(0, 2).from_first(lambda: "made") == "made"
    assert _Second(1, 2).from_first(lambda: pytest.fail("not here")) == "made by the first"

    def fail() -> LatencyTable:
        raise DfsDeployError("too busy")

    with refuses(DfsDeployError, "too busy"):
        _First(0, 2).from_first(fail)
