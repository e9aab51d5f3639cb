"""Geometry of a network's input: how an image of any size becomes one of the network's height and width."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import InputError

Interpolation = Literal["bilinear", "bicubic"]

MAX_WHOLE_PIXELS = 1 << 24
"""Most pixels of an image that is decoded in one piece, and of the resized image that a crop is cut from."""

MAX_RESIZE = 1 << 16
"""Most pixels of the shorter side that images are resized to."""


class Frame(Protocol):
    """Way in which an image of any size becomes one of a fixed size."""

    @property
    def interpolation(self) -> Interpolation:
        """Kind of resizing."""

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Maps (H, W, C) uint8 to the fixed height and width."""

    def reduced(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width to which an image of more than ``MAX_WHOLE_PIXELS`` may be shrunk first."""


@dataclass(frozen=True)
class Geometry:
    """Resizing and cropping of an image to the network's height and width, always the same for the same image.

    With ``resize`` it is torchvision's ``Resize(resize, interpolation)`` and ``CenterCrop(size)`` on a Pillow image,
    pixel for pixel; without, the image is resized to exactly ``size``, whatever its aspect ratio. An image that shrinks
    is averaged over the covered area (antialiased).

    Attributes:
        size: height and width of the result, in pixels.
        resize: length in pixels to which the shorter side is resized before the centre is cut out; ``None`` for no
            crop.
        interpolation: kind of resizing.

    Raises:
        InputError: values out of bounds.
    """

    size: tuple[int, int]
    resize: int | None = None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"size {self.size}, expected height and width in pixels, each at least 1")
        least = max(self.size)
        if self.resize is not None and (type(self.resize) is not int or not least <= self.resize <= MAX_RESIZE):
            raise InputError(
                f"resize {self.resize} for images of {self.size[0]}x{self.size[1]} pixels, expected {least} to"
                f" {MAX_RESIZE:,}, as the image is cut out of the resized one"
            )
        if self.interpolation not in get_args(Interpolation):
            raise InputError(
                f"interpolation {self.interpolation!r}, expected {' or '.join(get_args(Interpolation))}; choose one"
            )

    def __str__(self) -> str:
        size = f"{self.size[0]}x{self.size[1]}"
        if self.resize is None:
            return f"resized to {size}, {self.interpolation}"
        return f"shorter side resized to {self.resize}, {self.interpolation}, and the centre of {size} cut out"

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Maps (H, W, C) uint8 pixels to (height, width, C); the image itself if nothing changes."""
        height, width = self.size
        whole = self._resized((image.shape[0], image.shape[1]))
        top, left = round((whole[0] - height) / 2.0), round((whole[1] - width) / 2.0)
        if whole[0] * whole[1] <= MAX_WHOLE_PIXELS:
            resized = resize(image, whole, self.interpolation)
            return (
                resized
                if whole == self.size
                else np.ascontiguousarray(resized[top : top + height, left : left + width])
            )
        # A thin image: only what is kept is computed.
        down, across = image.shape[0] / whole[0], image.shape[1] / whole[1]
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return resize(image, self.size, self.interpolation, box)

    def reduced(self, size: tuple[int, int]) -> tuple[int, int]:
        """See ``Frame``."""
        whole = self._resized(size)
        return whole if whole[0] * whole[1] <= MAX_WHOLE_PIXELS else shrunk(size)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width before the crop."""
        if self.resize is None:
            return self.size
        height, width = size
        if width <= height:
            return int(self.resize * height / width), self.resize
        return self.resize, int(self.resize * width / height)


def shrunk(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width divided by the least integer with which ``MAX_WHOLE_PIXELS`` are not exceeded."""
    by = math.ceil(math.sqrt(size[0] * size[1] / MAX_WHOLE_PIXELS))
    return max(1, size[0] // by), max(1, size[1] // by)


def resize(
    image: NDArray[np.uint8],
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
    box: tuple[float, float, float, float] | None = None,
) -> NDArray[np.uint8]:
    """Resizes an (H, W, C) image; returns the image itself if nothing has to change.

    Args:
        image: uint8 pixels.
        size: height and width of the result.
        interpolation: kind of resizing.
        box: left, upper, right and lower edge of the part that is resized, in pixels; ``None`` for the whole image.
    """
    if image.shape[:2] == tuple(size) and box is None:
        return image
    channels = image.shape[2]
    if channels not in (1, 3):  # Pillow would take the last for opacity
        parts = [resize(image[..., each : each + 1], size, interpolation, box) for each in range(channels)]
        return np.concatenate(parts, 2)
    from PIL import Image

    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    whole = Image.fromarray(image[..., 0] if channels == 1 else image)
    if box is not None:
        box = (box[0], box[1], min(box[2], whole.width), min(box[3], whole.height))
    resized = np.array(whole.resize((size[1], size[0]), filters[interpolation], box), np.uint8)
    return resized.reshape(*size, channels)
