from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.errors import CheckpointError, UnknownCheckpointError
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from tests.builders import random_images, release_state_dict, save_release
from tests.checkpoints.oracle import GroupsOracle
from tests.checks import refuses

DEFAULTS = {
    4: (0, 8, 16, 32),
    7: (0, 8, 10, 12, 14, 16, 32),
    10: (0, 2, 4, 6, 8, 10, 12, 14, 16, 32),
}


@pytest.mark.parametrize("count", DEFAULTS)
@pytest.mark.parametrize("groups", [(1, 1, 1), (2, 1, 3)])
def test_the_network_computes_what_the_release_does(tmp_path: Path, count: int, groups: tuple[int, int, int]) -> None:
    state = release_state_dict(groups, count, seed=count)
    loaded = load_checkpoint(save_release(tmp_path / "net.pth.tar", state))
    assert loaded.format == "dfs-release"
    assert loaded.network.options.bits == DEFAULTS[count]
    images = random_images(12)
    output = loaded.network.double().route(images.double())
    oracle = GroupsOracle(state, DEFAULTS[count])
    for index, image in enumerate(images):
        logits, path, scores = oracle.run(image)
        assert output.path[index].tolist() == path
        torch.testing.assert_close(output.scores[index], torch.stack(scores), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(output.logits[index], logits, rtol=1e-6, atol=1e-6)
    assert len(output.path.unique()) > 1, "several options should be chosen, or this shows little"


def test_the_shape_is_read_from_the_tensors(tmp_path: Path) -> None:
    state = release_state_dict((2, 1, 3), 4, classes=100, width=16)
    loaded = load_checkpoint(save_release(tmp_path / "net.pth.tar", state, arch="cifar10_rnn_gate_110"))
    architecture = loaded.network.architecture
    assert architecture == cifar_resnet((2, 1, 3), classes=100)
    assert loaded.input.class_names == ()
    assert not loaded.network.training


def test_what_was_assumed_is_said(tmp_path: Path) -> None:
    path = save_release(tmp_path / "net.pth.tar", release_state_dict())
    loaded = load_checkpoint(path)
    assert loaded.input.class_names == ()
    assert loaded.input.mean == (0.4914, 0.4822, 0.4465)
    assert any("--class-names" in line for line in loaded.assumptions)
    assert any("--input-size" in line for line in loaded.assumptions)
    assert any("skip,8,16,full" in line and "--options" in line for line in loaded.assumptions)
    assert any("mean" in line for line in loaded.assumptions)
    told = load_checkpoint(path, Options.parse("skip,4,8,full"))
    assert told.network.options.bits == (0, 4, 8, 32)
    assert not any("--options" in line for line in told.assumptions)


def test_a_count_of_options_that_nobody_wrote_down_needs_them_said(tmp_path: Path) -> None:
    path = save_release(tmp_path / "net.pth.tar", release_state_dict(options=5))
    with refuses(UnknownCheckpointError, "5 options", "--options"):
        load_checkpoint(path)
    assert load_checkpoint(path, Options.parse("skip,4,8,16,full")).network.options.bits == (0, 4, 8, 16, 32)


def test_as_many_options_are_needed_as_the_gate_scores(tmp_path: Path) -> None:
    path = save_release(tmp_path / "net.pth.tar", release_state_dict())
    with refuses(CheckpointError, "give 4"):
        load_checkpoint(path, Options.parse("skip,8,full"))


def test_keys_without_a_wrapper_load_too(tmp_path: Path) -> None:
    state = release_state_dict()
    torch.save({"state_dict": state}, tmp_path / "bare.pt")
    torch.save(state, tmp_path / "flat.pt")
    for name in ("bare.pt", "flat.pt"):
        assert load_checkpoint(tmp_path / name).format == "dfs-release"


@pytest.mark.parametrize(
    ("alias", "value", "word"),
    [
        ("group3_ds0.quantize_input.running_max", torch.tensor([1e-3]), "group3_ds0.quantize_input.running_max"),
        ("group2_bn0.bias", torch.zeros(3), "group2_bn0.bias"),
        ("group2_ds0.bias", torch.zeros(8), "group2_layer0.downsample.bias"),
    ],
    ids=["another value", "another shape", "of nothing"],
)
def test_aliases_must_agree(tmp_path: Path, alias: str, value: Tensor, word: str) -> None:
    with refuses(CheckpointError, word):
        load_checkpoint(save_release(tmp_path / "net.pth.tar", release_state_dict() | {alias: value}))


@pytest.mark.parametrize(
    "left_out", [("_ds0.", "_bn0."), (".downsample.", "layer0.bn3."), (".downsample.", "_bn0."), ("group2_ds0",)]
)
def test_either_name_of_a_pair_is_read(tmp_path: Path, left_out: tuple[str, ...]) -> None:
    state = {key: value for key, value in release_state_dict().items() if not any(part in key for part in left_out)}
    state |= {key: value for key, value in release_state_dict().items() if "group1_layer" in key}
    whole = load_checkpoint(save_release(tmp_path / "whole.pth.tar", release_state_dict())).network.state_dict()
    loaded = load_checkpoint(save_release(tmp_path / "net.pth.tar", state)).network.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in whole.items())


@pytest.mark.parametrize("which", ["", "group2_layer0", "group2_bn0"])
def test_counts_of_batches_may_be_missing(tmp_path: Path, which: str) -> None:
    state = release_state_dict()
    cut = {k: v for k, v in state.items() if not (k.endswith("num_batches_tracked") and k.startswith(which))}
    assert len(cut) < len(state)
    whole = load_checkpoint(save_release(tmp_path / "whole.pth.tar", state)).network
    loaded = load_checkpoint(save_release(tmp_path / "net.pth.tar", cut)).network
    images = random_images(2)
    assert torch.equal(whole.route(images).logits, loaded.route(images).logits)


def zero_ranges(state: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {
        key: torch.zeros_like(value)
        if "running_m" in key and "quantize" in key and any(p in key for p in parts)
        else value
        for key, value in state.items()
    }


def test_a_gate_only_stage_is_refused(tmp_path: Path) -> None:
    state = zero_ranges(release_state_dict((2, 2, 2)), "")
    with refuses(CheckpointError, "gate-only", "step 2"):
        load_checkpoint(save_release(tmp_path / "net.pth.tar", state))


def test_ranges_of_stem_and_first_block_are_normally_zero(tmp_path: Path) -> None:
    state = release_state_dict()
    state = {
        key: torch.zeros_like(value)
        if key.startswith(("conv1.quantize", "group1_layer0.")) and "quantize_input" in key
        else value
        for key, value in state.items()
    }
    load_checkpoint(save_release(tmp_path / "net.pth.tar", state))


def test_a_block_that_never_ran_quantised_is_named(tmp_path: Path) -> None:
    state = zero_ranges(release_state_dict(), "group1_layer1.conv2")
    with refuses(CheckpointError, "block(s) 1 "):
        load_checkpoint(save_release(tmp_path / "net.pth.tar", state))
    state = zero_ranges(release_state_dict(), "group3_layer0.downsample", "group3_ds0")
    with refuses(CheckpointError, "block(s) 3 "):
        load_checkpoint(save_release(tmp_path / "net.pth.tar", state))


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    return release_state_dict((2, 1, 1))


KINDS = [
    "conv1.weight",
    "group1_layer1.conv2.quantize_input.running_max",
    "group2_layer0.bn3.running_var",
    "group2_gate0.1.bias",
    "control.rnn_one.weight_hh_l0",
    "fc.weight",
]


@pytest.mark.parametrize("key", KINDS)
def test_a_tensor_that_lacks_or_has_another_shape_or_no_numbers_is_refused(
    tmp_path: Path, whole: dict[str, Tensor], key: str
) -> None:
    tensor, path = whole[key], tmp_path / "net.pth.tar"
    for changed in (tensor[None], torch.cat([tensor, tensor]), tensor[:0], tensor.flatten()[0], tensor * torch.nan):
        with refuses(CheckpointError):
            load_checkpoint(save_release(path, {**whole, key: changed}), Options.parse("skip,8,16,full"))
    names = {key, key.replace("_layer0.bn3.", "_bn0.")}
    with refuses(CheckpointError):
        load_checkpoint(save_release(path, {name: value for name, value in whole.items() if name not in names}))


def test_the_key_that_is_wrong_is_named(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    key = "group2_layer0.conv1.weight"
    with refuses(CheckpointError, key, "(8, 4, 3, 5)", "(8, 4, 3, 3)"):
        load_checkpoint(save_release(tmp_path / "a.pth.tar", {**whole, key: torch.zeros(8, 4, 3, 5)}))
    with refuses(CheckpointError, "group1_layer1.bn2.running_var", "NaN"):
        nan = torch.full((4,), torch.nan)
        load_checkpoint(save_release(tmp_path / "b.pth.tar", {**whole, "group1_layer1.bn2.running_var": nan}))
    with refuses(CheckpointError, "control.rnn_one.bias_hh_l0", "lacks"):
        cut = {name: value for name, value in whole.items() if name != "control.rnn_one.bias_hh_l0"}
        load_checkpoint(save_release(tmp_path / "c.pth.tar", cut))


@pytest.mark.parametrize("key", ["extra.weight", "group1_layer0.downsample.weight"])
def test_a_tensor_too_many_is_refused(tmp_path: Path, whole: dict[str, Tensor], key: str) -> None:
    with refuses(CheckpointError, key):
        load_checkpoint(save_release(tmp_path / "net.pth.tar", {**whole, key: torch.ones(1)}))


def test_groups_must_be_three_without_gaps(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    without = {key: value for key, value in whole.items() if not key.startswith("group1_layer0")}
    with refuses(CheckpointError, "expected groups 1 to 3"):
        load_checkpoint(save_release(tmp_path / "gap.pth.tar", without))
    with refuses(CheckpointError, "expected groups 1 to 3"):
        fourth = {**whole, "group4_layer0.conv1.weight": torch.ones(8, 8, 3, 3)}
        load_checkpoint(save_release(tmp_path / "four.pth.tar", fourth))
