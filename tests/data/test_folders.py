from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfs_deploy.data import ImageFolder, list_images, load_dataset, open_dataset
from dfs_deploy.errors import DataError
from dfs_deploy.geometry import Geometry
from dfs_deploy.preprocessing import InputContract
from tests.checks import refuses
from tests.data.decoded import Decoded
from tests.data.pictures import class_folder, pixels, save_image


def test_a_folder_by_class_is_read_in_order(tmp_path: Path) -> None:
    class_folder(tmp_path / "pets", 2, ("dog", "cat"))
    read = load_dataset(tmp_path / "pets")
    assert read.class_names == ("cat", "dog")
    assert read.labels.tolist() == [0, 0, 1, 1]
    expected = [pixels(4, 4, 3, seed=seed) for seed in (10, 11, 0, 1)]
    np.testing.assert_array_equal(read.images, expected)
    assert read.name == "pets"


@pytest.mark.parametrize("split", [None, "train"])
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
        "none": ("does not exist",),
        "empty": ("0 folder(s)", "at least 2"),
        "one": ("1 folder(s)", "at least 2"),
        "flat": ("0 folder(s)", "cat/1.png"),
        "nested": ("inside a class",),
        "void": ("no image in class folder", "bird"),
        "text": ("no image in class folder", "bird", ".png"),
    }.items():
        with refuses(DataError, name, *words):
            load_dataset(tmp_path / name)


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
        with refuses(DataError, str(link), "broken link"):
            read(root)
    link.unlink()
    link.symlink_to(link)
    for read in (load_dataset, list_images):
        with refuses(DataError, str(link), "broken link"):
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


def test_nothing_to_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with refuses(DataError, "no image in", ".png"):
        list_images(tmp_path)
    with refuses(DataError, "does not exist", "check the path"):
        list_images(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with refuses(DataError, "pipe", "no regular file"):
        list_images(tmp_path / "pipe")


def test_a_file_that_is_too_large_is_not_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "data.npz").touch()
    os.truncate(tmp_path / "data.npz", 100 << 30)
    with refuses(DataError, "107,374,182,400 bytes", "give another"):
        load_dataset(tmp_path / "data.npz")


def test_what_cannot_be_listed_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    root = class_folder(tmp_path / "data")
    secret = save_image(tmp_path / "secret.png", pixels(4, 4, 3))
    links = {"1.png": tmp_path / "nothing.png", "2.png": secret, "3.png": root / "cat" / "3.png"}
    for name, target in links.items():
        (root / "cat" / name).unlink(missing_ok=True)
        (root / "cat" / name).symlink_to(target)
    os.mkfifo(root / "cat" / "4.png")
    told: dict[str, str] = {}
    found = list_images(root, lambda entry, error: told.update({entry.name: str(error)}))
    assert [path.name for path in found] == ["0.png", "0.png", "1.png"]
    assert set(told) == {*links, "4.png"}
    assert "broken link" in told["1.png"]
    assert "outside" in told["2.png"]
    assert "neither a file nor a folder" in told["4.png"]


# Classes


def test_classes_that_are_numbers_are_in_the_order_of_these(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10, 11):
        save_image(tmp_path / str(number) / "a.png", np.full((4, 4, 3), number, np.uint8))
    read = load_dataset(tmp_path)
    assert read.class_names == ("0", "1", "2", "10", "11")
    assert read.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11]
    labelled = read.labelled_for(12, ())
    assert labelled.labels.tolist() == [0, 1, 2, 10, 11]
    assert labelled.class_names == ()
    with refuses(DataError, "class 11", "0 to 10"):
        read.labelled_for(11, ())


def test_one_number_in_two_spellings_is_refused(tmp_path: Path) -> None:
    class_folder(tmp_path, 1, ("1", "01", "2"))
    with refuses(DataError, "01/ and", "1/", "the same number twice"):
        load_dataset(tmp_path)


def test_names_among_numbers_are_sorted_as_text(tmp_path: Path) -> None:
    class_folder(tmp_path, 1, ("10", "2", "other"))
    assert load_dataset(tmp_path).class_names == ("10", "2", "other")


def test_names_that_are_not_utf8_are_read_and_shown_escaped(tmp_path: Path) -> None:
    strange = os.fsdecode(b"caf\xe9")
    class_folder(tmp_path / strange, 1, (strange, "tea"))
    (tmp_path / strange / "tea" / "0.png").rename(tmp_path / strange / "tea" / f"{strange}.png")
    read = load_dataset(tmp_path / strange)
    assert read.class_names == (strange, "tea")
    assert read.name == r"caf\xe9"
    labelled = read.labelled_for(2, ())
    assert r"0 = caf\xe9" in labelled.notes[-1]
    "".join(labelled.notes).encode()
    with refuses(DataError, r"caf\xe9"):
        read.labelled_for(2, ("coffee", "tea"))
    (tmp_path / strange / "tea" / f"{strange}.png").write_bytes(b"damaged")
    with refuses(DataError, r"tea/caf\xe9.png"):
        load_dataset(tmp_path / strange)


# Listed, drawn, decoded


def test_only_what_was_drawn_is_decoded(tmp_path: Path) -> None:
    class_folder(tmp_path, 20)
    whole = load_dataset(tmp_path)
    opened = open_dataset(tmp_path)
    assert isinstance(opened, ImageFolder)
    assert len(opened) == 40
    np.testing.assert_array_equal(opened.labels, whole.labels)
    np.testing.assert_array_equal(opened.image(7), whole.images[7])
    drawn = opened.subset(5, seed=3)
    expected = whole.subset(5, seed=3)
    for index in set(range(40)) - {opened.files.index(file) for file in drawn.files}:
        (tmp_path / opened.files[index]).write_bytes(b"damaged")
    for read in (drawn.load(), load_dataset(tmp_path, samples=5, seed=3)):
        np.testing.assert_array_equal(read.images, expected.images)
        np.testing.assert_array_equal(read.labels, expected.labels)
        assert read.class_names == expected.class_names
    with refuses(DataError, "no image of a known format"):
        load_dataset(tmp_path, samples=40)


def test_a_damaged_image_that_was_drawn_is_named(tmp_path: Path) -> None:
    class_folder(tmp_path, 20)
    drawn = open_dataset(tmp_path).subset(5, seed=3)
    assert isinstance(drawn, ImageFolder)
    (tmp_path / drawn.files[4]).write_bytes(b"damaged")
    with refuses(DataError, drawn.files[4], "no image of a known format"):
        drawn.load()
    (tmp_path / drawn.files[4]).unlink()
    with refuses(DataError, drawn.files[4]):
        drawn.load()


def test_labels_are_matched_and_refused_before_an_image_is_decoded(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"damaged")
    opened = open_dataset(tmp_path)
    assert opened.labelled_for(3, ("dog", "bird", "cat")).labels.tolist() == [2, 0]
    with refuses(DataError, "does not know: cat"):
        opened.labelled_for(2, ("dog", "bird"))


# A batch at a time


def test_batches_are_what_would_be_loaded(tmp_path: Path) -> None:
    class_folder(tmp_path, 9)
    for size in (None, (3, 5), Geometry((3, 3), 5, "bicubic")):
        opened, whole = open_dataset(tmp_path, size=size), load_dataset(tmp_path, size=size)
        for data in (opened, whole):
            assert data.image_size == whole.images.shape[1:3]
            parts = list(data.batches(4))
            assert [len(labels) for _, labels in parts] == [4, 4, 4, 4, 2]
            np.testing.assert_array_equal(np.concatenate([images for images, _ in parts]), whole.images)
            np.testing.assert_array_equal(np.concatenate([labels for _, labels in parts]), whole.labels)
            rows = [7, 2, 11]
            ((images, labels),) = data.batches(10, rows)
            np.testing.assert_array_equal(images, whole.images[rows])
            np.testing.assert_array_equal(labels, whole.labels[rows])
            chosen = data.select(np.array(rows)).load()
            np.testing.assert_array_equal(chosen.images, whole.images[rows])
            np.testing.assert_array_equal(data.select(slice(2, 5)).load().labels, whole.labels[2:5])


def test_files_are_resized_and_cropped_as_the_network_wants(tmp_path: Path) -> None:
    image = pixels(30, 40, 3)
    for name in ("a", "b"):
        save_image(tmp_path / name / "1.png", image)
    contract = InputContract((3, 12, 10), resize=16, interpolation="bicubic")
    read = load_dataset(tmp_path, size=contract.geometry)
    np.testing.assert_array_equal(read.images, [contract.fit(image)] * 2)
    assert not any("resized" in note for note in read.notes), "photographs are meant to be cropped"


def test_images_each_in_a_frame_of_its_own(tmp_path: Path) -> None:
    class_folder(tmp_path, 3, size=8)
    whole = load_dataset(tmp_path)
    frames = [None, Geometry((2, 3)), Geometry((4, 4), 6)]
    wanted = [(index, frame) for index in range(6) for frame in frames]
    for data in (open_dataset(tmp_path), whole):
        for (index, frame), image in zip(wanted, data.framed(wanted, 4), strict=True):
            expected = whole.images[index] if frame is None else frame(whole.images[index])
            np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("count", [24, 96])
def test_memory_does_not_grow_with_the_folder(tmp_path: Path, decoded: Decoded, count: int) -> None:
    class_folder(tmp_path, count)
    for batch, _ in open_dataset(tmp_path, size=(4, 4)).batches(4):
        assert batch.shape == (4, 4, 4, 3)
    assert decoded.count == 2 * count
    assert decoded.most <= 4 + 2, "as many as in a batch wait, and one or two are on their way into one"


def test_a_damaged_image_ends_the_batches_where_it_is(tmp_path: Path) -> None:
    class_folder(tmp_path, 6)
    opened = open_dataset(tmp_path)
    assert isinstance(opened, ImageFolder)
    (tmp_path / opened.files[9]).write_bytes(b"damaged")
    batches = opened.batches(3)
    assert [len(next(batches)[1]) for _ in range(3)] == [3, 3, 3]
    with refuses(DataError, opened.files[9]):
        next(batches)
    assert len(list(opened.batches(3, range(9)))) == 3, "what is not read does not matter"


def test_an_image_that_is_read_twice_is_counted_once(tmp_path: Path) -> None:
    class_folder(tmp_path, 4, size=8)
    opened = open_dataset(tmp_path, size=(4, 4))
    assert opened.notes == ()
    for _ in range(2):
        list(opened.batches(3, range(5)))
        assert opened.notes == ("5 of 5 images were resized to 4x4: they are of 8x8",)
    assert opened.labelled_for(2, ("dog", "cat")).notes == opened.notes
    assert opened.subset(2, 0).notes == ()


# What does not belong to the data


def test_what_systems_leave_in_folders_is_passed_over_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class_folder(tmp_path)
    class_folder(tmp_path / "__MACOSX", names=("cat", "dog"))
    for place in (tmp_path, tmp_path / "cat"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".nfs0000001", "._0.png", ".hidden.png"):
            (place / name).write_bytes(b"left by a system")
        for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
            class_folder(place / name, 1, ("cat",))
    with caplog.at_level(logging.INFO, "dfs_deploy"):
        read = load_dataset(tmp_path)
        assert len(list_images(tmp_path)) == 4
    assert read.class_names == ("cat", "dog")
    assert len(read) == 4
    logged = "\n".join(record.getMessage() for record in caplog.records)
    for name in (".DS_Store", "Thumbs.db", "__MACOSX", ".nfs0000001", "._0.png", ".ipynb_checkpoints", "@eaDir"):
        assert name in logged


# What is noticed


def test_images_of_another_size_are_said(tmp_path: Path) -> None:
    class_folder(tmp_path, 2, size=8)
    assert load_dataset(tmp_path, size=(8, 8)).notes == ()
    assert load_dataset(tmp_path).notes == ()
    (note,) = load_dataset(tmp_path, size=(4, 4)).notes
    assert "4 of 4 images were resized to 4x4" in note
    save_image(tmp_path / "cat" / "7.png", pixels(6, 4, 3))
    save_image(tmp_path / "cat" / "8.png", pixels(4, 4, 3))
    (note,) = load_dataset(tmp_path, size=(4, 4)).notes
    assert "5 of 6 images" in note
    assert "8x8 and 1 other size" in note


def test_exif_data_that_cannot_be_read_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class_folder(tmp_path, 2)
    save_image(tmp_path / "cat" / "7.png", pixels(4, 4, 3), exif=b"Exif\0\0nothing")
    (note,) = load_dataset(tmp_path).notes
    assert note.startswith("1 of 5 images have unreadable EXIF data")
    assert not caplog.records
