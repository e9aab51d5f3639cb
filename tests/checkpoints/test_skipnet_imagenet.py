from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfs_deploy.checkpoints import CheckpointFacts, load_checkpoint, save_checkpoint
from dfs_deploy.errors import CheckpointError
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import IMAGENET_INPUT
from tests.builders import (
    norm_shapes,
    plausible_values,
    random_images,
    save_release,
    skipnet_imagenet_shapes,
    skipnet_imagenet_state_dict,
)
from tests.checkpoints.oracle import GroupsOracle
from tests.checks import refuses

SMALL = CheckpointFacts(input_size=(32, 40))

# Depths, whether blocks have three convolutions, decisions, shape of the features before the head, from the papers.
NETWORKS = {
    "ResNet-18": ((2, 2, 2, 2), False),
    "ResNet-34": ((3, 4, 6, 3), False),
    "ResNet-50": ((3, 4, 6, 3), True),
    "ResNet-101": ((3, 4, 23, 3), True),
    "ResNet-152": ((3, 8, 36, 3), True),
}


@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("depths", [(1, 1, 1, 1), (2, 3, 1, 2)])
def test_the_network_computes_what_skipnet_does(
    tmp_path: Path, depths: tuple[int, int, int, int], bottleneck: bool
) -> None:
    state = skipnet_imagenet_state_dict(depths, bottleneck, seed=sum(depths))
    loaded = load_checkpoint(save_release(tmp_path / "net.pth.tar", state), facts=SMALL)
    assert loaded.format == "skipnet"
    assert loaded.network.options == Options.parse("skip,full")
    images = random_images(12, (32, 40))
    output = loaded.network.double().route(images.double())
    oracle = GroupsOracle(state, (0, 32))
    for index, image in enumerate(images):
        logits, path, scores = oracle.run(image)
        assert output.path[index].tolist() == path
        torch.testing.assert_close(output.scores[index, :, 1], torch.cat(scores), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(output.logits[index], logits, rtol=1e-6, atol=1e-6)
    assert set(output.path.flatten().tolist()) == {0, 1}, "both decisions should be met, or this shows little"


@pytest.mark.parametrize("name", NETWORKS)
def test_depth_and_kind_are_read_from_the_keys(tmp_path: Path, name: str) -> None:
    depths, bottleneck = NETWORKS[name]
    state = skipnet_imagenet_state_dict(depths, bottleneck)
    architecture = load_checkpoint(save_release(tmp_path / "net.pth.tar", state)).network.architecture
    assert architecture.name == name
    assert architecture.gated_blocks == sum(depths) - 1
    assert architecture.image_shape == (3, 224, 224)
    assert architecture.blocks[0].out_shape == (16 if bottleneck else 4, 56, 56)
    assert architecture.blocks[-1].out_shape == (128 if bottleneck else 32, 7, 7)
    skips = [block.skip for block in architecture.blocks]
    assert [index for index, skip in enumerate(skips) if skip == "projection"] == [
        sum(depths[:group]) for group in (1, 2, 3)
    ]
    assert skips[0] is None
    assert architecture.classes == 12


def test_multiply_adds_are_those_of_the_branch(tmp_path: Path) -> None:
    state = skipnet_imagenet_state_dict((3, 4, 6, 3), width=64, classes=1000)
    blocks = load_checkpoint(save_release(tmp_path / "net.pth.tar", state)).network.architecture.blocks
    # A bottleneck at stride 1: 1x1, 3x3 and 1x1 convolutions of 64 channels on 56x56.
    assert blocks[1].macs == 56 * 56 * (256 * 64 + 9 * 64 * 64 + 64 * 256)
    # The first of group 2 has its stride on the second convolution.
    assert blocks[3].macs == 56 * 56 * 256 * 128 + 28 * 28 * (9 * 128 * 128 + 128 * 512)


def test_what_was_assumed_is_said(tmp_path: Path) -> None:
    path = save_release(tmp_path / "net.pth.tar", skipnet_imagenet_state_dict())
    loaded = load_checkpoint(path)
    assert loaded.input == IMAGENET_INPUT
    for words in ("ImageNet's mean", "224x224 pixels, cut out of 256", "--class-names"):
        assert any(words in line for line in loaded.assumptions), words
    resized = load_checkpoint(path, facts=CheckpointFacts(input_size=(112, 112))).input
    assert (resized.shape, resized.resize) == ((3, 112, 112), 128)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_it_is_saved_in_our_own_format(tmp_path: Path, suffix: str) -> None:
    path = save_release(tmp_path / "net.pth.tar", skipnet_imagenet_state_dict())
    loaded = load_checkpoint(path, facts=SMALL)
    save_checkpoint(tmp_path / f"net{suffix}", loaded.network, loaded.input)
    again = load_checkpoint(tmp_path / f"net{suffix}")
    assert again.input == loaded.input
    assert again.network.graphs == loaded.network.graphs
    images = random_images(6, (32, 40))
    one, other = loaded.network.route(images), again.network.route(images)
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(one.path, other.path)


@pytest.mark.parametrize("left_out", ["_ds0.", ".downsample.", "group1_ds0."])
def test_either_name_of_a_projection_is_read(tmp_path: Path, left_out: str) -> None:
    whole = load_checkpoint(save_release(tmp_path / "a.pth.tar", skipnet_imagenet_state_dict())).network.state_dict()
    cut = {key: value for key, value in skipnet_imagenet_state_dict().items() if left_out not in key}
    loaded = load_checkpoint(save_release(tmp_path / "b.pth.tar", cut)).network.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in whole.items())


def test_aliases_must_agree(tmp_path: Path) -> None:
    state = skipnet_imagenet_state_dict() | {"group1_ds0.1.bias": torch.zeros(16)}
    with refuses(CheckpointError, "group1_ds0.1.bias", "differ"):
        load_checkpoint(save_release(tmp_path / "net.pth.tar", state))


def test_other_options_are_refused(tmp_path: Path) -> None:
    with refuses(CheckpointError, "skip,full", "skip,8,full"):
        load_checkpoint(save_release(tmp_path / "net.pt", skipnet_imagenet_state_dict()), "skip,8,full")


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    return plausible_values(skipnet_imagenet_shapes(), seed=0)


@pytest.mark.parametrize(
    "key",
    [
        "conv1.weight",
        "bn1.running_var",
        "group1_layer0.conv3.weight",
        "group2_layer0.downsample.1.bias",
        "group3_gate0.1.weight",
        "control.rnn.weight_hh_l0",
        "control.proj.bias",
        "fc.weight",
    ],
)
def test_a_tensor_that_lacks_or_has_another_shape_or_no_numbers_is_refused(
    tmp_path: Path, whole: dict[str, Tensor], key: str
) -> None:
    tensor, path = whole[key], tmp_path / "net.pth.tar"
    for changed in (tensor[None], torch.cat([tensor, tensor]), tensor[:0], tensor.flatten()[0], tensor * torch.nan):
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(save_release(path, {**whole, key: changed}))
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError):
        load_checkpoint(save_release(path, {name: value for name, value in whole.items() if name != key}))


@pytest.mark.parametrize("key", ["extra.weight", "group1_layer0.conv4.weight", "group4_layer0.bn4.weight"])
def test_a_tensor_too_many_is_refused(tmp_path: Path, whole: dict[str, Tensor], key: str) -> None:
    with refuses(CheckpointError, key):
        load_checkpoint(save_release(tmp_path / "net.pth.tar", {**whole, key: torch.ones(1)}))


@pytest.mark.parametrize("gone", ["group4_", "group2_layer0.", "group1_layer0."])
def test_groups_must_be_four_without_gaps(tmp_path: Path, whole: dict[str, Tensor], gone: str) -> None:
    state = {key: value for key, value in whole.items() if not key.startswith(gone)}
    with refuses(CheckpointError, "expected groups 1 to 4"):
        load_checkpoint(save_release(tmp_path / "net.pth.tar", state))


def test_a_block_that_changes_shape_needs_a_projection(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    state = {key: value for key, value in whole.items() if not key.startswith("group3_layer0.downsample")}
    with refuses(CheckpointError, "does not fit"):
        load_checkpoint(save_release(tmp_path / "net.pth.tar", state))


def test_more_norms_than_a_basic_block_has_are_refused(tmp_path: Path) -> None:
    state = skipnet_imagenet_state_dict(bottleneck=False) | plausible_values(norm_shapes("group1_layer0.bn3", 4), 1)
    with refuses(CheckpointError, "group1_layer0.bn3"):
        load_checkpoint(save_release(tmp_path / "net.pth.tar", state))
