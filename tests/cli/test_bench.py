from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dfs_deploy.bench.jetson import is_jetson
from dfs_deploy.costs import load_costs
from tests.bundles import Made, copied, manifest_of, write_manifest
from tests.cli.program import run
from tests.runtimes.tensorrt.machine import building_here, machine

QUICK = ["--min-seconds", "0.01", "--min-iterations", "2", "--energy-seconds", "0", "--start-ups", "0"]

STEADY = ["--min-seconds", "0.01", "--min-iterations", "2000", "--energy-seconds", "0", "--start-ups", "0"]
"""Calls for the six turns that an interval takes, of a network as fast as these."""


def test_json_is_the_report(mixed: Made) -> None:
    ran = run("bench", mixed.path, "--data", mixed.data_file, "--forced", "--seed", "3", *QUICK, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert (ran.json["device"], ran.json["threads"], ran.json["seed"]) == ("cpu", 1, 3)
    names = [case["name"] for case in ran.json["cases"]]
    assert {"dfs", "static-fp32", "static-fp16", "static-int8", "dfs-forced-25-int8"} <= set(names)
    for case in ran.json["cases"]:
        assert case.keys() >= {"name", "batch", "latency_ms", "throughput_per_s", "iterations"}
        assert case["latency_ms"].keys() == {"p50", "p90", "p95", "p99", "mean", "min", "max", "cov"}
        assert ("dispatch_efficiency" in case) == case["name"].startswith("dfs")


def test_a_person_reads_a_table_and_what_it_means(mixed: Made) -> None:
    ran = run("bench", mixed.path, *QUICK)
    assert ran.code == 0
    for word in ("dfs", "static-fp32", "p50", "images/s", "gate", "path mixture", "commonest", "VALID"):
        assert word in ran.out, word
    assert ran.out.splitlines()[-1].startswith("verdict: "), "the verdict stands last"


def test_forced_paths_are_a_table_and_a_plot(mixed: Made, tmp_path: Path) -> None:
    run("bench", mixed.path, "--plot", tmp_path / "forced.svg", *QUICK).failed(2, "--forced")
    run("bench", mixed.path, "--forced", "--plot", tmp_path / "forced.pdf", *QUICK).failed(2, ".svg or .png")
    ran = run("bench", mixed.path, "--data", mixed.data_file, "--forced", "--plot", tmp_path / "forced.svg", *QUICK)
    assert ran.code == 0, ran.err
    assert "2/3 INT8" in ran.out
    assert "/ trace" in ran.out
    assert (tmp_path / "forced.svg").read_text().startswith("<svg")


def test_a_start_is_measured_unless_it_is_left_out(floats: Made) -> None:
    quick = [*QUICK[:-1], "1"]
    ran = run("bench", floats.path, *quick, "--json")
    assert [start["name"] for start in ran.json["start_up"]] == ["dfs", "static-fp32"]
    assert "start of a process" in run("bench", floats.path, *quick).out


def test_figures_go_to_a_file_of_comma_separated_values(floats: Made, tmp_path: Path) -> None:
    ran = run("bench", floats.path, *QUICK, "--csv", tmp_path / "bench.csv", "--json")
    lines = (tmp_path / "bench.csv").read_text().splitlines()
    assert len(lines) == 1 + len(ran.json["cases"])


@pytest.fixture(scope="module")
def baseline(floats: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose ratios count as known, however long the calls of this machine take."""
    file = tmp_path_factory.mktemp("baseline") / "base.json"
    ran = run("bench", floats.path, "--data", floats.data_file, *STEADY, "--json")
    values = ran.json | {"valid": True}
    for case in values["cases"]:
        case["ratio"]["mean"] |= {"low": case["ratio"]["mean"]["value"], "high": case["ratio"]["mean"]["value"]}
    file.write_text(json.dumps(values))
    return file


def test_a_run_is_compared_with_an_earlier_one(floats: Made, baseline: Path) -> None:
    ran = run("bench", floats.path, "--data", floats.data_file, *STEADY, "--compare", baseline, "--noise-band", "1")
    assert "against the baseline" in ran.out
    assert "static-fp32 itself took" in ran.out
    assert ("PASSED" in ran.out, "FAILED" in ran.out) == (ran.code == 0, ran.code == 1)
    assert "noise band" not in ran.err, "what fails on a busy machine is that the run is INVALID"


def test_a_slower_run_fails(floats: Made, baseline: Path, tmp_path: Path) -> None:
    values = json.loads(baseline.read_text())
    for case in values["cases"]:
        for end in ("value", "low", "high"):
            case["ratio"]["mean"][end] /= 5
    (tmp_path / "fast.json").write_text(json.dumps(values))
    ran = run("bench", floats.path, "--data", floats.data_file, *STEADY, "--compare", tmp_path / "fast.json", "--json")
    ran.failed(1, "dfs over static-fp32 rose by", "noise band")
    (change,) = ran.json["comparison"]["changes"]
    assert change["regressed"]


def test_a_baseline_of_another_kind_is_refused_before_anything_is_timed(
    floats: Made, mixed: Made, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*_: object, **__: object) -> None:
        raise AssertionError("timed before the baseline was looked at")

    monkeypatch.setattr("dfs_deploy.bench.measure.time_interleaved", timed)
    like: list[str | Path] = ["--data", floats.data_file, *QUICK, "--compare", baseline]
    run("bench", floats.path, *like, "--budget", "0.5").failed(4, "another budget: the bundle's own", "0.5")
    run("bench", floats.path, *like, "--batch", "2").failed(4, "another batch")
    run("bench", mixed.path, *like).failed(4, "another checkpoint")
    run("bench", floats.path, *QUICK, "--compare", tmp_path / "none.json").failed(2, "none.json")
    ran = run("bench", floats.path, *QUICK, "--compare", baseline, "--json")
    ran.failed(4, "another data")


def make_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no run be VALID, however steady or busy this machine is."""
    monkeypatch.setattr("dfs_deploy.bench.verdict.MIN_INPUTS", 10**6)


def test_an_invalid_run_is_kept_as_no_baseline(floats: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_invalid(monkeypatch)
    ran = run("bench", floats.path, *QUICK, "--save-baseline", tmp_path / "base.json", "--json")
    ran.failed(1, "INVALID", "--data")
    assert not list(tmp_path.iterdir())


def test_batch_and_threads(floats: Made) -> None:
    ran = run("bench", floats.path, "--batch", "4", "--threads", "2", *QUICK, "--json")
    assert ran.json["threads"] == 2
    assert {case["batch"] for case in ran.json["cases"]} == {4}


@pytest.mark.skipif(is_jetson(), reason="this is a Jetson")
def test_this_is_no_jetson(mixed: Made) -> None:
    ran = run("bench", mixed.path, "--device", "jetson", "--json")
    ran.failed(3, "Jetson")
    assert ran.out == ""


def test_a_wrong_call(mixed: Made, tmp_path: Path) -> None:
    run("bench", mixed.path, "--device", "tpu", "--json").failed(2, "tpu")
    run("bench", mixed.path, "--noise-band", "0.1").failed(2, "--noise-band", "--compare")
    run("bench", mixed.path, "--min-seconds", "2", "--max-seconds", "1").failed(2, "--max-seconds 1", "2")
    run("bench", mixed.path, "--batch", "5000", *QUICK, "--json").failed(2, "5000")
    run("bench", mixed.path, "--data", tmp_path / "missing.npz", "--json").failed(2, "missing.npz")
    run("bench", tmp_path / "missing.dfs", "--json").failed(4, "missing.dfs")
    bundle = copied(mixed, tmp_path)
    (bundle / "samples.npz").write_bytes(b"changed")
    run("bench", bundle, "--json").failed(4, "samples.npz")


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is: what is judged counts as known."""
    monkeypatch.setattr("dfs_deploy.bench.verdict.MAX_UNCERTAINTY", math.inf)
    monkeypatch.setattr("dfs_deploy.bench.costs.MAX_UNCERTAINTY", math.inf)


@pytest.mark.usefixtures("steady")
def test_what_is_kept_is_named(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    files = [tmp_path / name for name in ("bench.csv", "latency.json", "base.json")]
    csv, costs, base = files
    kept: list[str | Path] = ["--save-plan", "--csv", csv, "--save-costs", costs, "--save-baseline", base]
    ran = run("bench", bundle, "--data", mixed.data_file, *STEADY, *kept)
    assert ran.code == 0, ran.err
    (plan,) = bundle.with_name("mixed.dfs.cache").glob("plan-*.json")
    for file in (*files, plan):
        assert f"wrote {file}" in ran.out.splitlines()
        assert file.is_file()
    table = load_costs(tmp_path / "latency.json")
    assert {entry.option for entry in table.entries} == {"skip", "8", "16", "full"}


def test_an_invalid_run_leaves_nothing_behind(mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfs_deploy.bench.costs.MAX_UNCERTAINTY", math.inf)
    bundle = copied(mixed, tmp_path)
    costs, cache = tmp_path / "latency.json", bundle.with_name("mixed.dfs.cache")
    with monkeypatch.context() as patched:
        make_invalid(patched)
        ran = run("bench", bundle, "--save-costs", costs, "--save-plan", *QUICK, "--json")
    ran.failed(1, "an INVALID run is no engine choice and no table of costs", "--data", str(costs))
    assert not ran.json["valid"]
    assert not costs.exists()
    assert not list(cache.glob("plan-*")), "a plan of an unsteady machine would be used by every later start"
    with monkeypatch.context() as patched:
        patched.setattr("dfs_deploy.bench.verdict.MAX_UNCERTAINTY", math.inf)
        assert run("bench", bundle, "--save-plan", "--data", mixed.data_file, *STEADY).code == 0
    before = {file: file.read_bytes() for file in cache.glob("plan-*")}
    assert before
    make_invalid(monkeypatch)
    run("bench", bundle, "--save-plan", *QUICK, "--json").failed(1, "INVALID")
    assert {file: file.read_bytes() for file in cache.glob("plan-*")} == before, "the earlier plan is back"


def test_costs_whose_rounds_differ_are_refused(mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfs_deploy.bench.costs.MAX_UNCERTAINTY", 0.0)
    ran = run("bench", mixed.path, "--save-costs", tmp_path / "latency.json", *QUICK, "--json")
    ran.failed(1, "the costs are INVALID", "is known only to", "of that of option 8")
    assert not (tmp_path / "latency.json").exists()


# Other devices, on the doubles of TensorRT


@pytest.mark.usefixtures("steady")
def test_costs_are_those_of_the_device(mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfs_deploy.bench.devices.has_gpu", lambda root=None: True)
    bundle, costs = copied(mixed, tmp_path), tmp_path / "latency.json"
    with machine(), building_here():
        ran = run("bench", bundle, "--device", "cuda", "--save-costs", costs, *STEADY)
    assert ran.code == 0, ran.err
    table = load_costs(costs)
    assert table.runtime.startswith("tensorrt ")
    assert "Double" in table.machine, "the GPU is named, not the CPU"
    assert f"wrote {costs}" in ran.out


@pytest.mark.parametrize(
    "flags", [["--threads", "2"], ["--no-plan"], ["--no-prepared"], ["--save-plan"], ["--start-ups", "1"]]
)
def test_what_means_nothing_on_a_device_is_refused(
    mixed: Made, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs_deploy.bench.devices.has_gpu", lambda root=None: True)
    with machine():
        run("bench", mixed.path, "--device", "cuda", *flags).failed(2, flags[0], "--device cuda")


# Networks that were trained to be static, and budgets


def test_a_static_network_of_another_bundle_is_compared_with(mixed: Made, static: Made) -> None:
    data: list[str | Path] = ["--data", mixed.data_file]
    ran = run("bench", mixed.path, *data, "--against", static.path, *QUICK, "--json")
    assert ran.code == 0, ran.err
    assert [case["name"] for case in ran.json["cases"]][-1] == "static-policy@static"
    named = run("bench", static.path, mixed.path, *data, *QUICK, "--json")
    assert [case["name"] for case in named.json["cases"]] == [case["name"] for case in ran.json["cases"]]
    run("bench", static.path, "--save-costs", "costs.json", *QUICK).failed(2, "static policy", "gate")
    assert [bundle["name"] for bundle in ran.json["against"]] == ["static"]
    assert "static-policy@static" in run("bench", mixed.path, *data, "--against", static.path, *QUICK).out
    run("bench", mixed.path, *data, "--against", mixed.path, *QUICK).failed(2, "the same bundle as one before it")


def test_the_frontier_of_several_networks_is_drawn(mixed: Made, static: Made, floats: Made, tmp_path: Path) -> None:
    several: list[str | Path] = ["bench", mixed.path, floats.path, static.path]
    run(*several, "--frontier", tmp_path / "f.pdf", *QUICK).failed(2, ".svg or .png")
    run(*several, "--frontier", tmp_path / "f.svg", *QUICK).failed(2, "no labels", "--data")
    ran = run(*several, "--data", mixed.data_file, "--frontier", tmp_path / "f.svg", "--samples", "40", *QUICK)
    assert ran.code == 0, ran.err
    for word in ("dfs@floats", "static-policy@static", "beside floats", "40 inputs", f"wrote {tmp_path / 'f.svg'}"):
        assert word in ran.out, word
    assert (tmp_path / "f.svg").read_text().startswith("<svg")


def test_budgets_are_timed_where_some_were_calibrated(mixed: Made, tmp_path: Path) -> None:
    run("bench", mixed.path, "--all-budgets", *QUICK).failed(2, "calibrated for no budget", "--all-budgets")
    bundle = copied(mixed, tmp_path)
    point = {"computation_percentage": 10.0, "top1": None, "latency_ms": None, "samples": 9}
    records = [{"budget": 0.1, "bias": 400.0, **point}, {"budget": 0.9, "bias": -400.0, **point}]
    write_manifest(bundle, {**manifest_of(bundle), "budgets": records})
    ran = run("bench", bundle, "--all-budgets", *QUICK)
    assert ran.code == 0, ran.err
    for name in ("dfs-budget-10", "dfs-budget-90"):
        assert name in ran.out
