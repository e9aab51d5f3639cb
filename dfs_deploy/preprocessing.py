"""Input contract of a checkpoint and a bundle: how an image becomes the input of the network."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import InputError, UsageError
from dfs_deploy.geometry import Geometry, Interpolation
from dfs_deploy.io.files import read_file
from dfs_deploy.io.text import first_line

MAX_CLASSES = 1 << 16
"""Most class names of a network or a data set."""

_MOST_NAMES_BYTES = 8 << 20

MAX_NAME = 500
"""Most characters of a class name."""

MAX_INPUT_VALUES = 1 << 26
"""Most values of one input (channels x height x width)."""

MAX_MEAN = MAX_STD = 1e6
MIN_STD = 1e-6
"""Bounds of the absolute mean and of the standard deviation, within which no pixel is normalised to infinity."""

_LOG = logging.getLogger(__name__)

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class InputContract:
    """Shape and normalisation of the network's input, how images become it, and the names of its classes.

    A uint8 input becomes ``(pixel / 255 - mean) / std``; a float32 input is expected to be normalised already.
    An image of another size is resized, and cropped if ``resize`` says so; see ``Geometry``.

    Attributes:
        shape: channels, height and width.
        mean: mean per channel, of pixels scaled to 0..1.
        std: standard deviation per channel, of the same pixels.
        class_names: name of each class, or empty if they are unknown.
        resize: length in pixels to which the shorter side of an image is resized before its centre is cut out;
            ``None`` resizes an image to exactly the network's height and width.
        interpolation: kind of resizing.

    Raises:
        InputError: values out of bounds.
    """

    shape: tuple[int, int, int] = (3, 32, 32)
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2023, 0.1994, 0.2010)
    class_names: tuple[str, ...] = ()
    resize: int | None = None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise InputError(f"input shape {self.shape}, expected channels, height and width, each at least 1")
        if math.prod(self.shape) > MAX_INPUT_VALUES:
            raise InputError(f"input shape {self.shape}, expected at most {MAX_INPUT_VALUES:,} values")
        if problem := class_names_problem(self.class_names):
            raise InputError(problem)
        channels = self.shape[0]
        sound = all(abs(mean) <= MAX_MEAN for mean in self.mean) and all(MIN_STD <= s <= MAX_STD for s in self.std)
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) != channels:
                seen = ",".join(f"{number:g}" for number in numbers) or "nothing"
                raise InputError(
                    f"{name} {seen} for images of {channels} channel(s), expected one each; give {channels} numbers"
                )
        if not sound:
            raise InputError(
                f"mean {self.mean} and std {self.std}, expected mean between -{MAX_MEAN:g} and {MAX_MEAN:g}, std"
                f" between {MIN_STD:g} and {MAX_STD:g}; check the numbers"
            )
        _ = self.geometry  # its bounds

    @property
    def geometry(self) -> Geometry:
        """How an image of any size becomes one of the network's height and width."""
        return Geometry((self.shape[1], self.shape[2]), self.resize, self.interpolation)

    def of_size(self, size: Sequence[int]) -> InputContract:
        """The contract for images of another height and width; the same part of an image as before is cut out."""
        resize = self.resize
        if resize is not None:
            resize = max(round(resize * min(size) / min(self.shape[1:])), *size)
        height, width = size
        return replace(self, shape=(self.shape[0], height, width), resize=resize)

    def fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Makes a decoded image the network's input: every verb, the runtime and training's evaluation do it so.

        Args:
            image: (H, W, C) uint8 pixels of any height and width, upright.

        Returns:
            (height, width, C) uint8; the image itself if nothing changes.

        Raises:
            InputError: another dtype or number of channels, or no pixel.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or not self._is_image(image.shape):
            seen = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError(f"an image of {seen}, expected (H, W, {self.shape[0]}) uint8; convert it")
        return self.geometry(image)

    def _is_image(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 3 and min(shape) > 0 and shape[2] == self.shape[0]

    def normalize(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps (N, H, W, C) uint8 pixels to (N, C, H, W) float32."""
        count, height, width, channels = images.shape
        normalized = np.empty((count, channels, height, width), np.float32)
        for image, planes in zip(images, normalized, strict=True):
            for channel, levels in enumerate(self.levels):
                np.take(levels, image[..., channel], out=planes[channel], mode="clip")
        return normalized

    @functools.cached_property
    def levels(self) -> NDArray[np.float32]:
        """(C, 256) float32, normalised value of each pixel value: looking it up takes an eighth of the time."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        pixels = np.arange(256, dtype=np.float32)[:, None]
        return np.ascontiguousarray(((pixels / np.float32(255) - mean) / std).T)

    def prepare(self, images: NDArray[Any], first: int = 0) -> NDArray[np.float32]:
        """Checks an input, and normalises it if it is uint8.

        Args:
            images: (N, C, H, W) float32, normalised; or (N, H, W, C) uint8. Pixels of the network's height and width
                are its input as they are; images of another size are resized and cropped by ``fit``.
            first: index in the whole batch of the first image, for messages.

        Returns:
            (N, C, H, W) float32, contiguous; the array itself if it already is.

        Raises:
            InputError: the batch is empty, has another shape or dtype, or holds NaN or infinity.
        """
        images = self.arrange(images)
        if images.dtype == np.uint8:
            return self.normalize(images)
        # The sum of squares takes one pass, and is NaN or infinite if any term is; only then is the cause searched for.
        flat = images.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            self.check_values(images, float(np.dot(flat, flat)), first)
        return images

    def arrange(self, images: NDArray[Any]) -> NDArray[Any]:
        """Checks an input but for its values, and resizes pixels of another size; see ``prepare``.

        Returns:
            (N, C, H, W) float32 or (N, H, W, C) uint8 of the network's size, contiguous; the array itself if it is so.

        Raises:
            InputError: the batch is empty, or has another shape or dtype.
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
            if images.shape[1:] != shape and self._is_image(images.shape[1:]) and len(images):
                images = np.stack([self.geometry(image) for image in images])
        else:
            raise InputError(f"input of dtype {images.dtype}, expected {self._wanted()}; cast it")
        if images.ndim != 4 or images.shape[1:] != shape:
            seen = f"{images.shape} {images.dtype}"
            raise InputError(f"input of shape {seen}, expected {self._wanted()}; reshape or resize it")
        if images.shape[0] == 0:
            raise InputError(f"an empty batch, expected {self._wanted()} with N at least 1")
        return np.ascontiguousarray(images)

    def check_values(self, images: NDArray[np.float32], squares: float, first: int = 0) -> None:
        """Makes sure that images are finite, and warns once if they do not seem to be normalised.

        Args:
            images: (N, C, H, W) float32.
            squares: sum of their squares; infinite too if it overflowed.
            first: index in the whole batch of the first image, for messages.

        Raises:
            InputError: they hold NaN or infinity.
        """
        if not squares <= self._reach * images.size:  # also true for NaN
            if not math.isfinite(squares) and not np.isfinite(images).all():
                bad = first + int(np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))[0])
                raise InputError(
                    f"NaN or infinity in image {bad} of the batch, expected finite values; check the preprocessing"
                )
            self._doubt_normalisation(math.sqrt(squares / images.size))

    @functools.cached_property
    def _reach(self) -> float:
        """Mean square above which an image was not normalised: four times that of the brightest possible image."""
        reach = max(max(abs(mean), abs(1.0 - mean)) / std for mean, std in zip(self.mean, self.std, strict=True))
        return 4.0 * reach**2

    def _doubt_normalisation(self, seen: float) -> None:
        if "doubted" not in self.__dict__:  # warned once per contract
            self.__dict__["doubted"] = True
            _LOG.warning(
                "float32 input has root mean square %.3g, but normalised pixels have at most %.3g; it is used as it is:"
                " give uint8 pixels (N, H, W, C) to have them normalised",
                seen,
                math.sqrt(self._reach / 4.0),
            )

    def _wanted(self) -> str:
        channels, height, width = self.shape
        return f"(N, {channels}, {height}, {width}) float32, or uint8 images of any size, (N, H, W, {channels})"


def class_names_problem(names: Sequence[str]) -> str | None:
    """Reason why class names cannot be stored in a file, or ``None``. Two classes may have the same name.

    Args:
        names: name of each class, or empty.
    """
    if len(names) > MAX_CLASSES:
        return f"{len(names):,} class names, expected at most {MAX_CLASSES:,}"
    for index, name in enumerate(names):
        if not isinstance(name, str):
            return f"class {index} has a name of type {type(name).__name__}, expected text"
        if not name.strip() or len(name) > MAX_NAME:
            seen = f"class {index} has a name of {len(name):,} characters"
            return f"{seen}, expected 1 to {MAX_NAME}, not all blank; rename it"
        try:
            name.encode()
        except UnicodeEncodeError:
            return f"class {index} has the name {name}, which is not UTF-8 and cannot be stored; rename it"
    return None


def parse_numbers(flag: str, given: str | Iterable[float] | float) -> tuple[float, ...]:
    """Reads the mean or deviation of each channel: numbers, or text such as ``0.49,0.48,0.45``.

    Raises:
        UsageError: it is something else, or for pixels from 0 to 255, with which every image would look black.
    """
    try:
        words = given.split(",") if isinstance(given, str) else (given,) if isinstance(given, float | int) else given
        numbers = tuple(float(word) for word in words)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{flag} {given!r}, expected one number per channel, as in 0.49,0.48,0.45") from error
    if any(1.0 < number < math.inf for number in numbers):
        raise UsageError(f"{flag} {given!r}, expected numbers for pixels from 0 to 1; divide those for 0 to 255 by 255")
    return numbers


def parse_size(flag: str, given: str | Sequence[int]) -> tuple[int, int]:
    """Reads height and width in pixels: two integers, or text such as ``32x32``; raises UsageError otherwise."""
    sides = given.split("x") if isinstance(given, str) else [str(side) for side in given]
    if len(sides) != 2 or not all(side.isascii() and side.isdecimal() and len(side) <= 6 for side in sides):
        raise UsageError(f"{flag} {given!r}, expected height and width in pixels, as in 32x32")
    return int(sides[0]), int(sides[1])


def parse_class_names(given: str | Path | Iterable[str]) -> tuple[str, ...]:
    """Reads the name of each class: names, or text with names between commas, a file's path, or the word ``none``.

    Raises:
        UsageError: it is none of these, or the file cannot be read as UTF-8.
    """
    if not isinstance(given, str | Path):
        return tuple(given)
    text = str(given)
    if text == "none":
        return ()
    if "," in text:
        return tuple(name.strip() for name in text.split(","))
    expected = "expected a file with one class name per line, names separated by commas, or none"
    try:
        lines = read_file(Path(text), _MOST_NAMES_BYTES).decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--class-names {text!r} cannot be read ({first_line(error)}), {expected}") from error
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise UsageError(f"--class-names {text!r} is an empty file, {expected}")
    return tuple(names)


IMAGENET_INPUT = InputContract((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=256)
"""Input of most networks that were trained on ImageNet: assumed for those that do not describe theirs."""
