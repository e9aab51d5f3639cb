"""Scenes with a handwritten digit: most are clear, some are hard to read. They are made from scikit-learn's scans.

A clear scene is a scan, enlarged and near the middle of a dark picture. A hard one is what a poor picture of a digit
looks like: turned, larger or smaller, anywhere, paler, on brighter ground, among scraps of other digits, and noisy. A
network that decides for each image has something to decide here, as it has with a camera that sees well most of the
time. The scenes depend on split and copies alone, and every split has scans of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dfs_deploy.data import Dataset
from dfs_deploy.data.digits import DIGITS_CLASSES, load_scans, split_indices
from dfs_deploy.errors import UsageError

SCENE_SIZE = 48
"""Height and width of a scene."""

HARD_SHARE = 0.3
"""Part of the scenes that is hard."""

HELD_OUT_SCANS = 260
"""Scans of the training split that make the split ``val``, which choices are made on."""

_SEEDS = {"train": 0, "val": 1, "test": 2}
_HELD_OUT_SEED = 3
_CLEAR_SIZES, _HARD_SIZES, _SCRAP_SIZES = (26, 33), (24, 45), (8, 17)  # pixels; the second is the first beyond
_CLEAR_SHIFT = 4  # pixels from the middle, each way
_CLEAR_TURN, _HARD_TURN = 5.0, 30.0  # degrees, each way
_CLEAR_NOISE, _HARD_NOISE = 3.0, 40.0  # grey levels, standard deviation
_SCRAPS = 6
_SCRAP_SCAN = 4  # scanned pixels in a scrap's height and width
_PALEST = 0.6
_GROUND = 60.0  # grey levels


@dataclass(frozen=True, eq=False)
class DigitScenes:
    """Scenes of a split.

    Attributes:
        data: images (N, 48, 48, 3) uint8, grey, and the digit of each.
        hard: (N,) bool, whether a scene is hard.
    """

    data: Dataset
    hard: NDArray[np.bool_]


def load_digit_scenes(split: Literal["train", "val", "test"], copies: int = 1) -> DigitScenes:
    """Makes the scenes of a split, some milliseconds for a hundred.

    Args:
        split: ``train`` (1037 scans), ``val`` (260 others of the digits' training split) or ``test`` (the 500 scans of
            the digits' test split).
        copies: scenes with each scan.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        UsageError: the split is unknown, or there are no copies.
    """
    if split not in _SEEDS:
        raise UsageError(f"split {split!r} of the digit scenes, expected 'train', 'val' or 'test'")
    if copies < 1:
        raise UsageError(f"{copies} copies of each scan, expected at least 1")
    pixels, labels = load_scans()
    chosen = _scans_of(labels, split)
    pixels, labels = pixels[chosen], np.tile(labels[chosen], copies)
    random = np.random.RandomState(_SEEDS[split])  # streams that NumPy has frozen
    hard = random.random_sample(len(labels)) < HARD_SHARE
    grey = np.stack(
        [
            (_hard_scene if is_hard else _clear_scene)(random, pixels, index % len(pixels))
            for index, is_hard in enumerate(hard)
        ]
    )
    images = np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=3))
    return DigitScenes(Dataset(images, labels, DIGITS_CLASSES, f"digit-scenes-{split}"), hard)


def _scans_of(labels: NDArray[np.int64], split: str) -> NDArray[np.intp]:
    """Indices of a split's scans: those of the digits' test split, or a part of the others."""
    if split == "test":
        return split_indices(labels, "test")
    others = np.random.RandomState(_HELD_OUT_SEED).permutation(split_indices(labels, "train"))
    return others[:HELD_OUT_SCANS] if split == "val" else others[HELD_OUT_SCANS:]


def _clear_scene(random: np.random.RandomState, scans: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """A scan near the middle of a dark picture, (48, 48) uint8."""
    scene = np.zeros((SCENE_SIZE, SCENE_SIZE))
    size = random.randint(*_CLEAR_SIZES)
    top, left = (SCENE_SIZE - size) // 2 + random.randint(-_CLEAR_SHIFT, _CLEAR_SHIFT + 1, 2)
    _draw(scene, scans[index], size, _turn(random, _CLEAR_TURN), top, left, 1.0)
    return _taken(random, scene, _CLEAR_NOISE, 0.0)


def _hard_scene(random: np.random.RandomState, scans: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """A scan turned, anywhere, pale, and among scraps of others in a noisy picture, (48, 48) uint8."""
    scene = np.zeros((SCENE_SIZE, SCENE_SIZE))
    ink = random.uniform(_PALEST, 1.0)
    for _ in range(_SCRAPS):
        other = scans[random.randint(len(scans))]
        row, column = random.randint(0, len(other) - _SCRAP_SCAN + 1, 2)
        scrap = np.ascontiguousarray(other[row : row + _SCRAP_SCAN, column : column + _SCRAP_SCAN])
        top, left = random.randint(-_CLEAR_SHIFT, SCENE_SIZE - _CLEAR_SHIFT, 2)
        _draw(scene, scrap, random.randint(*_SCRAP_SIZES), 0.0, top, left, ink)
    size = random.randint(*_HARD_SIZES)
    top, left = random.randint(0, SCENE_SIZE - size + 1, 2)
    _draw(scene, scans[index], size, _turn(random, _HARD_TURN), top, left, ink)
    return _taken(random, scene, _HARD_NOISE, random.uniform(0.0, _GROUND))


def _turn(random: np.random.RandomState, most: float) -> float:
    return float(random.uniform(-most, most))


def _draw(
    scene: NDArray[np.float64], scan: NDArray[np.uint8], size: int, turn: float, top: int, left: int, ink: float
) -> None:
    """Draws a scan into a scene at a size, turned by degrees; what lies outside is cut off, and the brighter stays."""
    drawn = np.asarray(
        Image.fromarray(scan).resize((size, size), Image.Resampling.BILINEAR).rotate(turn, Image.Resampling.BILINEAR)
    )
    rows, columns = slice(max(top, 0), min(top + size, SCENE_SIZE)), slice(max(left, 0), min(left + size, SCENE_SIZE))
    part = drawn[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    np.maximum(scene[rows, columns], ink * part, out=scene[rows, columns])


def _taken(random: np.random.RandomState, scene: NDArray[np.float64], noise: float, ground: float) -> NDArray[np.uint8]:
    """The picture of a scene: on brighter ground, and with a sensor's noise."""
    picture = scene + ground + noise * random.standard_normal(scene.shape)
    return np.asarray(np.rint(picture.clip(0.0, 255.0)), np.uint8)
