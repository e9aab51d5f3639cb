from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.errors import UnknownCheckpointError
from tests.builders import (
    norm_shapes,
    plausible_values,
    release_state_dict,
    save_release,
    skipnet_state_dict,
)
from tests.checks import refuses


def fractrain() -> dict[str, Tensor]:
    renamed = {"running_min": "running_zero_point", "running_max": "running_range"}
    state = {}
    for key, value in release_state_dict().items():
        head, _, tail = key.rpartition(".")
        state[f"{head}.{renamed.get(tail, tail)}"] = value
    return state


def backbone_only() -> dict[str, Tensor]:
    return {k: v for k, v in release_state_dict().items() if "_gate" not in k and not k.startswith("control.")}


def skipnet_feed_forward() -> dict[str, Tensor]:
    state = {
        key: value
        for key, value in skipnet_state_dict().items()
        if "_gate" not in key and not key.startswith("control.")
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for group, width in ((1, 4), (2, 8), (3, 16)):
        gate = f"group{group}_gate0"
        shapes |= {f"{gate}.conv1.weight": (width, width, 3, 3)} | norm_shapes(f"{gate}.bn1", width)
        shapes |= {f"{gate}.linear_layer.weight": (2, width), f"{gate}.linear_layer.bias": (2,)}
    return state | plausible_values(shapes, seed=1)


@pytest.mark.parametrize(
    ("state", "kind", "remedy"),
    [
        (fractrain(), "FracTrain", "train with dfs-deploy"),
        (
            release_state_dict() | {"conv1.quantize_input.running_range": torch.ones(1)},
            "FracTrain",
            "train with dfs-deploy",
        ),
        (backbone_only(), "DFS backbone without a gate", "train the gate"),
        (skipnet_feed_forward(), "SkipNet with feed-forward gates", "recurrent-gate"),
    ],
)
def test_a_lookalike_is_named_with_what_to_do(tmp_path: Path, state: dict[str, Tensor], kind: str, remedy: str) -> None:
    path = save_release(tmp_path / "net.pth.tar", state)
    with refuses(UnknownCheckpointError, str(path), kind, remedy):
        load_checkpoint(path)


def test_blockdrop_is_named(tmp_path: Path) -> None:
    """Two state dicts, and no tensor at the top."""
    path = tmp_path / "net.t7"
    parts = {"resnet": {"blocks.0.0.conv1.weight": torch.ones(1)}, "agent": {"logit.weight": torch.ones(1)}}
    torch.save({**parts, "epoch": 3}, path)
    with refuses(UnknownCheckpointError, "is a BlockDrop checkpoint", "train with dfs-deploy"):
        load_checkpoint(path)


def test_an_architecture_name_proves_nothing(tmp_path: Path) -> None:
    """The release and SkipNet both have a ``cifar10_rnn_gate_38``."""
    ours = load_checkpoint(save_release(tmp_path / "a.pt", release_state_dict(), arch="cifar10_rnn_gate_38"))
    other = load_checkpoint(save_release(tmp_path / "b.pt", skipnet_state_dict(), arch="cifar10_rnn_gate_38"))
    assert (ours.format, other.format) == ("dfs-release", "skipnet")


def test_unknown_keys_are_shown(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "net.pt")
    with refuses(UnknownCheckpointError, "2 tensors", "bias, weight", "expected a dfs-deploy"):
        load_checkpoint(tmp_path / "net.pt")


def test_a_release_without_ranges_is_unknown(tmp_path: Path) -> None:
    state = {key: value for key, value in release_state_dict().items() if "quantize_input" not in key}
    with refuses(UnknownCheckpointError, "no known format"):
        load_checkpoint(save_release(tmp_path / "net.pth.tar", state))
