"""Jobs of a second: small images whose class is the colour of a patch, and a network of three blocks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from dfs_deploy.data import Dataset, save_npz
from dfs_deploy.training import Job, Recipe, preset

SIZE = 8

RECIPE = preset(
    "quick",
    blocks_per_group=1,
    batch=16,
    backbone_steps=40,
    gate_steps=30,
    gate_patience=3,
    joint_steps=20,
    settle_share=0.25,
)

SHORT = dataclasses.replace(RECIPE, backbone_steps=12, gate_steps=60, gate_patience=8, joint_steps=12)
"""Where it matters what is done, and not how well it ends."""


def colour_patches(count: int = 96, seed: int = 0) -> Dataset:
    """Noisy images of three classes, each with a patch of its colour."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = random.integers(0, 120, (count, SIZE, SIZE, 3))
    for image, label in zip(images, labels, strict=True):
        row, column = random.integers(0, SIZE - 3, 2)
        image[row : row + 4, column : column + 4, label] += 130
    return Dataset(images.astype(np.uint8), labels.astype(np.int64), ("red", "green", "blue"), "patches")


def job(folder: Path, *, backbone: Path | None = None, held_out: int | None = None, **recipe: Any) -> Job:
    """A job on such images, which are written to a folder, with some values of the recipe changed."""
    changed = dataclasses.replace(RECIPE, **recipe)
    return small_job(folder, changed, backbone=None if backbone is None else str(backbone), held_out=held_out)


def small_recipe(**changes: Any) -> Recipe:
    """The short recipe with some values changed."""
    return dataclasses.replace(SHORT, **changes)


def small_job(folder: Path, recipe: Recipe = SHORT, **changes: Any) -> Job:
    """A job on such images, which are written to a folder, with some values of the job changed."""
    path = folder / "patches.npz"
    if not path.exists():
        save_npz(path, colour_patches())
    return Job(str(path), recipe, **{"threads": 1, "save_every": 5, "device": "cpu", "seed": 1, **changes})
