"""The README's commands and code do what it says, run word for word on the shipped checkpoint."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dfs_deploy.checkpoints import build_network, load_checkpoint
from dfs_deploy.data import save_npz
from dfs_deploy.data.digits import load_digits
from tests.cli.program import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
_FEW_CALLS = ("--min-seconds", "0.05", "--min-iterations", "4")
QUICK = {
    "train": ("--gate-steps", "2", "--joint-steps", "2", "--threads", "1"),
    "bench": (*_FEW_CALLS, "--start-ups", "0"),
    "report": (*_FEW_CALLS, "--samples", "64"),
}
"""What makes a command short here and changes nothing of what it does."""

OTHER = {"torchvision:resnet18": "cifar-resnet:8"}
"""A network that needs no other package, in the place of the README's."""


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a checkpoint, weights, data, a photo and folders of photos, under the README's names."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(ROOT / "examples" / "digits.pt", folder / "ckpt.pt")
    save_npz(folder / "train.npz", load_digits("train").subset(256, 0))
    test = load_digits("test").subset(128, 0)
    save_npz(folder / "test.npz", test)
    (folder / "folder").mkdir()
    for path, image in (("photo.png", test.images[0]), ("folder/other.png", test.images[1])):
        Image.fromarray(image).save(folder / path)
    for split, images in (("train", load_digits("train").subset(64, 0)), ("test", test)):
        for number, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
            file = folder / "photos" / split / str(label) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    torch.save(build_network("cifar-resnet:8").net.state_dict(), folder / "resnet18-f37072fd.pth")
    return folder


def test_the_set_up_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = blocks("sh")[0].split("\n")[:-1]
    assert commands == ["make demo", "make test"]
    assert {command.split()[1] for command in commands} <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def commands(block: int) -> list[list[str]]:
    """The commands of dfs-deploy in a block of the README, without the program's name."""
    lines = [line.split("#")[0].strip() for line in blocks("sh")[block].splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("dfs-deploy")]


def test_a_network_by_name_becomes_a_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [command[0] for command in commands(2)] == ["blocks", "train"]
    for verb, *words in commands(2):
        ran = run(verb, *[OTHER.get(word, word) for word in words], *QUICK.get(verb, ()))
        assert ran.code == 0, (verb, ran)
    network = load_checkpoint(folder / "run" / "checkpoint.pt").network
    assert network.options.names == ("skip", "8")
    assert len(network.architecture.decided(network.options)) == 3


def test_every_command_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    verbs = [command[0] for command in commands(3)]
    assert verbs == ["export", "verify", "bench", "report", "run", "inspect", "doctor"]
    for command in commands(3):
        ran = run(*command, *QUICK.get(command[0], ()))
        assert ran.code == 0, (command, ran)
        assert ran.out


def test_the_code_of_a_training_loop_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = build_network("cifar-resnet:8")
    values: dict[str, Any] = {"net": made.net, "example": made.example, "images": made.example}
    values |= {"labels": torch.zeros(1, dtype=torch.int64), "criterion": torch.nn.functional.cross_entropy}
    values |= {"shape": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    exec(compile(blocks("python")[0], "README.md", "exec"), values)  # noqa: S102 (the README's own code)
    values["loss"].backward()
    assert all(parameter.grad is not None for parameter in made.net.parameters())
    assert load_checkpoint("ckpt.pt").input.mean == (0.5, 0.5, 0.5)


def test_the_code_of_an_application_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if not Path("ckpt.dfs").is_dir():
        assert run("export", "ckpt.pt").code == 0
    values: dict[str, Any] = {}
    exec(compile(blocks("python")[1], "README.md", "exec"), values)  # noqa: S102 (the README's own code)
    result = values["result"]
    assert result.classes.shape == (1,)
    assert result.path.dtype == np.uint8


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)
