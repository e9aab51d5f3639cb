"""Which splits a data set has, told without decoding an image."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

from dfs_deploy.datasets.cifar import CIFAR_ARCHIVES
from dfs_deploy.datasets.dataset import SPLITS, Split
from dfs_deploy.datasets.folders import entries_of
from dfs_deploy.datasets.messages import cause, os_errors_as_data_errors
from dfs_deploy.errors import DataError


@os_errors_as_data_errors
def splits_of(path: str | Path) -> tuple[Split, ...]:
    """Lists the splits of a data set.

    Args:
        path: a file or folder, as :func:`dfs_deploy.load_dataset` reads it.

    Returns:
        Names of the splits; empty for data without any, where the same images are read for every name.

    Raises:
        DataError: nothing is there, or it cannot be read.
    """
    path = Path(path)
    if path.is_file():
        return _of_npz(path)
    if not path.is_dir():
        raise DataError(
            f"no data set at {path}; give an .npz with x and y, a folder of images by class, or that of a CIFAR archive"
        )
    entries = entries_of(path)
    for archive in CIFAR_ARCHIVES:
        if archive.matches(entries):
            return tuple(split for split in ("train", "test") if archive.files(entries, split))
    # A folder train/ may also be a class, of trains: it is a split if there are folders in it.
    return _in_order(
        [
            entry.name
            for entry in entries
            if entry.name in SPLITS and entry.is_dir() and any(child.is_dir() for child in entries_of(entry))
        ]
    )


def _of_npz(path: Path) -> tuple[Split, ...]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(f"{path} is not a readable .npz archive ({cause(error)}); copy it again") from error
    return () if {"x", "y"} <= names else _in_order([split for split in SPLITS if f"{split}_x" in names])


def _in_order(found: Collection[str]) -> tuple[Split, ...]:
    return tuple(split for split in SPLITS if split in found)
