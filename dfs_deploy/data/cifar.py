"""CIFAR-10 and CIFAR-100: folders of the unpacked archives, python and binary version."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.data.cifar_pickles import PickledArray, as_text, load_cifar_pickle
from dfs_deploy.data.dataset import SPLITS, Dataset, Split, describe
from dfs_deploy.data.entries import checked_entry
from dfs_deploy.errors import DataError
from dfs_deploy.io.files import check_file, read_file, read_head
from dfs_deploy.io.text import one_line
from dfs_deploy.preprocessing import class_names_problem

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE

MAX_BATCH_BYTES = 1 << 28
"""Most bytes of a file of images; the largest published one has 155 MB."""

MAX_ARCHIVE_BYTES = 1 << 32
"""Most bytes of all files of a split."""

_MAX_NAMES_BYTES = 1 << 20


@dataclass(frozen=True)
class CifarArchive:
    """Layout of the files of one version of one archive.

    Attributes:
        kind: name in messages.
        classes: number of classes.
        train: pattern of the names of training files.
        test: pattern of the names of test files.
        names: name of the file with the class names.
        binary: whether files hold records of bytes; else they are pickles.
        label_bytes: bytes before the pixels of a binary record, the last of which is the label.
        label_key: key of the labels in a pickle.
        names_key: key of the class names in a pickle.
    """

    kind: str
    classes: int
    train: re.Pattern[str]
    test: re.Pattern[str]
    names: str
    binary: bool
    label_bytes: int = 1
    label_key: str = "labels"
    names_key: str = "label_names"

    def files(self, entries: Iterable[os.DirEntry[str]], split: Split) -> list[Path]:
        """Files of a split, in the order of the archive; empty for a split that such an archive does not have."""
        pattern = {"train": self.train, "test": self.test}.get(split)
        named = [Path(entry.path) for entry in entries if pattern and pattern.fullmatch(entry.name)]
        found = [checked_entry(file, file.parent) for file in named if file.is_file()]
        return sorted(found, key=lambda file: (len(file.name), file.name))

    def splits(self, entries: Sequence[os.DirEntry[str]]) -> list[Split]:
        """Splits that have files."""
        return [split for split in SPLITS if self.files(entries, split)]

    def matches(self, entries: Sequence[os.DirEntry[str]]) -> bool:
        """Whether a folder holds files of this version; for pickles, the first byte is checked too."""
        files = [file for split in SPLITS for file in self.files(entries, split)]
        return any(self.binary or read_head(file, 1) == pickle.PROTO for file in files)


CIFAR_ARCHIVES = (
    CifarArchive(
        kind="CIFAR-10 (binary)",
        classes=10,
        train=re.compile(r"data_batch_[0-9]+\.bin"),
        test=re.compile(r"test_batch\.bin"),
        names="batches.meta.txt",
        binary=True,
    ),
    CifarArchive(
        kind="CIFAR-10 (python)",
        classes=10,
        train=re.compile(r"data_batch_[0-9]+"),
        test=re.compile(r"test_batch"),
        names="batches.meta",
        binary=False,
    ),
    CifarArchive(
        kind="CIFAR-100 (binary)",
        classes=100,
        train=re.compile(r"train\.bin"),
        test=re.compile(r"test\.bin"),
        names="fine_label_names.txt",
        binary=True,
        label_bytes=2,
    ),
    CifarArchive(
        kind="CIFAR-100 (python)",
        classes=100,
        train=re.compile(r"train"),
        test=re.compile(r"test"),
        names="meta",
        binary=False,
        label_key="fine_labels",
        names_key="fine_label_names",
    ),
)
"""Known archives, in the order in which they are tried."""


def load_cifar(archive: CifarArchive, folder: Path, entries: Sequence[os.DirEntry[str]], split: Split) -> Dataset:
    """Reads one split of an archive, given the entries of its folder."""
    files = archive.files(entries, split)
    if not files:
        raise DataError(f"{folder} is a {archive.kind} archive without its {split} files; unpack it again")
    numbers = [int(number) for file in files for number in re.findall(r"[0-9]+", file.name)]
    if numbers != list(range(1, len(numbers) + 1)):
        raise DataError(
            f"{folder} holds batches {', '.join(map(str, numbers))}, expected all from 1 on ({archive.kind}); unpack"
            " the archive again"
        )
    total = sum(check_file(file, MAX_BATCH_BYTES) for file in files)
    if total > MAX_ARCHIVE_BYTES:
        raise DataError(f"{folder} holds {total:,} bytes of images, expected at most {MAX_ARCHIVE_BYTES:,}")
    read = _read_binary if archive.binary else _read_pickle
    parts = [read(archive, file) for file in files]
    planes = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, _SIDE, _SIDE)
    labels = np.concatenate([labels for _, labels in parts])
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    name = one_line(folder.resolve().name, 200)
    return Dataset(images, labels, _class_names(archive, folder), f"{name}-{split}")


def _read_binary(archive: CifarArchive, file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    record = archive.label_bytes + _PIXELS
    content = np.frombuffer(read_file(file, MAX_BATCH_BYTES), np.uint8)
    if not content.size or content.size % record:
        raise DataError(
            f"{file} has {content.size} bytes, expected a multiple of {record} ({archive.kind}); it may be truncated:"
            " unpack the archive again"
        )
    records = content.reshape(-1, record)
    return records[:, archive.label_bytes :], _checked_labels(
        archive, file, records[:, archive.label_bytes - 1].astype(np.int64)
    )


def _read_pickle(archive: CifarArchive, file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = load_cifar_pickle(file, MAX_BATCH_BYTES)
    holder, labels = content.get("data"), content.get(archive.label_key)
    pixels = holder.array if isinstance(holder, PickledArray) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != _PIXELS or not len(pixels):
        seen = "none" if pixels is None else describe(pixels)
        raise DataError(f"data of {file}: {seen}, expected (N, {_PIXELS}) uint8 ({archive.kind}); unpack it again")
    if not isinstance(labels, list) or len(labels) != len(pixels) or any(type(label) is not int for label in labels):
        seen = f"{len(labels)} entries" if isinstance(labels, list) else type(labels).__name__
        raise DataError(
            f"{archive.label_key} of {file}: {seen}, expected {len(pixels)} integers ({archive.kind}); unpack it again"
        )
    # Integers in a pickle are unbounded, integers in an array are not.
    bounded = [label if 0 <= label < archive.classes else -1 for label in labels]
    return pixels, _checked_labels(archive, file, np.asarray(bounded, np.int64))


def _checked_labels(archive: CifarArchive, file: Path, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    wrong = np.flatnonzero((labels < 0) | (labels >= archive.classes))
    if wrong.size:
        raise DataError(
            f"{file} gives image {wrong[0]} a label outside 0 to {archive.classes - 1} ({archive.kind}); it may be"
            " damaged: unpack the archive again"
        )
    return labels


def _class_names(archive: CifarArchive, folder: Path) -> tuple[str, ...]:
    file = folder / archive.names
    if not file.is_file():
        return ()
    checked_entry(file, folder)
    if archive.binary:
        lines = read_file(file, _MAX_NAMES_BYTES).decode("utf-8", "replace").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    else:
        listed = load_cifar_pickle(file, _MAX_NAMES_BYTES).get(archive.names_key)
        listed = listed if isinstance(listed, list) else []
        names = [as_text(name, file) for name in listed]
    if len(names) != archive.classes:
        raise DataError(
            f"{file} names {len(names)} classes, expected {archive.classes} ({archive.kind}); unpack the archive again"
        )
    if problem := class_names_problem(names):
        raise DataError(f"{file}: {problem}")
    return tuple(names)
