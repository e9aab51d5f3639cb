from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.data import Dataset, load_dataset, save_npz
from dfs_deploy.errors import DataError
from tests.checks import refuses
from tests.data.pictures import dataset


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
        (np.zeros((2, 4, 5, 3), np.float32), [0, 1], (), "RGB"),
        (np.zeros((2, 3, 4, 5), np.uint8), [0, 1], (), "RGB"),
        (np.zeros((2, 4, 5), np.uint8), [0, 1], (), "RGB"),
        (np.zeros((2, 4, 5, 1), np.uint8), [0, 1], (), "RGB"),
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


def test_labels_count_as_the_network_does() -> None:
    images = np.zeros((3, 4, 4, 3), np.uint8)
    data = Dataset(images, np.array([0, 1, 1]), ("cat", "dog"), "pets")
    matched = data.labelled_for(6, ("bird", "cat", "deer", "dog", "frog", "horse"))
    assert matched.labels.tolist() == [1, 3, 3]
    assert data.labelled_for(2, ("cat", "dog")).labels.tolist() == [0, 1, 1]
    assert data.labelled_for(2, ()).labels.tolist() == [0, 1, 1]
    with refuses(DataError, ": dog;", "cat, car"):
        data.labelled_for(2, ("cat", "car"))
    unnamed = Dataset(images, np.array([0, 1, 14]), (), "shifted")
    with refuses(DataError, "label 14", "0 to 9"):
        unnamed.labelled_for(10, ("cat",) * 10)


@pytest.mark.parametrize(
    ("images", "word"),
    [
        (np.zeros((8, 4, 4, 3)), "a single colour"),
        (np.full((8, 4, 4, 3), 255), "a single colour"),
        (np.arange(8)[:, None, None, None] * np.ones((1, 4, 4, 3)), "a single colour"),
        (np.random.default_rng(0).integers(0, 2, (8, 4, 4, 3)), "scaled to 0..1"),
        (np.tile(np.arange(48).reshape(1, 4, 4, 3), (8, 1, 1, 1)), "are equal"),
    ],
)
def test_images_that_are_probably_none_are_noticed(tmp_path: Path, images: Any, word: str) -> None:
    np.savez(tmp_path / "data.npz", x=images.astype(np.uint8), y=np.arange(8))
    (note,) = load_dataset(tmp_path / "data.npz").notes
    assert word in note


def test_notes_go_along(tmp_path: Path) -> None:
    save_npz(tmp_path / "data.npz", dataset(40))
    read = load_dataset(tmp_path / "data.npz", size=(2, 2))
    assert "40 of 40 images were resized" in read.notes[0]
    assert read.subset(3, 0).labelled_for(3, ("a", "b", "c")).load().notes == read.notes
    assert read.labelled_for(3, ()).notes[0] == read.notes[0]
    assert "keep their own order: 0 = a, 1 = b, 2 = c" in read.labelled_for(3, ()).notes[1]
    twice = read.labelled_for(3, ()).labelled_for(3, ())
    assert twice.notes == read.labelled_for(3, ()).notes, "a note is said once"
