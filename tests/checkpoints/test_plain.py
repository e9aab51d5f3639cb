"""Weights that know nothing of this package, in networks by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dfs_deploy.checkpoints import build_network, load_checkpoint, plain, save_checkpoint
from dfs_deploy.errors import CheckpointError, UnsafeCheckpointError, UsageError
from dfs_deploy.models import adapt, find_blocks
from dfs_deploy.preprocessing import IMAGENET_INPUT, InputContract
from tests.checks import MakesFolder, refuses
from tests.nets import user_images, user_net
from tests.networks import CifarResNetA, shaken

MINE = "tests.checkpoints.test_plain:mine"


def mine() -> nn.Module:
    """What a user's own function gives."""
    return user_net("mobile", seed=3)


class OwnHead(nn.Module):
    """A network whose last layer is no linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = user_net("basic")
        self.last = nn.Conv2d(5, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.inner(x)[:, :, None, None]).flatten(1)
        return logits


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return user_net("mobile", seed=8)


def written(path: Path, state: Any) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.safetensors"])
def test_a_state_dict_loads_into_its_network(tmp_path: Path, trained: nn.Module, name: str) -> None:
    made = build_network(MINE, written(tmp_path / name, trained.state_dict()), image_size=12)
    for key, value in trained.state_dict().items():
        assert torch.equal(made.net.state_dict()[key], value), key
    assert not made.net.training
    assert made.classes == 5
    images = user_images(4)
    with torch.no_grad():
        assert torch.equal(made.net(images), trained(images))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
@pytest.mark.parametrize("container", [None, "state_dict"])
def test_wrappers_and_containers_are_undone(
    tmp_path: Path, trained: nn.Module, prefix: str, container: str | None
) -> None:
    state: Any = {prefix + key: value for key, value in trained.state_dict().items()}
    content = {container: state, "epoch": 3} if container else state
    made = build_network(MINE, written(tmp_path / "net.pt", content), image_size=12)
    images = user_images(2)
    with torch.no_grad():
        assert torch.equal(made.net(images), trained(images))


def test_of_several_weights_the_named_are_taken(tmp_path: Path, trained: nn.Module) -> None:
    other = user_net("mobile", seed=9)
    path = written(tmp_path / "net.pt", {"model": trained.state_dict(), "model_ema": other.state_dict()})
    images = user_images(2)
    for key, expected in ((None, trained), ("model_ema", other)):
        with torch.no_grad():
            assert torch.equal(build_network(MINE, path, image_size=12, weights_key=key).net(images), expected(images))


def test_half_precision_becomes_float32(tmp_path: Path, trained: nn.Module) -> None:
    state = {key: value.half() if value.is_floating_point() else value for key, value in trained.state_dict().items()}
    made = build_network(MINE, written(tmp_path / "net.pt", state), image_size=12)
    assert {value.dtype for value in made.net.parameters()} == {torch.float32}


def test_an_adapted_networks_weights_load_without_its_gate(tmp_path: Path, trained: nn.Module) -> None:
    network = adapt(trained, find_blocks(trained, user_images(2)), "skip,8,full")
    save_checkpoint(tmp_path / "net.pt", network, InputContract((3, 12, 12)))
    made = build_network(MINE, tmp_path / "net.pt", image_size=12)
    assert any("without its gate" in note for note in made.notes)
    assert all(torch.equal(value, made.net.state_dict()[key]) for key, value in trained.state_dict().items())


# Number of classes


def test_weights_of_other_classes_bring_their_own(tmp_path: Path) -> None:
    seven = user_net("mobile", classes=7)
    path = written(tmp_path / "net.pt", seven.state_dict())
    for classes in (None, 7):
        made = build_network(MINE, path, classes, 12)
        assert made.classes == 7
        images = user_images(2)
        with torch.no_grad():
            assert torch.equal(made.net(images), seven(images))


def test_another_number_of_classes_has_a_new_layer_and_says_so(tmp_path: Path, trained: nn.Module) -> None:
    path = written(tmp_path / "net.pt", trained.state_dict())
    made = build_network(MINE, path, 3, 12)
    assert made.classes == 3
    assert any("5 classes" in note and "new one for 3" in note and "untrained" in note for note in made.notes)
    for key, value in trained.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(made.net.state_dict()[key], value), key
    assert build_network(MINE, classes=3, image_size=12).classes == 3


@pytest.mark.parametrize("classes", [0, -1, 1 << 20])
def test_no_network_has_so_many_classes(classes: int) -> None:
    with refuses(UsageError, "classes, expected 1 to"):
        build_network(MINE, classes=classes)


def test_without_a_final_linear_layer_classes_stay(tmp_path: Path) -> None:
    name = "tests.checkpoints.test_plain:OwnHead"
    assert build_network(name, classes=5, image_size=12).classes == 5
    with refuses(UsageError, "5 classes", "no final linear layer", "for 3"):
        build_network(name, classes=3, image_size=12)


# Weights that do not fit


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "net.pt", user_net("bottleneck").state_dict())
    with refuses(CheckpointError, str(path), MINE, "lacks", "does not have", "such as"):
        build_network(MINE, path)


def test_a_missing_tensor_is_named_and_counters_may_be_missing(tmp_path: Path, trained: nn.Module) -> None:
    state = trained.state_dict()
    cut = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    build_network(MINE, written(tmp_path / "net.pt", cut), image_size=12)
    del cut["fc.bias"]
    with refuses(CheckpointError, "lacks 1 of its", "fc.bias"):
        build_network(MINE, written(tmp_path / "net.pt", cut), image_size=12)


def test_a_tensor_of_another_shape_or_without_numbers_is_refused(tmp_path: Path, trained: nn.Module) -> None:
    key = "layer1.0.block.0.0.weight"
    state = trained.state_dict()
    assert key in state
    for value, word in ((state[key][:1], "expected ("), (state[key] * torch.nan, "NaN"), (state[key].long(), "int64")):
        with refuses(CheckpointError, key, word):
            build_network(MINE, written(tmp_path / "net.pt", {**state, key: value}), image_size=12)


class Masked(nn.Module):
    """A network with a mask of infinities, which it does not read on images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = user_net("mobile")
        self.register_buffer("mask", torch.full((2, 2), float("-inf")))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(x)
        return logits


def test_a_mask_of_infinities_is_no_weight(tmp_path: Path) -> None:
    name, state = "tests.checkpoints.test_plain:Masked", Masked().state_dict()
    made = build_network(name, written(tmp_path / "net.pt", state), image_size=12)
    assert torch.equal(made.net.state_dict()["mask"], state["mask"])
    for key in ("inner.fc.bias", "inner.stem.1.running_mean"):
        with refuses(CheckpointError, key, "NaN"):
            broken = {**state, key: state[key] * torch.nan}
            build_network(name, written(tmp_path / "net.pt", broken), image_size=12)


def test_no_layer_is_made_for_weights_that_do_not_fit(
    tmp_path: Path, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of little more than a name could ask for a layer of gigabytes."""
    monkeypatch.delattr(plain, "_with_classes")
    state = {**trained.state_dict(), "fc.weight": torch.zeros(65_000, 1), "fc.bias": torch.zeros(65_000)}
    with refuses(CheckpointError, "fc.weight", "(65000, 1)", "expected (65000, "):
        build_network(MINE, written(tmp_path / "net.pt", state), image_size=12)
    with refuses(CheckpointError, "other.weight"):
        build_network(MINE, written(tmp_path / "net.pt", {**state, "other.weight": torch.zeros(1)}), image_size=12)


def test_nothing_in_weights_is_run(tmp_path: Path, trained: nn.Module) -> None:
    marker = tmp_path / "marker"
    path = written(tmp_path / "net.pt", {"state_dict": trained.state_dict(), "hook": MakesFolder(marker)})
    with refuses(UnsafeCheckpointError, "run code"):
        build_network(MINE, path)
    assert not marker.exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with refuses(CheckpointError, "does not exist"):
        build_network(MINE, tmp_path / "none.pt")


# CIFAR ResNets with the published names and option A's shortcuts


def published(path: Path, blocks: int) -> tuple[Path, nn.Module]:
    """A file as the published ones are: wrapped, with an accuracy beside."""
    net = shaken(CifarResNetA((blocks,) * 3, 16))
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, path)
    return path, net


@pytest.mark.parametrize("depth", [8, 20])
def test_published_weights_give_their_networks_logits(tmp_path: Path, depth: int) -> None:
    path, theirs = published(tmp_path / "resnet.th", (depth - 2) // 6)
    made = build_network(f"cifar-resnet:{depth}", path)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(made.net(images), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert (made.contract.mean, made.contract.std) == (IMAGENET_INPUT.mean, IMAGENET_INPUT.std)
    assert made.contract.shape == (3, 32, 32)
    network = adapt(made.net, find_blocks(made.net, made.example), "skip,8,full")
    save_checkpoint(tmp_path / "net.pt", network, made.contract)
    loaded = load_checkpoint(tmp_path / "net.pt").network
    with torch.no_grad():
        torch.testing.assert_close(loaded.static(images), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        with loaded.forced(["skip"] * len(loaded.blocks)):
            assert torch.isfinite(loaded.route(images).logits).all()


def test_weights_of_another_depth_are_refused(tmp_path: Path) -> None:
    path, _ = published(tmp_path / "resnet.th", 1)
    with refuses(CheckpointError, "cifar-resnet:14", "lacks"):
        build_network("cifar-resnet:14", path)
