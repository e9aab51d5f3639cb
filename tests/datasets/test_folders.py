from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfs_deploy.datasets import list_images, load_dataset
from dfs_deploy.errors import DataError
from tests.checks import refuses
from tests.datasets.pictures import class_folder, pixels, save_image


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
