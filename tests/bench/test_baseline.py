from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dfs_deploy.bench.baseline import compare_with_baseline, load_baseline, save_baseline
from dfs_deploy.bench.result import BenchResult
from dfs_deploy.errors import ArtefactError, CheckFailedError, SavedResultError, UsageError
from tests.bench.made import FACTS, MACHINE, RUNTIME, made_bench
from tests.checks import refuses

MS = {"dfs": 1.0, "static-fp32": 2.0, "static-int8": 1.5}


def saved(result: BenchResult, file: Path) -> Path:
    save_baseline(result, file)
    return file


def test_a_baseline_is_the_json_of_a_bench(tmp_path: Path) -> None:
    result = made_bench(MS)
    file = saved(result, tmp_path / "base.json")
    assert json.loads(file.read_bytes()) == json.loads(json.dumps(result.as_json()))
    baseline = load_baseline(file)
    assert [case.name for case in baseline.cases] == list(MS)


def test_the_same_run_has_not_changed(tmp_path: Path) -> None:
    result = made_bench(MS)
    found = compare_with_baseline(result, load_baseline(saved(result, tmp_path / "base.json")))
    assert found.failures == ()
    assert [(change.name, change.change.value) for change in found.changes] == [("dfs", 1.0), ("static-int8", 1.0)]


@pytest.mark.parametrize("seed", range(3))
def test_a_slowdown_of_a_tenth_is_caught_and_none_is_not(tmp_path: Path, seed: int) -> None:
    """Calls vary by a tenth, as on a machine that others use."""
    baseline = load_baseline(saved(made_bench(MS, spread=0.1, noise=100), tmp_path / "base.json"))
    again = compare_with_baseline(made_bench(MS, spread=0.1, noise=seed), baseline)
    assert again.failures == ()
    slow = compare_with_baseline(made_bench({**MS, "dfs": 1.1}, spread=0.1, noise=seed), baseline)
    (failure,) = slow.failures
    assert failure.startswith("dfs over static-fp32 rose by")
    assert "noise band of 5.0 %" in failure
    assert [change.regressed for change in slow.changes] == [True, False]


def test_a_machine_that_runs_all_at_half_speed_is_no_regression(tmp_path: Path) -> None:
    baseline = load_baseline(saved(made_bench(MS), tmp_path / "base.json"))
    found = compare_with_baseline(made_bench({name: 2 * ms for name, ms in MS.items()}), baseline)
    assert found.failures == ()
    assert any("static-fp32 itself took 2.00x its time" in note for note in found.notes)


def test_what_became_faster_passes(tmp_path: Path) -> None:
    baseline = load_baseline(saved(made_bench(MS), tmp_path / "base.json"))
    found = compare_with_baseline(made_bench({**MS, "dfs": 0.5}), baseline)
    assert found.failures == ()
    assert found.changes[0].change.value == pytest.approx(0.5, rel=0.01)


def test_the_noise_band_decides(tmp_path: Path) -> None:
    baseline = load_baseline(saved(made_bench(MS), tmp_path / "base.json"))
    slower = made_bench({**MS, "dfs": 1.1}, noise=1)
    assert compare_with_baseline(slower, baseline, noise_band=0.2).failures == ()
    assert compare_with_baseline(slower, baseline, noise_band=0.0).failures
    with refuses(UsageError, "-0.1"):
        compare_with_baseline(slower, baseline, noise_band=-0.1)


def test_a_rise_that_the_run_does_not_know_is_none(tmp_path: Path) -> None:
    """Beyond the band, but with an interval of the rise that holds one."""
    baseline = load_baseline(saved(made_bench(MS), tmp_path / "base.json"))
    (wide,) = (c for c in made_bench({**MS, "dfs": 1.04}, noise=1).cases if c.name == "dfs")
    assert wide.ratio is not None
    mean = replace(wide.ratio.mean, low=wide.ratio.mean.value * 0.951)
    case = replace(wide, ratio=replace(wide.ratio, mean=mean))
    result = made_bench(MS)
    found = compare_with_baseline(replace(result, cases=(case, *result.cases[1:])), baseline, 0.03)
    assert found.changes[0].change.value > 1.03
    assert found.failures == ()


def test_a_run_whose_ratios_are_hardly_known_is_no_baseline_though_its_verdict_is_clear(tmp_path: Path) -> None:
    """The verdict reads one ratio, a comparison the means of all cases."""
    result = made_bench(MS)
    swaying = result.cases[-1]
    assert swaying.ratio is not None
    mean = replace(swaying.ratio.mean, low=0.9 * swaying.ratio.mean.value)
    case = replace(swaying, ratio=replace(swaying.ratio, mean=mean))
    unsteady = replace(result, cases=(*result.cases[:-1], case))
    assert unsteady.valid
    with refuses(CheckFailedError, "static-int8", "±10.0 %", "not written"):
        save_baseline(unsteady, tmp_path / "base.json")
    baseline = load_baseline(saved(result, tmp_path / "base.json"))
    assert any("INVALID" in failure for failure in compare_with_baseline(unsteady, baseline).failures)
    (tmp_path / "base.json").write_text(json.dumps(unsteady.as_json()))
    with refuses(SavedResultError, "static-int8", "±10.0 %", "--save-baseline"):
        load_baseline(tmp_path / "base.json")


def test_an_invalid_run_is_no_baseline(tmp_path: Path) -> None:
    file = tmp_path / "base.json"
    with refuses(CheckFailedError, "INVALID", "--min-iterations", "not written"):
        save_baseline(made_bench(MS, rounds=2), file)
    assert not list(tmp_path.iterdir())


OTHERS: dict[str, dict[str, Any]] = {
    "CPU": {"machine": replace(MACHINE, cpu="Another CPU")},
    "cores": {"machine": replace(MACHINE, cores=2)},
    "threads": {"threads": 2},
    "device": {"device": "jetson"},
    "checkpoint": {"bundle": replace(FACTS, checkpoint="e" * 64)},
    "architecture": {"bundle": replace(FACTS, architecture="ResNet-38")},
    "data": {"data": "other data"},
    "inputs": {"inputs": 99},
    "seed": {"seed": 1},
    "budget": {"budget": 0.25},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_baseline_of_something_else_is_refused(tmp_path: Path, what: str) -> None:
    baseline = load_baseline(saved(made_bench(MS), tmp_path / "base.json"))
    with refuses(ArtefactError, f"another {what}", "--save-baseline"):
        compare_with_baseline(made_bench(MS, **OTHERS[what]), baseline)


def test_what_differs_and_may_be_compared_is_said(tmp_path: Path) -> None:
    baseline = load_baseline(saved(made_bench(MS), tmp_path / "base.json"))
    digest = replace(FACTS, digest="a" * 64)
    found = compare_with_baseline(made_bench(MS, bundle=digest, runtime={**RUNTIME, "version": "9.9"}), baseline)
    assert found.failures == ()
    text = "; ".join(found.notes)
    assert "exported anew" in text
    assert "version: 1.30 in the baseline, 9.9 now" in text


def test_cases_of_one_side_alone_are_said(tmp_path: Path) -> None:
    baseline = load_baseline(saved(made_bench(MS), tmp_path / "base.json"))
    found = compare_with_baseline(made_bench({"dfs": 1.0, "static-fp32": 2.0, "dfs-forced-0-int8": 0.1}), baseline)
    text = "; ".join(found.notes)
    assert "static-int8 is only in the baseline" in text
    assert "dfs-forced-0-int8 is not in the baseline" in text


def test_a_changed_accuracy_is_said(tmp_path: Path) -> None:
    top1 = {"dfs": 0.9, "static-fp32": 0.91, "static-int8": 0.89}
    baseline = load_baseline(saved(made_bench(MS, top1=top1), tmp_path / "base.json"))
    found = compare_with_baseline(made_bench(MS, top1={**top1, "dfs": 0.8}), baseline)
    assert "top-1 of dfs: 90.00 % in the baseline, 80.00 % now" in found.notes


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        for key in keys[:-1]:
            values = values[key] if isinstance(values, dict) else values[int(key)]
        del values[keys[-1]]

    return change


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (drop("cases"), "cases"),
        (drop("bundle", "checkpoint"), "checkpoint"),
        (put("threads", "one"), "threads"),
        (put("schema_version", 99), "99"),
        (put("valid", False), "INVALID"),
        (lambda values: values["cases"][0]["ratio"]["mean"].__setitem__("low", -1.0), "low"),
        (lambda values: values["cases"][0]["ratio"]["mean"].__setitem__("value", 0), "value"),
    ],
)
def test_a_malformed_baseline(tmp_path: Path, change: Callable[[dict[str, Any]], None], word: str) -> None:
    file = saved(made_bench(MS), tmp_path / "base.json")
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    with refuses(SavedResultError, "base.json", word):
        load_baseline(file)


@pytest.mark.parametrize("content", [b"", b'{"schema_version": 1}'])
def test_a_file_that_is_no_baseline(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "base.json"
    file.write_bytes(content)
    with refuses(SavedResultError, "no saved bench"):
        load_baseline(file)


EXTREMES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a ratio of nearly nothing": lambda case: case["ratio"]["mean"].update(value=1e-300, low=1e-300),
    "an interval from end to end": lambda case: case["ratio"]["mean"].update(low=1e-308, high=1e308),
    "an interval the other way round": lambda case: case["ratio"]["mean"].update(low=2.0, high=1.0),
    "a time of nearly nothing": lambda case: case["latency_ms"].update(p50=1e-300),
    "a name without end": lambda case: case.update(name="a" * 10_000),
}


@pytest.mark.parametrize("what", EXTREMES)
def test_numbers_that_no_bench_measures_are_refused(tmp_path: Path, what: str) -> None:
    file = saved(made_bench(MS), tmp_path / "base.json")
    values = json.loads(file.read_bytes())
    (case,) = [case for case in values["cases"] if case["name"] == "dfs"]
    EXTREMES[what](case)
    file.write_text(json.dumps(values))
    with refuses(SavedResultError, str(file), "--save-baseline"):
        load_baseline(file)


def test_what_a_baseline_says_of_its_runtime_is_told_on_one_line(tmp_path: Path) -> None:
    result = made_bench(MS)
    file = saved(result, tmp_path / "base.json")
    values = json.loads(file.read_bytes())
    values["runtime"]["version"] = "1\n\x1b[2J" + "x" * 10_000
    file.write_text(json.dumps(values))
    notes = compare_with_baseline(result, load_baseline(file)).notes
    assert any(note.startswith(r"version: 1\n\x1b[2Jxx") for note in notes)
    assert all(note.isprintable() and len(note) <= 1200 for note in notes)
