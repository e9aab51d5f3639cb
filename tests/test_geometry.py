from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dfs_deploy.errors import InputError
from dfs_deploy.geometry import MAX_RESIZE, MAX_WHOLE_PIXELS, Geometry
from tests.checks import little_memory, refuses
from tests.data.pictures import pixels

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def smooth(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """An image without noise, on which one wrong pixel of a crop or of a size changes many others by little."""
    coarse = Image.fromarray(pixels(5, 5, 3, seed=seed))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC), np.uint8)


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(0, 9),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_the_shorter_side_is_resized_and_the_centre_cut_out(
    height: int, width: int, rows: int, columns: int, more: int, interpolation: Any
) -> None:
    """The formulas of torchvision's ``Resize(int)`` and ``CenterCrop``, by Pillow directly."""
    image = pixels(height, width, 3)
    side = max(rows, columns) + more
    across, down = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    resized = Image.fromarray(image).resize((across, down), FILTERS[interpolation])
    left, top = round((across - columns) / 2.0), round((down - rows) / 2.0)
    expected = np.asarray(resized.crop((left, top, left + columns, top + rows)))
    np.testing.assert_array_equal(Geometry((rows, columns), side, interpolation)(image), expected)


@pytest.mark.parametrize(("width", "left"), [(9, 0), (10, 1), (11, 2), (12, 2), (13, 2)])
def test_half_pixels_are_rounded_to_even(width: int, left: int) -> None:
    """Margins of 0.5, 1, 1.5, 2 and 2.5 pixels: where torchvision cuts."""
    image = pixels(8, width, 3)
    np.testing.assert_array_equal(Geometry((8, 8), 8)(image), image[:, left : left + 8])


def test_without_a_crop_the_whole_image_is_resized() -> None:
    image = pixels(9, 30, 3)
    for interpolation, kind in FILTERS.items():
        expected = Image.fromarray(image).resize((6, 7), kind)
        np.testing.assert_array_equal(Geometry((7, 6), None, interpolation)(image), expected)  # type: ignore[arg-type]
    assert Geometry((9, 30))(image) is image


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_are_resized_alike(channels: int) -> None:
    grey = pixels(20, 13, 1)
    geometry = Geometry((6, 5), 8, "bicubic")
    expected = geometry(np.repeat(grey, 3, 2))[..., :1]
    np.testing.assert_array_equal(geometry(np.repeat(grey, channels, 2)), np.repeat(expected, channels, 2))


@pytest.mark.parametrize("shape", [(3, 40_000), (40_000, 3), (1, 65_535)])
def test_of_a_thin_image_only_what_is_kept_is_computed(shape: tuple[int, int]) -> None:
    image = smooth(*shape)
    geometry = Geometry((48, 64), 64)
    whole = 64 * 64 * max(shape) // min(shape)
    assert whole > MAX_WHOLE_PIXELS
    with little_memory(1 << 20):
        cut = geometry(image)
    # The same part of a piece of the image that is short enough to be resized as a whole.
    middle, reach = max(shape) // 2, 600
    piece = image[:, middle - reach : middle + reach] if shape[0] < shape[1] else image[middle - reach : middle + reach]
    difference = np.abs(geometry(np.ascontiguousarray(piece)).astype(int) - cut)
    assert cut.shape == (48, 64, 3)
    assert difference.max() <= 3, "the middle of the piece is up to a pixel off"


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (((0, 4),), "(0, 4)"),
        (((4,),), "(4,)"),
        (((4, 5), 4), "expected 5 to"),
        (((4, 5), 0), "resize 0"),
        (((4, 5), MAX_RESIZE + 1), "65,536"),
        (((4, 5), 5.0), "resize 5.0"),
        (((4, 5), True), "resize True"),
        (((4, 5), 5, "nearest"), "bilinear or bicubic"),
    ],
)
def test_impossible_geometries_are_refused(values: tuple[Any, ...], word: str) -> None:
    with refuses(InputError, word, "expected"):
        Geometry(*values)
