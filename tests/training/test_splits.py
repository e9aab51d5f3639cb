from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfs_deploy.data import Dataset, save_npz
from dfs_deploy.data.digits import load_digits
from dfs_deploy.errors import DataError
from dfs_deploy.preprocessing import CIFAR10_CLASSES, InputContract
from dfs_deploy.training.splits import load_splits
from tests.training.small import colour_patches


def test_a_data_set_without_splits_gives_a_tenth_away(tmp_path: Path) -> None:
    save_npz(tmp_path / "all.npz", colour_patches(50))
    splits = load_splits(str(tmp_path / "all.npz"))
    assert splits.evaluation_name == "held-out"
    assert (len(splits.train), len(splits.evaluation)) == (45, 5)
    together = np.concatenate([splits.train.images, splits.evaluation.images])
    assert len(np.unique(together.reshape(50, -1), axis=0)) == 50


def test_held_out_images_come_from_the_training_split() -> None:
    splits = load_splits("digits", held_out=97)
    assert (len(splits.train), len(splits.evaluation), splits.evaluation_name) == (1200, 97, "held-out")
    train = {image.tobytes() for image in load_digits("train").images}
    assert all(image.tobytes() in train for image in splits.evaluation.images)
    assert load_splits("digits").evaluation_name == "test"


@pytest.mark.parametrize("held_out", [0, 96, 1000])
def test_too_many_or_few_held_out_are_refused(tmp_path: Path, held_out: int) -> None:
    save_npz(tmp_path / "all.npz", colour_patches())
    with pytest.raises(DataError, match="held out"):
        load_splits(str(tmp_path / "all.npz"), held_out=held_out)


def test_one_class_is_refused(tmp_path: Path) -> None:
    data = colour_patches()
    save_npz(tmp_path / "one.npz", Dataset(data.images, np.zeros_like(data.labels), (), "one"))
    with pytest.raises(DataError, match="one class only"):
        load_splits(str(tmp_path / "one.npz"))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 folder"):
        load_splits(str(tmp_path))


def test_the_contract_is_measured_unless_the_classes_are_those_of_cifar10(tmp_path: Path) -> None:
    data = colour_patches()
    save_npz(tmp_path / "patches.npz", data)
    splits = load_splits(str(tmp_path / "patches.npz"))
    contract = splits.contract()
    x = contract.normalize(splits.train.images)
    assert np.abs(x.mean((0, 2, 3))).max() < 1e-2
    assert np.abs(x.std((0, 2, 3)) - 1.0).max() < 1e-2
    assert contract.class_names == data.class_names
    save_npz(tmp_path / "cifar.npz", Dataset(data.images, data.labels, CIFAR10_CLASSES, "cifar"))
    assert load_splits(str(tmp_path / "cifar.npz")).contract().mean == InputContract().mean
