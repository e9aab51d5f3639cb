"""``dfs-deploy adapt``: from a network by name to a checkpoint, without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.data import Dataset, save_npz
from dfs_deploy.runtimes import Runtime
from tests.cli.program import run
from tests.nets import user_images, user_net
from tests.settled import pixels

NETWORK = "tests.cli.test_adapt:mobile"
NET = ("--network", NETWORK, "--image-size", "12")


def mobile() -> nn.Module:
    return user_net("mobile")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(user_net("mobile", seed=4).state_dict(), tmp_path / "w.pt")
    return tmp_path / "w.pt"


def test_a_network_becomes_a_checkpoint_that_computes_the_same(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("adapt", *NET, "--weights", weights, "--options", "skip,8,full")
    assert (ran.code, ran.err) == (0, "")
    assert "wrote test_adapt-mobile.pt" in ran.out
    assert "4 blocks among skip,8,full" in ran.out
    loaded = load_checkpoint(tmp_path / "test_adapt-mobile.pt")
    assert loaded.network.architecture.name == NETWORK
    assert loaded.network.options.names == ("skip", "8", "full")
    images = user_images(6)
    with torch.no_grad():
        expected = user_net("mobile", seed=4)(images)
        assert torch.equal(loaded.network.static(images), expected)
    path = loaded.network.route(images).path
    assert (path == 2).all(), "a gate that was not trained runs every block in full precision"
    difference = float((loaded.network.route(images).logits - expected).abs().max() / expected.abs().max())
    assert 1e-5 < difference < 0.1, "stem and head run in 8 bits"
    run("adapt", *NET, "--weights", weights, "--options", "skip,8,full", "--always", "32", "--out", "exact.pt")
    logits = load_checkpoint(tmp_path / "exact.pt").network.route(images).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_next_step_is_shown_as_it_can_be_run(tmp_path: Path) -> None:
    for options, targets in (("skip,8", "fp32,int8"), ("skip,8,16,full", "fp32,fp16,int8"), ("skip,full", "fp32")):
        out = tmp_path / f"{options}.pt"
        ran = run("adapt", *NET, "--options", options, "--out", out)
        assert f"--targets {targets} --calibration-data DATA" in ran.out


def test_values_of_the_input_are_taken(tmp_path: Path) -> None:
    flags = ("--mean", "0.1,0.2,0.3", "--std", "0.5,0.5,0.5", "--class-names", "a,b,c,d,e", "--resize", "20")
    run("adapt", *NET, *flags, "--interpolation", "bicubic", "--out", tmp_path / "net.safetensors")
    contract = load_checkpoint(tmp_path / "net.safetensors").input
    assert (contract.mean, contract.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert contract.class_names == tuple("abcde")
    assert (contract.resize, contract.interpolation) == (20, "bicubic")


def test_gate_bits_classes_and_options_of_blocks_are_chosen(tmp_path: Path) -> None:
    out = tmp_path / "net.pt"
    ran = run(
        *("adapt", *NET, "--gate", "stateless", "--always", "32", "--classes", "3", "--options", "skip,8,full"),
        *("--block", "layer1.*=skip,full", "--out", out, "--json"),
    )
    assert ran.code == 0, ran
    assert ran.json["checkpoint"] == str(out)
    assert ran.json["decided"] == 4
    assert any("3 classes" in note for note in ran.json["notes"])
    network = load_checkpoint(out).network
    assert network.architecture.gate.kind == "stateless"
    assert network.graphs.always == 32
    assert network.architecture.classes == 3
    assert network.architecture.blocks[1].options == ("skip", "full")


def test_a_cifar_resnet_needs_no_other_package(tmp_path: Path) -> None:
    ran = run("adapt", "--network", "cifar-resnet:8", "--options", "skip,8", "--out", tmp_path / "r8.pt")
    assert ran.code == 0, ran
    assert load_checkpoint(tmp_path / "r8.pt").input.shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--gate", "tree"), 2, ["gate 'tree'", "lstm or stateless"]),
        (("--options", "full"), 2, ["at least 2"]),
        (("--class-names", "a,b"), 2, ["2 class names", "5 classes"]),
        (("--mean", "0.1,0.2"), 2, ["mean", "3 channel"]),
        (("--out", "."), 2, ["exists", "--out"]),
        (("--out", "file/net.pt"), 2, ["file/net.pt", "--out"]),
        (("--block", "*=full"), 2, ["nothing is decided"]),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    run("adapt", *NET, *arguments).failed(code, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_text("mine")
    run("adapt", *NET, "--out", tmp_path / "net.pt").failed(2, "exists", "--out")
    assert (tmp_path / "net.pt").read_text() == "mine"


def test_what_it_wrote_exports_and_runs(tmp_path: Path, weights: Path) -> None:
    out, bundle, data = tmp_path / "net.pt", tmp_path / "net.dfs", tmp_path / "x.npz"
    images = pixels(48, size=(12, 12))
    save_npz(data, Dataset(images, np.arange(48) % 5, tuple("abcde"), "pixels"))
    # Stem and head in full precision too, so that nothing is rounded on the path of an untrained gate.
    run("adapt", *NET, "--weights", weights, "--options", "skip,8,full", "--always", "32", "--out", out)
    ran = run("export", out, "--targets", "fp32,int8", "--calibration-data", data, "--out", bundle, "--json")
    assert ran.code == 0, ran
    with Runtime(bundle) as net:
        result = net(images)
    expected = user_net("mobile", seed=4)(torch.from_numpy(load_checkpoint(out).input.prepare(images))).detach()
    assert (result.path == 2).all()
    np.testing.assert_allclose(result.logits, expected.numpy(), rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
