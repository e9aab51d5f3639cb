"""What the reference computes for some images: the features before each part, by which parts are chosen and judged."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from dfs_deploy.models import DFSNetwork, NetworkOutput
from dfs_deploy.options import FULL_BITS

_PIXELS = 1 << 20
"""Most pixels that are computed together: feature maps of a ResNet-50 take a hundred bytes and more for each."""

_FEWEST = 8


def images_at_once(shape: tuple[int, ...], most: int) -> int:
    """Number of images of a shape (C, H, W) that are computed together: at most ``most``, fewer if they are large."""
    return max(min(_FEWEST, most), min(most, _PIXELS // (shape[1] * shape[2])))


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference's features for some images.

    Attributes:
        network: the reference, in evaluation mode.
        images: (N, C, H, W) float32, normalised.
        routed: its output for them, routed.
        features: output of the stem and of each gated block for every image, each in the option that its path takes.
    """

    network: DFSNetwork
    images: Tensor
    routed: NetworkOutput
    features: tuple[Tensor, ...]

    @staticmethod
    @torch.no_grad()
    def of(network: DFSNetwork, images: Tensor) -> Reference:
        """Runs a network, in evaluation mode, on images (N, C, H, W) float32, normalised."""
        routed = network.route(images)
        features = [network.stem(images)]
        for index in range(1, len(network.architecture.blocks)):
            features.append(network.run_block(index, features[-1], routed.path[:, index - 1]))
        return Reference(network, images, routed, tuple(features))

    @functools.cached_property
    def static(self) -> tuple[Tensor, ...]:
        """The same of the static network, in full precision, without the blocks that a static policy leaves out."""
        left_out = self.network.left_out
        with torch.no_grad():
            features = [self.network.stem(self.images, FULL_BITS)]
            for index, block in enumerate(self.network.blocks, start=1):
                x = features[-1]
                features.append(block.skip(x, bits=FULL_BITS) if index in left_out else block(x))
        return tuple(features)

    def reaching(self, place: int, option: int | None) -> Tensor:
        """What enters a part.

        Args:
            place: index of its block; 0 for the stem, and that of the last block and one for the head.
            option: index of its option, of which it gets the images that the gate sends there, or all if it sends none;
                ``None`` for all.
        """
        if place == 0:
            return self.images
        features = self.features[place - 1]
        if option is None or place == len(self.features):
            return features
        rows = torch.nonzero(self.routed.path[:, place - 1] == option).flatten()
        return features[rows] if len(rows) else features
