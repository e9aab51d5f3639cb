from __future__ import annotations

import pytest
import torch

from dfs_deploy.errors import DataError
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.training.data import SHIFT, Batches, Images
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


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="--batch"):
        batches(size=97)
