from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import dfs_deploy
from dfs_deploy.bundle import Bundle
from tests.cli.program import run

SHIPPED = Path(dfs_deploy.__file__).parent.parent / "examples" / "digits.pt"


@pytest.mark.skipif(not SHIPPED.is_file(), reason="the shipped checkpoint has not been made")
def test_the_demo_runs_the_main_job(tmp_path: Path) -> None:
    out = tmp_path / "digits.dfs"
    ran = run("demo", "--out", out, "--min-seconds", "0.05", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["bundle"] == str(out)
    assert ran.json["samples"] == 500
    assert ran.json["route_agreement"] >= 0.98
    assert ran.json["top1_reference"] - ran.json["top1_bundle"] <= 0.003
    assert {case["name"] for case in ran.json["bench"]["cases"]} >= {"dfs", "static-fp32", "static-int8"}
    shares = Bundle(out).manifest.accuracy
    assert shares is not None
    assert any(0.02 < share < 0.98 for block in shares.option_share for share in block), "the gate varies its choice"


def test_without_its_checkpoint_the_demo_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = importlib.import_module("dfs_deploy.cli.demo")
    monkeypatch.setattr(demo, "CHECKPOINT", "nowhere.pt")
    ran = run("demo", "--out", tmp_path / "digits.dfs", "--json")
    ran.failed(3, "nowhere.pt")
    assert not list(tmp_path.iterdir())
