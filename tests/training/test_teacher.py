"""Teachers: frozen networks whose answers a run learns from."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.data import save_npz
from dfs_deploy.errors import DataError, UsageError
from dfs_deploy.models import DFSNetwork, cifar_network
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.training import TrainingResult, read_metrics, resume, train
from dfs_deploy.training.metrics import StepRecord
from dfs_deploy.training.teacher import Pupil, Teacher
from tests.checks import refuses
from tests.training.small import SIZE, colour_patches

NAMES = ("red", "green", "blue")
CONTRACT = InputContract((3, SIZE, SIZE), class_names=NAMES)

SHORT: dict[str, Any] = {
    "preset": "quick",
    "blocks_per_group": 1,
    "batch": 16,
    "backbone_steps": 4,
    "gate_steps": 2,
    "joint_steps": 6,
    "save_every": 2,
    "threads": 1,
    "device": "cpu",
    "options": "skip,full",
    "target": 60.0,
}


def network(classes: int = 3, size: int = SIZE, contract: InputContract | None = CONTRACT) -> DFSNetwork:
    torch.manual_seed(0)
    made = cifar_network(cifar_resnet((1, 1, 1), (4, 8, 16), classes, (3, size, size)), Options.parse("skip,full"))
    made.contract = contract
    return made


def pupil(contract: InputContract = CONTRACT) -> Pupil:
    return Pupil(contract, 3, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "patches.npz"
    save_npz(path, colour_patches())
    return path


@pytest.fixture(scope="module")
def trained(data: Path) -> TrainingResult:
    return train(data, data.parent / "trained", until="backbone", **SHORT)


class Plain(nn.Module):
    """Code of a user's."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(3, classes)
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def steps_of(run: Path) -> list[StepRecord]:
    return [record for record in read_metrics(run) if isinstance(record, StepRecord)]


def test_it_is_a_frozen_copy() -> None:
    taught_by = network()
    teacher = Teacher(taught_by, pupil(), "it")
    x = torch.randn(4, 3, SIZE, SIZE)
    before = teacher(x)
    assert torch.allclose(before, taught_by.eval().route(x).logits, atol=1e-6)
    assert before.dtype == torch.float32
    assert not before.requires_grad
    with torch.no_grad():
        for parameter in taught_by.parameters():
            parameter.add_(1.0)
    taught_by.train()
    assert torch.equal(teacher(x), before)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_a_module_of_the_users_is_in_evaluation_mode_and_stays_as_it_is() -> None:
    module = Plain().train()
    teacher = Teacher(module, pupil(), "it")
    x = torch.randn(5, 3, SIZE, SIZE)
    assert torch.allclose(teacher(x), module(x))
    assert module.training
    assert module.head.weight.requires_grad
    assert isinstance(teacher.network, Plain)
    assert not any(teacher.network.modes)


def test_images_are_normalised_as_the_teacher_takes_them() -> None:
    own = dataclasses.replace(CONTRACT, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    taught_by = network(contract=own)
    pixels = colour_patches(6).images
    expected = taught_by.eval().route(torch.from_numpy(own.normalize(pixels))).logits
    answers = Teacher(taught_by, pupil(), "it")(torch.from_numpy(CONTRACT.normalize(pixels)))
    assert torch.allclose(answers, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (network(classes=4, contract=None), ["it has 4 classes", "expected the 3"]),
        (network(size=16, contract=None), ["(3, 16, 16)", "(3, 8, 8)"]),
        (network(contract=dataclasses.replace(CONTRACT, class_names=("red", "blue", "green"))), ["'blue'", "'green'"]),
        (Plain(classes=5), ["(2, 5)", "expected logits of shape (2, 3)"]),
        (nn.Linear(7, 3), ["RuntimeError", "expected logits"]),
    ],
)
def test_one_that_does_not_fit_is_named(other: nn.Module, words: list[str]) -> None:
    with refuses(DataError, *words):
        Teacher(other, pupil(), "it")


def test_a_teacher_is_listened_to_unless_the_recipe_says_how_much(data: Path, tmp_path: Path) -> None:
    with refuses(UsageError, "teacher", "distill is 0"):
        train(data, tmp_path / "no", teacher="full", distill=0.0, **SHORT)
    asked = train(data, tmp_path / "asked", distill=0.3, **SHORT).job
    assert (asked.teacher, asked.recipe.distill) == ("full", 0.3)
    given = train(data, tmp_path / "given", teacher="full", **SHORT).job
    assert (given.teacher, given.recipe.distill) == ("full", 0.5)
    assert train(data, tmp_path / "none", **SHORT).job.teacher is None
    backbone = train(data, tmp_path / "backbone", teacher="full", until="backbone", **SHORT)
    assert any("no effect on this run" in note and "teacher" in note for note in backbone.notes)
    assert not (tmp_path / "no").exists()


def test_answers_change_what_is_learned(data: Path, trained: TrainingResult, tmp_path: Path) -> None:
    values = {**SHORT, "backbone": trained.checkpoint, "distill": 1.0}
    alone = train(data, tmp_path / "alone", **{**values, "distill": 0.0})
    taught = train(data, tmp_path / "taught", **values)
    again = train(data, tmp_path / "again", teacher=trained.checkpoint, **values)
    joint = [[step for step in steps_of(each.folder) if step.stage == "joint"] for each in (alone, taught, again)]
    assert joint[0] != joint[1]
    assert joint[1] == joint[2], "the backbone as it began is the checkpoint that it was taken from"


def cut(text: str, share: float) -> None:
    if text.startswith("joint step 4"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["file", "full", "full of stage 0", "network"])
def test_a_stopped_run_goes_on_with_its_teacher_to_the_bit(
    data: Path, trained: TrainingResult, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "teacher.pt"
    shutil.copy(trained.checkpoint, file)
    teacher = {"file": file, "network": load_checkpoint(file).network}.get(kind, "full")
    values = {**SHORT, "teacher": teacher, "evaluate_every": 2}
    if kind != "full of stage 0":
        values["backbone"] = trained.checkpoint
    whole = train(data, tmp_path / "whole", **values)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "cut", progress=cut, **{**values, "evaluate_every": 4})
    file.unlink()
    shutil.move(tmp_path / "cut", tmp_path / "moved")
    gone_on = resume(tmp_path / "moved")
    assert steps_of(gone_on.folder) == steps_of(whole.folder)
    assert (gone_on.folder / "teacher.pt").exists() == (kind != "full of stage 0")


def test_a_module_of_the_users_is_given_again(data: Path, trained: TrainingResult, tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = Plain()
    values = {**SHORT, "teacher": module, "backbone": trained.checkpoint}
    whole = train(data, tmp_path / "whole", **values)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "cut", progress=cut, **values, evaluate_every=4)
    with refuses(UsageError, "handed over", "teacher=module"):
        resume(tmp_path / "cut")
    with refuses(UsageError, "not the module", "teacher=module"):
        resume(tmp_path / "cut", teacher=Plain())
    gone_on = resume(tmp_path / "cut", teacher=module)
    assert steps_of(gone_on.folder) == steps_of(whole.folder)
    assert resume(tmp_path / "cut").finished_before, "nothing is left to learn"
    with refuses(UsageError, "keeps its own"):
        resume(trained.folder, teacher=module)
