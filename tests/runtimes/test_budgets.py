"""One network at many operating points."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import UsageError
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from dfs_deploy.runtimes import Result, Runtime
from dfs_deploy.runtimes.budgets import GREATEST_BIAS, bias_for, score_offset
from dfs_deploy.runtimes.gate import MASKED
from tests.bundles import Made, copied, manifest_of, write_manifest
from tests.checks import refuses
from tests.settled import pixels

POINTS = ((0.05, 40.0), (0.2, 4.0), (0.5, -4.0), (0.9, -400.0))
"""Budgets and biases as calibration might leave them for the network of these tests."""


@pytest.fixture(scope="module")
def budgeted(mixed: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a table of budgets."""
    bundle = copied(mixed, tmp_path_factory.mktemp("budgets"))
    records = [
        {"budget": b, "bias": x, "computation_percentage": 100 * b, "top1": None, "latency_ms": None, "samples": 9}
        for b, x in POINTS
    ]
    write_manifest(bundle, {**manifest_of(bundle), "budgets": records})
    return bundle


@pytest.fixture(scope="module")
def runtime(budgeted: Path) -> Iterator[Runtime]:
    with Runtime(budgeted) as opened:
        yield opened


def mean(result: Result) -> float:
    return float(result.computation_percentage.mean())


def same(first: Result, second: Result) -> bool:
    return np.array_equal(first.path, second.path) and np.array_equal(first.logits, second.logits)


# The bias


def test_an_offset_is_the_bias_times_the_cost_and_the_weight_of_the_block() -> None:
    options, network = Options.parse("skip,8,16,full"), cifar_resnet((3,), (4,))
    offset = score_offset(2.0, network, options)
    assert offset.dtype == np.float32
    np.testing.assert_array_equal(offset, [[0.0, -0.125, -0.5, -2.0]] * 2)
    blocks = list(network.blocks)
    blocks[1] = msgspec.structs.replace(blocks[1], macs=3, options=("skip", "full"))
    blocks[2] = msgspec.structs.replace(blocks[2], macs=1, skip=None)
    offset = score_offset(-2.0, msgspec.structs.replace(network, blocks=tuple(blocks)), options)
    np.testing.assert_array_equal(offset, [[0.0, MASKED, MASKED, 3.0], [MASKED, 0.0625, 0.25, 1.0]])


@pytest.mark.parametrize("bias", [float("nan"), 2 * GREATEST_BIAS])
def test_a_bias_that_no_score_survives(runtime: Runtime, bias: float) -> None:
    with refuses(UsageError, "bias"):
        runtime.set_cost_bias(bias)


@settings(max_examples=60)
@given(st.tuples(*[st.floats(POINTS[0][0], POINTS[-1][0])] * 2).map(sorted))
def test_the_bias_never_rises_with_the_budget(budgeted: Path, budgets: list[float]) -> None:
    bundle = Bundle(budgeted)
    biases = [bias_for(budget, bundle) for budget in budgets]
    assert POINTS[0][1] >= biases[0] >= biases[1] >= POINTS[-1][1]


def test_a_calibrated_budget_has_its_own_bias_and_others_lie_between(budgeted: Path) -> None:
    bundle = Bundle(budgeted)
    for budget, bias in POINTS:
        assert bias_for(budget, bundle) == bias
    assert bias_for(0.35, bundle) == pytest.approx(0.0)


# The runtime


def test_the_more_it_may_compute_the_more_it_does(runtime: Runtime) -> None:
    images, done = pixels(60), []
    for budget, _ in POINTS:
        runtime.set_budget(budget)
        assert runtime.budget == budget
        done.append(mean(runtime(images)))
    assert done == sorted(done)
    assert done[0] < done[-1]
    assert [(point.budget, point.bias) for point in runtime.budgets] == list(POINTS)


def test_a_budget_that_is_no_number_is_refused(runtime: Runtime) -> None:
    runtime.set_budget(0.2)
    given: Any = "0.05"
    with refuses(UsageError, "'0.05'", "expected a number"):
        runtime.set_budget(given)
    assert runtime.budget == 0.2


def test_none_is_the_network_as_trained(budgeted: Path, mixed: Made) -> None:
    images = pixels(6)
    with Runtime(mixed.path) as plain, Runtime(budgeted) as other:
        expected = plain(images)
        assert other.budget is None
        assert same(other(images), expected)
        other.set_budget(0.05)
        assert not same(other(images), expected)
        other.set_budget(None)
        assert other.budget is None
        assert same(other(images), expected)


def test_a_budget_can_be_given_at_the_start(budgeted: Path, runtime: Runtime) -> None:
    runtime.set_budget(0.2)
    with Runtime(budgeted, budget=0.2) as other:
        assert other.budget == 0.2
        assert same(other(pixels(6)), runtime(pixels(6)))


def test_a_bias_set_by_hand_is_no_budget(runtime: Runtime) -> None:
    runtime.set_budget(0.2)
    expected = runtime(pixels(6))
    runtime.set_cost_bias(4.0)
    assert runtime.budget is None
    assert same(runtime(pixels(6)), expected)


@settings(max_examples=25)
@given(
    bias=st.floats(-50, 50) | st.sampled_from([-GREATEST_BIAS, GREATEST_BIAS]),
    seed=st.integers(0, 1000),
    count=st.integers(1, 9),
)
def test_a_batch_is_its_images_one_by_one_at_every_bias(runtime: Runtime, bias: float, seed: int, count: int) -> None:
    images = pixels(count, seed)
    runtime.set_cost_bias(bias)
    whole = runtime(images)
    alone = [runtime(images[i : i + 1]) for i in range(count)]
    np.testing.assert_array_equal(whole.path, np.concatenate([result.path for result in alone]))
    logits = np.concatenate([result.logits for result in alone])
    np.testing.assert_allclose(whole.logits, logits, rtol=1e-4, atol=1e-4)
    if abs(bias) == GREATEST_BIAS:
        assert (whole.path == (0 if bias > 0 else len(runtime.options) - 1)).all()


@pytest.mark.parametrize("budget", [0.05, 0.5])
def test_the_gates_agree_at_every_budget(budgeted: Path, budget: float) -> None:
    images = pixels(40)
    with Runtime(budgeted, gate="numpy", budget=budget) as slow, Runtime(budgeted, budget=budget) as fast:
        np.testing.assert_array_equal(slow(images).path, fast(images).path)


def test_clones_inherit_a_budget_and_are_independent(runtime: Runtime) -> None:
    images = pixels(6)
    runtime.set_budget(0.9)
    most = runtime(images)
    with runtime.clone() as clone:
        assert clone.budget == 0.9
        assert same(clone(images), most)
        clone.set_budget(0.05)
        assert same(runtime(images), most)
        least = clone(images)
        runtime.set_budget(None)
        assert same(clone(images), least)
        assert mean(least) < mean(most)


def test_a_forced_path_is_run_at_every_budget(runtime: Runtime) -> None:
    path = np.full((2, 3), 1)
    runtime.set_budget(0.05)
    np.testing.assert_array_equal(runtime(pixels(2), path=path).path, path)


@pytest.mark.parametrize("budget", [0.049, 0.91, float("nan")])
def test_a_budget_outside_the_table_is_refused_and_changes_nothing(runtime: Runtime, budget: float) -> None:
    runtime.set_budget(0.2)
    with refuses(UsageError, f"{budget:g}", "0.05 to 0.9", "--budgets"):
        runtime.set_budget(budget)
    assert runtime.budget == 0.2
    with refuses(UsageError, "0.05 to 0.9"):
        Runtime(runtime.bundle, budget=budget)


def test_a_bundle_without_budgets_says_how_to_get_them(mixed: Made) -> None:
    with refuses(UsageError, str(mixed.path), "--budgets", "--calibration-data"):
        Runtime(mixed.path, budget=0.2)


# The accuracy budget


PRICES = [[0.0, 0.5, 2.0, 1.0]] * 3


@pytest.fixture(scope="module")
def kept(budgeted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with an accuracy budget of its own prices."""
    bundle = tmp_path_factory.mktemp("kept") / budgeted.name
    shutil.copytree(budgeted, bundle)
    half = {
        "samples": 9,
        "top1": 0.9,
        "top1_trained": 0.9,
        "top1_reference": 0.9,
        "top1_change": 0.0,
        "top1_change_low": -0.1,
        "top1_change_high": 0.1,
        "computation_percentage": 20.0,
        "computation_percentage_trained": 30.0,
        "time_percentage": None,
        "time_percentage_trained": None,
    }
    record = {
        "max_top1_drop": 0.01,
        "bias": 3.0,
        "prices": PRICES,
        "machine": None,
        "data": "made",
        "seed": 0,
        "looks": 1,
        "reference": {"kind": "as-trained", "name": None, "sha256": None},
        "chosen": half,
        "checked": half,
    }
    write_manifest(bundle, {**manifest_of(bundle), "accuracy_budget": record})
    return bundle


def test_a_bundles_own_budget_is_what_none_means(kept: Path, budgeted: Path) -> None:
    images = pixels(60)
    with Runtime(kept) as own, Runtime(budgeted) as plain:
        trained = plain(images)
        plain.set_cost_bias(3.0, np.array(PRICES))
        expected = plain(images)
        assert not same(expected, trained)
        assert (own.budget, own.cost_bias) == (None, 3.0)
        assert same(own(images), expected)
        np.testing.assert_array_equal(own.score_offset, -3.0 * np.array(PRICES, np.float32))
        own.set_budget("trained")
        assert (own.budget, own.cost_bias) == ("trained", 0.0)
        assert same(own(images), trained)
        own.set_budget(0.2)
        plain.set_budget(0.2)
        assert same(own(images), plain(images)), "other budgets have the prices of computation"
        own.set_budget(None)
        with own.clone() as clone, pickle.loads(pickle.dumps(own)) as again:  # noqa: S301
            assert same(clone(images), expected)
            assert same(again(images), expected)


def test_a_pickle_keeps_the_gate_as_trained(kept: Path, budgeted: Path) -> None:
    images = pixels(20)
    with Runtime(kept, budget="trained") as runtime, Runtime(budgeted) as plain:
        again = pickle.loads(pickle.dumps(runtime))  # noqa: S301
        assert again.budget == "trained"
        assert same(again(images), plain(images))
        again.close()


def test_trained_is_a_budget_of_every_bundle(runtime: Runtime, budgeted: Path) -> None:
    images = pixels(6)
    runtime.set_budget(None)
    expected = runtime(images)
    with Runtime(budgeted, budget="trained") as other:
        assert same(other(images), expected)
    word: Any = "untrained"
    with refuses(UsageError, "'untrained'", "'trained'"):
        runtime.set_budget(word)
