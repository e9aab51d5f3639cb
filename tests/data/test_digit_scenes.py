"""Scenes with digits: fixed, of scans that no other split has, and hard in a known part."""

from __future__ import annotations

import numpy as np
import pytest

from dfs_deploy.data.digit_scenes import HARD_SHARE, SCENE_SIZE, load_digit_scenes
from dfs_deploy.errors import UsageError


def test_scenes_are_grey_pictures_with_the_scans_labels() -> None:
    scenes = load_digit_scenes("val", copies=2)
    assert scenes.data.images.shape == (520, SCENE_SIZE, SCENE_SIZE, 3)
    assert np.array_equal(scenes.data.images[..., 0], scenes.data.images[..., 2])
    assert np.array_equal(scenes.data.labels[:260], scenes.data.labels[260:])
    assert np.bincount(scenes.data.labels).min() > 25
    assert scenes.hard.mean() == pytest.approx(HARD_SHARE, abs=0.06)


def test_they_are_the_same_every_time_and_every_copy_is_another() -> None:
    once, again = load_digit_scenes("val", copies=2), load_digit_scenes("val", copies=2)
    assert np.array_equal(once.data.images, again.data.images)
    assert np.array_equal(once.hard, again.hard)
    images = once.data.images
    assert not (images[:260] == images[260:]).all((1, 2, 3)).any()


def test_hard_scenes_are_brighter_and_noisier_than_clear_ones() -> None:
    scenes = load_digit_scenes("val")
    grey = scenes.data.images[..., 0].astype(np.float64)
    rough = np.abs(np.diff(grey, axis=2)).mean((1, 2))
    assert rough[~scenes.hard].max() < rough[scenes.hard].min()
    assert np.median(grey[~scenes.hard], axis=(1, 2)).max() < 10


@pytest.mark.parametrize(("split", "copies"), [("validation", 1), ("val", 0)])
def test_a_split_that_is_not_there_and_no_copies_are_refused(split: str, copies: int) -> None:
    with pytest.raises(UsageError, match=r"expected"):
        load_digit_scenes(split, copies)  # type: ignore[arg-type]
