"""Labelled images: decoded in memory, or still in the files of a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.data.entries import checked_entry
from dfs_deploy.data.images import Decoded, read_image
from dfs_deploy.data.labels import draw, match_labels
from dfs_deploy.errors import DataError
from dfs_deploy.io.arrays import ArrayHeader
from dfs_deploy.io.text import one_line

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
"""Splits that a data set may have."""


def evaluation_split(found: Collection[str]) -> Split:
    """Split to evaluate on, given those that exist: ``test``, or ``val`` if there is no ``test``."""
    return "val" if "val" in found and "test" not in found else "test"


def describe(array: NDArray[Any] | ArrayHeader) -> str:
    """Shape and dtype in words, for messages."""
    return f"{array.shape} {array.dtype}"


_LOOKED_AT = 512
"""Images that are inspected for mistakes which affect the whole data set."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Decoded images, each with its class.

    Attributes:
        images: (N, H, W, 3) uint8, RGB; N is at least 1.
        labels: (N,) int64, from 0 on.
        class_names: name of each class, or empty if none are known.
        name: name in messages and reports.
        notes: assumptions and suspicions from reading the data, one line each, to be shown with results.

    Raises:
        DataError: an array has another shape or dtype, or a label is negative or has no name.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    name: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        check_images(images, self.name)
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels of {self.name}: {describe(labels)}, expected ({len(images)},) int64; give one label per image"
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

    def __repr__(self) -> str:
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        return f"<Dataset {one_line(self.name)}: {len(self)} images {self.images.shape[1:]}{classes}>"

    def __len__(self) -> int:
        return len(self.labels)

    def labelled_for(self, classes: int, class_names: Sequence[str]) -> Dataset:
        """The same images with labels in the network's numbering; see ``match_labels``.

        Args:
            classes: number of the network's classes.
            class_names: names of the network's classes, or empty if none are known.

        Raises:
            DataError: the network does not know a class.
        """
        matched = match_labels(self.labels, self.class_names, classes, class_names, self.name)
        note = matched.note
        notes = self.notes if note is None or note in self.notes else (*self.notes, note)
        return Dataset(self.images, matched.labels, matched.class_names, self.name, notes)

    def subset(self, count: int | None, seed: int) -> Dataset:
        """Draws images at random without replacement.

        For the same seed, ``subset(10, seed)`` is the beginning of ``subset(20, seed)``.

        Args:
            count: number of images; ``None`` or a larger number for all, in an order that depends on the seed.
            seed: seed of the draw, at least 0.

        Returns:
            The chosen images, in the order of the draw.

        Raises:
            DataError: the count is below 1 or the seed negative.
        """
        chosen = draw(len(self), count, seed)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def load(self) -> Dataset:
        """Returns the data set itself, because its images are decoded already."""
        return self


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Images in the files of a folder: listed with their classes, and decoded on demand.

    Attributes:
        root: the folder; links that lead outside it are refused.
        files: path of each image, relative to ``root``.
        labels: (N,) int64, from 0 on.
        class_names: name of each class, or empty if none are known.
        name: name in messages and reports.
        size: height and width to resize to, in pixels; ``None`` keeps the images' own size, which must be the same for
            all.
        notes: assumptions and suspicions, as in ``Dataset``.
    """

    root: Path
    files: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    name: str
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<ImageFolder {one_line(self.name)}: {len(self)} images, {len(self.class_names)} classes>"

    def __len__(self) -> int:
        return len(self.files)

    def labelled_for(self, classes: int, class_names: Sequence[str]) -> ImageFolder:
        """Same as ``Dataset.labelled_for``, without decoding an image."""
        matched = match_labels(self.labels, self.class_names, classes, class_names, self.name)
        note = matched.note
        notes = self.notes if note is None or note in self.notes else (*self.notes, note)
        return replace(self, labels=matched.labels, class_names=matched.class_names, notes=notes)

    def subset(self, count: int | None, seed: int) -> ImageFolder:
        """Same as ``Dataset.subset``, without decoding an image."""
        chosen = draw(len(self), count, seed)
        return replace(self, files=tuple(self.files[index] for index in chosen), labels=self.labels[chosen])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decodes one image, (H, W, 3) uint8, as ``load_image`` does.

        Raises:
            DataError: the file is damaged, missing, or a link that leads outside the folder.
        """
        return self._decode(index).pixels

    def load(self) -> Dataset:
        """Decodes every image.

        Raises:
            DataError: a file is damaged, missing, or a link that leads outside the folder; images differ in size and no
                ``size`` was given; or the images do not fit into memory.
        """
        first = self._decode(0)
        try:
            images = np.empty((len(self), *first.pixels.shape), np.uint8)
            images[0] = first.pixels
            sizes, unread = Counter([first.size]), int(first.note is not None)
            for index in range(1, len(self)):
                read = self._decode(index)
                if read.pixels.shape != first.pixels.shape:
                    raise DataError(
                        f"{self._path(index)} is {_pixels(read.size)} and {self._path(0)} {_pixels(first.size)},"
                        " expected one size; give the size to resize to"
                    )
                images[index] = read.pixels
                sizes[read.size] += 1
                unread += read.note is not None
        except MemoryError as error:
            seen = f"{len(self):,} images of {_pixels(first.pixels.shape)}"
            raise DataError(f"{seen} in {self.name} do not fit into memory; draw fewer of them") from error
        notes = list(self.notes)
        if self.size is not None:
            notes += resize_note(sizes, self.size)
        if unread:
            notes.append(
                f"{unread:,} of {len(self):,} images have unreadable EXIF data; their orientation was not changed"
            )
        return Dataset(images, self.labels, self.class_names, self.name, (*notes, *content_notes(images)))

    def _decode(self, index: int) -> Decoded:
        path = self._path(index)
        return read_image(checked_entry(path, self.root), self.size)

    def _path(self, index: int) -> Path:
        return self.root / self.files[index]


def check_images(images: NDArray[Any] | ArrayHeader, name: str) -> None:
    """Raises DataError unless images have shape (N, H, W, 3), N at least 1, and dtype uint8."""
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise DataError(
            f"images of {name}: {describe(images)}, expected (N, H, W, 3) uint8 with N at least 1; save RGB pixels of"
            " 0..255, channels last"
        )


def resize_note(sizes: Counter[tuple[int, int]], size: tuple[int, int]) -> list[str]:
    """A note that images were resized, given how many have which size; empty if none had to be."""
    others = Counter({own: count for own, count in sizes.items() if own != tuple(size)})
    if not others:
        return []
    (most, _), more = others.most_common(1)[0], len(others) - 1
    seen = f"of {_pixels(most)}" + (f" and {more} other size{'s' if more > 1 else ''}" if more else "")
    return [f"{others.total():,} of {sizes.total():,} images were resized to {_pixels(size)}: they are {seen}"]


def content_notes(images: NDArray[np.uint8]) -> list[str]:
    """Notes on what seems wrong with the images, from up to 512 of them: blank, all equal, or scaled to 0..1."""
    some = images[:: -(-len(images) // _LOOKED_AT)]
    flat = some.reshape(len(some), -1)
    blank = int(np.count_nonzero((some == some[:, :1, :1]).all(axis=(1, 2, 3))))
    if 2 * blank >= len(some):
        return [f"{blank:,} of {len(some):,} inspected images have a single colour: is this the right data?"]
    if flat.max() <= 1:
        return ["no pixel is greater than 1: were pixels scaled to 0..1 before the cast to uint8?"]
    if len(some) > 1 and bool((flat == flat[0]).all()):
        return [f"all {len(some):,} inspected images are equal: is this the right data?"]
    return []


def _pixels(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"
