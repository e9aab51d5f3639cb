"""Telling by content what kind of data set a path holds, and reading it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dfs_deploy.datasets.cifar import CIFAR_ARCHIVES, load_cifar
from dfs_deploy.datasets.dataset import SPLITS, Dataset, Split
from dfs_deploy.datasets.folders import entries_of, load_folder
from dfs_deploy.datasets.images import check_size, resize
from dfs_deploy.datasets.messages import os_errors_as_data_errors
from dfs_deploy.datasets.npz import load_npz
from dfs_deploy.errors import DataError


@os_errors_as_data_errors
def load_dataset(path: str | Path, split: str | None = None, size: tuple[int, int] | None = None) -> Dataset:
    """Reads labelled images, telling by content what kind of data set the path holds.

    One of:

    - An ``.npz`` with ``x`` (N, H, W, 3) uint8 and ``y`` (N,) integer, where ``split`` does not matter; or with
      ``train_x``, ``train_y``, ``test_x`` and ``test_y``, or ``val_x`` and ``val_y``. ``class_names``, where present,
      names the classes.
    - A folder of images by class, ``CLASS/*.png`` and the like, classes numbered by sorted name; also with such folders
      under ``train/``, ``val/`` and ``test/``. Files of other kinds and hidden entries are ignored. A symbolic link
      that leads outside the folder is refused, so that an unpacked archive cannot read what was not in it.
    - The folder of a CIFAR-10 or CIFAR-100 archive, python or binary version. CIFAR-100 gives its 100 fine labels.

    Args:
        path: a file or folder.
        split: ``train``, ``val`` or ``test``, if there are several; ``None`` for ``test``.
        size: height and width in pixels; images of another size are resized, bilinearly. ``None`` for their own, which
            must then be the same for all.

    Returns:
        The images, in the order of the file; in a folder by class, then by file name.

    Raises:
        DataError: nothing of these is there, or it is malformed; the message says where and what to do.
    """
    path = Path(path)
    chosen: Split = "test"
    if split is not None:
        if split not in SPLITS:
            raise DataError(f"split {split!r}, expected {' or '.join(map(repr, SPLITS))}")
        chosen = split
    check_size(size)
    if path.is_file():
        return _resized(load_npz(path, chosen), size)
    if not path.is_dir():
        raise DataError(
            f"no data set at {path}; give an .npz with x and y, a folder of images by class, or that of a CIFAR archive"
        )
    entries = entries_of(path)
    for archive in CIFAR_ARCHIVES:
        if archive.matches(entries):
            return _resized(load_cifar(archive, path, entries, chosen), size)
    return load_folder(path, entries, chosen, size)


def _resized(dataset: Dataset, size: tuple[int, int] | None) -> Dataset:
    if size is None or dataset.images.shape[1:3] == tuple(size):
        return dataset
    images = np.stack([resize(image, size) for image in dataset.images])
    return Dataset(images, dataset.labels, dataset.class_names, dataset.name)
