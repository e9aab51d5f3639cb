from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfs_deploy.datasets.splits import splits_of
from dfs_deploy.errors import DataError
from tests.checks import refuses


def test_the_splits_of_folders(tmp_path: Path) -> None:
    for name in ("train/cat", "val/cat", "other/cat", "test"):
        (tmp_path / name).mkdir(parents=True)
    assert splits_of(tmp_path) == ("train", "val")  # test/ has no folder in it: a class, of tests
    (tmp_path / "test" / "cat").mkdir()
    assert splits_of(tmp_path) == ("train", "val", "test")
    assert splits_of(tmp_path / "train") == ()


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


def test_the_splits_of_a_cifar_archive(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(b"")
    assert splits_of(tmp_path) == ("train",)
    (tmp_path / "test_batch.bin").write_bytes(b"")
    assert splits_of(tmp_path) == ("train", "test")


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with refuses(DataError, "no data set at"):
        splits_of(tmp_path / "nothing")
    (tmp_path / "text").write_text("no archive")
    with refuses(DataError, "readable .npz"):
        splits_of(tmp_path / "text")
