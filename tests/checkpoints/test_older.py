"""Files of versions 1 and 2 of our own format, which earlier releases wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dfs_deploy.checkpoints import load_checkpoint, older, save_checkpoint
from dfs_deploy.errors import CheckpointError
from dfs_deploy.models import DFSNetwork
from dfs_deploy.preprocessing import InputContract
from tests.builders import older_content, random_images, save_older, small_network
from tests.checks import refuses

SUFFIXES = (".pt", ".safetensors")

CONTRACT = InputContract((3, 8, 8), (0.1, 1 / 3, 0.7), (0.2, 0.25, 1e-3), ("cat", "dog", "ship"))


def network(**values: Any) -> DFSNetwork:
    return small_network(**{"options": "skip,8,16,full", "classes": 3, **values})


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("version", [1, 2])
def test_an_older_file_loads_with_every_bit(tmp_path: Path, suffix: str, version: int) -> None:
    saved = network()
    loaded = load_checkpoint(save_older(tmp_path / f"net{suffix}", older_content(saved, CONTRACT, version)))
    assert loaded.format == older.FORMAT
    assert loaded.input == CONTRACT
    assert loaded.assumptions == ()
    assert loaded.network.architecture == saved.architecture
    assert loaded.network.options == saved.options
    assert not loaded.network.training
    again = loaded.network.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in saved.state_dict().items())
    images = random_images(4)
    assert torch.equal(saved.route(images).logits, loaded.network.route(images).logits)


def test_an_older_file_is_saved_as_the_newest(tmp_path: Path) -> None:
    loaded = load_checkpoint(save_older(tmp_path / "net.pt", older_content(network(), CONTRACT)))
    save_checkpoint(tmp_path / "new.pt", loaded.network, loaded.input)
    again = load_checkpoint(tmp_path / "new.pt")
    assert again.network.architecture == loaded.network.architecture
    assert again.network.graphs == loaded.network.graphs
    images = random_images(4)
    assert torch.equal(again.network.route(images).logits, loaded.network.route(images).logits)


def test_a_policy_travels_and_needs_no_gate(tmp_path: Path) -> None:
    static = network().with_policy([2, 3])
    loaded = load_checkpoint(save_older(tmp_path / "net.pt", older_content(static, CONTRACT))).network
    assert loaded.policy == (2, 3)
    assert loaded.gate is None


def tampered(path: Path, suffix: str, change: dict[str, Any]) -> Path:
    """An older file with some of its plain values changed; ``None`` drops one."""
    values = {**older_content(network(), CONTRACT), **change}
    return save_older(path / f"net{suffix}", {key: value for key, value in values.items() if value is not None})


ARCHITECTURE = {"groups": [1, 1, 1], "widths": [4, 8, 16], "classes": 3, "image_shape": [3, 8, 8]}
INPUT = {"shape": [3, 8, 8], "mean": [0.5] * 3, "std": [0.2] * 3, "class_names": []}


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": None},
        {"architecture": [1, 1, 1]},
        {"architecture": {**ARCHITECTURE, "depth": 20}},
        {"architecture": {**ARCHITECTURE, "groups": [1.5, 1, 1]}},
        {"architecture": {**ARCHITECTURE, "image_shape": [3, 8]}},
        {"options": 4},
        {"options": [0, 8, 8, 32]},
        {"options": [0, "8", 16, 32]},
        {"policy": ["full"]},
        {"policy": ["full", "12"]},
        {"policy": ["full", 2]},
        {"policy": 2},
        {"input": "cifar"},
        {"input": {**INPUT, "std": [0.2, 0.0, 0.2]}},
        {"input": {**INPUT, "shape": [3, 16, 16]}},
    ],
)
def test_malformed_values_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with refuses(CheckpointError, "malformed"):
        load_checkpoint(tampered(tmp_path, ".safetensors", change))


def test_unchanged_values_load(tmp_path: Path) -> None:
    """So that the refusals above are for the change."""
    for suffix in SUFFIXES:
        load_checkpoint(tampered(tmp_path, suffix, {"architecture": ARCHITECTURE, "input": INPUT}))


@pytest.mark.parametrize(
    ("architecture", "word"),
    [
        ({"gate_hidden": 12}, "gate.lstm.weight_ih"),
        ({"groups": [1, 2, 1]}, "backbone.blocks.2.conv1.weight"),
        ({"groups": [1, 2, 2]}, "backbone.blocks.2.conv1.weight"),
        ({"widths": [4, 8, 12]}, "expected (12, 8, 3, 3)"),
    ],
)
def test_tensors_of_another_network_are_refused(tmp_path: Path, architecture: dict[str, Any], word: str) -> None:
    file = tampered(tmp_path, ".pt", {"architecture": {**ARCHITECTURE, **architecture}})
    with refuses(CheckpointError, word):
        load_checkpoint(file)


def test_a_tensor_too_many_is_refused(tmp_path: Path) -> None:
    content = older_content(network(), CONTRACT)
    content["state_dict"]["backbone.extra"] = torch.ones(1)
    with refuses(CheckpointError, "extra"):
        load_checkpoint(save_older(tmp_path / "net.pt", content))
