from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dfs_deploy.data import Dataset, save_npz
from dfs_deploy.data.digits import load_digits
from dfs_deploy.errors import DataError
from dfs_deploy.preprocessing import CIFAR10_CLASSES, InputContract
from dfs_deploy.training.data import SHIFT, Batches, Images, load_splits
from dfs_deploy.training.processes import Processes
from tests.training.small import SIZE, colour_patches

CONTRACT = InputContract((3, SIZE, SIZE), (0.0,) * 3, (1.0,) * 3)
CPU = torch.device("cpu")


def batches(augmentation: str = "crop-flip", size: int = 8, seed: int = 0, rank: int = 0, count: int = 1) -> Batches:
    images = Images(colour_patches(), CONTRACT, CPU)
    return Batches(images, size, augmentation, seed, Processes(rank, count))  # type: ignore[arg-type]


def test_a_batch_depends_on_seed_stage_and_step_alone() -> None:
    one, other = batches(), batches()
    for step in (30, 3, 17):
        other.take("gate", step)
    for step in (0, 25, 3):
        x, labels = one.take("joint", step)
        y, again = other.take("joint", step)
        assert torch.equal(x, y)
        assert torch.equal(labels, again)
    assert not torch.equal(one.take("joint", 0)[0], one.take("joint", 1)[0])
    assert not torch.equal(one.take("joint", 0)[0], one.take("gate", 0)[0])
    assert not torch.equal(one.take("joint", 0)[0], batches(seed=1).take("joint", 0)[0])


def test_an_epoch_gives_every_image_once() -> None:
    plain = batches(size=8)
    taken = torch.cat([plain.take("joint", step, plain=True)[0] for step in range(len(plain))])
    everything = Images(colour_patches(), CONTRACT, CPU)
    pixels, _ = everything.take(slice(None))
    assert len(torch.unique(taken.flatten(1), dim=0)) == len(pixels)
    assert torch.equal(
        torch.unique(taken.flatten(1), dim=0), torch.unique(everything.normalize(pixels).flatten(1), dim=0)
    )


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batch_of_a_single_one(count: int) -> None:
    whole, labels = batches().take("joint", 5)
    parts = [batches(rank=rank, count=count).take("joint", 5) for rank in range(count)]
    assert torch.equal(torch.cat([part for part, _ in parts]), whole)
    assert torch.equal(torch.cat([part for _, part in parts]), labels)


def test_an_image_is_moved_by_some_pixels_and_filled_with_black() -> None:
    images = Images(colour_patches(96), CONTRACT, CPU)
    varied, _ = Batches(images, 96, "crop", 0).take("joint", 0)
    plain, _ = Batches(images, 96, "none", 0).take("joint", 0)
    seen = set()
    for image, original in zip(varied, plain, strict=True):
        padded = torch.nn.functional.pad(original, (SHIFT,) * 4)
        places = [
            (down, right)
            for down in range(2 * SHIFT + 1)
            for right in range(2 * SHIFT + 1)
            if torch.equal(padded[:, down : down + SIZE, right : right + SIZE], image)
        ]
        assert places
        seen.add(places[0])
    assert len(seen) > 20


def test_half_of_the_images_are_mirrored() -> None:
    images = Images(colour_patches(96), CONTRACT, CPU)
    varied, _ = Batches(images, 96, "crop-flip", 0).take("joint", 0)
    moved, _ = Batches(images, 96, "crop", 0).take("joint", 0)
    same = (varied == moved).flatten(1).all(1)
    mirrored = (varied == moved.flip(3)).flatten(1).all(1)
    assert bool((same | mirrored).all())
    assert 24 < int(mirrored.sum()) < 72


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


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="--batch"):
        batches(size=97)


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
