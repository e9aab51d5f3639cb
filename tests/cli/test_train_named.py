"""``dfs-deploy train --network``: networks by name, from their weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.data import save_npz
from dfs_deploy.geometry import Geometry
from tests.cli.program import Ran, run
from tests.nets import SIZE, user_net
from tests.training.small import colour_patches

NETWORK = "tests.cli.test_train_named:mobile"
SHORT = ("--batch", "16", "--gate-steps", "2", "--joint-steps", "3", "--threads", "1", "--device", "cpu")


def mobile() -> nn.Module:
    return user_net("mobile", classes=5)


class Choosy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"images of {x.shape[-1]} pixels, expected 16")


def choosy() -> nn.Module:
    return Choosy()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour patches of three classes, of the size that the networks take."""
    path = tmp_path_factory.mktemp("named") / "patches.npz"
    small = colour_patches()
    save_npz(path, dataclasses.replace(small, images=np.stack([Geometry(SIZE)(image) for image in small.images])))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save(user_net("mobile", seed=6).state_dict(), path)
    return path


def train(data: Path, out: Path, *arguments: str | Path) -> Ran:
    size = ("--size", "x".join(map(str, SIZE)))
    return run("train", "--data", data, "--out", out, "--held-out", "24", *size, *SHORT, *arguments)


def test_a_network_by_name_trains_from_its_weights(tmp_path: Path, data: Path, weights: Path) -> None:
    ran = train(
        data, tmp_path / "run", "--network", NETWORK, "--weights", weights, "--options", "skip,8,full", "--json"
    )
    assert ran.code == 0, ran
    assert ran.json["options"] == ["skip", "8", "full"]
    assert any("5 classes" in note and "new one for 3" in note for note in ran.json["notes"])
    network = load_checkpoint(ran.json["checkpoint"]).network
    assert network.architecture.classes == 3
    assert [block.graphs.name for block in network.blocks] == ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]


def test_weights_need_their_network(tmp_path: Path, data: Path, weights: Path) -> None:
    train(data, tmp_path / "run", "--weights", weights).failed(2, "weights", "network")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_is_one_line_before_the_run_begins(tmp_path: Path, data: Path, weights: Path) -> None:
    out = tmp_path / "run"
    train(data, out, "--network", "tests.cli.test_train_named:none").failed(2, "cannot be imported")
    train(data, out, "--network", "resnet18").failed(2, "torchvision:NAME")
    train(data, out, "--network", NETWORK, "--blocks", "3").failed(2, "blocks per group", "adapt --blocks")
    train(data, out, "--network", NETWORK, "--blocks", "InvertedResidual").failed(2, "--blocks", "adapt --blocks")
    ran = train(data, out, "--network", "tests.cli.test_train_named:choosy")
    assert ran.code == 2
    assert all(word in ran.err.splitlines()[-1] for word in ("(3, 12, 12)", "--size of train")), ran.err
    ran = train(data, out, "--network", "cifar-resnet:14", "--weights", weights)
    assert ran.code == 4
    error = ran.err.splitlines()[-1]
    assert error.startswith(f"error: {weights} does not fit cifar-resnet:14: it lacks ")
    assert not out.exists()
