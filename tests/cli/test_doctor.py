from __future__ import annotations

from importlib import metadata

import pytest

import dfs_deploy
from dfs_deploy.extras import EXTRA_OF
from tests.cli.program import run

CORE = {"numpy", "onnxruntime", "msgspec", "typer", "rich", "pillow"}


def test_json_says_what_is_there() -> None:
    ran = run("doctor", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["passed"] is True
    assert ran.json["facts"]["dfs-deploy"] == dfs_deploy.__version__
    checks = {check["name"]: check for check in ran.json["checks"]}
    assert checks.keys() == CORE | EXTRA_OF.keys()
    assert {name for name, check in checks.items() if check["needed"]} == CORE
    assert checks["numpy"]["found"] == metadata.version("numpy")
    for name, extra in EXTRA_OF.items():
        assert extra in checks[name]["remedy"] or "apt" in checks[name]["remedy"]


def test_a_person_reads_passed() -> None:
    ran = run("doctor")
    assert ran.code == 0
    assert "PASSED" in ran.out
    assert "onnxruntime" in ran.out


def test_what_running_needs_and_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "pillow":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    ran = run("doctor", "--json")
    ran.failed(3, "pillow", "pip install")
    assert ran.json["passed"] is False
    ran = run("doctor")
    assert ran.code == 3
    assert "FAILED: pillow missing" in ran.out


def test_an_extra_that_is_not_there_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in ("torch", "scikit-learn"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    ran = run("doctor")
    assert ran.code == 0
    assert 'pip install "dfs-deploy[export]"' in ran.out
    assert 'pip install "dfs-deploy[train]"' in ran.out
