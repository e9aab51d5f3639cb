from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfs_deploy.data import load_dataset
from dfs_deploy.errors import DataError
from tests.checks import refuses
from tests.data.cifar_archives import (
    HUNDRED,
    TEN,
    binary,
    cifar10_binary,
    cifar10_python,
    cifar100_binary,
    cifar100_python,
    cifar_images,
    python3_pickle,
    rows,
)


@pytest.mark.parametrize("make", [cifar10_python, cifar10_binary])
def test_cifar_10_is_read(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "cifar")
    test, train = load_dataset(folder), load_dataset(folder, "train")
    np.testing.assert_array_equal(test.images, cifar_images(3))
    assert test.labels.tolist() == [9, 0, 4]
    np.testing.assert_array_equal(train.images, np.concatenate([cifar_images(2, 1), cifar_images(2, 2)]))
    assert train.labels.tolist() == [1, 2, 2, 3]
    assert test.class_names == train.class_names == tuple(TEN)
    assert (test.name, train.name) == ("cifar-test", "cifar-train")
    assert test.images.flags.c_contiguous


@pytest.mark.parametrize("make", [cifar100_python, cifar100_binary])
def test_cifar_100_is_read_with_its_fine_labels(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "cifar")
    test, train = load_dataset(folder, "test"), load_dataset(folder, "train")
    np.testing.assert_array_equal(test.images, cifar_images(3))
    assert test.labels.tolist() == [99, 0, 4]
    np.testing.assert_array_equal(train.images, cifar_images(4, 1))
    assert train.labels.tolist() == [1, 2, 2, 3]
    assert test.class_names == tuple(HUNDRED)


@pytest.mark.parametrize(("protocol", "as_bytes"), [(2, True), (4, False)])
def test_batches_that_python_3_wrote_are_read(tmp_path: Path, protocol: int, as_bytes: bool) -> None:
    folder = cifar10_python(tmp_path / "cifar")
    (folder / "test_batch").write_bytes(python3_pickle(cifar_images(3), "labels", [9, 0, 4], protocol, as_bytes))
    read = load_dataset(folder)
    np.testing.assert_array_equal(read.images, cifar_images(3))
    assert read.labels.tolist() == [9, 0, 4]


def test_batches_in_column_order_are_read(tmp_path: Path) -> None:
    folder = cifar10_python(tmp_path / "cifar")
    content = {"data": np.asfortranarray(rows(cifar_images(3))), "labels": [9, 0, 4]}
    (folder / "test_batch").write_bytes(pickle.dumps(content, 2))
    np.testing.assert_array_equal(load_dataset(folder).images, cifar_images(3))


def test_ten_batches_keep_their_order(tmp_path: Path) -> None:
    for number in range(1, 12):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(binary(cifar_images(1), [number % 10]))
    assert load_dataset(tmp_path, "train").labels.tolist() == [number % 10 for number in range(1, 12)]


@pytest.mark.parametrize("make", [cifar10_python, cifar10_binary, cifar100_python, cifar100_binary])
def test_class_names_may_be_missing_but_not_wrong(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "cifar")
    (file,) = (entry for entry in folder.iterdir() if "meta" in entry.name or "names" in entry.name)
    few = {"label_names": TEN[:3], "fine_label_names": TEN[:3]}
    file.write_bytes(pickle.dumps(few, 2) if file.suffix != ".txt" else b"one\ntwo\nthree\n")
    with refuses(DataError, file.name, "names 3 classes"):
        load_dataset(folder)
    file.unlink()
    assert load_dataset(folder).class_names == ()


@pytest.mark.parametrize("make", [cifar10_python, cifar10_binary, cifar100_python, cifar100_binary])
def test_a_missing_split_is_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "cifar")
    for file in folder.glob("test*"):
        file.unlink()
    assert len(load_dataset(folder, "train")) == 4
    with refuses(DataError, "without its test files"):
        load_dataset(folder)


@pytest.mark.parametrize("make", [cifar10_python, cifar10_binary])
def test_a_missing_batch_is_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "cifar")
    (first,) = folder.glob("data_batch_1*")
    first.unlink()
    with refuses(DataError, "batches 2,", "from 1 on"):
        load_dataset(folder, "train")


@pytest.mark.parametrize("make", [cifar10_python, cifar10_binary, cifar100_python, cifar100_binary])
def test_truncated_files_are_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "cifar")
    (file,) = folder.glob("test*")
    whole = file.read_bytes()
    for length in (1, 2, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with refuses(DataError, file.name):
            load_dataset(folder)
    file.write_bytes(b"")
    with refuses(DataError):
        load_dataset(folder)


def test_binary_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test_batch.bin").write_bytes(binary(cifar_images(2), [3, 10]))
    with refuses(DataError, "image 1", "0 to 9"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([1, 2], "holds a list"),
        ({"labels": [1, 2]}, "data of"),
        ({"data": [1, 2], "labels": [1, 2]}, "data of"),
        ({"data": rows(cifar_images(2))}, "labels of"),
        ({"data": rows(cifar_images(2)), "labels": [1, "2"]}, "expected 2 integers"),
        ({"data": rows(cifar_images(2)), "labels": [1, True]}, "expected 2 integers"),
        ({"data": rows(cifar_images(2)), "labels": [-1, 1]}, "image 0"),
        ({"data": rows(cifar_images(2)), "labels": [1, 2**80]}, "image 1"),
        ({"data": rows(cifar_images(2))[:, :-1], "labels": [1, 2]}, "(2, 3071)"),
        ({"data": rows(cifar_images(2))[:0], "labels": []}, "(0, 3072)"),
        ({"data": rows(cifar_images(2)).astype(np.int64), "labels": [1, 2]}, "expected uint8"),
        ({"data": np.array([None, {}], object), "labels": [1, 2]}, "expected uint8"),
    ],
)
def test_malformed_batches_are_refused(tmp_path: Path, content: Any, word: str) -> None:
    folder = cifar10_python(tmp_path / "cifar")
    (folder / "test_batch").write_bytes(pickle.dumps(content, 4))
    with refuses(DataError, "test_batch", word):
        load_dataset(folder)


@pytest.mark.parametrize("make", [cifar10_python, cifar10_binary, cifar100_python, cifar100_binary])
def test_files_may_not_be_links_to_outside(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "cifar")
    for file in list(folder.iterdir()):
        if file.name == "readme.html":
            continue
        content = file.read_bytes()
        (tmp_path / "outside").write_bytes(content)
        file.unlink()
        file.symlink_to(tmp_path / "outside")
        with refuses(DataError, file.name, "leads outside"):
            load_dataset(folder)
            load_dataset(folder, "train")
        file.unlink()
        (folder / "elsewhere").write_bytes(content)
        file.symlink_to("elsewhere")
        assert len(load_dataset(folder)) == 3
        file.unlink()
        file.write_bytes(content)


def test_class_names_that_are_no_text_are_refused_unseen(tmp_path: Path) -> None:
    bomb: list[object] = []
    for _ in range(40):
        bomb = [bomb] * 10  # as text it would never end
    folder = cifar100_python(tmp_path / "cifar")
    for names, said in (([*HUNDRED[:-1], bomb], "nested too deeply"), ([*HUNDRED[:-1], 7], "as a name, expected text")):
        (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, 2))
        with refuses(DataError, "meta", said):
            load_dataset(folder)
