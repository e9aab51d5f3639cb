"""Training on folders of images that are larger than the network's input, and on folders that stay on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.data import ImageFolder, ahead, load_image
from dfs_deploy.errors import DataError, InputError, UsageError
from dfs_deploy.geometry import Geometry
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.training import Job, read_metrics, resume, run_job, train
from dfs_deploy.training import splits as training_splits
from dfs_deploy.training.crops import RandomCrop
from dfs_deploy.training.data import Batches, Images
from dfs_deploy.training.job import load_job
from dfs_deploy.training.metrics import StepRecord
from dfs_deploy.training.processes import Processes
from dfs_deploy.training.splits import load_splits, usual_augmentation
from tests.checks import refuses
from tests.data.decoded import Decoded
from tests.data.pictures import class_folder, pixels, save_image
from tests.training.small import small_recipe

CPU = torch.device("cpu")
SIZE = 8
GEOMETRY = Geometry((SIZE, SIZE), 9)
CROPS = "resized-crop-flip"


def photographs(root: Path, count: int = 16, seed: int = 0) -> Path:
    """Images of three classes, 14 to 20 pixels on a side, each mostly of its class's colour."""
    random = np.random.default_rng(seed)
    for number, name in enumerate(("red", "green", "blue")):
        for index in range(count):
            image = random.integers(0, 110, (*random.integers(14, 21, 2), 3))
            image[..., number] += 120
            save_image(root / name / f"{index}.png", image.astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    photographs(root / "train")
    photographs(root / "val", 6, seed=1)
    return root


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no folder be small enough for memory."""
    monkeypatch.setattr(training_splits, "MAX_IN_MEMORY", 0)


def batches(folder: Path, augmentation: str = CROPS, size: int = 12, seed: int = 0, **other: Any) -> Batches:
    splits = load_splits(str(folder), GEOMETRY, cropped=augmentation == CROPS)
    return Batches(Images(splits.train, splits.contract(), CPU), size, augmentation, seed, **other)  # type: ignore[arg-type]


# Images that are cut out of files


def test_each_image_is_cut_by_seed_epoch_and_index(folder: Path) -> None:
    made = batches(folder)
    train = load_splits(str(folder), GEOMETRY, cropped=True).train
    assert isinstance(train, ImageFolder)
    contract = load_splits(str(folder), GEOMETRY, cropped=True).contract()
    order = torch.cat([made.rows("joint", step) for step in range(len(made))]).tolist()
    assert sorted(order) == list(range(48)), "an epoch takes every image once"
    for step in (0, 3):
        x, labels = made.take("joint", step)
        for position in range(12):
            row = order[12 * step + position]
            whole = load_image(train.root / train.files[row])
            cut = RandomCrop(GEOMETRY, 0.08, (0, "joint", "crop", 0, row))(whole)
            np.testing.assert_allclose(x[position].numpy(), contract.normalize(cut[None])[0], atol=1e-5)
            assert labels[position] == train.labels[row]


@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize("augmentation", [CROPS, "crop-flip"])
def test_batches_do_not_depend_on_what_was_taken_before_nor_on_threads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, on_disk: None, augmentation: str, workers: int
) -> None:
    one = [batches(folder, augmentation).take("joint", step) for step in range(10)]
    monkeypatch.setattr(ahead, "workers", lambda: workers)
    other = batches(folder, augmentation)
    for stage, step, plain in (("joint", 5, False), ("joint", 6, False), ("gate", 2, False), ("joint", 7, True)):
        other.take(stage, step, plain)
    for step in (7, 8, 9, 0, 1):
        x, labels = other.take("joint", step)
        assert torch.equal(x, one[step][0])
        assert torch.equal(labels, one[step][1])
    assert not torch.equal(one[0][0], other.take("gate", 0)[0])
    assert not torch.equal(one[0][0], batches(folder, augmentation, seed=1).take("joint", 0)[0])


def test_an_image_is_cut_anew_in_each_epoch(folder: Path) -> None:
    made = batches(folder, size=48)
    first, second = (made.take("joint", step) for step in (0, 1))
    labels = [labels.bincount().tolist() for _, labels in (first, second)]
    assert labels == [[16, 16, 16]] * 2
    cut = {image.numpy().tobytes() for image in (*first[0], *second[0])}
    assert len(cut) == 96


def test_processes_share_a_batch_of_cut_images(folder: Path) -> None:
    whole, labels = batches(folder).take("joint", 5)
    parts = [batches(folder, processes=Processes(rank, 4)).take("joint", 5) for rank in range(4)]
    assert torch.equal(torch.cat([part for part, _ in parts]), whole)
    assert torch.equal(torch.cat([part for _, part in parts]), labels)


def test_plain_images_are_resized_and_cropped_as_for_evaluation(folder: Path) -> None:
    made = batches(folder)
    train = load_splits(str(folder), GEOMETRY, cropped=True).train
    contract = load_splits(str(folder), GEOMETRY, cropped=True).contract()
    x, _ = made.take("joint", 2, plain=True)
    rows = made.rows("joint", 2).numpy()
    np.testing.assert_allclose(x.numpy(), contract.normalize(train.select(rows).load().images), atol=1e-5)


def test_the_least_share_of_an_image_can_be_raised(folder: Path, tmp_path: Path) -> None:
    losses = []
    for area in (0.08, 0.9):
        recipe = small_recipe(augmentation=CROPS, crop_area=area, backbone_steps=1)
        job = Job(str(folder), recipe, size=(SIZE, SIZE), resize=9, until="backbone", threads=1, device="cpu")
        run_job(job, tmp_path / str(area))
        losses += [record.loss for record in read_metrics(tmp_path / str(area)) if isinstance(record, StepRecord)]
    assert losses[0] != losses[1]
    with refuses(UsageError, "crop_area", "0.001 to 1"):
        small_recipe(crop_area=0.0)


# Folders that stay on disk


@pytest.mark.parametrize("augmentation", ["crop-flip", "none"])
def test_a_folder_on_disk_gives_the_batches_of_one_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, augmentation: str
) -> None:
    memory = batches(folder, augmentation)
    contract = load_splits(str(folder), GEOMETRY).contract()
    monkeypatch.setattr(training_splits, "MAX_IN_MEMORY", 0)
    assert isinstance(load_splits(str(folder), GEOMETRY).train, ImageFolder)
    assert load_splits(str(folder), GEOMETRY).contract() == contract
    disk = batches(folder, augmentation)
    for step in (0, 1, 2, 9):
        for one, other in zip(memory.take("joint", step), disk.take("joint", step), strict=True):
            assert torch.equal(one, other)


def test_the_contract_knows_the_crop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = load_splits(str(folder), Geometry((SIZE, SIZE), 9, "bicubic"), cropped=True)
    contract = splits.contract()
    assert (contract.shape, contract.resize, contract.interpolation) == ((3, SIZE, SIZE), 9, "bicubic")
    x = contract.normalize(splits.train.load().images)
    assert np.abs(x.mean((0, 2, 3))).max() < 1e-2
    assert np.abs(x.std((0, 2, 3)) - 1.0).max() < 1e-2
    given = splits.contract(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert (given.mean, given.std, given.resize) == ((0.5,) * 3, (0.25,) * 3, 9)


def test_the_mean_of_a_large_folder_is_measured_on_some(
    folder: Path, monkeypatch: pytest.MonkeyPatch, on_disk: None, decoded: Decoded
) -> None:
    monkeypatch.setattr(training_splits, "MEASURED", 7)
    load_splits(str(folder), GEOMETRY).contract()
    assert decoded.count == 7


@pytest.mark.parametrize("count", [24, 60])
def test_memory_does_not_grow_with_the_folder(
    tmp_path: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch, on_disk: None, count: int
) -> None:
    root = class_folder(tmp_path / "photographs", count, size=12)
    recipe = small_recipe(batch=8, backbone_steps=12, augmentation=CROPS)
    job = Job(str(root), recipe, size=(SIZE, SIZE), resize=9, until="backbone", threads=1, device="cpu")
    monkeypatch.setattr("dfs_deploy.training.loop._EVALUATED_AT_ONCE", 8)
    run_job(job, tmp_path / "run")
    assert decoded.count >= 2 * (count // 10) + 12 * 8
    assert decoded.most <= 32 + 2, "two batches of 8, or 32 images that are measured at once"


def test_a_damaged_image_is_named_when_it_is_drawn(tmp_path: Path, on_disk: None) -> None:
    root = photographs(tmp_path / "photographs")
    splits = load_splits(str(root), GEOMETRY, cropped=True)
    made = Batches(Images(splits.train, InputContract((3, SIZE, SIZE), resize=9), CPU), 8, CROPS, 0)  # type: ignore[arg-type]
    assert isinstance(splits.train, ImageFolder)
    damaged = splits.train.root / splits.train.files[int(made.rows("joint", 2)[3])]
    damaged.write_bytes(damaged.read_bytes()[:100])
    for step in (0, 1):
        made.take("joint", step)
    for _ in range(2):
        with refuses(DataError, str(damaged), "damaged image"):
            made.take("joint", 2)
    made.take("joint", 3)


# Runs


def photo_job(folder: Path, **changes: Any) -> Job:
    values = {"size": (SIZE, SIZE), "resize": 9, "threads": 1, "save_every": 5, "device": "cpu", "seed": 1, **changes}
    return Job(str(folder), small_recipe(augmentation=CROPS, gate_steps=6, backbone_steps=9, joint_steps=9), **values)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(("stage", "step"), [("backbone", 6), ("joint", 8)])
def test_a_run_on_photographs_goes_on_as_if_it_had_never_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: None, stage: str, step: int
) -> None:
    job = photo_job(folder)
    run_job(job, tmp_path / "whole")

    def stop(text: str, share: float) -> None:
        if text.startswith(f"{stage} step") and share * 9 >= step:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_job(job, tmp_path / "stopped", stop)
    monkeypatch.setattr(ahead, "workers", lambda: 5)
    resume(tmp_path / "stopped")
    one, other = (
        [record for record in msgspec.to_builtins(read_metrics(tmp_path / name)) if record["event"] != "time"]
        for name in ("whole", "stopped")
    )
    assert one == other
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True)["network"] for name in ("whole", "stopped")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    contract = load_checkpoint(tmp_path / "whole" / "checkpoint.pt").input
    assert (contract.shape, contract.resize) == ((3, SIZE, SIZE), 9)


def test_crops_are_chosen_for_images_that_are_larger_than_the_network_s(folder: Path, tmp_path: Path) -> None:
    assert usual_augmentation(str(folder), (SIZE, SIZE)) == CROPS
    assert usual_augmentation(str(folder), None) is None
    assert usual_augmentation(str(folder), (32, 32)) is None, "images that grow"
    same = class_folder(tmp_path / "same", 3, size=SIZE)
    assert usual_augmentation(str(same), (SIZE, SIZE)) is None, "images of its size, as CIFAR's"
    np.savez(tmp_path / "data.npz", x=pixels(4, 16, 16, 3), y=np.arange(4) % 2)
    assert usual_augmentation(str(tmp_path / "data.npz"), (SIZE, SIZE)) is None
    assert usual_augmentation("digits", None) == "crop"


def test_a_damaged_image_has_no_say_in_it(tmp_path: Path) -> None:
    """One that no step draws stops no run."""
    root = photographs(tmp_path / "photographs", 8)
    files = sorted(root.rglob("*.png"))
    files[0].write_bytes(b"no image")
    files[1].unlink()
    files[1].symlink_to(tmp_path / "nowhere.png")
    assert usual_augmentation(str(root), (SIZE, SIZE)) == CROPS
    assert usual_augmentation(str(root), (32, 32)) is None
    for file in files[2:]:
        file.write_bytes(b"")
    assert usual_augmentation(str(root), (SIZE, SIZE)) is None


QUICK: dict[str, Any] = {
    "preset": "quick",
    "blocks_per_group": 1,
    "batch": 16,
    "backbone_steps": 1,
    "until": "backbone",
    "threads": 1,
    "device": "cpu",
}


@pytest.mark.parametrize(
    ("given", "augmentation", "resize"),
    [
        ({}, CROPS, 16),  # 8/7 of 14, as 256 of 224
        ({"resize": 20}, CROPS, 20),
        ({"resize": 0}, CROPS, None),
        ({"augmentation": "crop-flip"}, "crop-flip", None),
        ({"augmentation": "none", "resize": 15, "interpolation": "bicubic"}, "none", 15),
    ],
)
def test_train_takes_the_usual_crops_unless_told_otherwise(
    folder: Path, tmp_path: Path, given: dict[str, Any], augmentation: str, resize: int | None
) -> None:
    result = train(folder, tmp_path / "run", size=(14, 14), **QUICK, **given)
    assert (result.job.recipe.augmentation, result.job.resize) == (augmentation, resize)
    assert load_job(tmp_path / "run") == result.job
    contract = load_checkpoint(result.checkpoint).input
    assert (contract.resize, contract.interpolation) == (resize, given.get("interpolation", "bilinear"))
    assert result.split == "val"


def test_crops_that_cannot_be_are_refused(folder: Path, tmp_path: Path) -> None:
    with refuses(UsageError, "no size", "--size"):
        train(folder, tmp_path / "run", resize=9, **QUICK)
    with refuses(InputError, "resize 7", "expected 8 to"):
        train(folder, tmp_path / "run", size="8x8", resize=7, **QUICK)
    with refuses(InputError, "interpolation 'nearest'", "bilinear or bicubic"):
        train(folder, tmp_path / "run", size="8x8", interpolation="nearest", **QUICK)
