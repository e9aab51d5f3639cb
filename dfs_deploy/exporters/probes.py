"""The few images that a bundle carries: for its validation, and for a bench or a self-check without data."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dfs_deploy.bundle import Samples
from dfs_deploy.models import DFSNetwork
from dfs_deploy.preprocessing import InputContract

CARRIED = 64
"""Maximum number of images that a bundle carries."""

_DRAWN = 256

MOST_LOOKED_AT = 2 * _DRAWN
"""Most images that those are chosen from."""


def make_probes(contract: InputContract, seed: int) -> NDArray[np.uint8]:
    """Smooth random images of many scales and contrasts, for an export without data.

    Returns:
        (256, H, W, C) uint8.
    """
    random = np.random.default_rng(seed)
    channels, height, width = contract.shape
    images = np.empty((_DRAWN, height, width, channels), np.uint8)
    for image in images:
        coarse = int(random.integers(2, max(3, min(height, width) + 1)))
        contrast, level = random.uniform(5, 80), random.uniform(60, 200)
        for channel in range(channels):
            noise = np.clip(random.normal(level, contrast, (coarse, coarse)), 0, 255).astype(np.uint8)
            resized = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            image[..., channel] = np.asarray(resized)
    return images


def pick_samples(
    network: DFSNetwork, contract: InputContract, images: NDArray[np.uint8], labels: NDArray[np.int64] | None
) -> Samples:
    """Chooses the images that a bundle carries: one of each path, then the first of the rest up to 64, in their order.

    Of the images, (N, H, W, C) uint8, the first ``MOST_LOOKED_AT`` are looked at; the labels are (N,) int64.
    """
    images = images[:MOST_LOOKED_AT]
    output = network.route(torch.from_numpy(contract.normalize(images)))
    path = output.path.numpy().astype(np.uint8)
    first = np.sort(np.unique(path, axis=0, return_index=True)[1])
    chosen = np.concatenate([first, np.setdiff1d(np.arange(len(images)), first)])[:CARRIED]
    chosen.sort()
    known = np.full(len(images), -1, np.int64) if labels is None else labels[: len(images)]
    return Samples(images[chosen], known[chosen], output.logits.numpy()[chosen], path[chosen])


def pack_samples(samples: Samples) -> bytes:
    """The samples as the content of an ``.npz`` file."""
    stream = io.BytesIO()
    np.savez_compressed(stream, images=samples.images, labels=samples.labels, logits=samples.logits, path=samples.path)
    return stream.getvalue()
