"""Opening a data set of any kind; the content of the path decides which kind it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from dfs_deploy.data.cifar import CIFAR_ARCHIVES, CifarArchive, load_cifar
from dfs_deploy.data.dataset import SPLITS, AnyImages, Dataset, Split
from dfs_deploy.data.entries import entries_of, os_errors_as_data_errors
from dfs_deploy.data.findings import Findings
from dfs_deploy.data.folders import open_folder, split_folders
from dfs_deploy.data.images import Size, geometry_of
from dfs_deploy.data.npz import load_npz, opened_npz, splits_in
from dfs_deploy.errors import DataError
from dfs_deploy.geometry import Geometry
from dfs_deploy.io.kinds import given_instead


def load_dataset(
    path: str | Path,
    split: str | None = None,
    size: Size = None,
    *,
    samples: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Reads labelled images into memory; the content of the path decides how.

    The path is one of:

    - An ``.npz`` with ``x`` (N, H, W, 3) uint8 and ``y`` (N,) integer, which serve every split; or with some of
      ``train_x``, ``train_y``, ``val_x``, ``val_y``, ``test_x`` and ``test_y``. ``class_names`` is optional.
    - A folder with one folder of images per class (``CLASS/*.png``), or with such folders in ``train/``, ``val/`` (or
      ``valid/``, ``validation/``) and ``test/``. Classes are sorted by name, or by number if all names are numbers.
      Other files, hidden entries and files that operating systems leave are ignored. A symbolic link that leads outside
      the folder is refused, so that an unpacked archive cannot read other files.
    - The folder of a CIFAR-10 or CIFAR-100 archive, python or binary version. CIFAR-100 has its 100 fine labels.

    Args:
        path: a file or folder.
        split: ``train``, ``val`` or ``test``; ``None`` for the images to evaluate on: ``test``, or ``val`` if there is
            no ``test``.
        size: height and width in pixels; images of another size are resized bilinearly, and the notes of the data set
            say so. Or a geometry, such as ``Runtime.input.geometry``, which may crop as well: it is applied to every
            image of a folder, and to arrays of another height and width. ``None`` keeps the images' own size, which
            must be the same for all.
        samples: number of images to draw at random, see ``Dataset.subset``; ``None`` for all, in order. Only the
            chosen images of a folder are decoded.
        seed: seed of the draw.

    Returns:
        The images in the order of the file, or by class and file name in a folder, or in the order of the draw.

    Raises:
        DataError: the path holds no data set, or a malformed one; the message says what to do.
    """
    opened = open_dataset(path, split, size)
    return opened.load() if samples is None else opened.subset(samples, seed).load()


@os_errors_as_data_errors
def splits_of(path: str | Path) -> tuple[Split, ...]:
    """Splits of a data set, without decoding an image; empty for data that serve every split.

    Raises:
        DataError: the data cannot be read.
    """
    path = Path(path)
    with _naming_other_kinds(path):
        if path.is_file():
            with opened_npz(path) as arrays:
                found = splits_in(arrays)
        else:
            entries = _entries(path)
            archive = _archive(entries)
            found = list(split_folders(entries)) if archive is None else archive.splits(entries)
        return tuple(split for split in SPLITS if split in found)


@os_errors_as_data_errors
def open_dataset(path: str | Path, split: str | None = None, size: Size = None) -> AnyImages:
    """Opens a data set; a folder of images is listed with its labels, and decoded later.

    The arguments are those of ``load_dataset``. Both kinds of result have ``batches``, ``subset``, ``select``,
    ``labelled_for`` and ``load``.

    Returns:
        The files of a folder; or, for an ``.npz`` or a CIFAR archive, images in memory.

    Raises:
        DataError: the path holds no data set, or a malformed one.
    """
    path = Path(path)
    chosen = _split(split)
    geometry = geometry_of(size)
    with _naming_other_kinds(path):
        if path.is_file():
            return _resized(load_npz(path, chosen), geometry)
        entries = _entries(path)
        archive = _archive(entries)
        if archive is None:
            return open_folder(path, entries, chosen, geometry)
        return _resized(load_cifar(archive, path, entries, chosen or "test"), geometry)


@contextmanager
def _naming_other_kinds(path: Path) -> Iterator[None]:
    """If a path of another known kind was given, says that instead of what is missing in the data set."""
    try:
        yield
    except DataError as error:
        other = given_instead(path, "a data set (an .npz with x and y, or a folder of images by class)", "data")
        if other is None:
            raise
        raise DataError(other) from error


def _entries(path: Path) -> list[os.DirEntry[str]]:
    if not path.is_dir():
        seen = "is no data set" if path.exists() else "does not exist"
        raise DataError(
            f"{path} {seen}; give an .npz with x and y, a folder of images by class, or that of a CIFAR archive"
        )
    return entries_of(path)


def _archive(entries: Sequence[os.DirEntry[str]]) -> CifarArchive | None:
    return next((archive for archive in CIFAR_ARCHIVES if archive.matches(entries)), None)


def _split(name: str | None) -> Split | None:
    if name is None:
        return None
    for split in SPLITS:
        if split == name:
            return split
    raise DataError(f"split {name!r}, expected one of {', '.join(SPLITS)}")


def _resized(dataset: Dataset, geometry: Geometry | None) -> Dataset:
    findings = Findings(len(dataset), geometry)
    for index, image in enumerate(dataset.images):
        findings.add(index, image, dataset.image_size)
    images = dataset.images
    if geometry is not None and dataset.image_size != geometry.size:
        images = np.empty((len(images), *geometry.size, 3), np.uint8)
        for row, image in zip(images, dataset.images, strict=True):
            row[:] = geometry(image)
    return replace(dataset, images=images, notes=(*dataset.notes, *findings.notes))
