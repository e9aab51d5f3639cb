from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dfs_deploy.checkpoints import load_checkpoint, native, save_checkpoint
from dfs_deploy.errors import CheckpointError
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract
from tests.builders import random_images, small_network
from tests.checks import refuses

SUFFIXES = (".pt", ".safetensors")

CONTRACT = InputContract((3, 8, 8), (0.1, 1 / 3, 0.7), (0.2, 0.25, 1e-3), ("cat", "dog", "ship"))


def network(**values: Any) -> DFSNetwork:
    return small_network(**{"options": "skip,8,16,full", "classes": 3, **values})


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("options", ["skip,8,16,full", "full,skip", "skip,2,4,6,8,10,12,14,16,full"])
def test_a_round_trip_keeps_every_bit(tmp_path: Path, suffix: str, options: str) -> None:
    saved = network(options=options)
    save_checkpoint(tmp_path / f"net{suffix}", saved, CONTRACT)
    loaded = load_checkpoint(tmp_path / f"net{suffix}")
    assert loaded.format == native.FORMAT
    assert loaded.input == CONTRACT
    assert loaded.assumptions == ()
    assert loaded.network.architecture == saved.architecture
    assert loaded.network.options == saved.options
    assert not loaded.network.training
    state, again = saved.state_dict(), loaded.network.state_dict()
    assert list(state) == list(again)
    assert all(torch.equal(value, again[key]) for key, value in state.items())
    images = random_images(4)
    assert torch.equal(saved.route(images).logits, loaded.network.route(images).logits)


def test_a_network_in_training_is_saved_all_the_same(tmp_path: Path) -> None:
    saved = network().train()
    save_checkpoint(str(tmp_path / "net.pt"), saved, CONTRACT)
    assert saved.training
    assert not load_checkpoint(str(tmp_path / "net.pt")).network.training


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_save_that_fails_midway_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"net{suffix}"
    save_checkpoint(path, network(seed=1), CONTRACT)
    before = path.read_bytes()

    def half(target: Path, data: bytes) -> None:
        with target.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, network(seed=2), CONTRACT)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def tampered(path: Path, suffix: str, change: dict[str, Any]) -> Path:
    """A saved network with some of its plain values changed; ``None`` drops one."""
    file = path / f"net{suffix}"
    save_checkpoint(file, network(), CONTRACT)
    if suffix == ".pt":
        content = torch.load(file, weights_only=True)
        values = {**content, **change}
        torch.save({key: value for key, value in values.items() if value is not None}, file)
    else:
        with safe_open(file, "pt") as archive:
            values = {**json.loads(archive.metadata()["dfs_deploy"]), **change}
        kept = {key: value for key, value in values.items() if value is not None}
        save_file(load_file(file), file, {"dfs_deploy": json.dumps(kept)})
    return file


@pytest.mark.parametrize("version", [3, "1", 0, None])
def test_another_version_is_refused(tmp_path: Path, version: object) -> None:
    for suffix in SUFFIXES:
        with refuses(CheckpointError, f"version {version!r}"):
            load_checkpoint(tampered(tmp_path, suffix, {"version": version}))


def test_a_file_of_version_1_loads(tmp_path: Path) -> None:
    file = tampered(tmp_path, ".pt", {"version": 1, "policy": None})
    assert "policy" not in torch.load(file, weights_only=True)
    assert load_checkpoint(file).network.policy is None


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
    file = tampered(tmp_path, ".pt", {})
    content = torch.load(file, weights_only=True)
    content["state_dict"]["backbone.extra"] = torch.ones(1)
    torch.save(content, file)
    with refuses(CheckpointError, "extra"):
        load_checkpoint(file)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = network()
    with torch.no_grad():
        broken.backbone.head.weight[0, 0] = float("inf")
    save_checkpoint(tmp_path / "net.pt", broken, CONTRACT)
    with refuses(CheckpointError, "NaN or infinity"):
        load_checkpoint(tmp_path / "net.pt")


def test_other_options_than_it_says_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "net.pt", network(), CONTRACT)
    with refuses(CheckpointError, "skip,2,4,full", "skip,8,16,full"):
        load_checkpoint(tmp_path / "net.pt", Options.parse("skip,2,4,full"))


def test_quantised_options_need_ranges_in_every_gated_block(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "none.pt", without_ranges(network(), 1, 2), CONTRACT)
    with refuses(CheckpointError, "gate-only", "step 2"):
        load_checkpoint(tmp_path / "none.pt")
    save_checkpoint(tmp_path / "some.pt", without_ranges(network(), 2), CONTRACT)
    with refuses(CheckpointError, "block(s) 2 "):
        load_checkpoint(tmp_path / "some.pt")
    save_checkpoint(tmp_path / "first.pt", without_ranges(network(), 0), CONTRACT)
    load_checkpoint(tmp_path / "first.pt")
    save_checkpoint(tmp_path / "full.pt", without_ranges(network(options="skip,full"), 0, 1, 2), CONTRACT)
    load_checkpoint(tmp_path / "full.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_policy_travels_and_needs_no_gate(tmp_path: Path, suffix: str) -> None:
    static = network().with_policy([2, 3])
    save_checkpoint(tmp_path / f"net{suffix}", static, CONTRACT)
    loaded = load_checkpoint(tmp_path / f"net{suffix}").network
    assert loaded.policy == (2, 3)
    assert loaded.gate is None
    for key, value in static.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_a_policy_needs_ranges_where_it_quantises(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "net.pt", without_ranges(network().with_policy([3, 1]), 1), CONTRACT)
    load_checkpoint(tmp_path / "net.pt")
    save_checkpoint(tmp_path / "net.pt", without_ranges(network().with_policy([1, 3]), 1), CONTRACT)
    with refuses(CheckpointError, "block(s) 1 "):
        load_checkpoint(tmp_path / "net.pt")


def without_ranges(network: DFSNetwork, *blocks: int) -> DFSNetwork:
    for block in blocks:
        for key, value in network.blocks[block].named_buffers():
            if key.endswith(("low", "high")):
                value.zero_()
    return network
