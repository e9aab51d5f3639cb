"""Telling by content what kind of data set a path holds, and reading it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from dfs_deploy.data.cifar import CIFAR_ARCHIVES, CifarArchive, load_cifar
from dfs_deploy.data.dataset import SPLITS, Dataset, ImageFolder, Split, content_notes, resize_note
from dfs_deploy.data.folders import open_folder, split_folders
from dfs_deploy.data.images import check_size, resize
from dfs_deploy.data.links import entries_of
from dfs_deploy.data.messages import os_errors_as_data_errors
from dfs_deploy.data.npz import load_npz, opened_npz, splits_in
from dfs_deploy.errors import DataError
from dfs_deploy.io.kinds import given_instead


def load_dataset(
    path: str | Path,
    split: str | None = None,
    size: tuple[int, int] | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Reads labelled images into memory, telling by content what kind of data set the path holds.

    One of:

    - An ``.npz`` with ``x`` (N, H, W, 3) uint8 and ``y`` (N,) integer, whatever the split; or with ``train_x``,
      ``train_y``, ``val_x``, ``val_y``, ``test_x`` and ``test_y``, or some of them. ``class_names``, if it is there,
      names the classes.
    - A folder of images by class, ``CLASS/*.png`` and the like, also with such folders under ``train/``, ``val/`` (or
      ``valid/``, ``validation/``) and ``test/``. Classes are in the order of their names; if all are numbers, in the
      order of these. Files of other kinds, hidden entries and what systems leave in folders are passed over. A symbolic
      link that leads outside the folder is refused, so that an unpacked archive cannot read what was not in it.
    - The folder of a CIFAR-10 or CIFAR-100 archive, python or binary version. CIFAR-100 gives its 100 fine labels.

    Args:
        path: a file or folder.
        split: ``train``, ``val`` or ``test``, if there are several; ``None`` for the images to evaluate on: ``test``,
            or ``val`` if there is no ``test``.
        size: height and width in pixels; images of another size are resized, bilinearly, and the data set's notes say
            so. ``None`` for their own, which must then be the same for all.
        samples: images to draw at random, as :meth:`Dataset.subset` does; ``None`` for all, in their order. Of a
            folder, only what was drawn is decoded.
        seed: seed of the draw.

    Returns:
        The images, in the order of the file; in a folder by class, then by file name; or as they were drawn.

    Raises:
        DataError: nothing of these is there, or it is malformed; the message says where and what to do.
    """
    opened = open_dataset(path, split, size)
    return opened.load() if samples is None else opened.subset(samples, seed).load()


@os_errors_as_data_errors
def splits_of(path: str | Path) -> tuple[Split, ...]:
    """Lists the splits of a data set, without decoding an image.

    Args:
        path: a file or folder, as in :func:`load_dataset`.

    Returns:
        Names of the splits; empty for data without any, whose images are read for every name.

    Raises:
        DataError: nothing is there, or it cannot be read.
    """
    path = Path(path)
    with _told_by_kind(path):
        if path.is_file():
            with opened_npz(path) as arrays:
                found = splits_in(arrays)
        else:
            entries = _entries(path)
            archive = _archive(entries)
            found = list(split_folders(entries)) if archive is None else archive.splits(entries)
        return tuple(split for split in SPLITS if split in found)


@os_errors_as_data_errors
def open_dataset(
    path: str | Path, split: str | None = None, size: tuple[int, int] | None = None
) -> Dataset | ImageFolder:
    """Opens a data set without decoding what lies in files of its own: labels are known, images are not yet.

    Both kinds of result can be drawn from (``subset``), relabelled (``labelled_for``) and loaded (``load``).

    Args:
        path: file or folder, as in :func:`load_dataset`.
        split: name of the split, as there.
        size: height and width, as there.

    Returns:
        The files of a folder; for an ``.npz`` and a CIFAR archive, images in memory.

    Raises:
        DataError: as there.
    """
    path = Path(path)
    chosen = _split(split)
    check_size(size)
    with _told_by_kind(path):
        if path.is_file():
            return _resized(load_npz(path, chosen), size)
        entries = _entries(path)
        archive = _archive(entries)
        if archive is None:
            return open_folder(path, entries, chosen, size)
        return _resized(load_cifar(archive, path, entries, chosen or "test"), size)


@contextmanager
def _told_by_kind(path: Path) -> Iterator[None]:
    """Says of a path that is no data set what it is, if it is of a known kind, in place of what is missing in it."""
    try:
        yield
    except DataError as error:
        other = given_instead(path, "a data set (an .npz with x and y, or a folder of images by class)", "data")
        if other is None:
            raise
        raise DataError(other) from error


def _entries(path: Path) -> list[os.DirEntry[str]]:
    if not path.is_dir():
        raise DataError(
            f"no data set at {path}; give an .npz with x and y, a folder of images by class, or that of a CIFAR archive"
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


def _resized(dataset: Dataset, size: tuple[int, int] | None) -> Dataset:
    notes = [*dataset.notes, *content_notes(dataset.images)]
    images = dataset.images
    own = (images.shape[1], images.shape[2])
    if size is not None and own != tuple(size):
        notes += resize_note(Counter({own: len(images)}), size)
        images = np.empty((len(images), *size, 3), np.uint8)
        for row, image in zip(images, dataset.images, strict=True):
            row[:] = resize(image, size)
    return replace(dataset, images=images, notes=tuple(notes))
