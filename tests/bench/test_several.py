"""Several bundles in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dfs_deploy.bench import BenchResult, bench
from dfs_deploy.bench.result import other_names
from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import UsageError
from dfs_deploy.runtimes import Runtime
from tests.bundles import Made, copied, manifest_of, write_manifest
from tests.checks import refuses

QUICK: dict[str, Any] = {
    "min_seconds": 0.0,
    "min_iterations": 3,
    "warm_up_seconds": 0.0,
    "start_ups": 0,
    "energy_seconds": 0.0,
}


def budgeted(made: Made, folder: Path, name: str) -> Path:
    """A copy of a bundle that was calibrated for two budgets: one that skips all, and one that runs all."""
    bundle = copied(made, folder)
    renamed = bundle.rename(bundle.with_name(f"{name}.dfs"))
    point = {"computation_percentage": 10.0, "top1": None, "latency_ms": None, "samples": 9}
    records = [{"budget": 0.01, "bias": 400.0, **point}, {"budget": 0.9, "bias": -400.0, **point}]
    write_manifest(renamed, {**manifest_of(renamed), "budgets": records})
    return renamed


@pytest.fixture(scope="module")
def result(mixed: Made, floats: Made, static: Made) -> BenchResult:
    return bench([static.path, mixed.path, Bundle(floats.path)], mixed.data, **QUICK)


def test_the_first_with_a_gate_is_the_case_dfs_and_others_have_their_names(result: BenchResult) -> None:
    names = [case.name for case in result.cases]
    assert names[:4] == ["dfs", "static-fp32", "static-fp16", "static-int8"]
    assert {"static-policy@static", "dfs@floats"} <= set(names)
    assert "static-fp32@floats" not in names, "nobody would ship what was trained for a gate's paths"
    assert result.bundle.name == "mixed"
    assert [other.name for other in result.against] == ["static", "floats"]
    assert result.owner_of(result.cases[0]) == result.bundle.digest
    assert next(result.owner_of(case) for case in result.cases if case.rival) == result.against[0].digest


def test_each_dynamic_network_has_the_figures_of_its_own_gate_and_options(
    mixed: Made, floats: Made, result: BenchResult
) -> None:
    other = result.case("dfs@floats")
    assert other is not None
    assert other.engine_ms
    assert other.gate_us
    with Runtime(floats.path) as runtime:
        ran = runtime(mixed.data.images)
    assert other.computation_percentage == pytest.approx(float(ran.computation_percentage.mean()), rel=1e-4)


def test_to_compare_with_is_to_name_last(mixed: Made, floats: Made, result: BenchResult) -> None:
    against = bench(mixed.path, mixed.data, against=floats.path, **QUICK)
    named = bench([mixed.path, floats.path], mixed.data, **QUICK)
    assert [case.name for case in against.cases] == [case.name for case in named.cases]
    assert [case.top1 for case in against.cases] == [case.top1 for case in named.cases]


def test_every_dynamic_network_is_timed_at_its_budgets(mixed: Made, floats: Made, tmp_path: Path) -> None:
    ours, theirs = budgeted(mixed, tmp_path, "ours"), budgeted(floats, tmp_path, "theirs")
    found = bench([ours, theirs], mixed.data, all_budgets=True, **QUICK)
    assert [case.name for case in found.budgets] == [
        *("dfs-budget-1", "dfs-budget-90"),
        *("dfs-budget-1@theirs", "dfs-budget-90@theirs"),
    ]
    assert [case.computation_percentage for case in found.budgets] == pytest.approx([0.0, 100.0, 0.0, 100.0])
    with refuses(UsageError, "calibrated for no budget"):
        bench([mixed.path, floats.path], mixed.data, all_budgets=True, **QUICK)


def test_of_several_dynamic_cases_half_of_the_images_chooses_and_the_other_half_judges(
    mixed: Made, floats: Made, tmp_path: Path
) -> None:
    lone = bench(mixed.path, mixed.data, **QUICK)
    assert not any("was chosen of" in line for line in lone.verdict.caveats)
    several = bench([mixed.path, floats.path], mixed.data, **{**QUICK, "min_iterations": 1200})
    (line,) = [line for line in several.verdict.caveats if "was chosen of 2 dynamic cases" in line]
    assert "the other half" in line
    assert several.contender in ("dfs", "dfs@floats")
    assert {ratio.over for ratio in several.over_static} == {case.name for case in several.statics}


def test_images_are_as_many_as_asked_for(mixed: Made) -> None:
    assert bench(mixed.path, mixed.data, samples=20, **QUICK).inputs == 20
    with refuses(UsageError, "samples 0"):
        bench(mixed.path, mixed.data, samples=0, **QUICK)


def test_names_of_others_differ() -> None:
    class Named:
        def __init__(self, name: str, digest: str) -> None:
            self.name, self.digest = name, digest

    ours, twin, other = Named("net", "a" * 64), Named("net", "b" * 64), Named("other", "c" * 64)
    assert other_names(ours, [twin, other]) == ["net-bbbbbbbb", "other"]


def test_the_time_is_predicted_by_the_table_that_is_measured(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs_deploy.bench.costs.MAX_UNCERTAINTY", 1e9)  # however busy this machine is
    lone = bench(mixed.path, mixed.data, **QUICK)
    assert lone.dynamic.predicted_ms is None
    assert "predicted_ms" not in lone.as_json()["cases"][0]
    found = bench(mixed.path, mixed.data, save_costs=tmp_path / "latency.json", **{**QUICK, "min_iterations": 500})
    predicted = found.dynamic.predicted_ms
    assert predicted is not None
    assert found.dynamic.prediction_ratio == pytest.approx(found.dynamic.latency_ms.p50 / predicted)
    assert found.dynamic.engine_ms is not None
    assert 0.3 < predicted / found.dynamic.engine_ms < 3.0, "engines of the paths, and the gate"
