"""Folders of images: one a class, or any to be listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.datasets.dataset import SPLITS, Dataset, Split
from dfs_deploy.datasets.images import load_image
from dfs_deploy.datasets.messages import cause, os_errors_as_data_errors, unreadable
from dfs_deploy.errors import DataError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
"""Endings, in any case, of the files that a folder is searched for."""


@os_errors_as_data_errors
def list_images(path: str | Path, on_error: Callable[[Path, DataError], None] | None = None) -> list[Path]:
    """Lists the images of a folder and all folders in it.

    Hidden entries are left out, and links to folders are not followed. A link to a file outside the folder is refused,
    as in :func:`~dfs_deploy.datasets.load_dataset`.

    Args:
        path: a folder; or a file, of any ending, which is then the only one.
        on_error: called with an entry of the folder that cannot be listed, and why; the others are listed all the
            same. ``None`` raises the error.

    Returns:
        The paths, sorted; each begins with ``path``. None at all if every entry was given to ``on_error``.

    Raises:
        DataError: nothing is there, or no image is in it.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"nothing at {path}, expected an image or a folder of images")
    found: list[Path] = []
    failed = False
    pending = [path]
    while pending:
        entry = pending.pop()
        try:
            if entry.is_dir():
                if entry == path or not entry.is_symlink():
                    pending += entries_of(entry)
            elif entry.suffix.lower() in IMAGE_SUFFIXES:
                found.append(checked_entry(entry, path))
        except (DataError, OSError) as error:
            if on_error is None:
                raise
            failed = True
            on_error(entry, error if isinstance(error, DataError) else unreadable(error))
    if not found and not failed:
        raise DataError(f"no image in {path}, expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return sorted(found)


def load_folder(path: Path, entries: Sequence[Path], split: Split, size: tuple[int, int] | None) -> Dataset:
    """Reads a folder of images by class, given its entries; see :func:`~dfs_deploy.datasets.load_dataset`."""
    root, name = path, path.resolve().name
    # A folder train/ may also be a class, of trains: it is a split where there are folders in it.
    splits = {
        entry.name: entry
        for entry in entries
        if entry.name in SPLITS and entry.is_dir() and any(child.is_dir() for child in entries_of(entry))
    }
    if splits:
        if split not in splits:
            raise DataError(f"{path} holds {', '.join(sorted(splits))}/ and no {split}/; choose a split that is there")
        path, name = checked_entry(splits[split], root), f"{name}-{split}"
        entries = entries_of(path)
    classes = [entry for entry in entries if entry.is_dir()]
    if len(classes) < 2:
        raise DataError(
            f"{path} holds {len(classes)} folder(s), expected one a class and at least 2, as in cat/1.png, dog/2.png;"
            " or an unpacked CIFAR archive"
        )
    files = [_class_images(folder, root) for folder in classes]
    images = _load_all([file for group in files for file in group], size)
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(group) for group in files])
    return Dataset(images, labels, tuple(folder.name for folder in classes), name)


def _class_images(folder: Path, root: Path) -> list[Path]:
    images = []
    for entry in entries_of(checked_entry(folder, root)):
        if entry.is_dir():
            raise DataError(f"folder {entry} inside a class, expected images right in {folder}; move them there")
        if entry.suffix.lower() in IMAGE_SUFFIXES:
            images.append(checked_entry(entry, root))
    if not images:
        raise DataError(
            f"no image in class folder {folder}, expected files ending in {', '.join(IMAGE_SUFFIXES)}; add them, or"
            " remove the class"
        )
    return images


def _load_all(files: Sequence[Path], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    first = load_image(files[0], size)
    images = np.empty((len(files), *first.shape), np.uint8)
    images[0] = first
    for index, file in enumerate(files[1:], start=1):
        image = load_image(file, size)
        if image.shape != first.shape:
            raise DataError(
                f"{file} is {_pixels(image)} and {files[0]} {_pixels(first)}, expected one size; give the size to"
                " resize to"
            )
        images[index] = image
    return images


def entries_of(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden, sorted."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def checked_entry(entry: Path, root: Path) -> Path:
    """Returns an entry below ``root`` that exists and leads nowhere else; raises DataError otherwise."""
    try:
        # The parents were checked on the way down, so only the entry itself can lead outside.
        inside = not entry.is_symlink() or entry.resolve(strict=True).is_relative_to(root.resolve())
        regular = entry.is_file() or entry.is_dir()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise DataError(f"{entry} is a link to nothing ({cause(error)}); remove it") from error
    if not inside:
        raise DataError(f"{entry} is a link that leads outside {root}; copy what it points to into the folder")
    if not regular:
        raise DataError(f"{entry} is neither a file nor a folder; remove it")
    return entry


def _pixels(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"
