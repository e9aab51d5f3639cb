from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dfs_deploy.cli.process import command


def called(monkeypatch: pytest.MonkeyPatch, program: str | Path, path: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", [str(program), "demo"])
    monkeypatch.setenv("PATH", str(path))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script of that name, in a folder of its own."""
    script = tmp_path / "an env" / "dfs-deploy"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    return script


def test_a_script_that_a_shell_finds_is_called_by_name(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called(monkeypatch, script, script.parent)
    assert command("inspect", "digits.dfs") == "dfs-deploy inspect digits.dfs"


def test_a_script_off_the_path_or_hidden_by_another_is_called_by_its_path(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called(monkeypatch, script, "/nowhere")
    assert shlex.split(command("inspect", "x")) == [str(script), "inspect", "x"]
    other = tmp_path / "other" / "dfs-deploy"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    called(monkeypatch, script, other.parent)
    assert shlex.split(command("inspect", "x")) == [str(script), "inspect", "x"]


def test_what_python_runs_as_a_module_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called(monkeypatch, tmp_path / "dfs_deploy" / "__main__.py", "/nowhere")
    assert shlex.split(command("inspect", "x")) == [sys.executable, "-m", "dfs_deploy", "inspect", "x"]
    called(monkeypatch, tmp_path / "dfs_deploy" / "__main__.py", Path(sys.executable).parent)
    assert command("inspect", "x").split()[0] in ("python", "python3")


def test_names_are_quoted_for_a_shell_and_stay_on_one_line(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called(monkeypatch, script, script.parent)
    assert shlex.split(command("export", Path("my run") / "it's.pt"))[1:] == ["export", "my run/it's.pt"]
    assert "\n" not in command("export", "a\nb")


def test_a_printed_command_runs_as_it_stands(tmp_path: Path) -> None:
    code = "from dfs_deploy.cli.process import command; print(command('--version'))"
    (tmp_path / "__main__.py").write_text(code)
    printed = subprocess.run(
        [sys.executable, str(tmp_path / "__main__.py")], capture_output=True, text=True, check=True
    ).stdout
    ran = subprocess.run(printed, shell=True, capture_output=True, text=True, check=False, env=dict(os.environ))  # noqa: S602 (ours)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("dfs-deploy ")
