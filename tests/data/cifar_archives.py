from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.pictures import Pixels, pixels


def cifar_images(count: int, seed: int = 0) -> Pixels:
    return pixels(count, 32, 32, 3, seed=seed)


def rows(images: Pixels) -> Pixels:
    """As CIFAR lays an image out: the red plane, the green, the blue."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


def python2_pickle(images: Pixels, key: str, labels: list[int]) -> bytes:
    """A batch as the published archives hold it: Python 2's cPickle in protocol 2, text as byte strings."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode("latin1")

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    raw = rows(images).tobytes()
    dtype = b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNN" + 2 * b"J\xff\xff\xff\xff"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + text("b")
        + b"\x87R(K\x01"
        + number(len(images))
        + number(3072)
        + b"\x86"
        + dtype
        + b"K\x00tb\x89T"
        + struct.pack("<I", len(raw))
        + raw
        + b"tb"
    )
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + text("data") + array + text(key) + listed + b"u."


def python3_pickle(images: Pixels, key: str, labels: list[int], protocol: int = 2, as_bytes: bool = False) -> bytes:
    content: dict[Any, Any] = {"batch_label": "testing batch 1 of 1", "data": rows(images), key: labels}
    if as_bytes:
        content = {name.encode(): value for name, value in content.items()}
    return pickle.dumps(content, protocol)


def binary(images: Pixels, *labels: list[int]) -> bytes:
    return np.concatenate([np.array(labels, np.uint8).T, rows(images)], axis=1).tobytes()


TEN = [f"class {index}" for index in range(10)]
HUNDRED = [f"class {index}" for index in range(100)]


def cifar10_python(folder: Path, write: Callable[[Pixels, str, list[int]], bytes] = python2_pickle) -> Path:
    folder.mkdir()
    for number in (1, 2):
        labels = [number, number + 1]
        (folder / f"data_batch_{number}").write_bytes(write(cifar_images(2, number), "labels", labels))
    (folder / "test_batch").write_bytes(write(cifar_images(3), "labels", [9, 0, 4]))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": TEN, "num_vis": 3072}, 2))
    (folder / "readme.html").write_text("none")
    return folder


def cifar10_binary(folder: Path) -> Path:
    folder.mkdir()
    for number in (1, 2):
        (folder / f"data_batch_{number}.bin").write_bytes(binary(cifar_images(2, number), [number, number + 1]))
    (folder / "test_batch.bin").write_bytes(binary(cifar_images(3), [9, 0, 4]))
    (folder / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")
    return folder


def cifar100_python(folder: Path, write: Callable[[Pixels, str, list[int]], bytes] = python2_pickle) -> Path:
    folder.mkdir()
    (folder / "train").write_bytes(write(cifar_images(4, 1), "fine_labels", [1, 2, 2, 3]))
    (folder / "test").write_bytes(write(cifar_images(3), "fine_labels", [99, 0, 4]))
    names = {"fine_label_names": HUNDRED, "coarse_label_names": ["other"] * 20}
    (folder / "meta").write_bytes(pickle.dumps(names, 2))
    return folder


def cifar100_binary(folder: Path) -> Path:
    folder.mkdir()
    (folder / "train.bin").write_bytes(binary(cifar_images(4, 1), [19] * 4, [1, 2, 2, 3]))
    (folder / "test.bin").write_bytes(binary(cifar_images(3), [19] * 3, [99, 0, 4]))
    (folder / "fine_label_names.txt").write_text("\n".join(HUNDRED) + "\n")
    return folder
