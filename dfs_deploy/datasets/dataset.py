"""Images in memory, each with its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.datasets.messages import describe
from dfs_deploy.errors import DataError

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
"""Every split that a data set may have."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and the class of each.

    Attributes:
        images: (N, H, W, 3) uint8, RGB; N is at least 1.
        labels: (N,) int64, from 0 on.
        class_names: a name a class, or empty where none are known.
        name: what reports call it.

    Raises:
        DataError: an array of another shape or dtype, a label that is negative or has no name.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
            raise DataError(
                f"images of {self.name}: {describe(images)}, expected (N, H, W, 3) uint8 with N at least 1;"
                f" {_image_remedy(images)}"
            )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels of {self.name}: {describe(labels)}, expected ({len(images)},) int64, one an image;"
                " give each image its label"
            )
        if labels.min() < 0:
            raise DataError(
                f"labels of {self.name}: {labels.min()} for image {labels.argmin()}, expected classes from 0 on;"
                " leave out images without a class"
            )
        if self.class_names and labels.max() >= len(self.class_names):
            raise DataError(
                f"labels of {self.name}: {labels.max()} for image {labels.argmax()}, expected less than"
                f" {len(self.class_names)}, the number of class names; give every class a name"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def labelled_for(self, classes: int, class_names: Sequence[str]) -> Dataset:
        """The same images with labels that count as a network does.

        Args:
            classes: of the network.
            class_names: of the network, or empty where none are known. Where both sides have names, they decide.

        Raises:
            DataError: a class that the network does not know.
        """
        labels = self.labels
        if self.class_names and class_names and self.class_names != tuple(class_names):
            position = {name: i for i, name in enumerate(class_names)}
            unknown = [name for name in self.class_names if name not in position]
            if unknown:
                raise DataError(
                    f"{self.name} has a class {unknown[0]!r} that the network does not know ({', '.join(class_names)});"
                    " name the classes as the network does"
                )
            labels = np.array([position[name] for name in self.class_names], np.int64)[labels]
        if labels.max() >= classes:
            raise DataError(
                f"{self.name} has label {labels.max()}, the network has {classes} classes, from 0; give its own data"
            )
        names = tuple(class_names) if class_names else self.class_names
        return Dataset(self.images, labels, names, self.name)

    def subset(self, count: int | None, seed: int) -> Dataset:
        """Draws images at random without replacement.

        With one seed, a smaller subset is the beginning of a larger one.

        Args:
            count: how many; ``None``, or more than there are, for all, in an order that the seed decides.
            seed: 0 or above.

        Returns:
            The images drawn, in the order in which they were.

        Raises:
            DataError: a count below 1, or a negative seed.
        """
        if count is not None and count < 1:
            raise DataError(f"a subset of {count} images, expected at least 1; leave the count out for all")
        if seed < 0:
            raise DataError(f"seed {seed}, expected 0 or above")
        chosen = np.random.default_rng(seed).permutation(len(self))[:count]
        return Dataset(self.images[chosen], self.labels[chosen], self.class_names, self.name)


def _image_remedy(images: NDArray[Any]) -> str:
    if 0 in images.shape:
        return "put images in"
    if images.ndim == 4 and images.shape[1] == 3 and images.shape[3] != 3:
        return "put the channels last: x.transpose(0, 2, 3, 1)"
    if images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 1):
        return "repeat the grey channel three times"
    if images.dtype.kind == "f":
        return "scale pixels to 0..255, round, and cast"
    return "save RGB pixels of 0..255"
