"""The README's commands and code do what it says, run word for word on the shipped checkpoint."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfs_deploy.data import save_npz
from dfs_deploy.data.digits import load_digits
from tests.cli.program import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
_FEW_CALLS = ("--min-seconds", "0.05", "--min-iterations", "4")
QUICK = {"bench": (*_FEW_CALLS, "--start-ups", "0"), "report": (*_FEW_CALLS, "--samples", "64")}
"""What makes a command short here and changes nothing of what it does."""


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a checkpoint, data, a photo and a folder of photos, under the README's names."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(ROOT / "examples" / "digits.pt", folder / "ckpt.pt")
    save_npz(folder / "train.npz", load_digits("train").subset(256, 0))
    test = load_digits("test").subset(128, 0)
    save_npz(folder / "test.npz", test)
    (folder / "folder").mkdir()
    for path, image in (("photo.png", test.images[0]), ("folder/other.png", test.images[1])):
        Image.fromarray(image).save(folder / path)
    return folder


def test_the_set_up_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = blocks("sh")[0].split("\n")[:-1]
    assert commands == ["make demo", "make test"]
    assert {command.split()[1] for command in commands} <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_every_command_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    lines = [line.split("#")[0].strip() for line in blocks("sh")[1].splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("dfs-deploy")]
    assert [command[0] for command in commands] == ["export", "verify", "bench", "report", "run", "inspect", "doctor"]
    for command in commands:
        ran = run(*command, *QUICK.get(command[0], ()))
        assert ran.code == 0, (command, ran)
        assert ran.out


def test_the_code_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if not Path("ckpt.dfs").is_dir():
        assert run("export", "ckpt.pt").code == 0
    values: dict[str, Any] = {}
    exec(compile(blocks("python")[0], "README.md", "exec"), values)  # noqa: S102 (the README's own code)
    result = values["result"]
    assert result.classes.shape == (1,)
    assert result.path.dtype == np.uint8


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)
