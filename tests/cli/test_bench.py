from __future__ import annotations

from pathlib import Path

import pytest

from dfs_deploy.bench.machine import is_jetson
from tests.bundles import Made, copied
from tests.cli.program import run

QUICK = ["--min-seconds", "0.01", "--min-iterations", "2"]


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
    for word in ("dfs", "static-fp32", "p50", "images/s", "against static-int8", "gate"):
        assert word in ran.out, word


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
    run("bench", mixed.path, "--batch", "5000", *QUICK, "--json").failed(2, "5000")
    run("bench", mixed.path, "--data", tmp_path / "missing.npz", "--json").failed(2, "missing.npz")
    run("bench", tmp_path / "missing.dfs", "--json").failed(4, "missing.dfs")
    bundle = copied(mixed, tmp_path)
    (bundle / "extra").write_text("x")
    run("bench", bundle, "--json").failed(4, "extra")


def test_without_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("bench", "--json").failed(2, "no *.dfs bundle")
