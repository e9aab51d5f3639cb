"""The ``.npz`` of images and labels: reading and writing it; object arrays are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.datasets.dataset import Dataset, Split
from dfs_deploy.datasets.messages import cause, describe
from dfs_deploy.errors import DataError
from dfs_deploy.files import whole_file


def save_npz(path: str | Path, dataset: Dataset) -> None:
    """Writes a data set whole, as an ``.npz`` that :func:`~dfs_deploy.datasets.load_dataset` reads.

    Args:
        path: the file; its folder is made where it is missing.
        dataset: images, labels and class names; the name is that of the file from then on.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    try:
        # A stream, since NumPy adds .npz to a path that does not end so.
        with whole_file(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(
                stream, x=dataset.images, y=dataset.labels, class_names=np.asarray(dataset.class_names, np.str_)
            )
    except OSError as error:
        raise DataError(f"cannot write {path} ({cause(error)}); choose another place") from error


def load_npz(path: Path, split: Split) -> Dataset:
    """Reads an ``.npz``; see :func:`~dfs_deploy.datasets.load_dataset`."""
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is not an .npz archive, or a truncated one; give an .npz with x and y, or a folder (unpack"
            " other archives first)"
        )
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged archive raises whatever zipfile and NumPy meet in it
        raise DataError(f"{path} is not a readable .npz archive ({cause(error)}); copy it again") from error
    with archive:
        names = set(archive.files)
        plain = {"x", "y"} <= names
        x_name, y_name = ("x", "y") if plain else (f"{split}_x", f"{split}_y")
        if not {x_name, y_name} <= names:
            raise DataError(
                f"{path} holds {', '.join(sorted(names)[:6]) or 'nothing'}; expected x (N, H, W, 3) uint8 and y (N,)"
                f" integer, or {split}_x and {split}_y"
            )
        images, labels = _npz_member(archive, x_name, path), _npz_member(archive, y_name, path)
        class_names = _npz_member(archive, "class_names", path) if "class_names" in names else np.zeros(0, np.str_)
    if class_names.dtype.kind != "U" or class_names.ndim != 1:
        raise DataError(f"class_names of {path}: {describe(class_names)}, expected (classes,) text; save it again")
    name = path.stem if plain else f"{path.stem}-{split}"
    return Dataset(images, _int_labels(labels, f"{y_name} of {path}"), tuple(class_names.tolist()), name)


def _npz_member(archive: Any, name: str, path: Path) -> NDArray[Any]:
    try:
        member = archive[name]
    except Exception as error:  # as above; ValueError among them, for an array of pickled objects
        raise DataError(f"{name} of {path} cannot be read ({cause(error)}); save it again") from error
    if not isinstance(member, np.ndarray):
        raise DataError(f"{name} of {path} is no array; save it again with numpy.savez")
    return member


def _int_labels(labels: NDArray[Any], what: str) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{what}: {describe(labels)}, expected (N,) integer; give the index of each image's class, cast and"
            " flattened"
        )
    if labels.dtype == np.uint64 and labels.size and labels.max() > np.iinfo(np.int64).max:
        raise DataError(f"{what}: {labels.max()}, expected class indices from 0 on")
    return labels.astype(np.int64)
