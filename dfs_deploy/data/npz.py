"""``.npz`` files of images and labels, read and written without pickles."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.data.dataset import SPLITS, Dataset, Split, check_images, describe, evaluation_split
from dfs_deploy.errors import DataError
from dfs_deploy.io.arrays import MAX_ARRAY_BYTES, ArrayHeader, Arrays, ArraysError
from dfs_deploy.io.files import check_file, whole_file
from dfs_deploy.io.text import first_line, one_line
from dfs_deploy.preprocessing import MAX_CLASSES, MAX_NAME, class_names_problem

_MAX_FILE = 2 * MAX_ARRAY_BYTES


def save_npz(path: str | Path, dataset: Dataset) -> None:
    """Writes a data set whole, as an ``.npz`` that ``load_dataset`` reads.

    Args:
        path: the file; its folder is created if it is missing.
        dataset: images, labels and class names; its name is not stored.

    Raises:
        DataError: the file cannot be written, or a class name cannot be stored.
    """
    path = Path(path)
    if problem := class_names_problem(dataset.class_names):
        raise DataError(f"cannot write {path}: {problem}")
    try:
        # A stream, because NumPy appends .npz to a path without that ending.
        with whole_file(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(
                stream, x=dataset.images, y=dataset.labels, class_names=np.asarray(dataset.class_names, np.str_)
            )
    except OSError as error:
        raise DataError(f"cannot write {path} ({first_line(error)}); choose another place") from error


@contextmanager
def opened_npz(path: Path) -> Iterator[Arrays]:
    """Opens an ``.npz``; every error in the block becomes a DataError with the path."""
    check_file(path, _MAX_FILE)
    with path.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise DataError(
                f"{path} is not an .npz archive, or it is incomplete; give an .npz with x and y, or a folder (unpack"
                " other archives first)"
            )
        try:
            with Arrays(stream) as archive:
                yield archive
        except ArraysError as error:
            raise DataError(f"{path}: {error}; save it again, or copy it") from error
        except MemoryError as error:
            raise DataError(f"{path} does not fit into memory; split it, or give fewer images") from error


def load_npz(path: Path, split: Split | None) -> Dataset:
    """Reads an ``.npz``; see ``load_dataset``."""
    with opened_npz(path) as archive:
        plain = _is_plain(archive)
        chosen = split or evaluation_split(splits_in(archive))
        x_name, y_name = ("x", "y") if plain else (f"{chosen}_x", f"{chosen}_y")
        if not {x_name, y_name} <= archive.names:
            there = ", ".join(one_line(name, 40) for name in sorted(archive.names)[:6]) or "nothing"
            raise DataError(
                f"{path} holds {there}; expected x (N, H, W, 3) uint8 and y (N,) integer, or {chosen}_x and {chosen}_y"
            )
        name = one_line(path.stem if plain else f"{path.stem}-{chosen}", 200)
        # The headers are checked before anything large is read.
        check_images(archive.header(x_name), name)
        _check_labels(archive.header(y_name), f"{y_name} of {path}")
        class_names = _class_names(archive, path) if "class_names" in archive.names else ()
        labels = _int_labels(archive.read(y_name), f"{y_name} of {path}")
        return Dataset(archive.read(x_name), labels, class_names, name)


def splits_in(archive: Arrays) -> list[Split]:
    """Splits of an archive; empty for one with ``x`` and ``y``."""
    return [] if _is_plain(archive) else [split for split in SPLITS if f"{split}_x" in archive.names]


def _is_plain(archive: Arrays) -> bool:
    return {"x", "y"} <= archive.names


def _class_names(archive: Arrays, path: Path) -> tuple[str, ...]:
    header = archive.header("class_names")
    if header.dtype.kind != "U" or header.ndim != 1:
        raise DataError(f"class_names of {path}: {describe(header)}, expected (classes,) text; save it again")
    if header.shape[0] > MAX_CLASSES or header.dtype.itemsize > 4 * MAX_NAME:
        raise DataError(
            f"class_names of {path}: {describe(header)}, expected at most {MAX_CLASSES:,} names of {MAX_NAME} letters"
        )
    names = tuple(map(str, archive.read("class_names").tolist()))
    if problem := class_names_problem(names):
        raise DataError(f"class_names of {path}: {problem}")
    return names


def _check_labels(labels: ArrayHeader, what: str) -> None:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{what}: {describe(labels)}, expected (N,) integer; give the index of each image's class, cast and"
            " flattened"
        )


def _int_labels(labels: NDArray[Any], what: str) -> NDArray[np.int64]:
    if labels.dtype == np.uint64 and labels.size and labels.max() > np.iinfo(np.int64).max:
        raise DataError(f"{what}: {labels.max()}, expected class indices from 0 on")
    return labels.astype(np.int64)
