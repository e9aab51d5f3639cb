from __future__ import annotations

import itertools
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace as replace_struct

from dfs_deploy.bench import BenchResult, bench, candidates, load_bench, machine, measure, run
from dfs_deploy.bench.candidates import engines_alone
from dfs_deploy.bench.clock import time_interleaved
from dfs_deploy.bench.energy import EnergyReading, EnergySampler
from dfs_deploy.bench.result import Jetson, PowerState
from dfs_deploy.bench.verdict import Evidence
from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.data import Dataset
from dfs_deploy.errors import SavedResultError, UsageError
from dfs_deploy.exporters import export
from dfs_deploy.models import cifar_network
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from dfs_deploy.runtimes import Result, Runtime
from dfs_deploy.system.cpu import CpuLimits
from tests.bundles import (
    ALL_FIXED,
    FIXED,
    MASKED,
    Choices,
    Made,
    copied,
    labelled,
    manifest_of,
    narrowed,
    write_manifest,
)
from tests.checks import refuses
from tests.runtimes.tensorrt.machine import building_here
from tests.runtimes.tensorrt.machine import machine as gpu_machine
from tests.settled import CONTRACT, settled_network

NEVER_SKIPPED: Choices = {1: (["8", "16"], "free"), 2: (["8", "full"], None), 3: (["full"], "free")}
"""Choices with which the gate decides, and never skips."""

NOTHING_ELSE: dict[str, Any] = {"warm_up_seconds": 0.0, "start_ups": 0, "energy_seconds": 0.0}
QUICK: dict[str, Any] = {"min_seconds": 0.0, "min_iterations": 3, **NOTHING_ELSE}

LATENCIES = {"p50", "p90", "p95", "p99", "mean", "min", "max", "cov"}
CASE_KEYS = {"name", "batch", "latency_ms", "throughput_per_s", "iterations"}
DFS_KEYS = {"engine_ms", "gate_us", "gate_share", "dispatch_efficiency"}


@pytest.fixture(scope="module")
def result(mixed: Made) -> BenchResult:
    return bench(Bundle(mixed.path), mixed.data, forced=True, seed=3, **QUICK)


# The report


def test_the_report_has_the_keys_of_the_contract(result: BenchResult) -> None:
    report = result.as_json()
    assert report == json.loads(json.dumps(report, allow_nan=False))
    assert {"device", "threads", "cases", "seed", "machine", "runtime"} <= report.keys()
    assert (report["device"], report["threads"], report["seed"]) == ("cpu", 1, 3)
    assert report["data"] == "random"
    assert report["inputs"] == 96
    for case in report["cases"]:
        assert case.keys() >= CASE_KEYS
        assert case["latency_ms"].keys() == LATENCIES
        assert (case.keys() >= DFS_KEYS) == case["name"].startswith("dfs"), case["name"]
        assert case["batch"] == 1
        assert case["iterations"] % report["turn"]["measured"] == 0


def test_the_cases(result: BenchResult) -> None:
    names = [case.name for case in result.cases]
    forced = [f"dfs-forced-{share}-{kind}" for kind in ("int8", "fp32") for share in (0, 25, 50, 75, 100)]
    traces = [name.replace("dfs-forced", "trace") for name in forced]
    assert sorted(names) == sorted(["dfs", "static-fp32", "static-fp16", "static-int8", *forced, *traces])
    assert names[0] == "dfs"


def test_figures_follow_from_each_other(result: BenchResult) -> None:
    for case in result.as_json()["cases"]:
        latency = case["latency_ms"]
        assert latency["min"] <= latency["p50"] <= latency["max"]
        assert latency["p99"] is None, "too few samples lie beyond it"
        assert case["throughput_per_s"] == pytest.approx(1e3 / latency["mean"])
        if case["name"].startswith("dfs"):
            assert case["dispatch_efficiency"] == pytest.approx(case["engine_ms"] / latency["p50"])
            assert "dispatch_efficiency_interval" not in case, "too few rounds to know it"
            assert case["engine_ms"] > 0
            assert case["gate_us"] > 0
            assert case["gate_share"] > 0


def test_computation_is_that_of_the_paths(mixed: Made, result: BenchResult) -> None:
    by_name = {case.name: case for case in result.cases}
    with Runtime(mixed.path) as runtime:
        mine = runtime(mixed.data.images)
    assert by_name["dfs"].computation_percentage == pytest.approx(float(mine.computation_percentage.mean()), rel=1e-5)
    assert by_name["dfs"].top1 == pytest.approx(np.mean(mine.classes == mixed.data.labels))
    for block, share in enumerate(result.option_share):
        assert share == tuple(float(np.mean(mine.path[:, block] == option)) for option in range(4))
    assert by_name["dfs-forced-0-fp32"].computation_percentage == 0.0
    assert by_name["dfs-forced-100-fp32"].computation_percentage == 100.0
    assert by_name["dfs-forced-100-int8"].computation_percentage == pytest.approx(6.25)
    weights = Bundle(mixed.path).architecture.weights(Options.parse("skip,8,16,full"))
    two_of_three = by_name["dfs-forced-75-fp32"].computation_percentage
    assert two_of_three == pytest.approx(100 * (weights[1] + weights[2]) / 3)
    assert by_name["static-fp32"].computation_percentage is None
    assert by_name["static-fp32"].top1 is not None


def test_forced_paths_stand_beside_their_traces_and_the_static_engine(result: BenchResult) -> None:
    expected = [(share, kind) for kind in ("int8", "fp32") for share in (0, 25, 50, 75, 100)]
    assert [(path["share"], path["precision"]) for path in result.as_json()["forced"]] == expected
    p50 = {case.name: case.latency_ms.p50 for case in result.cases}
    for path in result.forced:
        assert path.blocks == path.share * 3 // 100
        assert path.dispatch_ms == p50[f"dfs-forced-{path.share}-{path.precision}"]
        assert path.trace_ms == p50[f"trace-{path.share}-{path.precision}"]
        assert path.static_ms == p50[f"static-{path.precision}"]
        assert path.gate_us is not None
        assert path.gate_us > 0


def test_paths_are_forced_where_a_gate_may_skip_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("unforced")
    whole, policy = settled_network("8,full"), settled_network().with_policy([1, 0, 2])
    for network, words in ((whole, "8,full"), (policy, "static policy")):
        save_checkpoint(folder / "net.pt", network, CONTRACT)
        bundle = export(folder / "net.pt", folder / f"{words}.dfs", calibration_data=labelled(network)).bundle
        with refuses(UsageError, words, "--forced"):
            bench(bundle, forced=True, **QUICK)


def test_a_batch_has_no_engine_times(mixed: Made) -> None:
    result = bench(Bundle(mixed.path), mixed.data, batch=4, threads=2, **QUICK)
    assert (result.threads, result.runtime["threads"]) == (2, 2)
    for case in result.as_json()["cases"]:
        assert case["batch"] == 4
        assert not DFS_KEYS & case.keys()
        assert case["throughput_per_s"] == pytest.approx(4e3 / case["latency_ms"]["mean"])


def test_without_data_the_bundles_own_images_are_run(mixed: Made) -> None:
    result = bench(Bundle(mixed.path), **QUICK)
    samples = Bundle(mixed.path).samples()
    assert samples is not None
    assert result.inputs == len(samples.images)
    assert "bundle" in result.data
    assert [case.name for case in result.cases] == ["dfs", "static-fp32", "static-fp16", "static-int8"]
    assert all(case.top1 is None for case in result.cases), "they were chosen for their paths, not drawn"


def test_unknown_labels_give_no_accuracy(floats: Made, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("unlabelled") / "net.dfs"
    bundle = export(floats.checkpoint, out, targets=["fp32"]).bundle
    result = bench(bundle, **QUICK)
    assert [case.name for case in result.cases] == ["dfs", "static-fp32"]
    assert all(case.top1 is None for case in result.cases)
    assert all("top1" not in case for case in result.as_json()["cases"])


def test_inputs_are_drawn_by_seed(floats: Made) -> None:
    """As many images as one batch holds, so that which are run shows in the accuracy."""
    wrong = floats.data.labels.copy()
    wrong[:48] = (wrong[:48] + 1) % 10
    data = Dataset(floats.data.images, wrong, (), "half wrong")
    found = [bench(Bundle(floats.path), data, batch=60, seed=seed, **QUICK).cases[0].top1 for seed in (1, 1, 2, 3)]
    assert found[0] == found[1]
    assert len(set(found)) > 1


def test_classes_of_opened_data_are_matched_by_name(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    names, values = tuple("abcdefghij"), manifest_of(bundle)
    write_manifest(bundle, {**values, "input": {**values["input"], "class_names": names}})
    ordered = Dataset(mixed.data.images, mixed.data.labels, names, "letters")
    turned = Dataset(mixed.data.images, 9 - mixed.data.labels, names[::-1], "letters")
    first, other = (bench(bundle, data, **QUICK).dynamic.top1 for data in (ordered, turned))
    assert first == other
    assert first is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("batch", 0), ("batch", -1), ("threads", 0), ("min_iterations", 0), ("start_ups", -1), ("seed", -1)),
        *((name, value) for name in ("min_seconds", "max_seconds", "energy_seconds") for value in (math.nan, math.inf)),
        *(("warm_up_seconds", -0.5), ("max_top1_drop", -3.0), ("max_top1_drop", math.nan), ("noise_band", -1.0)),
    ],
)
def test_a_number_that_cannot_be_is_refused_before_anything_is_read(name: str, value: float) -> None:
    with refuses(UsageError, name.split("_", maxsplit=1)[0], f"{value:g}, expected"):
        bench("missing.dfs", **{**QUICK, name: value})


@pytest.mark.parametrize("name", ["save_baseline", "save_costs"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with refuses(UsageError, "cannot be written"):
        bench("missing.dfs", **QUICK, **{name: tmp_path / "file" / "out.json"})


def test_a_run_that_is_invalid_is_nothing_to_compare_with(mixed: Made, result: BenchResult) -> None:
    with refuses(SavedResultError, "the earlier bench", "INVALID"):
        bench(mixed.path, mixed.data, compare=replace_struct(result, valid=False), **QUICK)


def test_too_few_images(mixed: Made) -> None:
    with refuses(UsageError, "96 images", "97"):
        bench(Bundle(mixed.path), mixed.data, batch=97, **QUICK)


def test_progress_is_told(mixed: Made) -> None:
    told: list[tuple[str, float]] = []
    bench(Bundle(mixed.path), mixed.data, progress=lambda what, share: told.append((what, share)), **QUICK)
    assert {what for what, _ in told} >= {"timing"}
    assert all(0.0 <= share <= 1.0 for _, share in told)


def test_a_network_with_nothing_to_decide(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("one")
    network = cifar_network(cifar_resnet((1,), (4,), 10, (3, 8, 8)), Options.parse("skip,full")).eval()
    save_checkpoint(folder / "net.pt", network, CONTRACT)
    data = labelled(network, 4)
    bundle = export(folder / "net.pt", folder / "net.dfs", targets=["fp32"], calibration_data=data).bundle
    result = bench(bundle, data, **QUICK)
    json.dumps(result.as_json(), allow_nan=False)
    assert result.cases[0].computation_percentage == 100.0
    assert result.option_share == ()
    with refuses(UsageError, "no block that the gate may skip", "--forced"):
        bench(bundle, data, forced=True, **QUICK)


@pytest.mark.parametrize("choices", [FIXED, MASKED], ids=["fixed", "masked"])
def test_blocks_with_choices_of_their_own(mixed: Made, tmp_path: Path, choices: Choices) -> None:
    bundle = Bundle(narrowed(copied(mixed, tmp_path), choices))
    result = bench(bundle, mixed.data, forced=True, **QUICK)
    json.dumps(result.as_json(), allow_nan=False)
    assert [path.blocks for path in result.forced] == [share * 2 // 100 for share in (0, 25, 50, 75, 100)] * 2
    by_name = {case.name: case for case in result.cases}
    weights, decided = bundle.architecture.weights(bundle.options), bundle.architecture.decided(bundle.options)
    whole = by_name["dfs-forced-100-fp32"].computation_percentage
    nothing = by_name["dfs-forced-0-fp32"].computation_percentage
    assert whole == pytest.approx(100.0)
    never = sum(weights[i - 1] for i in decided if i not in bundle.architecture.skippable(bundle.options))
    assert nothing == pytest.approx(100.0 * never / len(decided))
    assert result.dynamic.gate_us


@pytest.mark.parametrize("choices", [ALL_FIXED, NEVER_SKIPPED], ids=["all fixed", "never skipped"])
def test_without_a_block_that_may_be_skipped_no_path_is_forced(mixed: Made, tmp_path: Path, choices: Choices) -> None:
    """All of the paths would be the same one, under several names."""
    bundle = Bundle(narrowed(copied(mixed, tmp_path), choices))
    with refuses(UsageError, "no block that the gate may skip", "--forced"):
        bench(bundle, mixed.data, forced=True, **QUICK)
    result = bench(bundle, mixed.data, **QUICK)
    assert (result.dynamic.gate_us == 0.0) == (choices is ALL_FIXED)


def test_a_budget_is_held_by_the_dynamic_network_alone(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    point = {"computation_percentage": 10.0, "top1": None, "latency_ms": None, "samples": 9}
    records = [{"budget": 0.01, "bias": 400.0, **point}, {"budget": 0.9, "bias": -400.0, **point}]
    write_manifest(bundle, {**manifest_of(bundle), "budgets": records})
    frugal, lavish = (bench(Bundle(bundle), mixed.data, budget=budget, **QUICK) for budget in (0.01, 0.9))
    assert (frugal.budget, lavish.as_json()["budget"]) == (0.01, 0.9)
    assert frugal.dynamic.computation_percentage == 0.0
    assert lavish.dynamic.computation_percentage == 100.0
    assert [case.top1 for case in frugal.statics] == [case.top1 for case in lavish.statics]
    with refuses(UsageError, "0.95"):
        bench(Bundle(bundle), mixed.data, budget=0.95, **QUICK)


def test_engines_alone_are_timed_in_the_rounds_of_what_they_are_compared_with(
    mixed: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a machine that slows down between two phases of a bench changes no efficiency."""
    timed: list[list[str]] = []

    def seen(cases: Any, *args: Any, **kwargs: Any) -> dict[str, list[int]]:
        timed.append([case.name for case in cases])
        return time_interleaved(cases, *args, **kwargs)

    monkeypatch.setattr(measure, "time_interleaved", seen)
    result = bench(Bundle(mixed.path), mixed.data, min_seconds=0.0, min_iterations=1600, **NOTHING_ELSE)
    assert len(timed) == 1
    assert {"dfs", "dfs engines", "gates", "static-fp32"} <= set(timed[0])
    assert [case.name for case in result.cases] == ["dfs", "static-fp32", "static-fp16", "static-int8"]
    efficiency = result.dynamic.dispatch_efficiency_interval
    assert efficiency is not None
    assert 0.0 < efficiency.low <= efficiency.value <= efficiency.high
    assert result.dynamic.engine_ms is not None


def test_the_engines_alone_are_those_of_each_inputs_path(mixed: Made) -> None:
    with Runtime(mixed.path) as runtime:
        images = runtime.input.normalize(mixed.data.images[:8])
        paths = np.concatenate([runtime(image[None]).path for image in images])
        ran: list[Any] = []

        class Counted(Runtime):
            def engine_calls(self, path: Any) -> Any:
                return tuple(lambda call=call: ran.append(call) for call in runtime.engine_calls(path))

        counted = object.__new__(Counted)
        engines = engines_alone(counted, paths)
        for index, path in enumerate(paths):
            ran.clear()
            engines(index)
            assert ran == list(runtime.engine_calls(path))


# As a library


def test_a_program_calls_the_package_with_paths_and_keeps_what_it_asks_for(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs_deploy.bench.verdict.MAX_UNCERTAINTY", math.inf)  # however busy this machine is
    base = tmp_path / "base.json"
    choices: dict[str, Any] = {"min_seconds": 0.0, "min_iterations": 2000, **NOTHING_ELSE}
    verb: Any = sys.modules["dfs_deploy.bench"]
    first = verb(str(mixed.path), str(mixed.data_file), save_baseline=base, **choices)
    assert isinstance(first, BenchResult)
    assert first.kept == (str(base),)
    assert load_bench(base) == replace_struct(first, kept=())
    second = bench(mixed.path, mixed.data_file, compare=str(base), noise_band=1.0, **choices)
    assert second.comparison is not None
    assert second.comparison.failures == ()
    assert {change.name for change in second.comparison.changes} == {"dfs", "static-fp16", "static-int8"}


def test_an_invalid_run_keeps_nothing_and_says_so(
    mixed: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dfs_deploy")
    caplog.set_level("INFO", "dfs_deploy")
    result = bench(mixed.path, mixed.data, save_baseline=tmp_path / "base.json", **QUICK)
    assert "nothing was kept" in caplog.text
    assert (result.valid, result.kept) == (False, ())
    assert not list(tmp_path.iterdir())


# Networks that were trained to be static


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone with the policy full everywhere, as training to be static leaves it, and another normalisation."""
    folder = tmp_path_factory.mktemp("plain")
    network = settled_network(seed=3).with_policy([3, 3, 3])
    contract = replace(CONTRACT, mean=(0.4,) * 3)
    save_checkpoint(folder / "plain.pt", network, contract)
    return export(folder / "plain.pt", folder / "plain.dfs", calibration_data=labelled(network)).bundle.path


def test_a_network_of_another_bundle_is_timed_and_judged_beside_the_own(mixed: Made, plain: Path) -> None:
    result = bench(Bundle(mixed.path), mixed.data, against=[Bundle(plain)], **QUICK)
    names = [case.name for case in result.statics]
    assert names == [
        *("static-fp32", "static-fp16", "static-int8"),
        *("static-fp32@plain", "static-fp16@plain", "static-int8@plain"),
    ]
    assert result.normaliser is not None
    assert result.normaliser.name == "static-fp32", "ratios stay over the bundle's own"
    assert [ratios["name"] for ratios in result.as_json()["against"]] == ["plain"]
    other = Bundle(plain)
    with Runtime(other) as runtime:
        mine = float(np.mean(runtime(mixed.data.images).classes == mixed.data.labels))
    rival = result.case("static-fp32@plain")
    assert rival is not None
    assert rival.top1 == mine, "each network takes images as it was trained on"
    with refuses(UsageError, str(plain), "the same bundle"):
        bench(mixed.path, mixed.data, against=[plain, Bundle(plain)], **QUICK)


def test_a_policy_of_several_precisions_runs_as_it_was_trained(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = settled_network(seed=3).with_policy([1, 0, 2])
    save_checkpoint(tmp_path / "net.pt", network, CONTRACT)
    bundle = export(tmp_path / "net.pt", tmp_path / "mixed.dfs", calibration_data=labelled(network)).bundle
    opened: list[dict[str, Any]] = []

    def open_rival(bundle: Bundle, **choices: Any) -> Runtime:
        opened.append(choices)
        return Runtime(bundle, **choices)

    monkeypatch.setattr(candidates, "Runtime", open_rival)
    result = bench(Bundle(mixed.path), mixed.data, against=[bundle], plan=False, prepared=False, **QUICK)
    assert opened == [{"threads": 1, "plan": False, "prepared": False}], "as the network that it is compared with"
    *statics, rival = [case.name for case in result.statics if case.rival]
    name = f"mixed-{bundle.digest[:8]}"  # the bundle that is run has the same
    assert statics == [f"static-fp32@{name}", f"static-fp16@{name}", f"static-int8@{name}"], "each skips the block too"
    assert rival == f"static-policy@{name}"


def test_a_network_that_cannot_be_compared_is_refused_before_anything_is_timed(mixed: Made, tmp_path: Path) -> None:
    bundle = Bundle(mixed.path)
    with refuses(UsageError, str(mixed.path), "the same bundle as one before it"):
        bench([bundle, mixed.path], mixed.data, **QUICK)
    with refuses(UsageError, "no bundle"):
        bench([], mixed.data, **QUICK)
    for share in ({"max_top1_drop": 1.5}, {"noise_band": 5.0}):
        with refuses(UsageError, "a share, 0 to 1"):
            bench(mixed.path, mixed.data, **share, **QUICK)
    for names, words in ((tuple("abcd"), "4 classes"), (tuple("zbcdefghij"), "'z' where the bundle has 'a'")):
        network = settled_network(classes=len(names)).with_policy([3, 3, 3])
        save_checkpoint(tmp_path / "net.pt", network, replace(CONTRACT, class_names=names))
        other = export(tmp_path / "net.pt", tmp_path / "net.dfs", targets=["fp32"]).bundle
        with refuses(UsageError, str(other.path), words):
            bench(bundle, mixed.data, against=[other], **QUICK)


# Budgets, extension, and what is said with a verdict


def test_budgets_are_timed_in_the_same_turns(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    point = {"computation_percentage": 10.0, "top1": None, "latency_ms": None, "samples": 9}
    records = [{"budget": 0.01, "bias": 400.0, **point}, {"budget": 0.9, "bias": -400.0, **point}]
    write_manifest(bundle, {**manifest_of(bundle), "budgets": records})
    result = bench(Bundle(bundle), mixed.data, all_budgets=True, **QUICK)
    frugal, lavish = result.budgets
    assert (frugal.name, lavish.name) == ("dfs-budget-1", "dfs-budget-90")
    assert (frugal.computation_percentage, lavish.computation_percentage) == (0.0, 100.0)
    assert result.dynamic.computation_percentage not in (0.0, 100.0), "the network as trained is not changed by it"
    assert frugal.top1 is not None
    assert frugal.iterations == result.dynamic.iterations
    assert frugal.engine_ms is not None


def test_a_run_goes_on_until_what_the_verdict_reads_is_known_or_the_limit_is_reached(
    mixed: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    for wanted, limit, looks in ((1, 9.0, 1), (3, 9.0, 3), (99, 0.03, 3), (99, 0.01, 1)):
        seen: list[int] = []

        def more(self: Evidence, growth: float, seen: list[int] = seen, wanted: int = wanted) -> bool:
            seen.append(self.cases[0].iterations)
            return len(seen) < wanted

        monkeypatch.setattr(Evidence, "wants_more", more)
        result = bench(
            Bundle(mixed.path),
            mixed.data,
            min_seconds=0.01,
            max_seconds=limit,
            min_iterations=1,
            **NOTHING_ELSE,
            progress=lambda what, share: told.append(what),
        )
        assert result.looks == looks == len(seen)
        assert seen == sorted(set(seen)), "later looks see earlier calls too"
        assert result.dynamic.iterations == seen[-1]
    assert "timing for longer, to be sure" in told


def test_a_bundle_for_another_cpu_and_a_throttled_run_are_caveats(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bundle, "cpu_mismatch", "made for another CPU: a toaster")
    periods = itertools.count()
    monkeypatch.setattr(machine, "cpu_limits", lambda root=None: CpuLimits((0, 1), 0.5, next(periods)))
    result = bench(Bundle(mixed.path), mixed.data, **QUICK)
    assert result.disturbance.throttled_periods is not None
    assert result.disturbance.throttled_periods > 0
    first, second = result.verdict.caveats[:2]
    assert first == "mixed was made for another CPU: a toaster"
    assert "stopped this process in" in second


def test_threads_are_for_a_runtime_that_has_some(mixed: Made) -> None:
    with refuses(UsageError, "2 threads on cuda"):
        bench(Bundle(mixed.path), mixed.data, device="cuda", threads=2, **QUICK)


def test_a_planted_slowdown_shows_in_the_ratios(mixed: Made) -> None:
    """Four times the time, by medians, so that no noise of a busy machine hides it."""

    class Slow(Runtime):
        def __call__(self, *args: Any, **kwargs: Any) -> Result:
            begin = time.perf_counter_ns()
            result = super().__call__(*args, **kwargs)
            until = 4 * time.perf_counter_ns() - 3 * begin
            while time.perf_counter_ns() < until:
                pass
            return result

    enough: dict[str, Any] = {"min_seconds": 0.0, "min_iterations": 1536, **NOTHING_ELSE}
    before = bench(Bundle(mixed.path), mixed.data, **enough)
    after = bench(Bundle(mixed.path), mixed.data, open_runtime=Slow, **enough)
    ratios = [result.dynamic.ratio for result in (before, after)]
    assert ratios[0] is not None
    assert ratios[1] is not None
    assert ratios[1].p50.value > 2 * ratios[0].p50.value


# Energy, and a Jetson


class Meter(EnergySampler):
    def __init__(self) -> None:
        self.source, self.rail = "test", "rail"

    def start(self) -> None:
        pass

    def stop(self) -> EnergyReading:
        return EnergyReading(6.0, 2.0, self.source, self.rail, 20.0, 41)


def test_energy_of_every_case_where_there_is_a_sensor(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "find_sampler", lambda device: Meter())
    monkeypatch.setattr("dfs_deploy.bench.energy.IDLE_S", 0.0)
    report = bench(Bundle(mixed.path), mixed.data, **{**QUICK, "energy_seconds": 0.001}).as_json()
    assert report["no_energy"] == ""
    energy = report["energy"]
    assert (energy["source"], energy["rail"], energy["idle_watts"]) == ("test", "rail", 3.0)
    assert [case["name"] for case in energy["cases"]] == [case["name"] for case in report["cases"]]
    assert [case["joules_per_image"] for case in report["cases"]] == [
        case["joules_per_image"] for case in energy["cases"]
    ]
    for case in energy["cases"]:
        assert case["joules_per_image"] == pytest.approx(6.0 / case["images"])
        assert case["joules_per_image_over_idle"] == pytest.approx(0.0)


def test_without_a_sensor_there_is_no_energy_and_a_line_says_why(
    mixed: Made, result: BenchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (result.energy, result.no_energy) == (None, "not asked for")
    monkeypatch.setattr(measure, "find_sampler", lambda device: f"no sensor for {device}")
    report = bench(Bundle(mixed.path), mixed.data, **{**QUICK, "energy_seconds": 1.0}).as_json()
    assert (report["energy"], report["no_energy"]) == (None, "no sensor for cpu")


def test_on_a_jetson_tensorrt_runs_and_the_board_is_reported(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ONNX Runtime in the place of TensorRT, which says so itself, and a board of files."""
    board = Jetson("Orin", "36.4.3", "6.2", "10.3.0.30", "12.6.68")
    states = [PowerState("MAXN", True, 45.0, "tj-thermal"), PowerState("MAXN", True, 51.5, "tj-thermal")]
    monkeypatch.setattr(run, "check_device", lambda device: None)
    monkeypatch.setattr(measure, "read_jetson", lambda: board)
    monkeypatch.setattr(measure, "read_power_state", lambda: states.pop(0))
    asked: list[str] = []

    class Elsewhere(Runtime):
        def __init__(self, bundle: Bundle, runtime: str, **choices: Any) -> None:
            asked.append(runtime)
            super().__init__(bundle, **choices)

        @property
        def description(self) -> dict[str, Any]:
            return {**super().description, "runtime": "tensorrt"}

    result = bench(
        Bundle(mixed.path),
        mixed.data,
        device="jetson",
        open_runtime=Elsewhere,
        forced=True,
        **{**QUICK, "start_ups": 1},
    )
    assert asked == ["tensorrt"]
    report = result.as_json()
    assert report["jetson"]["board"]["jetpack"] == "6.2"
    assert (report["jetson"]["before"]["celsius"], report["jetson"]["after"]["celsius"]) == (45.0, 51.5)
    assert report["jetson"]["before"]["mode"] == "MAXN"
    assert not [case for case in report["cases"] if case["name"].startswith("static")], "those would run on the CPU"
    assert report["start_up"] == [], "so would those"
    assert report["verdict"]["choice"] is None


@pytest.mark.parametrize(("batch", "forced"), [(1, False), (4, True)])
def test_the_tensorrt_runtime_is_timed_on_its_double(
    mixed: Made, tmp_path: Path, batch: int, forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "check_device", lambda device: None)
    bundle = Bundle(copied(mixed, tmp_path))
    with gpu_machine(), building_here():
        result = bench(bundle, mixed.data, device="cuda", batch=batch, forced=forced, **QUICK)
    assert result.runtime["runtime"] == "tensorrt"
    assert result.as_json()["threads"] is None, "it has none"
    assert result.dynamic.computation_percentage is not None
    assert (len(result.cases) > 1) == forced
    assert all(case.name.startswith("dfs") for case in result.cases), "the others would run on the CPU"
    assert result.verdict.choice is None
