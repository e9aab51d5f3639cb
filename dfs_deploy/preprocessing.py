"""From an image to what the stem takes: the input contract that a checkpoint and a bundle carry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import InputError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


_FEW = 4096
"""Values up to this many are looked at one by one, which takes less than setting up the sum."""


@dataclass(frozen=True)
class InputContract:
    """How uint8 pixels become the network's input.

    A float32 input is taken as normalised already; a uint8 input becomes ``(pixel / 255 - mean) / std``.

    Attributes:
        shape: channels, height and width.
        mean: mean of each channel, of pixels scaled to 0..1.
        std: standard deviation of each channel, likewise.
        class_names: a name a class, or empty where none are known.
    """

    shape: tuple[int, int, int] = (3, 32, 32)
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2023, 0.1994, 0.2010)
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise InputError(f"input shape {self.shape}, expected channels, height and width, each at least 1")
        channels = self.shape[0]
        numbers = np.asarray((*self.mean, *self.std), np.float64)
        # NaN is neither greater than zero nor finite.
        sound = bool(np.isfinite(numbers).all()) and all(value > 0.0 for value in self.std)
        if len(self.mean) != channels or len(self.std) != channels or not sound:
            raise InputError(
                f"mean {self.mean} and std {self.std} for {channels} channel(s), expected one of each a channel,"
                " finite, std positive"
            )

    def normalize(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps (N, H, W, C) uint8 pixels to (N, C, H, W) float32."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        scaled = (images.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def prepare(self, images: NDArray[Any], first: int = 0) -> NDArray[np.float32]:
        """Checks an input and normalises it where it is uint8.

        Args:
            images: (N, C, H, W) float32, normalised; or (N, H, W, C) uint8.
            first: index of the first of them in the batch that they are a part of, for messages.

        Returns:
            (N, C, H, W) float32, contiguous. The array itself where it is that already.

        Raises:
            InputError: an empty batch, another shape or dtype, NaN or infinity.
        """
        if not isinstance(images, np.ndarray):
            raise InputError(
                f"input of type {type(images).__name__}, expected a NumPy array; convert it with np.asarray"
            )
        channels, height, width = self.shape
        if images.dtype == np.float32:
            shape: tuple[int, ...] = self.shape
        elif images.dtype == np.uint8:
            shape = (height, width, channels)
        else:
            raise InputError(f"input of dtype {images.dtype}, expected {self._wanted()}; cast it")
        if images.ndim != 4 or images.shape[1:] != shape:
            seen = f"{images.shape} {images.dtype}"
            raise InputError(f"input of shape {seen}, expected {self._wanted()}; reshape or resize it")
        if images.shape[0] == 0:
            raise InputError(f"an empty batch, expected {self._wanted()} with N at least 1")
        if images.dtype == np.uint8:
            return self.normalize(images)
        images = np.ascontiguousarray(images)
        if not _are_finite(images):
            bad = first + int(np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))[0])
            raise InputError(f"NaN or infinity in image {bad} of the batch, expected finite values; check what made it")
        return images

    def _wanted(self) -> str:
        channels, height, width = self.shape
        return f"(N, {channels}, {height}, {width}) float32 or (N, {height}, {width}, {channels}) uint8"


def _are_finite(images: NDArray[np.float32]) -> bool:
    if images.size > _FEW:
        # A sum of squares is NaN or infinite where any term is, and costs one pass.
        flat = images.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.dot(flat, flat)
        if math.isfinite(squares):
            return True
    return bool(np.isfinite(images).all())
