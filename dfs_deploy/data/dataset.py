"""Labelled images: in memory, or still in the files of a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.data.images import Decoded, read_image
from dfs_deploy.data.labels import draw, match_labels
from dfs_deploy.data.links import checked_entry
from dfs_deploy.data.messages import ShapeAndType, describe
from dfs_deploy.errors import DataError

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
"""Every split that a data set may have."""


def evaluation_split(found: Collection[str]) -> Split:
    """The split to evaluate on, of those that there are: ``test``, or ``val`` if there is no ``test``."""
    return "val" if "val" in found and "test" not in found else "test"


_LOOKED_AT = 512
"""Images of a data set that are looked at for what seems wrong with all of them."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in memory, each with its class.

    Attributes:
        images: (N, H, W, 3) uint8, RGB; N is at least 1.
        labels: (N,) int64, from 0 on.
        class_names: name of each class, or empty if none are known.
        name: what reports call it.
        notes: what was assumed or noticed while it was read, one line each: to be shown beside results.

    Raises:
        DataError: an array of another shape or dtype, a label that is negative or has no name.
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
                f"labels of {self.name}: {describe(labels)}, expected ({len(images)},) int64, one for each image;"
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
        """The same images, labelled as a network counts; see :func:`~dfs_deploy.data.labels.match_labels`.

        Args:
            classes: number of the network's classes.
            class_names: names of the network's classes, or empty if none are known.

        Raises:
            DataError: a class that the network does not know.
        """
        matched = match_labels(self.labels, self.class_names, classes, class_names, self.name)
        notes = self.notes if matched.note is None else (*self.notes, matched.note)
        return Dataset(self.images, matched.labels, matched.class_names, self.name, notes)

    def subset(self, count: int | None, seed: int) -> Dataset:
        """Draws images at random without replacement.

        For one seed, ``subset(10, seed)`` is the beginning of ``subset(20, seed)``.

        Args:
            count: number of images; ``None``, or more than there are, for all, in an order that the seed decides.
            seed: 0 or above.

        Returns:
            The images drawn, in the order in which they were.

        Raises:
            DataError: a count below 1, or a negative seed.
        """
        chosen = draw(len(self), count, seed)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def load(self) -> Dataset:
        """Itself: its images are in memory."""
        return self


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Images in the files of a folder: listed, with their classes, and decoded when they are asked for.

    Attributes:
        root: folder that no link may lead out of.
        files: path of each image below ``root``.
        labels: (N,) int64, from 0 on.
        class_names: name of each class, or empty if none are known.
        name: what reports call it.
        size: height and width to which images are resized; ``None`` for their own, which must then be the same for all.
        notes: lines as in :class:`Dataset`.
    """

    root: Path
    files: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    name: str
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def labelled_for(self, classes: int, class_names: Sequence[str]) -> ImageFolder:
        """As :meth:`Dataset.labelled_for`; no image is decoded."""
        matched = match_labels(self.labels, self.class_names, classes, class_names, self.name)
        notes = self.notes if matched.note is None else (*self.notes, matched.note)
        return replace(self, labels=matched.labels, class_names=matched.class_names, notes=notes)

    def subset(self, count: int | None, seed: int) -> ImageFolder:
        """As :meth:`Dataset.subset`; no image is decoded."""
        chosen = draw(len(self), count, seed)
        return replace(self, files=tuple(self.files[index] for index in chosen), labels=self.labels[chosen])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decodes one image, (H, W, 3) uint8, as :func:`dfs_deploy.data.load_image` does.

        Raises:
            DataError: its file is damaged, gone, or a link that leads out of the folder.
        """
        return self._decode(index).pixels

    def load(self) -> Dataset:
        """Decodes every image.

        Raises:
            DataError: a file is damaged, gone, or a link that leads out of the folder; images are of different sizes
                and no ``size`` was given; there is not enough memory for all of them.
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
            raise DataError(f"{seen} in {self.name} take more memory than there is; draw fewer of them") from error
        notes = list(self.notes)
        if self.size is not None:
            notes += resize_note(sizes, self.size)
        if unread:
            notes.append(f"{unread:,} of {len(self):,} images have EXIF data that cannot be read; taken as they lie")
        return Dataset(images, self.labels, self.class_names, self.name, (*notes, *content_notes(images)))

    def _decode(self, index: int) -> Decoded:
        path = self._path(index)
        return read_image(checked_entry(path, self.root), self.size)

    def _path(self, index: int) -> Path:
        return self.root / self.files[index]


def check_images(images: ShapeAndType, name: str) -> None:
    """Raises DataError for images of another shape or type than (N, H, W, 3) uint8, or for none."""
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise DataError(
            f"images of {name}: {describe(images)}, expected (N, H, W, 3) uint8 with N at least 1;"
            f" {_image_remedy(images)}"
        )


def resize_note(sizes: Counter[tuple[int, int]], size: tuple[int, int]) -> list[str]:
    """Says that images of other sizes (height and width: how many) were resized; nothing if there are none."""
    others = Counter({own: count for own, count in sizes.items() if own != tuple(size)})
    if not others:
        return []
    (most, _), more = others.most_common(1)[0], len(others) - 1
    seen = f"of {_pixels(most)}" + (f" and {more} other size{'s' if more > 1 else ''}" if more else "")
    return [f"{others.total():,} of {sizes.total():,} images were resized to {_pixels(size)}: they are {seen}"]


def content_notes(images: NDArray[np.uint8]) -> list[str]:
    """Says what seems wrong with all images, by a look at up to 512 of them: blank, all the same, or scaled to 0..1."""
    some = images[:: -(-len(images) // _LOOKED_AT)]
    flat = some.reshape(len(some), -1)
    blank = int(np.count_nonzero((some == some[:, :1, :1]).all(axis=(1, 2, 3))))
    if 2 * blank >= len(some):
        return [f"{blank:,} of {len(some):,} images that were looked at are of one colour each: is this the data?"]
    if flat.max() <= 1:
        return ["no pixel is greater than 1: were pixels scaled to 0..1 before they were cast to uint8?"]
    if len(some) > 1 and bool((flat == flat[0]).all()):
        return [f"all of {len(some):,} images that were looked at are the same: is this the data?"]
    return []


def _pixels(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"


def _image_remedy(images: ShapeAndType) -> str:
    shape = images.shape
    if 0 in shape:
        return "put images in"
    if len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
        return "put the channels last: x.transpose(0, 2, 3, 1)"
    if len(shape) == 3 or (len(shape) == 4 and shape[3] == 1):
        return "repeat the grey channel three times"
    if images.dtype.kind == "f":
        return "scale pixels to 0..255, round, and cast"
    return "save RGB pixels of 0..255"
