"""Folders of images: one folder per class, or any folder to list."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dfs_deploy.data.dataset import SPLITS, ImageFolder, Split, evaluation_split
from dfs_deploy.data.entries import checked_entry, entries_of, is_folder, os_errors_as_data_errors, unreadable
from dfs_deploy.data.labels import class_order, is_number
from dfs_deploy.errors import DataError
from dfs_deploy.geometry import Geometry
from dfs_deploy.io.kinds import given_instead
from dfs_deploy.io.text import one_line

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
"""Endings of image files, in small or capital letters."""

SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
"""Possible names of each split's folder."""

_NAME_LENGTH = 200


@os_errors_as_data_errors
def list_images(path: str | Path, on_error: Callable[[Path, DataError], None] | None = None) -> list[Path]:
    """Lists the images of a folder and of its subfolders.

    Hidden entries and files that operating systems leave are ignored, and links to folders are not followed. A link to
    a file outside the folder is refused, as in ``load_dataset``.

    Args:
        path: a folder; or a file with any ending, which is then the only result.
        on_error: called with each entry that cannot be listed and the error; the others are still listed. ``None``
            raises the error.

    Returns:
        The paths, sorted; each begins with ``path``. Empty if every entry was passed to ``on_error``.

    Raises:
        DataError: the path does not exist, or holds no image.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        expected = "an image or a folder of images"
        raise DataError(
            given_instead(path, expected, "image") or f"{path} does not exist, expected {expected}; check the path"
        )
    found: list[Path] = []
    failed = False
    pending = entries_of(path)
    while pending:
        entry = pending.pop()
        try:
            if is_folder(entry):
                if not entry.is_symlink():
                    pending += entries_of(Path(entry.path))
            elif _is_image(entry):
                found.append(checked_entry(Path(entry.path), path))
        except (DataError, OSError) as error:
            if on_error is None:
                raise
            failed = True
            on_error(Path(entry.path), error if isinstance(error, DataError) else unreadable(error))
    if not found and not failed:
        raise DataError(
            f"no image in {path}, expected files ending in {', '.join(IMAGE_SUFFIXES)}; give another folder"
        )
    return sorted(found)


def open_folder(
    path: Path, entries: Sequence[os.DirEntry[str]], split: Split | None, geometry: Geometry | None
) -> ImageFolder:
    """Lists a folder with one folder per class, given its entries; see ``open_dataset``."""
    root, name = path, one_line(path.resolve().name, _NAME_LENGTH)
    splits = split_folders(entries)
    if splits:
        chosen = split or evaluation_split(splits)
        if chosen not in splits:
            raise DataError(f"{path} holds {', '.join(splits)}/ and no {chosen}/; choose a split that exists")
        path, name = checked_entry(splits[chosen], root), f"{name}-{chosen}"
        entries = entries_of(path)
    classes = [entry for entry in entries if is_folder(entry)]
    if len(classes) < 2:
        raise DataError(
            f"{path} holds {len(classes)} folder(s), expected one per class and at least 2, as in cat/1.png,"
            " dog/2.png; or an unpacked CIFAR archive"
        )
    if all(is_number(entry.name) for entry in classes):
        classes.sort(key=lambda entry: class_order(entry.name))
        for one, other in itertools.pairwise(classes):
            if int(one.name) == int(other.name):
                raise DataError(f"{path} holds {one.name}/ and {other.name}/, the same number twice; merge them")
    files = [_class_images(Path(entry.path), root) for entry in classes]
    return ImageFolder(
        root=root,
        files=tuple(file for group in files for file in group),
        labels=np.repeat(np.arange(len(classes), dtype=np.int64), [len(group) for group in files]),
        class_names=tuple(entry.name for entry in classes),
        name=name,
        geometry=geometry,
    )


def split_folders(entries: Sequence[os.DirEntry[str]]) -> dict[Split, Path]:
    """Finds the folders of splits among the entries of a folder.

    A folder ``train/`` could also be the class of trains; it is a split if it contains folders.

    Raises:
        DataError: two folders are the same split.
    """
    found: dict[Split, Path] = {}
    for split in SPLITS:
        for entry in entries:
            if entry.name not in SPLIT_FOLDERS[split] or not is_folder(entry):
                continue
            if any(is_folder(child) for child in entries_of(Path(entry.path))):
                if split in found:
                    raise DataError(f"{found[split]} and {entry.path} are the same split; keep one of them")
                found[split] = Path(entry.path)
    return found


def _class_images(folder: Path, root: Path) -> list[str]:
    """Paths, relative to the root, of the images of a class; links are checked when an image is decoded."""
    images = []
    for entry in entries_of(checked_entry(folder, root)):
        if is_folder(entry):
            raise DataError(f"folder {entry.path} inside a class, expected only images in {folder}; move them up")
        if _is_image(entry):
            images.append(entry.path)
    if not images:
        raise DataError(
            f"no image in class folder {folder}, expected files ending in {', '.join(IMAGE_SUFFIXES)}; add them, or"
            " remove the class"
        )
    return [os.path.relpath(image, root) for image in images]


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES)
