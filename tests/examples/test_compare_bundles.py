from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np

from dfs_deploy import Runtime, load_dataset
from tests.examples.conftest import load_example
from tests.examples.program import run_example


def test_a_bundle_differs_from_itself_in_nothing_but_time(digits: Path) -> None:
    if not (digits / "copy.dfs").exists():
        shutil.copytree(digits / "digits.dfs", digits / "copy.dfs")
    ran = run_example("05_compare_bundles.py", "digits.dfs", "copy.dfs", "--data", "few.npz", cwd=digits)
    first, second, right, decisions, latency = ran.stdout.splitlines()
    assert re.fullmatch(r"digits\.dfs: top-1 [\d.]+ %, p50 [\d.]+ ms, p95 [\d.]+ ms, computation [\d.]+ %", first)
    assert first.split("top-1")[1].split(",")[0] == second.split("top-1")[1].split(",")[0]
    assert "first alone 0, second alone 0" in right
    assert decisions == "block decisions in which both agree: 100.00 %"
    assert latency.startswith("latency, second over first: ")


def test_what_differs_is_counted(digits: Path) -> None:
    data = load_dataset(digits / "few.npz")
    with Runtime(digits / "digits.dfs", budget=0.15) as cheap, Runtime(digits / "digits.dfs", budget=0.6) as dear:
        found = load_example("05_compare_bundles").compare(cheap, dear, data)
        expected = [net(data.images) for net in (cheap, dear)]
    for which, result in enumerate(expected):
        np.testing.assert_array_equal(found.right[which], result.classes == data.labels)
        np.testing.assert_allclose(found.computation[which], result.computation_percentage)
    assert found.same_decisions == np.mean(expected[0].path == expected[1].path)
    assert found.same_decisions < 1.0


def test_the_interval_holds_the_ratio() -> None:
    example = load_example("05_compare_bundles")
    latency = np.random.default_rng(0).gamma(100, 0.01, (2, 500))
    latency[1] = 1.1 * latency[0] * np.random.default_rng(1).gamma(400, 0.0025, 500)
    found = example.Comparison(np.ones((2, 500), bool), latency, np.ones((2, 500)), None)
    ratio, low, high = found.ratio()
    assert low <= ratio <= high
    assert 1.05 < low < high < 1.15
    assert found.same_decisions is None
