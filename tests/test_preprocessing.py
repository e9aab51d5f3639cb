from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dfs_deploy.errors import InputError
from dfs_deploy.preprocessing import CIFAR10_CLASSES, InputContract
from tests.checks import refuses

SMALL = InputContract(shape=(3, 4, 5))


def pixels(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 5, 3), np.uint8)


@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_bytes_become_normalised_planes(count: int, seed: int) -> None:
    images = pixels(count, seed)
    expected = (images.astype(np.float64) / 255 - SMALL.mean) / SMALL.std
    prepared = SMALL.prepare(images)
    assert prepared.shape == (count, 3, 4, 5)
    assert prepared.dtype == np.float32
    assert prepared.flags.c_contiguous
    np.testing.assert_allclose(prepared.transpose(0, 2, 3, 1), expected, atol=1e-6)


def test_normalised_floats_pass_as_they_are() -> None:
    images = SMALL.normalize(pixels(2))
    assert SMALL.prepare(images) is images


def test_floats_out_of_order_are_laid_out_anew() -> None:
    images = np.asfortranarray(SMALL.normalize(pixels(2)))
    prepared = SMALL.prepare(images)
    assert prepared.flags.c_contiguous
    np.testing.assert_array_equal(prepared, images)


def test_images_of_another_size_are_brought_to_the_networks() -> None:
    image = np.random.default_rng(0).integers(0, 256, (13, 21, 3), np.uint8)
    whole = Image.fromarray(image).resize((5, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(SMALL.fit(image), whole)
    cropped = InputContract(shape=(3, 4, 5), resize=7, interpolation="bicubic")
    short = Image.fromarray(image).resize((11, 7), Image.Resampling.BICUBIC)  # 7 * 21 / 13 = 11.3
    np.testing.assert_array_equal(cropped.fit(image), np.asarray(short)[2:6, 3:8])  # margins of 1.5 and 3
    for contract in (SMALL, cropped):
        fitted = np.stack([contract.fit(image), contract.fit(image[::-1])])
        np.testing.assert_array_equal(contract.prepare(np.stack([image, image[::-1]])), contract.normalize(fitted))


def test_arrays_of_the_networks_size_are_its_input_whatever_the_crop() -> None:
    cropped = InputContract(shape=(3, 4, 5), resize=7)
    np.testing.assert_array_equal(cropped.prepare(pixels(2)), cropped.normalize(pixels(2)))
    assert not np.array_equal(cropped.fit(pixels(1)[0]), pixels(1)[0]), "an image from a file is resized and cropped"


@pytest.mark.parametrize(
    "image",
    [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)],
)
def test_what_is_no_image_for_the_network_is_refused(image: Any) -> None:
    with refuses(InputError, str(image.shape), "expected (H, W, 3) uint8"):
        SMALL.fit(image)


def test_the_default_is_cifars() -> None:
    contract = InputContract()
    assert contract.shape == (3, 32, 32)
    np.testing.assert_allclose(contract.mean, (0.4914, 0.4822, 0.4465))
    np.testing.assert_allclose(contract.std, (0.2023, 0.1994, 0.2010))
    assert len(CIFAR10_CLASSES) == 10


@pytest.mark.parametrize(
    ("images", "word"),
    [
        ([[0.0]], "NumPy array"),
        (np.zeros((1, 3, 4, 5), np.float64), "float64"),
        (np.zeros((1, 3, 4, 5), ">f4"), "dtype"),
        (np.zeros((1, 4, 5, 3), np.int64), "int64"),
        (np.zeros((1, 4, 5, 3), np.float32), "(1, 4, 5, 3)"),
        (np.zeros((1, 3, 4, 5), np.uint8), "(1, 3, 4, 5)"),
        (np.zeros((3, 4, 5), np.float32), "(3, 4, 5)"),
        (np.zeros((1, 3, 5, 4), np.float32), "(1, 3, 5, 4)"),
        (np.zeros((1, 1, 4, 5), np.float32), "(1, 1, 4, 5)"),
        (np.zeros((1, 9, 9, 4), np.uint8), "(1, 9, 9, 4)"),
        (np.zeros((1, 0, 9, 3), np.uint8), "(1, 0, 9, 3)"),
        (np.zeros((0, 9, 9, 3), np.uint8), "(0, 9, 9, 3)"),
        (np.zeros((0, 3, 4, 5), np.float32), "empty"),
    ],
)
def test_what_the_network_cannot_take_is_refused(images: Any, word: str) -> None:
    with refuses(InputError, word, "expected"):
        SMALL.prepare(images)


@pytest.mark.parametrize("values", [[np.nan], [np.inf, -np.inf]])
def test_values_that_are_not_finite_are_refused_by_image(values: list[float]) -> None:
    images = SMALL.normalize(pixels(4))
    images[2, 1, 0, : len(values)] = values
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with refuses(InputError, "image 2"):
            SMALL.prepare(images)


def test_a_sum_beyond_float32_is_no_error() -> None:
    images = np.full((2, 3, 4, 5), 3e38, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SMALL.prepare(images) is images


@pytest.mark.parametrize(
    "values",
    [
        {"mean": (0.5,)},
        {"std": (0.2, 0.2)},
        {"std": (0.2, -0.1, 0.2)},
        {"std": (0.2, float("nan"), 0.2)},
        {"std": (0.2, 1e-30, 0.2)},
        {"mean": (0.2, 1e200, 0.2)},
        {"shape": (1, 32, 32)},
        {"shape": (3, 32)},
        {"shape": (3, 10**5, 10**5)},
        {"class_names": ("cat", "caf\udce9")},
        {"class_names": ("cat", "")},
        {"class_names": ("cat", "a" * 501)},
        {"class_names": ("a",) * 65_537},
        {"class_names": ("cat", 7)},
        {"resize": 31},
        {"resize": "256"},
        {"interpolation": "nearest"},
    ],
)
def test_impossible_contracts_are_refused(values: dict[str, Any]) -> None:
    with refuses(InputError):
        InputContract(**values)


def test_one_channel_is_possible() -> None:
    contract = InputContract((1, 2, 2), (0.5,), (0.5,))
    np.testing.assert_array_equal(contract.prepare(np.full((1, 2, 2, 1), 255, np.uint8)), np.ones((1, 1, 2, 2)))


def test_a_name_that_no_file_can_hold_is_shown_escaped() -> None:
    with refuses(InputError, "class 1", r"caf\xe9", "not UTF-8", "rename"):
        InputContract(class_names=("cat", "caf\udce9"))
    assert InputContract(class_names=("caf\xe9", "caf\xe9", "\x1b[0m")).class_names[0] == "caf\xe9"


def test_pixels_that_were_not_normalised_are_doubted_once(caplog: pytest.LogCaptureFixture) -> None:
    contract = InputContract(shape=(3, 4, 5))
    contract.prepare(contract.normalize(np.full((2, 4, 5, 3), 255, np.uint8)))
    contract.prepare(np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32))
    assert not caplog.records
    raw = pixels(2).transpose(0, 3, 1, 2).astype(np.float32)
    for _ in range(3):
        assert contract.prepare(np.ascontiguousarray(raw)).dtype == np.float32
    (record,) = caplog.records
    assert record.name.startswith("dfs_deploy.")
    assert "normalised" in record.getMessage()


def test_a_network_of_raw_pixels_doubts_none(caplog: pytest.LogCaptureFixture) -> None:
    contract = InputContract((3, 4, 5), (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
    contract.prepare(np.full((2, 3, 4, 5), 255, np.float32))
    assert not caplog.records
