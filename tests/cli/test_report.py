from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bundles import Made
from tests.cli.program import run
from tests.report.logs import SKIPNET, records, write_log

QUICK = ["--min-seconds", "0.02", "--min-iterations", "4"]


def test_the_page_embeds_what_json_prints(mixed: Made, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    ran = run("report", mixed.path, "--data", mixed.data_file, "--html", page, *QUICK, "--json")
    assert (ran.code, ran.err) == (0, "")
    (bundle,) = ran.json["bundles"]
    assert bundle["facts"]["name"] == "mixed"
    assert bundle["outcome"]["inputs"] == 96
    html = page.read_text()
    assert html.startswith("<!doctype html>")
    embedded = html.partition('<script type="application/json" id="report">')[2].partition("</script>")[0]
    assert json.loads(embedded) == ran.json


def test_a_person_reads_what_was_made(
    mixed: Made, floats: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs_deploy.bench.verdict.MIN_INPUTS", 1 << 20)
    page = tmp_path / "within" / "out.html"
    ran = run("report", mixed.path, floats.path, "--html", page, "--examples", "0", *QUICK)
    assert ran.code == 0
    assert page.is_file()
    for word in ("mixed", "floats", "median", "carried", "INVALID: ", "verdict: none", str(page)):
        assert word in ran.out, word


def test_a_saved_bench_is_used(mixed: Made, tmp_path: Path) -> None:
    saved = tmp_path / "bench.json"
    saved.write_text(run("bench", mixed.path, "--data", mixed.data_file, *QUICK, "--start-ups", "0", "--json").out)
    ran = run("report", mixed.path, "--bench", saved, "--json")
    refused = run("report", mixed.path, "--bench", saved, "--min-seconds", "9", "--json")
    refused.failed(2, "--min-seconds", "--bench", "nothing is timed")
    cases = json.loads(saved.read_text())["cases"]
    shown = ran.json["bundles"][0]["bench"]["cases"]
    assert [case["latency_ms"]["p50"] for case in shown] == [case["latency_ms"]["p50"] for case in cases]


def test_a_wrong_call(mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("report", mixed.path).failed(2, "--html", "--json")
    run("report", mixed.path, "--html", tmp_path / "r.pdf").failed(2, "r.pdf", "'.pdf'", ".html", "browser")
    run("report", mixed.path, "--html", tmp_path / "r").failed(2, "'nothing'", ".html")
    run("report", mixed.path, "--against", mixed.path, "--json").failed(2, "the same bundle as one before it")
    assert not list(tmp_path.iterdir())
    run("report", tmp_path / "missing.dfs", "--json").failed(4, "missing.dfs")
    run("report", mixed.path, "--data", tmp_path / "missing.npz", "--json").failed(2, "missing.npz")
    run("report", mixed.path, "--bench", tmp_path / "missing.json", "--json").failed(2, "missing.json")
    monkeypatch.chdir(tmp_path)
    run("report", "--json").failed(2, "no *.dfs bundle")


def test_training_runs_make_figures(tmp_path: Path) -> None:
    runs = [write_log(tmp_path / "dfs", records()), write_log(tmp_path / "skipnet", records(SKIPNET))]
    ran = run("report", *runs, "--figures", tmp_path / "figures")
    assert (ran.code, ran.err) == (0, "")
    for word in ("DFS-ResNet-20", "SkipNet-ResNet-20", "87.50 %", "figures"):
        assert word in ran.out, word
    assert (tmp_path / "figures" / "decisions-skipnet.svg").is_file()
    assert run("report", *runs, "--json").json == json.loads((tmp_path / "figures" / "figures.json").read_text())


def test_bundles_and_training_runs_go_together(floats: Made, tmp_path: Path) -> None:
    log = write_log(tmp_path / "dfs", records()) / "metrics.jsonl"
    ran = run("report", floats.path, log, "--figures", tmp_path / "figures", *QUICK, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert [bundle["facts"]["name"] for bundle in ran.json["bundles"]] == ["floats"]
    assert [made["name"] for made in ran.json["training"]["runs"]] == ["dfs"]


def test_a_wrong_call_about_training_runs(floats: Made, tmp_path: Path) -> None:
    folder = write_log(tmp_path / "dfs", records())
    run("report", folder).failed(2, "--figures")
    run("report", folder, "--figures", tmp_path / "f", "--data", tmp_path).failed(2, "--data", "training runs")
    run("report", folder, "--html", tmp_path / "out.html", "--figures", tmp_path / "f").failed(2, "--html", "bundle")
    run("report", floats.path, "--figures", tmp_path / "f", "--json").failed(2, "training run")
    (tmp_path / "other.json").write_text("{}\n")
    run("report", tmp_path / "other.json", "--json").failed(2, "other.json", "no metrics log")
