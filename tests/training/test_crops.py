from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dfs_deploy.geometry import Geometry
from dfs_deploy.training.crops import RATIO, RandomCrop
from tests.data.pictures import pixels

SQUARE = Geometry((8, 8))


def crop(number: int, area: float = 0.08, geometry: Geometry = SQUARE) -> RandomCrop:
    return RandomCrop(geometry, area, ("seed", number))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99), st.floats(0.01, 1.0))
def test_a_part_lies_in_its_image(height: int, width: int, number: int, area: float) -> None:
    top, left, rows, columns, _ = crop(number, area).drawn(height, width)
    assert 0 <= top <= top + rows <= height
    assert 0 <= left <= left + columns <= width
    assert min(rows, columns) >= 1


def test_area_and_aspect_ratio_are_spread_over_what_is_allowed() -> None:
    drawn = [crop(number, 0.2).drawn(1000, 1000) for number in range(800)]
    areas = np.array([rows * columns / 1e6 for _, _, rows, columns, _ in drawn])
    ratios = np.array([columns / rows for _, _, rows, columns, _ in drawn])
    assert 0.199 < areas.min() < 0.25
    assert 0.9 < areas.max() <= 1.0
    assert RATIO[0] - 0.01 < ratios.min() < 0.78
    assert 1.28 < ratios.max() < RATIO[1] + 0.01
    assert abs(np.median(np.log(ratios))) < 0.05, "as often wide as high"
    places = np.array([(top / (1001 - rows), left / (1001 - columns)) for top, left, rows, columns, _ in drawn])
    assert places.min() < 0.01
    assert places.max() > 0.99
    assert np.abs(places.mean(0) - 0.5).max() < 0.05
    assert 0.42 < np.mean([mirrored for *_, mirrored in drawn]) < 0.58


@pytest.mark.parametrize(("height", "width", "expected"), [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10))])
def test_of_an_image_too_thin_for_any_part_the_centre_is_taken(
    height: int, width: int, expected: tuple[int, ...]
) -> None:
    """Torchvision's last resort: the greatest part of the centre whose aspect ratio is allowed."""
    assert crop(0, 0.5).drawn(height, width)[:4] == expected


@pytest.mark.parametrize("number", range(6))
def test_the_part_is_resized_and_mirrored(number: int) -> None:
    image = pixels(40, 60, 3)
    made = crop(number, geometry=Geometry((9, 7), 10, "bicubic"))
    top, left, rows, columns, mirrored = made.drawn(40, 60)
    part = Image.fromarray(image[top : top + rows, left : left + columns]).resize((7, 9), Image.Resampling.BICUBIC)
    expected = np.asarray(part)[:, ::-1] if mirrored else np.asarray(part)
    np.testing.assert_array_equal(made(image), expected)


def test_the_draw_depends_on_the_key_alone() -> None:
    assert crop(3).drawn(50, 70) == crop(3).drawn(50, 70)
    assert len({crop(number).drawn(50, 70) for number in range(50)}) > 45


def test_the_draw_is_the_same_with_every_version_of_python() -> None:
    """A run may be resumed on another machine."""
    assert crop(1).drawn(375, 500) == (1, 120, 365, 313, True)


def test_a_very_large_image_may_be_shrunk_before_it_is_cut() -> None:
    height, width = crop(0).reduced((8000, 6000))
    assert height * width <= 1 << 24
    assert math.isclose(height / width, 8 / 6, rel_tol=1e-3)
    assert min(height, width) > 1500
