"""The few images that a bundle carries: for its validation, and for a bench or a self-check without data."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dfs_deploy.bundle import Samples
from dfs_deploy.exporters.reference import images_at_once
from dfs_deploy.models import DFSNetwork
from dfs_deploy.preprocessing import InputContract

CARRIED = 64
"""Maximum number of images that a bundle carries."""

_CARRIED_BYTES = 1 << 20
_FEWEST_CARRIED = 8

_DRAWN = 256

_LOOKED_AT_PIXELS = 1 << 21
_FEWEST_LOOKED_AT = 32


def most_looked_at(contract: InputContract) -> int:
    """Most images that those are chosen from which validate an export and go into its bundle; fewer large ones."""
    _, height, width = contract.shape
    return max(_FEWEST_LOOKED_AT, min(2 * _DRAWN, _LOOKED_AT_PIXELS // (height * width)))


def make_probes(contract: InputContract, seed: int) -> NDArray[np.uint8]:
    """Smooth random images of many scales and contrasts, for an export without data.

    Returns:
        (N, H, W, C) uint8, 256 or fewer.
    """
    random = np.random.default_rng(seed)
    channels, height, width = contract.shape
    images = np.empty((min(_DRAWN, most_looked_at(contract)), height, width, channels), np.uint8)
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
    """Chooses images to validate an export: one of each path, then the first of the rest up to 64, in their order.

    Of large images, no more are chosen than are computed together. Of the images, (N, H, W, C) uint8, the first
    ``most_looked_at`` are looked at; the labels are (N,) int64.
    """
    images = images[: most_looked_at(contract)]
    at_once = images_at_once(contract.shape, CARRIED)
    parts = []
    for start in range(0, len(images), at_once):
        output = network.route(torch.from_numpy(contract.normalize(images[start : start + at_once])))
        parts.append((output.path.numpy().astype(np.uint8), output.logits.numpy()))
    path, logits = (np.concatenate(part) for part in zip(*parts, strict=True))
    chosen = _one_of_each(path)[:at_once]
    chosen.sort()
    known = np.full(len(images), -1, np.int64) if labels is None else labels[: len(images)]
    return Samples(images[chosen], known[chosen], logits[chosen], path[chosen])


def carried(samples: Samples) -> Samples:
    """Those of the samples that a bundle carries: fewer if they are large, so that it weighs little besides weights."""
    count = max(_FEWEST_CARRIED, _CARRIED_BYTES // max(samples.images[:1].size, 1))
    kept = np.sort(_one_of_each(samples.path)[:count])
    return Samples(samples.images[kept], samples.labels[kept], samples.logits[kept], samples.path[kept])


def _one_of_each(path: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Indices of all paths (N, blocks): the first of each path, and then the rest."""
    first = np.sort(np.unique(path, axis=0, return_index=True)[1])
    return np.concatenate([first, np.setdiff1d(np.arange(len(path)), first)])


def pack_samples(samples: Samples) -> bytes:
    """The samples as the content of an ``.npz`` file."""
    stream = io.BytesIO()
    np.savez_compressed(stream, images=samples.images, labels=samples.labels, logits=samples.logits, path=samples.path)
    return stream.getvalue()
