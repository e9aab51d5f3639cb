from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from dfs_deploy.data import decode_image, image_headers, images, load_image
from dfs_deploy.errors import DataError
from dfs_deploy.geometry import Geometry
from tests.checks import refuses
from tests.data.pictures import pixels, save_image


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


# Limits


def blank_png(width: int, height: int, bits: int = 1, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG of zeros: hardly any bytes for any number of pixels."""
    row = bytes(1 + -(-width * bits * {0: 1, 2: 3, 6: 4}[colour] // 8))
    deflate = zlib.compressobj(9)
    rows = b"".join(deflate.compress(row) for _ in range(height)) + deflate.flush()
    start = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (blank_png(9400, 9400), ("9400x9400 pixels", "at most 67,108,864 pixels (PNG)")),
        (blank_png(1, 65_536), ("1x65536 pixels", "65,535 on a side")),
        (encoded(Image.new("L", (8193, 8192)), "JPEG"), ("8193x8192", "at most 67,108,864 pixels (JPEG)")),
        (encoded(Image.new("L", (8192, 4097)), "JPEG", progressive=True), ("8192x4097", "at most 33,554,432")),
        (encoded(Image.new("RGB", (8192, 4097)), "WEBP"), ("8192x4097", "at most 33,554,432 pixels (WEBP)")),
        (encoded(Image.new("RGBA", (8192, 4097)), "WEBP", lossless=True), ("8192x4097",)),
        (b"P3 9999 999 255 ", ("9999x999", "at most 1,048,576 pixels (PPM)")),
        (b"P6 9999 999 100 ", ("9999x999", "at most 1,048,576")),
        (b"P6 9999 9999 255 ", ("9999x9999", "at most 67,108,864")),
        (b"BM" + struct.pack("<IHHIIiiHHI", 0, 0, 0, 54, 40, 9999, -9999, 1, 24, 0), ("9999x9999", "(BMP)")),
    ],
)
def test_more_pixels_than_a_limit_are_refused_by_the_header(data: bytes, words: tuple[str, ...]) -> None:
    with refuses(DataError, "the image is too large to decode", *words):
        decode_image(data, (8, 8))


def test_pillows_own_limit_neither_fires_nor_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    filters = list(warnings.filters)
    image = Image.fromarray(pixels(40, 50, 3))
    for kind in ("PNG", "JPEG", "BMP", "PPM"):
        assert decode_image(encoded(image, kind)).shape == (40, 50, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    assert filters == list(warnings.filters)


def test_threads_that_decode_at_once_leave_the_filters_of_warnings_alone() -> None:
    data, before, interval = blank_png(120, 120), list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=lambda: [decode_image(data) for _ in range(200)]) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert list(warnings.filters) == before


IN_LITTLE_MEMORY = """
import resource, sys
from dfs_deploy.data import load_image
from dfs_deploy.errors import DataError
load_image(sys.argv[2], (16, 16))
import PIL.Image
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[3]) * 2**20,) * 2)
try:
    print(load_image(sys.argv[1], (16, 16) if len(sys.argv) < 5 else None).shape)
except DataError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the size of the process")
@pytest.mark.parametrize(
    ("name", "mib", "whole", "expected"),
    [
        ("grey.png", 150, False, "(16, 16, 3)"),  # 67 MB of pixels, which would be 268 MB in colour
        ("colour.png", 330, False, "(16, 16, 3)"),
        ("colour.png", 200, False, "does not fit into memory"),
        ("grey.png", 150, True, "does not fit into memory"),
        ("photo.jpg", 60, False, "(16, 16, 3)"),  # decoded at an eighth
    ],
)
def test_large_images_take_bounded_memory(tmp_path: Path, name: str, mib: int, whole: bool, expected: str) -> None:
    path, small = tmp_path / name, save_image(tmp_path / "small.jpg", pixels(8, 8, 3))
    save_image(tmp_path / "small.png", pixels(8, 8, 3))
    if name == "photo.jpg":
        Image.new("RGB", (8000, 8000), (10, 20, 30)).save(path)
    else:
        path.write_bytes(blank_png(8192, 8192, 8, 0 if name == "grey.png" else 2))
    small = small.with_suffix(path.suffix)
    command = [sys.executable, "-c", IN_LITTLE_MEMORY, str(path), str(small), str(mib), *(["whole"] if whole else [])]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert expected in ran.stdout


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    for path in (tmp_path / "fifo.png", "/dev/zero"):
        with refuses(DataError, str(path)):
            load_image(path)


def test_a_file_of_endless_size_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    with path.open("wb") as stream:
        stream.truncate(100 << 30)
    with refuses(DataError, "sparse.png", "107,374,182,400 bytes"):
        load_image(path)


@pytest.mark.parametrize(
    ("mode", "orientation"), [*(("RGB", turn) for turn in range(1, 9)), ("L", 6), ("P", 3), ("RGBA", 8), ("1", 1)]
)
def test_strips_are_put_together_as_the_whole(monkeypatch: pytest.MonkeyPatch, mode: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels(97, 53, 3)).convert(mode), "PNG", exif=exif)
    for size in (None, (10, 12), (200, 30), (97, 53), (53, 10), Geometry((10, 12), 20), Geometry((7, 8), 9)):
        whole = decode_image(data, size)
        with monkeypatch.context() as patch:
            patch.setattr(images, "MAX_WHOLE_PIXELS", 100)
            patch.setattr(images, "_STRIP_PIXELS", 700)
            strips = decode_image(data, size)
        # Along rows first and then along columns, or the other way round: each rounds once.
        assert np.abs(whole.astype(int) - strips).max() <= (0 if size is None else 1)


def test_a_large_jpeg_is_decoded_at_a_fraction_that_leaves_twice_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = Image.fromarray(pixels(6, 8, 3)).resize((640, 480), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright, turned = encoded(smooth, "JPEG"), encoded(smooth, "JPEG", exif=exif)
    sizes = [
        (upright, (60, 80)),
        (turned, (80, 60)),
        (upright, Geometry((50, 40), 60)),
        (turned, Geometry((40, 50), 60)),
    ]
    for data, size in sizes:
        whole = decode_image(data, size)
        monkeypatch.setattr(JpegImageFile, "draft", lambda *_: pytest.fail("an ordinary photo is decoded whole"))
        np.testing.assert_array_equal(decode_image(data, size), whole)
        monkeypatch.undo()
        with monkeypatch.context() as patch:
            patch.setattr(images, "MAX_WHOLE_PIXELS", 640 * 480 - 1)
            scaled = decode_image(data, size)
        assert scaled.shape == whole.shape
        assert np.abs(whole.astype(int) - scaled).mean() < 2


def test_a_size_is_read_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save_image(tmp_path / "1.jpg", pixels(20, 30, 3), exif=exif)
    assert load_image(path).shape[:2] == (30, 20)
    monkeypatch.setattr(images, "_opened", lambda *_: pytest.fail("only the header is wanted"))
    assert images.read_size(path) == (30, 20)
    (tmp_path / "2.jpg").write_bytes(b"damaged")
    for name in ("2.jpg", "3.jpg"):
        with refuses(DataError, name):
            images.read_size(tmp_path / name)


# Files as they are found


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_read_does_not_cost_the_image(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    image = Image.fromarray(pixels(20, 30, 3))
    spoilt = (b"no tiff here", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", bytes(64))
    for exif in (b"", *spoilt):
        data = encoded(image, kind, exif=b"Exif\0\0" + exif)
        assert decode_image(data, name="e.jpg").shape == (20, 30, 3)
    assert len(caplog.records) >= len(spoilt)
    assert all("e.jpg" in record.getMessage() and "EXIF" in record.getMessage() for record in caplog.records)


def test_an_orientation_of_zero_is_none(caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 0
    assert decode_image(encoded(Image.new("RGB", (6, 4)), "PNG", exif=exif)).shape == (4, 6, 3)
    assert not caplog.records


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20))),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(80 << 20))),
        chunk(b"tEXt", b"Comment\0" + bytes(70 << 20)),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2 << 20))),
        chunk(b"iCCP", b"broken"),
        40_000 * chunk(b"tEXt", b"a\0b"),
    ],
)
def test_metadata_of_any_size_do_not_cost_the_image(extra: bytes) -> None:
    assert decode_image(blank_png(7, 5, 8, 2, extra)).shape == (5, 7, 3)


def test_metadata_of_a_jpeg_do_not_cost_the_image_or_time() -> None:
    data = encoded(Image.new("RGB", (6, 4), (10, 20, 30)), "JPEG")
    segment = b"\xff\xe1\xff\xffExif\0\0" + bytes(65535 - 8)
    for extra in (200 * segment, b"\xff\xe2\x00\x06MPF\0", b"\xff" + bytes(20 << 20), b"\xff" * (20 << 20)):
        assert decode_image(data[:2] + extra + data[2:]).shape == (4, 6, 3)


def test_a_bit_that_changed_in_a_png_is_noticed() -> None:
    data = bytearray(encoded(Image.fromarray(pixels(30, 30, 3)), "PNG"))
    data[200] ^= 1
    with refuses(DataError, "damaged", "sum of its IDAT"):
        decode_image(bytes(data))


def test_a_progressive_jpeg_with_scans_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(pixels(64, 64, 3)), "JPEG", progressive=True)
    assert decode_image(data).shape == (64, 64, 3)
    at = data.rindex(b"\xff\xda")
    endless = data[:at] + 4000 * data[at : data.rindex(b"\xff\xd9")] + b"\xff\xd9"
    monkeypatch.setattr(image_headers, "MAX_SCANNED_PIXELS", 64 * 64 * 100)
    with refuses(DataError, "scans of 64x64 pixels"):
        decode_image(endless)
    assert decode_image(data).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("data", "bits"),
    [
        (blank_png(4, 4, 16, 0), 16),
        (blank_png(4, 4, 16, 2), 16),
        (blank_png(4, 4, 16, 6), 16),
        (b"P5 2 2 256 " + bytes(8), 9),
        (b"P6\n# deep\n2 2\n65535\n" + bytes(24), 16),
        (b"P3 1 1 1023 1 2 3 ", 10),
        (b"Pf 2 2 -1.0\n" + bytes(16), 32),
        (encoded(Image.new("RGB", (8, 8)), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), 12),
    ],
)
def test_every_deep_image_is_refused_alike(data: bytes, bits: int) -> None:
    with refuses(DataError, f"the image has {bits} bits per channel, expected 8"):
        decode_image(data)


def test_ranges_below_a_byte_are_scaled_to_it() -> None:
    np.testing.assert_array_equal(decode_image(b"P5 3 1 100 " + bytes([0, 50, 100]))[0, :, 0], [0, 128, 255])
    np.testing.assert_array_equal(decode_image(b"P2 2 1 3 0 3 ")[0, :, 1], [0, 255])


def test_of_several_frames_the_first_is_read() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    for kind in ("PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert (decode_image(data) == (250, 0, 0)).all()
    photo = decode_image(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert (photo[..., 0] > 200).all()


def test_print_colours_and_progressive_jpegs_are_read() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert (decode_image(encoded(red, "JPEG"))[..., 0] > 200).all()
    grey = decode_image(encoded(Image.new("L", (16, 16), 90), "JPEG", progressive=True))
    assert np.abs(grey.astype(int) - 90).max() <= 2


def test_transparency_of_a_palette_is_left_out_without_a_warning() -> None:
    image = Image.fromarray(pixels(8, 8, 3)).quantize(16)
    plain = decode_image(encoded(image, "PNG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clear = decode_image(encoded(image, "PNG", transparency=bytes(range(16))))
    np.testing.assert_array_equal(clear, plain)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_images_without_pixels_are_refused(suffix: str) -> None:
    data = {
        "png": blank_png(4, 4).replace(struct.pack(">II", 4, 4), struct.pack(">II", 0, 4)),
        "jpg": encoded(Image.new("L", (8, 8)), "JPEG").replace(b"\x08\0\x08\0\x08", b"\x08\0\0\0\x08"),
        "bmp": b"BM" + struct.pack("<IHHIIiiHHI", 0, 0, 0, 54, 40, 0, 4, 1, 24, 0),
        "webp": b"RIFF\x10\0\0\0WEBPVP8 \0\0\0\0",
    }[suffix]
    with refuses(DataError, "damaged"):
        decode_image(data)


def test_run_lengths_that_jump_out_of_the_image_take_no_memory() -> None:
    """A jump by 255 rows of a wide BMP would be made room for before it is looked at."""
    head = struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 1078, 40, 2_000_000, 1, 1, 8, 1, 6, 0, 0, 256, 0)
    with refuses(DataError, "run lengths in rows of 2000000 pixels"):
        decode_image(b"BM" + head + bytes(1024) + b"\0\2\xff\xff\0\1")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "ppm", "webp"])
def test_a_truncated_image_is_refused(tmp_path: Path, suffix: str) -> None:
    path = save_image(tmp_path / f"1.{suffix}", pixels(20, 20, 3))
    whole = path.read_bytes()
    for length in (0, 1, 10, 40, len(whole) // 2, len(whole) * 9 // 10):
        path.write_bytes(whole[:length])
        with refuses(DataError, str(path)):
            load_image(path)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(pixels(4, 4, 3)).save(tmp_path / "other.png", "TIFF")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    for name, word in {"text": "no image of a known format", "other": "PNG, JPEG", "deep": "8 bits"}.items():
        with refuses(DataError, name, word):
            load_image(tmp_path / f"{name}.png")
    for path, words in ((tmp_path, "is no image file"), (tmp_path / "none.png", "there is no image at")):
        with refuses(DataError, str(path), words):
            load_image(path)


def test_postscript_by_another_name_is_not_interpreted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "1.png"
    Image.fromarray(pixels(4, 4, 3)).save(path, "EPS")

    def run(*_: object, **__: object) -> None:
        pytest.fail("an interpreter was started")

    monkeypatch.setattr(subprocess, "Popen", run)
    with refuses(DataError, str(path), "no image of a known format"):
        load_image(path)


def test_an_image_in_memory_is_decoded_as_a_file_is(tmp_path: Path) -> None:
    path = save_image(tmp_path / "1.png", pixels(9, 7, 3))
    np.testing.assert_array_equal(decode_image(path.read_bytes(), (4, 4)), load_image(path, (4, 4)))
    with refuses(DataError, "the body", "no image of a known format"):
        decode_image(b"no image", name="the body")
    with refuses(DataError, "the body", "damaged"):
        decode_image(path.read_bytes()[:60], name="the body")


def test_without_pillow_no_image_is_to_blame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for module in ("PIL", "PIL.Image", "PIL.PngImagePlugin"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError):
        load_image(tmp_path / "a.png")
