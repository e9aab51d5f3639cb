from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bundles import Made, copied
from tests.cli.program import run

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


def test_a_person_reads_what_was_made(mixed: Made, floats: Made, tmp_path: Path) -> None:
    page = tmp_path / "within" / "out.html"
    ran = run("report", mixed.path, floats.path, "--html", page, "--examples", "0", *QUICK)
    assert ran.code == 0
    assert page.is_file()
    for word in ("mixed", "floats", "median", "carried", str(page)):
        assert word in ran.out, word


def test_a_saved_bench_is_used(mixed: Made, tmp_path: Path) -> None:
    saved = tmp_path / "bench.json"
    saved.write_text(run("bench", mixed.path, "--data", mixed.data_file, *QUICK, "--json").out)
    ran = run("report", mixed.path, "--bench", saved, "--json")
    cases = json.loads(saved.read_text())["cases"]
    shown = ran.json["bundles"][0]["bench"]["cases"]
    assert [case["latency_ms"]["p50"] for case in shown] == [case["latency_ms"]["p50"] for case in cases]


def test_a_wrong_call(mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("report", mixed.path).failed(2, "--html", "--json")
    run("report", tmp_path / "missing.dfs", "--json").failed(4, "missing.dfs")
    run("report", mixed.path, "--data", tmp_path / "missing.npz", "--json").failed(2, "missing.npz")
    run("report", mixed.path, "--bench", tmp_path / "missing.json", "--json").failed(2, "missing.json")
    monkeypatch.chdir(tmp_path)
    run("report", "--json").failed(2, "no *.dfs bundle")


def test_the_bundle_in_the_directory_is_meant(floats: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied(floats, tmp_path)
    monkeypatch.chdir(tmp_path)
    ran = run("report", "--html", "out.html", *QUICK)
    assert ran.code == 0
    assert (tmp_path / "out.html").is_file()
