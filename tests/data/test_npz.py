from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfs_deploy.data import Dataset, load_dataset, save_npz
from dfs_deploy.errors import DataError
from dfs_deploy.io.arrays import Arrays
from tests.checks import MakesFolder, refuses
from tests.data.pictures import GOOD, dataset, pixels


@pytest.mark.parametrize(
    ("dtype", "split"), [(np.uint8, None), (np.int64, "train"), (np.uint64, "test"), (">i2", None)]
)
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


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({}, "holds nothing"),
        ({"x": GOOD["x"]}, "holds x; expected"),
        ({"train_x": GOOD["x"], "train_y": GOOD["y"]}, "test_x and test_y"),
        ({**GOOD, "x": GOOD["x"].astype(np.float64)}, "RGB"),
        ({**GOOD, "x": GOOD["x"].transpose(0, 3, 1, 2)}, "channels last"),
        ({**GOOD, "x": GOOD["x"][..., 0]}, "RGB"),
        ({**GOOD, "x": np.uint8(3)}, "expected (N, H, W, 3) uint8"),
        ({"x": GOOD["x"][:0], "y": GOOD["y"][:0]}, "N at least 1"),
        ({**GOOD, "y": np.array([0, 1, 1])}, "one label per image"),
        ({**GOOD, "y": np.array([0, -3])}, "-3 for image 1"),
        ({**GOOD, "y": np.array([[0], [1]])}, "(2, 1)"),
        ({**GOOD, "y": np.array([0, 2**63], np.uint64)}, "9223372036854775808"),
        ({**GOOD, "y": np.array(["cat", "dog"])}, "expected (N,) integer"),
        ({**GOOD, "class_names": np.array(["only"])}, "number of class names"),
        ({**GOOD, "class_names": np.array([1, 2])}, "expected (classes,) text"),
        ({**GOOD, "class_names": np.array(["cat", ""])}, "class 1 has a name of 0"),
        ({**GOOD, "class_names": np.array(["cat", "d" * 501])}, "500"),
        ({**GOOD, "class_names": np.array(["cat", "\udce9"])}, "not UTF-8"),
        ({**GOOD, "class_names": np.full(65_537, "a")}, "at most 65,536 names"),
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
    with refuses(DataError, f"{name} cannot be read", "pickle"):
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
    with refuses(DataError, "other.zip", "is a ZIP archive", "expected a data set"):
        load_dataset(tmp_path / "other.zip")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("x.npy", b"text")
        archive.writestr("y.npy", b"text")
    with refuses(DataError, "text.npz"):
        load_dataset(tmp_path / "text.npz")


def test_a_class_name_that_cannot_be_stored_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    data = Dataset(GOOD["x"], GOOD["y"], ("cat", "caf\udce9"), "some")
    with refuses(DataError, "data.npz", "class 1", r"caf\xe9", "not UTF-8"):
        save_npz(tmp_path / "data.npz", data)
    assert not list(tmp_path.iterdir())


def test_shapes_are_refused_before_the_pixels_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "data.npz", x=GOOD["x"].astype(np.float64), y=GOOD["y"])
    monkeypatch.setattr(Arrays, "read", lambda *_: pytest.fail("read before it was checked"))
    with refuses(DataError, "float64", "RGB"):
        load_dataset(tmp_path / "data.npz")


def test_an_npz_without_end_or_that_is_no_file(tmp_path: Path) -> None:
    with (tmp_path / "sparse.npz").open("wb") as stream:
        stream.truncate(100 << 30)
    with refuses(DataError, "sparse.npz", "107,374,182,400 bytes"):
        load_dataset(tmp_path / "sparse.npz")
    os.mkfifo(tmp_path / "fifo.npz")
    with refuses(DataError, "fifo.npz", "no regular file"):
        load_dataset(tmp_path / "fifo.npz")
