from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.errors import CheckpointError
from dfs_deploy.models import decide
from dfs_deploy.options import Options
from tests.builders import random_images, save_release, skipnet_state_dict
from tests.checkpoints.oracle import GroupsOracle
from tests.checks import refuses


@pytest.mark.parametrize("groups", [(1, 1, 1), (3, 2, 2)])
def test_the_network_computes_what_skipnet_does(tmp_path: Path, groups: tuple[int, int, int]) -> None:
    state = skipnet_state_dict(groups, seed=sum(groups))
    loaded = load_checkpoint(save_release(tmp_path / "net.pth.tar", state))
    assert loaded.format == "skipnet"
    assert loaded.network.options == Options.parse("skip,full")
    images = random_images(16)
    output = loaded.network.double().route(images.double())
    oracle = GroupsOracle(state, (0, 32))
    for index, image in enumerate(images):
        logits, path, scores = oracle.run(image)
        assert output.path[index].tolist() == path
        torch.testing.assert_close(output.scores[index, :, 1], torch.cat(scores), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(output.logits[index], logits, rtol=1e-6, atol=1e-6)


def test_both_decisions_are_met(tmp_path: Path) -> None:
    """So that the agreement above is not on one constant."""
    network = load_checkpoint(save_release(tmp_path / "net.pth.tar", skipnet_state_dict((3, 2, 2)))).network
    assert set(network.route(random_images(16)).path.flatten().tolist()) == {0, 1}


def test_a_sigmoid_above_one_half_runs_the_block(tmp_path: Path) -> None:
    state = skipnet_state_dict()
    network = load_checkpoint(save_release(tmp_path / "net.pth.tar", state)).network
    hidden = torch.randn(2000, 10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decided = decide(network.gate.projection(hidden))
    score = hidden @ state["control.proj.weight"][0] + state["control.proj.bias"]
    sure = score.abs() > 1e-5
    assert int(sure.sum()) > 1900
    expected = (torch.sigmoid(score) > 0.5).long()
    assert torch.equal(decided[sure], expected[sure])
    assert 0 < int(expected.sum()) < 2000


def test_a_tie_skips(tmp_path: Path) -> None:
    state = skipnet_state_dict()
    state["control.proj.weight"].zero_()
    state["control.proj.bias"].zero_()
    network = load_checkpoint(save_release(tmp_path / "net.pth.tar", state)).network
    assert not torch.sigmoid(torch.zeros(1)) > 0.5, "SkipNet's own decision"
    assert not network.route(random_images(3)).path.any()


def test_pixels_are_assumed_to_be_cifars(tmp_path: Path) -> None:
    loaded = load_checkpoint(save_release(tmp_path / "net.pth.tar", skipnet_state_dict(classes=100)))
    assert loaded.network.architecture.classes == 100
    assert loaded.input.class_names == ()
    assert any("mean" in line for line in loaded.assumptions)


@pytest.mark.parametrize("text", ["full,skip", "skip,8,full"])
def test_other_options_are_refused(tmp_path: Path, text: str) -> None:
    with refuses(CheckpointError, "skip,full", text):
        load_checkpoint(save_release(tmp_path / "net.pth.tar", skipnet_state_dict()), Options.parse(text))


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    return skipnet_state_dict()


@pytest.mark.parametrize("key", ["conv1.weight", "group2_ds0.1.running_mean", "control.rnn.bias_hh_l0", "fc.bias"])
def test_a_tensor_that_lacks_or_has_another_shape_or_no_numbers_is_refused(
    tmp_path: Path, whole: dict[str, Tensor], key: str
) -> None:
    tensor, path = whole[key], tmp_path / "net.pth.tar"
    for changed in (tensor[None], torch.cat([tensor, tensor]), tensor[:0], tensor.flatten()[0], tensor * torch.nan):
        with refuses(CheckpointError):
            load_checkpoint(save_release(path, {**whole, key: changed}))
    names = {key, key.replace("_layer0.downsample.", "_ds0."), key.replace("_ds0.", "_layer0.downsample.")}
    with refuses(CheckpointError):
        load_checkpoint(save_release(path, {name: value for name, value in whole.items() if name not in names}))


def test_a_tensor_too_many_is_refused(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    with refuses(CheckpointError, "group1_layer0.bn3.weight"):
        load_checkpoint(save_release(tmp_path / "net.pt", {**whole, "group1_layer0.bn3.weight": torch.ones(4)}))
