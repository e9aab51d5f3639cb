from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dfs_deploy.checkpoints import CheckpointFacts, load_checkpoint, save_checkpoint
from dfs_deploy.errors import CheckpointError, InputError, UsageError
from dfs_deploy.network import MAX_SIDE
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract
from tests.builders import older_content, release_state_dict, save_release, skipnet_state_dict, small_network
from tests.checks import refuses

NAMES = tuple("abcdefghij")
FLAGS = ("--mean", "--std", "--class-names", "--input-size")


@pytest.fixture(scope="module", params=[skipnet_state_dict, release_state_dict])
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_release(tmp_path_factory.mktemp("foreign") / "net.pth.tar", request.param())


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ours") / "net.pt"
    save_checkpoint(path, small_network(classes=3), InputContract((3, 8, 8), class_names=("cat", "dog", "ship")))
    return path


def test_what_a_foreign_file_does_not_say_is_assumed_and_said(foreign: Path) -> None:
    loaded = load_checkpoint(foreign)
    assert loaded.input == InputContract((3, 32, 32))
    assert loaded.input.class_names == (), "ten classes need not be CIFAR-10's"
    for flag in FLAGS:
        assert any(flag in line for line in loaded.assumptions), flag


@pytest.mark.parametrize(
    ("facts", "silenced"),
    [
        ({"mean": (0.4, 0.5, 0.6)}, ["--mean"]),
        ({"std": (0.4, 0.5, 0.6)}, ["--std"]),
        ({"mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}, ["--mean", "--std"]),
        ({"class_names": NAMES}, ["--class-names"]),
        ({"class_names": ()}, ["--class-names"]),
        ({"input_size": (24, 40)}, ["--input-size"]),
    ],
)
def test_what_is_given_is_taken_and_no_assumption(foreign: Path, facts: dict[str, Any], silenced: list[str]) -> None:
    loaded = load_checkpoint(foreign, facts=CheckpointFacts(**facts))
    for name, value in facts.items():
        held = loaded.input.shape[1:] if name == "input_size" else getattr(loaded.input, name)
        assert held == value
    assert loaded.network.architecture.image_shape == loaded.input.shape
    for flag in FLAGS:
        assert any(flag in line for line in loaded.assumptions) == (flag not in silenced), flag


def test_our_own_format_says_it_all(ours: Path) -> None:
    assert load_checkpoint(ours).assumptions == ()
    same = CheckpointFacts(mean=InputContract.mean, class_names=("cat", "dog", "ship"), input_size=(8, 8))
    assert load_checkpoint(ours, facts=same).assumptions == ()


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"mean": (0.4, 0.5, 0.6)}, "mean (0.4, 0.5, 0.6)"),
        ({"std": (0.4, 0.5, 0.6)}, "std (0.4, 0.5, 0.6)"),
        ({"class_names": ("ant", "bee", "wasp")}, "3 class names"),
        ({"class_names": ()}, "no class names"),
        ({"input_size": (16, 12)}, "16x12 pixels"),
        ({"resize": 12}, "a crop from 12 pixels"),
        ({"interpolation": "bicubic"}, "bicubic resizing"),
    ],
)
def test_what_is_given_against_the_file_is_taken_and_said(ours: Path, facts: dict[str, Any], word: str) -> None:
    loaded = load_checkpoint(ours, facts=CheckpointFacts(**facts))
    (line,) = loaded.assumptions
    assert word in line
    assert "instead of the file's" in line
    assert loaded.network.architecture.image_shape == loaded.input.shape
    assert loaded.network.route(torch.zeros(1, *loaded.input.shape)).logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("facts", "error", "word"),
    [
        ({"mean": (0.5,)}, InputError, "give 3 numbers"),
        ({"std": (0.5, 0.0, 0.5)}, InputError, "std between"),
        ({"mean": (0.5, float("nan"), 0.5)}, InputError, "mean between"),
        ({"class_names": ("a", "b")}, UsageError, "2 class names"),
        ({"class_names": (*NAMES[:9], "caf\udce9")}, InputError, "UTF-8"),
        ({"resize": 31}, InputError, "resize 31"),
        ({"interpolation": "nearest"}, InputError, "'nearest'"),
    ],
)
def test_facts_that_cannot_be_are_refused(
    foreign: Path, facts: dict[str, Any], error: type[Exception], word: str
) -> None:
    with refuses(error, word):
        load_checkpoint(foreign, facts=CheckpointFacts(**facts))


def test_images_without_end_are_refused(foreign: Path) -> None:
    load_checkpoint(foreign, facts=CheckpointFacts(input_size=(MAX_SIDE, 1)))
    for size in ((MAX_SIDE + 1, 8), (8, 10**9), (0, 8)):
        with pytest.raises((UsageError, CheckpointError)):
            load_checkpoint(foreign, facts=CheckpointFacts(input_size=size))


def test_names_that_no_bundle_can_hold_are_refused_before_there_is_work(tmp_path: Path) -> None:
    content = older_content(small_network(classes=3), InputContract((3, 8, 8)))
    content["input"]["class_names"] = ["caf\udce9", "dog", "ship"]
    torch.save(content, tmp_path / "net.pt")
    with refuses(CheckpointError, "caf\\xe9", "UTF-8"):
        load_checkpoint(tmp_path / "net.pt")
    told = CheckpointFacts(class_names=("café", "dog", "ship"))
    assert load_checkpoint(tmp_path / "net.pt", facts=told).input.class_names[0] == "café"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ({"mean": "0.4, 0.5,0.6"}, {"mean": (0.4, 0.5, 0.6)}),
        ({"mean": [0.4, 0.5, 0.6]}, {"mean": (0.4, 0.5, 0.6)}),
        ({"std": np.full(3, 0.5)}, {"std": (0.5, 0.5, 0.5)}),
        ({"class_names": "a, b"}, {"class_names": ("a", "b")}),
        ({"class_names": "none"}, {"class_names": ()}),
        ({"class_names": ["a", "b"]}, {"class_names": ("a", "b")}),
        ({"input_size": "24x40"}, {"input_size": (24, 40)}),
        ({"input_size": [24, 40]}, {"input_size": (24, 40)}),
    ],
)
def test_facts_are_taken_as_text_and_as_any_sequence(text: dict[str, Any], values: dict[str, Any]) -> None:
    assert CheckpointFacts(**text) == CheckpointFacts(**values)


def test_text_that_is_no_fact_is_refused() -> None:
    for facts, words in (
        ({"mean": "a"}, ("--mean", "as in 0.49")),
        ({"std": [125.0, 125.0, 125.0]}, ("--std", "divide")),
        ({"input_size": "24"}, ("--input-size", "as in 32x32")),
        ({"class_names": "nowhere.txt"}, ("nowhere.txt", "one class name per line")),
    ):
        with refuses(UsageError, *words):
            CheckpointFacts(**facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", ["skip,full", ["skip", "full"], ["skip", 32], Options.parse("skip,full")])
def test_options_are_taken_as_text_and_as_any_sequence(tmp_path: Path, options: Any) -> None:
    path = save_release(tmp_path / "net.pth.tar", skipnet_state_dict())
    assert load_checkpoint(path, options).network.options == Options.parse("skip,full")
    save_checkpoint(tmp_path / "net.pt", small_network("skip,full"), InputContract((3, 8, 8)))
    assert load_checkpoint(tmp_path / "net.pt", options).network.options == Options.parse("skip,full")
    with refuses(CheckpointError, "skip,full", "not skip,8"):
        load_checkpoint(path, "skip,8")
