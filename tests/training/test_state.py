"""The state of a run: what of a network must be finite, and what may be anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfs_deploy.errors import CheckpointError
from dfs_deploy.models import DFSNetwork, adapt, find_blocks
from dfs_deploy.training.state import State, load_state, save_state
from tests.checks import refuses
from tests.nets import user_images, user_net


@pytest.fixture
def network() -> DFSNetwork:
    net = user_net("basic")
    net.register_buffer("mask", torch.full((2, 2), float("-inf")))
    return adapt(net, find_blocks(net, user_images(2)), "skip,8,full")


def test_a_mask_of_infinities_comes_back(tmp_path: Path, network: DFSNetwork) -> None:
    save_state(tmp_path, State("joint", 3, 0, network=network.state_dict()))
    state = load_state(tmp_path)
    assert state is not None
    network.net.mask.zero_()  # type: ignore[operator, union-attr]
    state.restore_network(network, tmp_path)
    assert torch.equal(network.net.state_dict()["mask"], torch.full((2, 2), float("-inf")))


@pytest.mark.parametrize("key", ["net.fc.weight", "net.stem.1.running_var", "gate.projection.bias", "ranges.high"])
def test_what_the_network_computes_with_is_finite(tmp_path: Path, network: DFSNetwork, key: str) -> None:
    state = network.state_dict()
    with refuses(CheckpointError, "NaN or infinity", "start again"):
        State("joint", 3, 0, network={**state, key: torch.full_like(state[key], torch.nan)}).restore_network(
            network, tmp_path
        )
