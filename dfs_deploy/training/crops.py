"""Random resized crops: the variation of images that are larger than the network's input (Szegedy et al. 2015)."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.geometry import Geometry, Interpolation, resize, shrunk

RATIO = (3.0 / 4.0, 4.0 / 3.0)
"""Least and greatest aspect ratio of a crop, width over height."""

_TRIES = 10


@dataclass(frozen=True)
class RandomCrop:
    """Part of an image, mirrored or not, at the network's size: the same whenever and by whichever thread it is made.

    Place and size are drawn as torchvision's ``RandomResizedCrop`` draws them, followed by ``RandomHorizontalFlip``.

    Attributes:
        geometry: height and width of the result, and the kind of resizing.
        area: least share of the image's area that is kept.
        key: everything that the draw depends on, such as seed, epoch and index of the image.
    """

    geometry: Geometry
    area: float
    key: tuple[object, ...]

    @property
    def interpolation(self) -> Interpolation:
        """See ``Frame``."""
        return self.geometry.interpolation

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Maps (H, W, C) uint8 to (height, width, C)."""
        top, left, height, width, mirrored = self.drawn(image.shape[0], image.shape[1])
        part = resize(image[top : top + height, left : left + width], self.geometry.size, self.interpolation)
        return np.ascontiguousarray(part[:, ::-1] if mirrored else part)

    def reduced(self, size: tuple[int, int]) -> tuple[int, int]:
        """See ``Frame``."""
        return shrunk(size)

    def drawn(self, height: int, width: int) -> tuple[int, int, int, int, bool]:
        """Top, left, height and width of the part, and whether it is mirrored, for an image of a height and width."""
        # Of Python's generator, random() is the method whose numbers never change from version to version.
        digest = hashlib.sha256(repr(self.key).encode()).digest()
        number = random.Random(int.from_bytes(digest, "little")).random  # noqa: S311 (no secret)
        mirrored = number() < 0.5
        low, high = (math.log(ratio) for ratio in RATIO)
        for _ in range(_TRIES):
            area = height * width * (self.area + number() * (1.0 - self.area))
            ratio = math.exp(low + number() * (high - low))
            rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < rows <= height and 0 < columns <= width:
                return (
                    int(number() * (height - rows + 1)),
                    int(number() * (width - columns + 1)),
                    rows,
                    columns,
                    mirrored,
                )
        # The greatest part of the centre whose ratio is allowed.
        rows, columns = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
        return (height - rows) // 2, (width - columns) // 2, rows, columns, mirrored
