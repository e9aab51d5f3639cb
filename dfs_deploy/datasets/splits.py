"""Which splits a data set has, told without decoding an image."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dfs_deploy.datasets.cifar import CIFAR_ARCHIVES
from dfs_deploy.datasets.dataset import SPLITS, Split
from dfs_deploy.datasets.folders import split_folders
from dfs_deploy.datasets.links import entries_of
from dfs_deploy.datasets.messages import os_errors_as_data_errors
from dfs_deploy.datasets.npz import opened_npz
from dfs_deploy.errors import DataError


@os_errors_as_data_errors
def splits_of(path: str | Path) -> tuple[Split, ...]:
    """Lists the splits of a data set.

    Args:
        path: a file or folder, as :func:`dfs_deploy.load_dataset` reads it.

    Returns:
        Names of the splits; empty for data without any, whose images are read for every name.

    Raises:
        DataError: nothing is there, or it cannot be read.
    """
    path = Path(path)
    if path.is_file():
        with opened_npz(path) as arrays:
            plain = {"x", "y"} <= arrays.names
            return () if plain else _in_order([split for split in SPLITS if f"{split}_x" in arrays.names])
    if not path.is_dir():
        raise DataError(
            f"no data set at {path}; give an .npz with x and y, a folder of images by class, or that of a CIFAR archive"
        )
    entries = entries_of(path)
    for archive in CIFAR_ARCHIVES:
        if archive.matches(entries):
            return _in_order([split for split in SPLITS if archive.files(entries, split)])
    return _in_order(split_folders(entries))


def _in_order(found: Collection[str]) -> tuple[Split, ...]:
    return tuple(split for split in SPLITS if split in found)
