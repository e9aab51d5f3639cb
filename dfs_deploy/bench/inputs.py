"""What a bench runs: images of a data set in a seeded order, never one image again and again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.data import Dataset, ImageFolder
from dfs_deploy.data.digits import DIGITS_CLASSES, DIGITS_SIZE, load_digits
from dfs_deploy.errors import MissingExtraError, UsageError

MAX_INPUTS = 1024


@dataclass(frozen=True, eq=False)
class Inputs:
    """Images that a bench runs.

    Attributes:
        images: (N, H, W, C) uint8, in the order in which they are run.
        labels: (N,) int64, or ``None`` where accuracy cannot be told.
        name: what reports call them.
        notes: what was assumed or noticed while they were read, a line each.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    name: str
    notes: tuple[str, ...] = ()


def draw_inputs(bundle: Bundle, data: Dataset | ImageFolder | None, seed: int) -> Inputs:
    """Draws at most 1024 images, in an order that the seed decides.

    Args:
        bundle: that they are for.
        data: where to draw from; ``None`` for the shipped digits where the bundle was made for them, and for the images
            that the bundle carries elsewhere.
        seed: 0 or more.

    Raises:
        UsageError: there are no images, or the seed is negative.
    """
    if seed < 0:
        raise UsageError(f"seed {seed}, expected 0 or more")
    why = "no data was given"
    if data is None and _is_for_digits(bundle):
        try:
            data = load_digits("test")
        except MissingExtraError as error:
            why = str(error)
    if data is not None:
        drawn = data.subset(MAX_INPUTS, seed).load()
        return Inputs(drawn.images, drawn.labels, drawn.name, drawn.notes)
    samples = bundle.samples()
    if samples is None:
        raise UsageError(f"{bundle.path} carries no images and {why}; give some with --data")
    order = np.random.default_rng(seed).permutation(len(samples.images))
    # No labels: they were chosen for different paths, so their top-1 would say nothing about any data.
    return Inputs(samples.images[order], None, "images carried by the bundle, chosen for different paths")


def _is_for_digits(bundle: Bundle) -> bool:
    """Names decide: ten classes alone may be anything."""
    return bundle.input.shape == (3, DIGITS_SIZE, DIGITS_SIZE) and bundle.input.class_names == DIGITS_CLASSES
