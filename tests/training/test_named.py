"""Training of networks by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.data import save_npz
from dfs_deploy.errors import OptionError, UsageError
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import Options
from dfs_deploy.training import Job, preset, read_metrics, resume, train
from dfs_deploy.training.begin import fitted, input_of
from dfs_deploy.training.metrics import RunRecord
from tests.checks import refuses
from tests.nets import user_net
from tests.training.small import colour_patches

MOBILE = "tests.nets:three_classes"

SHORT: dict[str, Any] = {
    "cost": "flops",
    "batch": 16,
    "backbone_steps": 4,
    "gate_steps": 3,
    "joint_steps": 4,
    "threads": 1,
    "device": "cpu",
    "held_out": 24,
    "size": "12x12",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("named") / "patches.npz"
    save_npz(path, colour_patches())
    return path


def test_without_weights_the_network_is_trained_from_the_start(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", network=MOBILE, options="skip,8,full", **SHORT)
    assert result.job.stages == ("backbone", "gate", "joint")
    header = read_metrics(tmp_path / "run")[0]
    assert isinstance(header, RunRecord)
    assert header.job["network"] == MOBILE
    assert len(header.network.blocks) == 5
    found = load_checkpoint(result.checkpoint).network
    assert found.options == Options.parse("skip,8,full")
    [assumed] = [note for note in result.notes if "ImageNet" in note]
    assert assumed.startswith("images are 12x12 pixels, bilinear"), "as the run resizes them, without a crop"
    backbone = load_checkpoint(tmp_path / "run" / "backbone.pt").network
    assert backbone.graphs.always == 32
    assert backbone.policy == (1, 1, 1, 1)
    assert resume(tmp_path / "run").finished_before


@pytest.mark.parametrize(
    ("size", "resize"), [(None, 256), ((224, 224), 256), ((224, 112), None)], ids=["none", "its own", "another"]
)
def test_an_assumed_crop_is_of_images_of_that_size(size: tuple[int, int] | None, resize: int | None) -> None:
    job = fitted(
        Job("digits", preset("quick"), network=MOBILE), input_of(MOBILE, None, size), {"size": size or (224, 224)}
    )
    assert (job.size, job.resize, job.interpolation) == (size or (224, 224), resize, "bilinear")


def test_the_file_of_weights_says_how_torchvisions_images_are_resized() -> None:
    pytest.importorskip("torchvision")
    file = "a/folder/resnet50-0676ba61.pth"
    assert input_of("torchvision:resnet50", file, None).resize == 256
    assert input_of("torchvision:resnet50", None, None).resize == 232


def test_with_weights_only_gate_and_joint_training_are_left(data: Path, tmp_path: Path) -> None:
    state = user_net("mobile", 3, seed=5).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    values = {**SHORT, "joint_steps": 0}
    result = train(data, tmp_path / "run", network=MOBILE, weights=tmp_path / "weights.pt", **values)
    assert result.job.stages == ("gate", "joint")
    found = load_checkpoint(result.checkpoint).network
    assert torch.equal(found.get_parameter("net.fc.weight"), state["fc.weight"])


def test_the_final_layer_is_made_for_the_classes_of_the_data(data: Path, tmp_path: Path) -> None:
    """Weights of other classes have the rest of the network all the same; the new layer is trained first."""
    state = user_net("mobile", 3, seed=5).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    two = colour_patches()
    rows = np.flatnonzero(two.labels < 2)
    small = type(two)(two.images[rows], two.labels[rows], two.class_names[:2], "two")
    save_npz(tmp_path / "two.npz", small)
    values = {**SHORT, "joint_steps": 0, "held_out": 16}
    result = train(tmp_path / "two.npz", tmp_path / "run", network=MOBILE, weights=tmp_path / "weights.pt", **values)
    assert result.job.stages == ("backbone", "gate", "joint")
    begun = load_checkpoint(tmp_path / "run" / "network.pt", deployable=False).network
    assert begun.architecture.classes == 2
    assert torch.equal(begun.get_parameter("net.stem.0.weight"), state["stem.0.weight"])
    assert resume(tmp_path / "run").finished_before
    assert any("3 classes" in note for note in result.notes)


def test_a_backbone_of_another_run_is_taken_whatever_its_gate(data: Path, tmp_path: Path) -> None:
    first = train(data, tmp_path / "first", network=MOBILE, until="backbone", **SHORT)
    values = {**SHORT, "options": "skip,full", "joint_steps": 0}
    second = train(data, tmp_path / "second", network=MOBILE, backbone=first.checkpoint, **values)
    assert second.job.stages == ("gate", "joint")
    ours, theirs = (load_checkpoint(each.checkpoint).network for each in (first, second))
    assert torch.equal(ours.get_parameter("net.fc.weight"), theirs.get_parameter("net.fc.weight"))


def test_a_policy_of_a_named_network_is_searched_and_trained(data: Path, tmp_path: Path) -> None:
    first = train(data, tmp_path / "first", network=MOBILE, until="backbone", **SHORT)
    values = {**SHORT, "options": "skip,8,full", "policy": "mixed", "target": 40.0}
    result = train(data, tmp_path / "run", network=MOBILE, backbone=first.checkpoint, **values)
    network = load_checkpoint(result.checkpoint).network
    assert network.policy is not None
    assert network.options[network.policy[2]].name != "skip", "a block without a shortcut"
    assert result.evaluation.percentage <= 40.0 + 1e-3


def test_a_checkpoint_of_an_adapted_network_may_be_named(data: Path, tmp_path: Path) -> None:
    from tests.nets import adapted

    adapted("mobile", "skip,full", classes=3).save(tmp_path / "net.pt")
    result = train(data, tmp_path / "run", network=tmp_path / "net.pt", **SHORT)
    assert result.job.stages == ("gate", "joint")
    assert isinstance(load_checkpoint(result.checkpoint).network, DFSNetwork)


def test_what_cannot_be_is_refused(data: Path, tmp_path: Path) -> None:
    with refuses(UsageError, "network 'resnet'", "torchvision:NAME"):
        train(data, tmp_path / "run", network="resnet", **SHORT)
    with refuses(OptionError, "policy of 3 options for 4"):
        train(data, tmp_path / "run", network=MOBILE, policy="8,8,8", **SHORT)
    with refuses(UsageError, "blocks per group", "adapt --blocks"):
        train(data, tmp_path / "run", network=MOBILE, blocks_per_group=3, **SHORT)
    with refuses(UsageError, "weights"):
        Job("digits", preset("quick"), weights="net.pt")
    assert not (tmp_path / "run").exists()


def test_options_that_were_asked_for_are_those_of_a_network_whose_target_is_found_by_its_reach(
    data: Path, tmp_path: Path
) -> None:
    result = train(data, tmp_path / "run", network=MOBILE, preset="jetson", options="skip,full", **SHORT)
    assert load_checkpoint(result.checkpoint).network.options == Options.parse("skip,full")
    assert result.job.target == pytest.approx(60.0)
