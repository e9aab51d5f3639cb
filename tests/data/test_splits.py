from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfs_deploy.data import load_dataset, save_npz, splits_of
from dfs_deploy.errors import DataError
from tests.checks import refuses
from tests.data.pictures import class_folder, dataset, pixels


def test_the_splits_of_folders(tmp_path: Path) -> None:
    for name in ("train/cat", "val/cat", "other/cat", "test"):
        (tmp_path / name).mkdir(parents=True)
    assert splits_of(tmp_path) == ("train", "val")  # test/ has no folder in it: a class, of tests
    (tmp_path / "test" / "cat").mkdir()
    assert splits_of(tmp_path) == ("train", "val", "test")
    assert splits_of(tmp_path / "train") == ()


@pytest.mark.parametrize("name", ["val", "validation"])
def test_a_validation_folder_is_evaluated_on_if_there_is_no_test_folder(tmp_path: Path, name: str) -> None:
    class_folder(tmp_path / "train", 3)
    class_folder(tmp_path / name, 2)
    assert splits_of(tmp_path) == ("train", "val")
    assert load_dataset(tmp_path).name == f"{tmp_path.name}-val"
    assert len(load_dataset(tmp_path)) == len(load_dataset(tmp_path, "val")) == 4
    assert len(load_dataset(tmp_path, "train")) == 6
    with refuses(DataError, "train, val/ and no test/"):
        load_dataset(tmp_path, "test")
    class_folder(tmp_path / "test", 1)
    assert load_dataset(tmp_path).name == f"{tmp_path.name}-test"
    assert len(load_dataset(tmp_path, "val")) == 4


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "valid"):
        class_folder(tmp_path / name)
    with refuses(DataError, "val", "valid", "same split"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("x", "y"), ()),
        (("train_x", "train_y", "test_x", "test_y"), ("train", "test")),
        (("val_x", "val_y", "train_x", "train_y", "class_names"), ("train", "val")),
    ],
)
def test_the_splits_of_an_archive_of_arrays(tmp_path: Path, names: tuple[str, ...], splits: tuple[str, ...]) -> None:
    np.savez(tmp_path / "data.npz", **{name: np.zeros(1) for name in names})
    assert splits_of(tmp_path / "data.npz") == splits


def test_arrays_to_validate_on_are_found(tmp_path: Path) -> None:
    x, y = pixels(2, 4, 4, 3), np.array([0, 1])
    np.savez(tmp_path / "data.npz", train_x=x[:1], train_y=y[:1], val_x=x, val_y=y)
    assert load_dataset(tmp_path / "data.npz").name == "data-val"
    assert len(load_dataset(tmp_path / "data.npz", "train")) == 1
    save_npz(tmp_path / "plain.npz", dataset())
    assert len(load_dataset(tmp_path / "plain.npz", "val")) == len(dataset())


def test_the_splits_of_a_cifar_archive(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(b"")
    assert splits_of(tmp_path) == ("train",)
    (tmp_path / "test_batch.bin").write_bytes(b"")
    assert splits_of(tmp_path) == ("train", "test")


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with refuses(DataError, "does not exist"):
        splits_of(tmp_path / "nothing")
    (tmp_path / "text").write_text("no archive")
    with refuses(DataError, ".npz archive"):
        splits_of(tmp_path / "text")
    (tmp_path / "picture.npz").write_bytes(b"\x89PNG\r\n\x1a\n")
    with refuses(DataError, "is a PNG image", "expected a data set"):
        splits_of(tmp_path / "picture.npz")
