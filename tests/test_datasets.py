from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dfs_deploy.datasets import Dataset, list_images, load_dataset, load_image, save_npz
from dfs_deploy.errors import DataError
from tests.checks import MakesFolder, refuses

Pixels = NDArray[np.uint8]


def pixels(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def dataset(count: int = 6, classes: int = 3) -> Dataset:
    labels = np.arange(count, dtype=np.int64) % classes
    return Dataset(pixels(count, 4, 5, 3), labels, tuple("abcdefghij"[:classes]), "some")


def save_image(path: Path, image: Pixels, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def class_folder(root: Path, count: int = 2, names: tuple[str, ...] = ("dog", "cat"), size: int = 4) -> Path:
    for number, name in enumerate(names):
        for index in range(count):
            save_image(root / name / f"{index}.png", pixels(size, size, 3, seed=10 * number + index))
    return root


# ------------------------------------------------------------------------------------------------------------ Dataset


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32))
def test_a_subset_is_drawn_without_replacement(total: int, count: int, seed: int) -> None:
    images = np.arange(total, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 3), np.uint8)
    whole = Dataset(images, np.arange(total), (), "numbers")
    some = whole.subset(count, seed)
    assert len(some) == min(count, total)
    assert len(set(some.labels.tolist())) == len(some)
    np.testing.assert_array_equal(some.images[:, 0, 0, 0], some.labels)
    np.testing.assert_array_equal(some.labels, whole.subset(count, seed).labels)
    np.testing.assert_array_equal(some.labels, whole.subset(None, seed).labels[:count])


def test_another_seed_draws_others_and_all_are_shuffled() -> None:
    whole = dataset(1000, 10)
    everything = [whole.subset(None, seed).images for seed in (0, 1)]
    assert not np.array_equal(everything[0], everything[1])
    assert not np.array_equal(everything[0], whole.images)
    assert np.array_equal(np.sort(everything[0].ravel()), np.sort(whole.images.ravel()))
    assert whole.subset(3, 0).class_names == whole.class_names
    assert whole.subset(3, 0).name == "some"


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-1, 0), (1, -1)])
def test_impossible_subsets_are_refused(count: int, seed: int) -> None:
    with refuses(DataError, "expected"):
        dataset().subset(count, seed)


@pytest.mark.parametrize(
    ("images", "labels", "names", "word"),
    [
        (np.zeros((2, 4, 5, 3), np.float32), [0, 1], (), "cast"),
        (np.zeros((2, 3, 4, 5), np.uint8), [0, 1], (), "transpose"),
        (np.zeros((2, 4, 5), np.uint8), [0, 1], (), "grey"),
        (np.zeros((2, 4, 5, 1), np.uint8), [0, 1], (), "grey"),
        (np.zeros((0, 4, 5, 3), np.uint8), [], (), "N at least 1"),
        (np.zeros((2, 0, 5, 3), np.uint8), [0, 1], (), "(2, 0, 5, 3)"),
        (np.zeros((2, 4, 5, 3), np.uint8), [0], (), "expected (2,) int64"),
        (np.zeros((2, 4, 5, 3), np.uint8), [[0], [1]], (), "(2, 1)"),
        (np.zeros((2, 4, 5, 3), np.uint8), [0.0, 1.0], (), "float64"),
        (np.zeros((2, 4, 5, 3), np.uint8), [0, -1], (), "-1 for image 1"),
        (np.zeros((2, 4, 5, 3), np.uint8), [2, 0], ("a", "b"), "2 for image 0"),
    ],
)
def test_impossible_arrays_are_refused(images: Any, labels: list[Any], names: tuple[str, ...], word: str) -> None:
    with refuses(DataError, "of bad", word):
        Dataset(images, np.asarray(labels, None if labels else np.int64), names, "bad")


# ---------------------------------------------------------------------------------------------------------------- npz


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64, ">i2"])
@pytest.mark.parametrize("split", [None, "train", "test"])
def test_an_npz_of_x_and_y_is_read_whatever_the_split(tmp_path: Path, dtype: Any, split: str | None) -> None:
    x, y = pixels(3, 4, 5, 3), np.array([2, 0, 1])
    np.savez(tmp_path / "data.npz", x=x, y=y.astype(dtype))
    read = load_dataset(str(tmp_path / "data.npz"), split)
    np.testing.assert_array_equal(read.images, x)
    np.testing.assert_array_equal(read.labels, y)
    assert (read.images.dtype, read.labels.dtype) == (np.uint8, np.int64)
    assert (read.class_names, read.name) == ((), "data")


def test_an_npz_of_two_splits_gives_the_one_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    parts = {"train_x": pixels(3, 2, 2, 3, seed=1), "test_x": pixels(2, 2, 2, 3, seed=2)}
    np.savez(path, **parts, train_y=np.array([0, 1, 2]), test_y=np.array([1, 0]))
    for split in ("train", "test"):
        read = load_dataset(path, split)
        np.testing.assert_array_equal(read.images, parts[f"{split}_x"])
        assert read.name == f"data-{split}"
    assert load_dataset(path).labels.tolist() == [1, 0]


def test_x_and_y_come_before_splits(tmp_path: Path) -> None:
    x = pixels(2, 2, 2, 3)
    np.savez(tmp_path / "data.npz", x=x, y=[0, 1], train_x=x[:1], train_y=[1])
    assert len(load_dataset(tmp_path / "data.npz", "train")) == 2


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    saved = dataset()
    for name in ("data.npz", "folder/data"):
        save_npz(str(tmp_path / name), saved)
        read = load_dataset(tmp_path / name)
        np.testing.assert_array_equal(read.images, saved.images)
        np.testing.assert_array_equal(read.labels, saved.labels)
        assert read.class_names == saved.class_names
        assert read.name == "data"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.npz", "folder"]


def test_names_may_be_unknown(tmp_path: Path) -> None:
    save_npz(tmp_path / "data.npz", Dataset(pixels(1, 2, 2, 3), np.array([5]), (), "some"))
    assert load_dataset(tmp_path / "data.npz").class_names == ()


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.npz"
    save_npz(path, dataset())
    before = path.read_bytes()

    def half(stream: Any, **_: Any) -> None:
        stream.write(before[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", half)
    with refuses(DataError, str(path), "No space left"):
        save_npz(path, dataset(2))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.npz"]


GOOD = {"x": pixels(2, 4, 5, 3), "y": np.array([0, 1])}


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({}, "holds nothing"),
        ({"x": GOOD["x"]}, "holds x; expected"),
        ({"images": GOOD["x"], "labels": GOOD["y"]}, "holds images, labels"),
        ({"train_x": GOOD["x"], "train_y": GOOD["y"]}, "test_x and test_y"),
        ({**GOOD, "x": GOOD["x"].astype(np.float64)}, "cast"),
        ({**GOOD, "x": GOOD["x"].transpose(0, 3, 1, 2)}, "transpose(0, 2, 3, 1)"),
        ({**GOOD, "x": GOOD["x"][..., 0]}, "grey"),
        ({**GOOD, "x": np.uint8(3)}, "expected (N, H, W, 3) uint8"),
        ({"x": GOOD["x"][:0], "y": GOOD["y"][:0]}, "N at least 1"),
        ({**GOOD, "y": np.array([0, 1, 1])}, "one an image"),
        ({**GOOD, "y": np.array([0, -3])}, "-3 for image 1"),
        ({**GOOD, "y": np.array([0.0, 1.0])}, "float64"),
        ({**GOOD, "y": np.array([True, False])}, "bool"),
        ({**GOOD, "y": np.array([[0], [1]])}, "(2, 1)"),
        ({**GOOD, "y": np.array([0, 2**63], np.uint64)}, "9223372036854775808"),
        ({**GOOD, "y": np.array(["cat", "dog"])}, "expected (N,) integer"),
        ({**GOOD, "class_names": np.array(["only"])}, "number of class names"),
        ({**GOOD, "class_names": np.array([1, 2])}, "expected (classes,) text"),
    ],
)
def test_a_malformed_npz_is_refused(tmp_path: Path, arrays: dict[str, Any], word: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with refuses(DataError, "data", word):
        load_dataset(tmp_path / "data.npz")


@pytest.mark.parametrize("name", ["x", "y", "class_names"])
def test_an_npz_of_objects_is_refused_and_nothing_runs(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    arrays = {**GOOD, name: np.array([MakesFolder(marker), 1], object)}
    np.savez(tmp_path / "data.npz", **arrays, allow_pickle=True)
    with refuses(DataError, f"{name} of", "pickle"):
        load_dataset(tmp_path / "data.npz")
    assert not marker.exists()


def test_a_truncated_npz_is_refused_at_any_length(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **GOOD)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with refuses(DataError, str(path)):
            load_dataset(path)


def test_a_damaged_npz_is_read_or_refused_and_never_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **GOOD)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            load_dataset(path)
        except DataError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    with refuses(DataError, "data.csv", "not an .npz"):
        load_dataset(tmp_path / "data.csv")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("x", b"text")
        archive.writestr("y.npy", b"text")
    with refuses(DataError, "other.zip", "no array"):
        load_dataset(tmp_path / "other.zip")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("x.npy", b"text")
        archive.writestr("y.npy", b"text")
    with refuses(DataError, "text.npz"):
        load_dataset(tmp_path / "text.npz")


# ------------------------------------------------------------------------------------------------- folder of images


def test_a_folder_by_class_is_read_in_order(tmp_path: Path) -> None:
    class_folder(tmp_path / "pets", 2, ("dog", "cat"))
    read = load_dataset(tmp_path / "pets")
    assert read.class_names == ("cat", "dog")
    assert read.labels.tolist() == [0, 0, 1, 1]
    expected = [pixels(4, 4, 3, seed=seed) for seed in (10, 11, 0, 1)]
    np.testing.assert_array_equal(read.images, expected)
    assert read.name == "pets"


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_a_folder_of_two_splits_gives_the_one_asked_for(tmp_path: Path, split: str | None) -> None:
    class_folder(tmp_path / "train", 3)
    class_folder(tmp_path / "test", 1)
    read = load_dataset(tmp_path, split)
    assert len(read) == (6 if split == "train" else 2)
    assert read.class_names == ("cat", "dog")
    assert read.name == f"{tmp_path.name}-{split or 'test'}"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    class_folder(tmp_path, 1, ("plane", "train"))
    assert load_dataset(tmp_path, "test").class_names == ("plane", "train")


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    class_folder(tmp_path / "train")
    with refuses(DataError, "no test/", "train/"):
        load_dataset(tmp_path)


def test_all_suffixes_count_and_other_files_do_not(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "JPEG", "bmp", "ppm", "webp"):
        save_image(tmp_path / "a" / f"image.{suffix}", pixels(4, 4, 3))
    save_image(tmp_path / "b" / "1.png", pixels(4, 4, 3))
    (tmp_path / "b" / "notes.txt").write_text("none")
    (tmp_path / "b" / "._1.png").write_text("left by a file manager")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.md").write_text("none")
    assert load_dataset(tmp_path).labels.tolist() == [0] * 6 + [1]


def test_images_are_resized_where_a_size_is_given(tmp_path: Path) -> None:
    class_folder(tmp_path, 1, ("a", "b"), size=4)
    save_image(tmp_path / "b" / "large.png", pixels(9, 7, 3))
    read = load_dataset(tmp_path, size=(4, 4))
    assert read.images.shape == (3, 4, 4, 3)
    np.testing.assert_array_equal(read.images[0], pixels(4, 4, 3, seed=0))
    expected = Image.fromarray(pixels(9, 7, 3)).resize((4, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(read.images[2], expected)
    assert load_dataset(tmp_path, size=(2, 6)).images.shape == (3, 2, 6, 3)


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    class_folder(tmp_path, 1, ("a", "b"), size=4)
    save_image(tmp_path / "b" / "large.png", pixels(9, 7, 3))
    with refuses(DataError, "large.png is 9x7", "0.png 4x4", "give the size"):
        load_dataset(tmp_path)


def test_arrays_are_resized_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **GOOD)
    read = load_dataset(tmp_path / "data.npz", size=(8, 6))
    for image, original in zip(read.images, GOOD["x"], strict=True):
        np.testing.assert_array_equal(image, Image.fromarray(original).resize((6, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(load_dataset(tmp_path / "data.npz", size=(4, 5)).images, GOOD["x"])


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (4,), (1, 2, 3)])
def test_impossible_sizes_are_refused(tmp_path: Path, size: Any) -> None:
    np.savez(tmp_path / "data.npz", **GOOD)
    with refuses(DataError, "size"):
        load_dataset(tmp_path / "data.npz", size=size)
    with refuses(DataError, "size"):
        load_image(save_image(tmp_path / "1.png", pixels(4, 4, 3)), size)


def test_folders_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    for name in ("none", "empty", "one", "flat", "nested", "void", "text"):
        if name != "none":
            (tmp_path / name).mkdir()
    class_folder(tmp_path / "one", 3, ("cat",))
    save_image(tmp_path / "flat" / "1.png", pixels(4, 4, 3))
    class_folder(tmp_path / "nested" / "a" / "b")
    class_folder(tmp_path / "nested" / "c")
    class_folder(tmp_path / "void", 1)
    (tmp_path / "void" / "bird").mkdir()
    class_folder(tmp_path / "text", 1)
    (tmp_path / "text" / "bird").mkdir()
    (tmp_path / "text" / "bird" / "1.tiff").write_bytes(b"")
    for name, words in {
        "none": ("no data set",),
        "empty": ("0 folder(s)", "at least 2"),
        "one": ("1 folder(s)", "at least 2"),
        "flat": ("0 folder(s)", "cat/1.png"),
        "nested": ("inside a class",),
        "void": ("no image in class folder", "bird"),
        "text": ("no image in class folder", "bird", ".png"),
    }.items():
        with refuses(DataError, name, *words):
            load_dataset(tmp_path / name)


def test_another_split_is_refused(tmp_path: Path) -> None:
    with refuses(DataError, "'val'", "'train' or 'test'"):
        load_dataset(class_folder(tmp_path), "val")


def test_a_path_longer_than_any_is_refused() -> None:
    for load in (load_dataset, load_image, list_images):
        with refuses(DataError):
            load("a" * 5000)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    class_folder(tmp_path)
    path = save_image(tmp_path / "cat" / "5.png", pixels(40, 40, 3))
    path.write_bytes(path.read_bytes()[:500])
    with refuses(DataError, str(path), "damaged"):
        load_dataset(tmp_path)


def test_links_may_not_lead_outside(tmp_path: Path) -> None:
    root = class_folder(tmp_path / "data")
    secret = save_image(tmp_path / "secret.png", pixels(4, 4, 3))
    link = root / "cat" / "7.png"
    link.symlink_to(secret)
    for read in (load_dataset, list_images):
        with refuses(DataError, str(link), "outside"):
            read(root)
    link.unlink()
    link.symlink_to("../../secret.png")
    with refuses(DataError, str(link), "outside"):
        load_dataset(root)
    link.unlink()
    link.symlink_to(root / "dog" / "0.png")
    assert len(load_dataset(root)) == 5
    assert len(list_images(root)) == 5
    link.unlink()
    link.symlink_to(tmp_path / "nothing.png")
    for read in (load_dataset, list_images):
        with refuses(DataError, str(link), "link to nothing"):
            read(root)
    link.unlink()
    link.symlink_to(link)
    for read in (load_dataset, list_images):
        with refuses(DataError, str(link), "link to nothing"):
            read(root)


def test_folders_may_not_be_links_to_outside_either(tmp_path: Path) -> None:
    root = class_folder(tmp_path / "data")
    class_folder(tmp_path / "other", 1, ("bird", "fish"))
    (root / "bird").symlink_to(tmp_path / "other" / "bird")
    with refuses(DataError, "bird", "outside"):
        load_dataset(root)
    (root / "bird").unlink()
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "test").symlink_to(tmp_path / "other")
    with refuses(DataError, "test", "outside"):
        load_dataset(tmp_path / "split")


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    class_folder(tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert len(load_dataset(tmp_path / "link")) == 4
    assert len(list_images(tmp_path / "link")) == 4


def test_a_folder_named_like_an_image_is_no_image(tmp_path: Path) -> None:
    class_folder(tmp_path)
    (tmp_path / "cat" / "9.png").mkdir()
    with refuses(DataError, "9.png", "inside a class"):
        load_dataset(tmp_path)


# ------------------------------------------------------------------------------------------------------------- images


def test_an_image_is_read_as_it_is(tmp_path: Path) -> None:
    image = pixels(5, 7, 3)
    read = load_image(save_image(tmp_path / "1.png", image))
    np.testing.assert_array_equal(read, image)
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(load_image(str(tmp_path / "1.png"), (5, 7)), image)


@pytest.mark.parametrize(
    ("mode", "expected"), [("L", (90, 90, 90)), ("P", None), ("RGBA", (10, 20, 30)), ("1", (255, 255, 255))]
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, expected: tuple[int, ...] | None) -> None:
    values: dict[str, Any] = {"L": 90, "P": 3, "RGBA": (10, 20, 30, 0), "1": 1}
    Image.new(mode, (4, 2), values[mode]).save(tmp_path / "1.png")
    read = load_image(tmp_path / "1.png")
    assert read.shape == (2, 4, 3)
    if expected is not None:
        assert (read == expected).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    image = pixels(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save_image(tmp_path / "1.png", image, exif=exif)
    # As the standard numbers them: where row 0 and column 0 of the file lie.
    upright = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: np.rot90(image, -1),
        7: image[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(image),
    }
    np.testing.assert_array_equal(load_image(path), upright[orientation])
    resized = Image.fromarray(np.ascontiguousarray(upright[orientation])).resize((3, 2), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(load_image(path, (2, 3)), resized)


@pytest.mark.parametrize("side", [11, 15, 40])
def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    path = save_image(tmp_path / "1.png", pixels(side, side, 3))
    load_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with refuses(DataError, str(path), "too large"):
        load_image(path)
    np.testing.assert_array_equal(load_image(save_image(path, pixels(10, 10, 3))), pixels(10, 10, 3))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "ppm", "webp"])
def test_a_truncated_image_is_refused(tmp_path: Path, suffix: str) -> None:
    path = save_image(tmp_path / f"1.{suffix}", pixels(20, 20, 3))
    whole = path.read_bytes()
    for length in (0, 1, 10, 40, len(whole) // 2, len(whole) * 9 // 10):
        path.write_bytes(whole[:length])
        with refuses(DataError, str(path)):
            load_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "ppm", "webp"])
def test_a_damaged_image_is_read_or_refused_and_never_anything_else(tmp_path: Path, suffix: str) -> None:
    path = save_image(tmp_path / f"1.{suffix}", pixels(12, 12, 3))
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[generator.integers(min(len(whole), 200))] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            assert load_image(path).shape[2] == 3
        except DataError as error:
            assert "\n" not in str(error)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(pixels(4, 4, 3)).save(tmp_path / "other.png", "TIFF")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    for name, word in {"text": "no image of a known kind", "other": "PNG, JPEG", "deep": "8 bits"}.items():
        with refuses(DataError, name, word):
            load_image(tmp_path / f"{name}.png")
    for path in (tmp_path, tmp_path / "none.png"):
        with refuses(DataError, str(path), "no image at"):
            load_image(path)


def test_postscript_by_another_name_is_not_interpreted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "1.png"
    Image.fromarray(pixels(4, 4, 3)).save(path, "EPS")

    def run(*_: object, **__: object) -> None:
        pytest.fail("an interpreter was started")

    monkeypatch.setattr(subprocess, "Popen", run)
    with refuses(DataError, str(path), "no image of a known kind"):
        load_image(path)


def test_a_deep_image_is_not_clipped_in_silence(tmp_path: Path) -> None:
    """Pillow alone would turn everything above 255 white."""
    Image.fromarray(np.full((2, 2), 300, np.uint16)).save(tmp_path / "1.png")
    assert ImageOps.exif_transpose(Image.open(tmp_path / "1.png")).mode.startswith("I")
    with refuses(DataError, "8 bits"):
        load_image(tmp_path / "1.png")


def test_images_are_listed_sorted_and_from_all_folders(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "a/deep/er/3.webp", "0.bmp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "b" / "notes.txt").write_text("none")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "4.png").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = list_images(str(tmp_path))
    assert [str(path.relative_to(tmp_path)) for path in found] == ["0.bmp", "a/deep/er/3.webp", "b/1.JPG", "b/2.png"]


def test_a_file_is_listed_as_itself(tmp_path: Path) -> None:
    path = tmp_path / "photo.unknown"
    path.write_bytes(b"")
    assert list_images(path) == [path]


def test_nothing_to_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with refuses(DataError, "no image in", ".png"):
        list_images(tmp_path)
    with refuses(DataError, "nothing at"):
        list_images(tmp_path / "none")


# -------------------------------------------------------------------------------------------------------------- CIFAR


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


def test_the_test_writes_what_python_2_wrote() -> None:
    images = cifar_images(300)
    content = pickle.loads(python2_pickle(images, "labels", [3] * 300), encoding="bytes")  # noqa: S301 (our own)
    np.testing.assert_array_equal(content[b"data"], rows(images))
    assert content[b"labels"] == [3] * 300


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


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("as_bytes", [False, True])
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
        ({}, "data of"),
        ({"labels": [1, 2]}, "data of"),
        ({"data": [1, 2], "labels": [1, 2]}, "data of"),
        ({"data": rows(cifar_images(2))}, "labels of"),
        ({"data": rows(cifar_images(2)), "labels": [1]}, "expected 2 integers"),
        ({"data": rows(cifar_images(2)), "labels": [1, "2"]}, "expected 2 integers"),
        ({"data": rows(cifar_images(2)), "labels": [1, True]}, "expected 2 integers"),
        ({"data": rows(cifar_images(2)), "labels": b"\x01\x02"}, "labels of"),
        ({"data": rows(cifar_images(2)), "labels": [1, 10]}, "image 1"),
        ({"data": rows(cifar_images(2)), "labels": [-1, 1]}, "image 0"),
        ({"data": rows(cifar_images(2)), "labels": [1, 2**80]}, "image 1"),
        ({"data": rows(cifar_images(2))[:, :-1], "labels": [1, 2]}, "(2, 3071)"),
        ({"data": rows(cifar_images(2))[0], "labels": [1, 2]}, "(3072,)"),
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


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_batch_that_would_run_code_is_refused_and_not_run(tmp_path: Path, protocol: int, name: str) -> None:
    folder, marker = cifar10_python(tmp_path / "cifar"), tmp_path / "marker"
    payload = pickle.dumps({"data": MakesFolder(marker)}, protocol)
    (folder / name).write_bytes(payload)
    with refuses(DataError, name, "posix.mkdir", "nothing was run"):
        load_dataset(folder)
    assert not marker.exists()
    pickle.loads(payload)  # noqa: S301 (shows that it would have)
    assert marker.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n",
        b"cnumpy\nload\n",
        b"cnumpy.core.multiarray\nscalar\n",
        b"cnumpy._core.multiarray\n_reconstruct.__globals__\n",
        b"c_codecs\ndecode\n",
        b"ccopyreg\n_reconstructor\n",
        b"cdfs_deploy.datasets\nload_image\n",
    ],
)
def test_every_other_name_is_refused_and_said(tmp_path: Path, code: bytes) -> None:
    module, name = code[1:].decode().split()
    folder = cifar10_python(tmp_path / "cifar")
    (folder / "test_batch").write_bytes(b"\x80\x02" + code + b".")
    with refuses(DataError, "test_batch", f"{module}.{name}"):
        load_dataset(folder)


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"


@pytest.mark.parametrize(
    "code",
    [
        b"cnumpy\nndarray\nN}U\x08__call__K\x01s\x86b.",  # state for a name
        b"cnumpy\nndarray\n)\x81.",  # a new object of it
        b"cnumpy\ndtype\nU\x01O\x85R.",  # objects
        b"cnumpy\ndtype\n)R.",
        b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",  # another codec
        b"c_codecs\nencode\nK\x01K\x02\x86R.",
        ARRAY + b"(K\x01tb.",  # too short a state
        ARRAY + b"Nb.",
        ARRAY + b"(K\x01K\x05K\x01\x86cnumpy\ndtype\nU\x02u1\x85R\x89U\x02abtb.",  # another shape than there are bytes
        ARRAY + b"(K\x01K\x02\x85K\x07\x89U\x02abtb.",  # no type
        ARRAY + b".",
        b"\x82\x01.",  # an extension
        b"U\x01aQ.",  # a persistent id
        b"(.",
        b"}U\x01a.",
    ],
)
def test_forged_pickles_are_refused(tmp_path: Path, code: bytes) -> None:
    folder = cifar10_python(tmp_path / "cifar")
    (folder / "test_batch").write_bytes(b"\x80\x02" + code)
    with refuses(DataError, "test_batch"):
        load_dataset(folder)


def test_damaged_batches_are_read_or_refused_and_never_anything_else(tmp_path: Path) -> None:
    folder = cifar10_python(tmp_path / "cifar")
    whole = python2_pickle(cifar_images(2), "labels", [1, 2])
    # The bytes that are not pixels.
    places = [*range(160), *range(len(whole) - 30, len(whole))]
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[generator.choice(places)] = generator.integers(256)
        (folder / "test_batch").write_bytes(damaged)
        try:
            load_dataset(folder)
        except DataError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 200


# -------------------------------------------------------------------------------------------------------------- import


def test_reading_arrays_needs_neither_torch_nor_pillow() -> None:
    code = (
        "import sys, dfs_deploy.datasets; "
        "print([name for name in ('torch', 'PIL', 'onnxruntime', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_labels_count_as_the_network_does() -> None:
    images = np.zeros((3, 4, 4, 3), np.uint8)
    data = Dataset(images, np.array([0, 1, 1]), ("cat", "dog"), "pets")
    matched = data.labelled_for(6, ("bird", "cat", "deer", "dog", "frog", "horse"))
    assert matched.labels.tolist() == [1, 3, 3]
    assert data.labelled_for(2, ("cat", "dog")).labels.tolist() == [0, 1, 1]
    assert data.labelled_for(2, ()).labels.tolist() == [0, 1, 1]
    with refuses(DataError, "'dog'", "cat, car"):
        data.labelled_for(2, ("cat", "car"))
    unnamed = Dataset(images, np.array([0, 1, 14]), (), "shifted")
    with refuses(DataError, "label 14", "10 classes"):
        unnamed.labelled_for(10, ("cat",) * 10)
