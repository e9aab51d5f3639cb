from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from dfs_deploy.datasets import decode_image, load_image
from dfs_deploy.errors import DataError
from tests.checks import refuses
from tests.datasets.pictures import pixels, save_image


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


def test_an_image_in_memory_is_decoded_as_a_file_is(tmp_path: Path) -> None:
    path = save_image(tmp_path / "1.png", pixels(9, 7, 3))
    np.testing.assert_array_equal(decode_image(path.read_bytes(), (4, 4)), load_image(path, (4, 4)))
    with refuses(DataError, "the body", "no image of a known kind"):
        decode_image(b"no image", name="the body")
    with refuses(DataError, "the body", "damaged"):
        decode_image(path.read_bytes()[:60], name="the body")
