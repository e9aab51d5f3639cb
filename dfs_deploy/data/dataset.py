"""Labelled images: decoded in memory, or still in the files of a folder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.data.ahead import done_ahead
from dfs_deploy.data.entries import checked_entry
from dfs_deploy.data.findings import Findings, in_pixels
from dfs_deploy.data.images import Decoded, read_image, read_size
from dfs_deploy.data.labels import draw, match_labels
from dfs_deploy.errors import DataError, InternalError
from dfs_deploy.geometry import Frame, Geometry
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


Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (N, H, W, 3) uint8, RGB, and their labels (N,) int64."""

_SMALL = 1 << 26
"""Bytes of decoded images that may wait for whoever computes on them."""


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
        return self.select(draw(len(self), count, seed))

    def select(self, rows: slice | NDArray[np.intp]) -> Dataset:
        """Some of the images, by their indices, in the order given."""
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of every image, in pixels."""
        return self.images.shape[1], self.images.shape[2]

    def batches(self, size: int, rows: Sequence[int] | NDArray[np.intp] | None = None) -> Iterator[Batch]:
        """The images in order, a batch at a time.

        Args:
            size: most images in a batch.
            rows: indices of the images; ``None`` for all.
        """
        for begin in range(0, len(self) if rows is None else len(rows), size):
            part = slice(begin, begin + size) if rows is None else np.asarray(rows[begin : begin + size])
            yield self.images[part], self.labels[part]

    def framed(
        self, wanted: Iterable[tuple[int, Frame | None]], ahead: int
    ) -> Generator[NDArray[np.uint8], None, None]:
        """Images by index, each in a frame of its own, made by threads ahead of time.

        Args:
            wanted: index and frame of each image; ``None`` for the image as it is. May be endless.
            ahead: most images that wait for the caller.

        Yields:
            One image, (H, W, 3) uint8.
        """

        def make(item: tuple[int, Frame | None]) -> NDArray[np.uint8]:
            index, frame = item
            return self.images[index] if frame is None else frame(self.images[index])

        return done_ahead(make, wanted, ahead)

    def load(self) -> Dataset:
        """Returns the data set itself, because its images are decoded already."""
        return self


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Images in the files of a folder: listed with their classes, and decoded on demand, by threads.

    Attributes:
        root: the folder; links that lead outside it are refused.
        files: path of each image, relative to ``root``.
        labels: (N,) int64, from 0 on.
        class_names: name of each class, or empty if none are known.
        name: name in messages and reports.
        geometry: how images are resized and cropped; ``None`` keeps the images' own size, which must be the same for
            all.
        assumed: assumptions from listing and matching classes, one line each.
        findings: counts over the images that were decoded so far; ``None`` for new ones.
    """

    root: Path
    files: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    name: str
    geometry: Geometry | None = None
    assumed: tuple[str, ...] = ()
    findings: Findings | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.findings is None:
            object.__setattr__(self, "findings", Findings(len(self.files), self.geometry))

    def __repr__(self) -> str:
        return f"<ImageFolder {one_line(self.name)}: {len(self)} images, {len(self.class_names)} classes>"

    def __len__(self) -> int:
        return len(self.files)

    @property
    def notes(self) -> tuple[str, ...]:
        """Assumptions and suspicions, as in ``Dataset``; those about pixels are of the images decoded so far."""
        return (*self.assumed, *self._findings.notes)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of every image, in pixels: the geometry's, or in the header of the first file."""
        return self.file_size(0) if self.geometry is None else self.geometry.size

    def labelled_for(self, classes: int, class_names: Sequence[str]) -> ImageFolder:
        """Same as ``Dataset.labelled_for``, without decoding an image."""
        matched = match_labels(self.labels, self.class_names, classes, class_names, self.name)
        note = matched.note
        assumed = self.assumed if note is None or note in self.assumed else (*self.assumed, note)
        return replace(self, labels=matched.labels, class_names=matched.class_names, assumed=assumed)

    def subset(self, count: int | None, seed: int) -> ImageFolder:
        """Same as ``Dataset.subset``, without decoding an image."""
        return self.select(draw(len(self), count, seed))

    def select(self, rows: slice | NDArray[np.intp]) -> ImageFolder:
        """Same as ``Dataset.select``, without decoding an image."""
        chosen = np.arange(len(self))[rows]
        files = tuple(self.files[index] for index in chosen)
        return replace(self, files=files, labels=self.labels[rows], findings=None)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decodes one image, (H, W, 3) uint8, as ``load_image`` does.

        Raises:
            DataError: the file is damaged, missing, or a link that leads outside the folder.
        """
        return self._decode(index, self.geometry).pixels

    def file_size(self, index: int) -> tuple[int, int]:
        """Upright height and width of an image in its file, from its header. The errors are those of ``image``."""
        return read_size(checked_entry(self._path(index), self.root))

    def batches(self, size: int, rows: Sequence[int] | NDArray[np.intp] | None = None) -> Iterator[Batch]:
        """Same as ``Dataset.batches``: no more is decoded than the batch and what the threads have ready for the next.

        Raises:
            DataError: a file is damaged, missing, or a link that leads outside the folder; or images differ in size and
                there is no geometry.
        """
        indices = np.arange(len(self)) if rows is None else np.asarray(rows)
        shape = (*self.image_size, 3)
        ahead = max(1, min(size, _SMALL // math.prod(shape)))
        decoded = done_ahead(lambda index: self._decode(index, self.geometry), indices.tolist(), ahead)
        with contextlib.closing(decoded):
            for begin in range(0, len(indices), size):
                part = indices[begin : begin + size]
                images = np.empty((len(part), *shape), np.uint8)
                for row, index in zip(images, part.tolist(), strict=True):
                    row[:] = self._noted(next(decoded), index, shape)
                yield images, self.labels[part]
                del images, row  # the caller's now

    def framed(
        self, wanted: Iterable[tuple[int, Frame | None]], ahead: int
    ) -> Generator[NDArray[np.uint8], None, None]:
        """Same as ``Dataset.framed``, with the geometry for images without a frame; errors as for ``batches``."""
        shape = (*self.image_size, 3)

        def decode(item: tuple[int, Frame | None]) -> NDArray[np.uint8]:
            index, frame = item
            if frame is not None:
                return self._decode(index, frame).pixels
            return self._checked(self._decode(index, self.geometry), index, shape)

        return done_ahead(decode, wanted, ahead)

    def load(self) -> Dataset:
        """Decodes every image.

        Raises:
            DataError: as for ``batches``; or the images do not fit into memory.
        """
        size = self.image_size
        try:
            images = np.empty((len(self), *size, 3), np.uint8)
            begin = 0
            for batch, _ in self.batches(max(1, _SMALL // math.prod((*size, 3)))):
                images[begin : begin + len(batch)] = batch
                begin += len(batch)
        except MemoryError as error:
            seen = f"{len(self):,} images of {in_pixels(size)}"
            raise DataError(f"{seen} in {self.name} do not fit into memory; draw fewer of them") from error
        return Dataset(images, self.labels, self.class_names, self.name, self.notes)

    @property
    def _findings(self) -> Findings:
        if self.findings is None:
            raise InternalError("a folder without findings")
        return self.findings

    def _noted(self, read: Decoded, index: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        pixels = self._checked(read, index, shape)
        self._findings.add(index, pixels, read.size, read.note is not None)
        return pixels

    def _checked(self, read: Decoded, index: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        if read.pixels.shape != shape:
            raise DataError(
                f"{self._path(index)} is {in_pixels(read.size)} and {self._path(0)} {in_pixels(shape)}, expected one"
                " size; give the size to resize to"
            )
        return read.pixels

    def _decode(self, index: int, frame: Frame | None) -> Decoded:
        path = self._path(index)
        return read_image(checked_entry(path, self.root), frame)

    def _path(self, index: int) -> Path:
        return self.root / self.files[index]


AnyImages = Dataset | ImageFolder
"""Labelled images, wherever they are: both kinds have ``batches``, ``framed``, ``select``, ``subset``, ``labelled_for``
and ``load``."""


def check_images(images: NDArray[Any] | ArrayHeader, name: str) -> None:
    """Raises DataError unless images have shape (N, H, W, 3), N at least 1, and dtype uint8."""
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise DataError(
            f"images of {name}: {describe(images)}, expected (N, H, W, 3) uint8 with N at least 1; save RGB pixels of"
            " 0..255, channels last"
        )
