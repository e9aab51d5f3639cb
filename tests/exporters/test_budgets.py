from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.data import Dataset
from dfs_deploy.errors import UsageError
from dfs_deploy.exporters import compare, export
from dfs_deploy.exporters.budgets import TOLERANCE, calibrate_budgets, check_budgets
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from dfs_deploy.runtimes import Result, Runtime
from tests.bundles import Made, labelled
from tests.checks import refuses
from tests.settled import CONTRACT, pixels, settled_network

OPTIONS = Options.parse("skip,8,16,full")
REACH = (0.0, 1.0)
BUDGETS = (0.1, 0.25, 0.6)


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle of nine gated blocks, whose gate makes small steps, with a table of budgets."""
    folder = tmp_path_factory.mktemp("varied")
    network = settled_network(blocks=5, seed=3)
    save_checkpoint(folder / "net.pt", network, CONTRACT)
    data = labelled(network, 150)
    made = export(folder / "net.pt", folder / "net.dfs", targets=["fp32"], calibration_data=data, budgets=BUDGETS)
    return Made(made.bundle.path, folder / "net.pt", network, data, folder / "data.npz")


def measured(runtime: Runtime, data: Dataset) -> tuple[float, float]:
    result = runtime(data.images)
    return float(result.computation_percentage.mean(dtype=np.float64)), float(np.mean(result.classes == data.labels))


# A real network


def test_an_export_keeps_a_bias_for_each_budget(varied: Made) -> None:
    points = Bundle(varied.path).manifest.budgets
    assert set(BUDGETS) <= {point.budget for point in points}
    assert [point.bias for point in points] == sorted((point.bias for point in points), reverse=True)
    with Runtime(varied.path) as runtime:
        for point in points:
            runtime.set_budget(point.budget)
            percentage, top1 = measured(runtime, varied.data)
            assert point.computation_percentage == pytest.approx(percentage)
            assert abs(percentage - 100.0 * point.budget) <= TOLERANCE
            assert (point.top1, point.samples) == (pytest.approx(top1), 150)
            assert point.latency_ms is not None
            assert point.latency_ms > 0


def test_the_reference_holds_the_budget_too(varied: Made) -> None:
    with Runtime(varied.path, budget=0.1) as runtime:
        at_budget = compare(runtime, varied.network, varied.data)
        runtime.set_budget(None)
        as_trained = compare(runtime, varied.network, varied.data)
    assert min(at_budget.route_agreement, as_trained.route_agreement) > 0.99
    assert at_budget.computation_percentage_reference == pytest.approx(10.0, abs=TOLERANCE)
    assert as_trained.computation_percentage_reference > 20.0, "the network was left as it was trained"


def test_calibrating_leaves_the_gate_as_trained(varied: Made) -> None:
    shares: list[float] = []
    with Runtime(varied.path, budget=0.1) as runtime, Runtime(varied.path) as trained:
        points = calibrate_budgets(runtime, (0.6, 0.25, 0.25), varied.data, lambda stage, share: shares.append(share))
        assert runtime.budget is None
        np.testing.assert_array_equal(runtime(varied.data.images).path, trained(varied.data.images).path)
    assert (points[0].budget, points[-1].budget) == (0.25, 0.6)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_least_and_the_most_that_the_options_allow(varied: Made) -> None:
    with Runtime(varied.path) as runtime:
        least, *_, most = calibrate_budgets(runtime, (0.0, 1.0), varied.data)
    assert (least.computation_percentage, most.computation_percentage) == (0.0, 100.0)


# A curve of computation over bias


class Curve:
    """Stands for a runtime whose mean computation is a given function of the bias."""

    def __init__(self, curve: Callable[[float], float], blocks: int = 9) -> None:
        self._curve = curve
        self._bias = 0.0
        self.calls = 0
        self.options = OPTIONS
        self.bundle = SimpleNamespace(architecture=cifar_resnet((blocks,), (16,)))
        self.input = SimpleNamespace(normalize=lambda images: images, shape=(3, 8, 8))

    def set_cost_bias(self, bias: float) -> None:
        self._bias = bias

    def set_budget(self, budget: None) -> None:
        self._bias = 0.0

    def __call__(self, images: NDArray[Any]) -> Any:
        self.calls += len(images) > 1
        n = len(images)
        percentage = np.full(n, self._curve(self._bias), np.float32)
        return SimpleNamespace(computation_percentage=percentage, classes=np.zeros(n, np.int64))


FEW = Dataset(pixels(4), np.array([0, 0, 1, 0]), (), "few")


def calibrated(curve: Curve, *budgets: float) -> list[Any]:
    return calibrate_budgets(cast(Runtime, curve), budgets, FEW)


@settings(max_examples=80)
@given(
    middle=st.floats(-30, 30),
    width=st.floats(0.1, 20),
    ripple=st.floats(0, 3),
    budgets=st.lists(st.floats(0.02, 0.98), min_size=1, max_size=4, unique=True),
)
def test_a_curve_that_falls_unevenly_is_followed(
    middle: float, width: float, ripple: float, budgets: list[float]
) -> None:
    """A ripple makes it rise in places, as a gate may that sees other features after a block was left out."""

    def falls(bias: float) -> float:
        smooth = 100.0 / (1.0 + np.exp(np.clip((bias - middle) / width, -50, 50)))
        return float(np.clip(smooth + ripple * np.sin(3.0 * (bias - middle) / width) * (1 < smooth < 99), 0, 100))

    curve = Curve(falls)
    points = calibrated(curve, *budgets)
    assert set(budgets) <= {point.budget for point in points}
    assert [point.budget for point in points] == sorted({point.budget for point in points})
    biases = [point.bias for point in points]
    assert biases == sorted(biases, reverse=True)
    for point in points:
        assert abs(point.computation_percentage - 100.0 * point.budget) <= TOLERANCE
        assert point.computation_percentage == pytest.approx(falls(point.bias), abs=1e-3)
        assert (point.top1, point.samples) == (0.75, 4)


@pytest.mark.parametrize("power", [1, 4])
def test_budgets_between_those_asked_are_held_too(power: int) -> None:
    """Where computation falls fast at first and then slowly, a straight line from 0.9 to 0.05 would miss by far."""
    curve = Curve(lambda bias: float(np.clip(100.0 * (1.0 + max(bias + 10.0, 0.0)) ** -power, 1.0, 99.0)))
    points = calibrated(curve, 0.05, 0.9)
    budgets = [point.budget for point in points]
    for budget in np.linspace(0.05, 0.9, 40):
        bias = np.interp(budget, budgets, [point.bias for point in points])
        curve.set_cost_bias(float(bias))
        assert curve(FEW.images).computation_percentage[0] == pytest.approx(100 * budget, abs=2 * TOLERANCE)


@settings(max_examples=40)
@given(st.floats(-20, 20), st.floats(0.06, 0.94))
def test_a_budget_in_a_jump_is_refused_with_what_lies_beside_it(edge: float, budget: float) -> None:
    assume(abs(100 * budget - 5) > TOLERANCE and abs(100 * budget - 95) > TOLERANCE)
    with refuses(UsageError, f"{budget:g}", "5.00 to 95.00 %"):
        calibrated(Curve(lambda bias: 95.0 if bias < edge else 5.0), budget)


def test_a_curve_is_measured_seldom() -> None:
    curve = Curve(lambda bias: float(100.0 / (1.0 + np.exp(bias / 3.0))))
    calibrated(curve, 0.1, 0.2, 0.3, 0.4, 0.5)
    assert curve.calls < 5 * 20


# What cannot be


@pytest.mark.parametrize(
    ("budgets", "word"),
    [((), "no budget"), ((float("nan"),), "0 to 1"), ((0.2, 1.1), "0 to 1")],
)
def test_budgets_that_are_no_shares(budgets: tuple[float, ...], word: str) -> None:
    with refuses(UsageError, word):
        check_budgets(budgets, REACH)


def test_a_budget_below_the_cheapest_option_is_refused_with_the_range() -> None:
    with refuses(UsageError, "0.05", "0.0625 to 1"):
        check_budgets((0.2, 0.05), (0.0625, 1.0))


def test_a_network_that_has_nothing_to_decide() -> None:
    with refuses(UsageError, "no block to decide"):
        calibrated(Curve(lambda bias: 100.0, blocks=1), 0.5)


def test_an_export_says_what_budgets_need(mixed: Made, tmp_path: Path) -> None:
    out = tmp_path / "net.dfs"
    with refuses(UsageError, "--calibration-data"):
        export(mixed.checkpoint, out, budgets=(0.2,))
    with refuses(UsageError, "onnxruntime"):
        export(mixed.checkpoint, out, budgets=(0.2,), calibration_data=mixed.data, runtimes=["tensorrt"])
    with refuses(UsageError, "0 to 1"):
        export(mixed.checkpoint, out, budgets=(20.0,), calibration_data=mixed.data)
    assert not list(tmp_path.iterdir())


def test_results_at_a_budget_are_those_of_the_changed_checkpoint(tmp_path: Path) -> None:
    """A budget is exactly another bias of the projection, if all blocks weigh the same."""
    network = settled_network(blocks=6, widths=(4,), seed=3)
    data = labelled(network, 150)
    save_checkpoint(tmp_path / "trained.pt", network, CONTRACT)
    trained = export(
        tmp_path / "trained.pt", tmp_path / "trained.dfs", targets=["fp32"], calibration_data=data, budgets=(0.25,)
    ).bundle
    (point,) = trained.manifest.budgets
    assert network.gate is not None
    bias = network.gate.projection.bias
    bias.data -= bias.new_tensor([point.bias * cost for cost in OPTIONS.costs])
    save_checkpoint(tmp_path / "net.pt", network, CONTRACT)
    made = export(tmp_path / "net.pt", tmp_path / "net.dfs", targets=["fp32"], calibration_data=data)
    results: list[Result] = []
    for bundle, budget in ((trained.path, point.budget), (made.bundle.path, None)):
        with Runtime(bundle, budget=budget) as runtime:
            results.append(runtime(pixels(40, seed=5)))
    np.testing.assert_array_equal(results[0].path, results[1].path)
    np.testing.assert_array_equal(results[0].logits, results[1].logits)
