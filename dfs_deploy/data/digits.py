"""Scikit-learn's digits as small colour images: real scans that need no download.

1797 handwritten digits of 8x8 pixels in 17 grey levels (UCI's optdigits, its test part), doubled to 16x16. The test
split is drawn at random within each class, so both splits share writers: an easier task than digits of new writers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dfs_deploy.data import Dataset
from dfs_deploy.errors import UsageError
from dfs_deploy.system.libraries import required

DIGITS_SIZE = 16
"""Height and width of an image."""

DIGITS_CLASSES = tuple("0123456789")

TEST_IMAGES = 500
"""Images of the test split, with the same share of every class as far as possible; 1297 remain for training."""

_SPLIT_SEED = 0
_SCANNED_SIZE = 8
_GREY_LEVELS = 16


def load_digits(split: Literal["train", "test"] | None = None) -> Dataset:
    """Loads the digits, enlarged to 16x16 and with the grey value in all three channels.

    Args:
        split: ``train`` (1297 images), ``test`` (500), or ``None`` for all. The split is fixed.

    Returns:
        The images in scikit-learn's order.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        UsageError: the split is unknown.
    """
    if split not in ("train", "test", None):
        raise UsageError(f"split {split!r} of the digits, expected 'train', 'test' or None")
    pixels, labels = load_scans()
    chosen = np.arange(len(labels)) if split is None else split_indices(labels, split)
    return Dataset(
        images=_enlarge(pixels[chosen]),
        labels=labels[chosen],
        class_names=DIGITS_CLASSES,
        name="digits" if split is None else f"digits-{split}",
    )


def load_scans() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All scans as they come, (1797, 8, 8) uint8 of 17 grey levels from 0 to 255, and the digit of each.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    with required():
        from sklearn.datasets import load_digits as load_bunch
    scans = load_bunch()
    pixels = np.asarray(scans.images).reshape(-1, _SCANNED_SIZE, _SCANNED_SIZE)
    return np.rint(pixels * 255.0 / _GREY_LEVELS).astype(np.uint8), np.asarray(scans.target, np.int64)


def split_indices(labels: NDArray[np.int64], split: Literal["train", "test"]) -> NDArray[np.intp]:
    """Indices of a split: images are shuffled and sorted by class, and evenly spaced ones make the test split."""
    shuffled = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))  # a stream that NumPy has frozen
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    test = np.zeros(len(labels), np.bool_)
    test[by_class[np.arange(TEST_IMAGES) * len(labels) // TEST_IMAGES]] = True
    return np.flatnonzero(test if split == "test" else ~test)


def _enlarge(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Maps (N, 8, 8) uint8 to (N, 16, 16, 3) uint8, bilinearly."""
    size = (DIGITS_SIZE, DIGITS_SIZE)
    large = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in grey])
    return np.ascontiguousarray(np.repeat(large[..., None], 3, axis=3))
