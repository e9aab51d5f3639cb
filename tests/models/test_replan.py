"""Plans of networks that decide already."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dfs_deploy.models import adapt, find_blocks
from dfs_deploy.models.replan import plan_of
from tests.nets import KINDS, Kind, user_images, user_net


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_plan_that_the_network_was_adapted_by(kind: Kind) -> None:
    net = user_net(kind)
    found = find_blocks(net, user_images(2))
    found["layer1.*"].options = "skip,full"
    again = plan_of(adapt(net, found, "skip,8,full"))
    assert (again.stem, again.head, again.multiply_adds) == (found.stem, found.head, found.multiply_adds)
    assert [piece.graphs for piece in again.pieces] == [piece.graphs for piece in found.pieces]
    plain = [dataclasses.replace(row, class_name="", reason=None) for row in found.rows]
    assert list(again.rows) == plain
    again.check(net)


def test_a_network_can_be_adapted_again_by_it() -> None:
    net = user_net("mobile")
    first = adapt(net, find_blocks(net, user_images(2)), "skip,8,full")
    second = adapt(first.net, plan_of(first), "skip,full", "stateless")
    images = user_images(4)
    with torch.no_grad():
        assert torch.equal(second.static(images), first.static(images))
    decided = second.architecture.decided(second.options)
    assert [second.blocks[index - 1].graphs.name for index in decided] == ["layer1.0", "layer1.1", "layer2.1"]
