"""Decoding and resizing single images."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.datasets.messages import cause, os_errors_as_data_errors
from dfs_deploy.errors import DataError

# Only decoders that work in this process: Pillow would hand an EPS file, whatever its name, to Ghostscript.
_DECODERS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")


@os_errors_as_data_errors
def load_image(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decodes an image upright, as its EXIF orientation says.

    Args:
        path: a PNG, JPEG, BMP, PPM or WebP file.
        size: height and width in pixels to resize to, bilinearly (over the covered area where it shrinks); ``None``
            for the image's own.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        DataError: the file is missing, damaged, of another kind or more than 8 bits a channel, or has more pixels than
            Pillow's guard against decompression bombs lets through.
    """
    check_size(size)
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no image at {path}; give a PNG, JPEG, BMP, PPM or WebP file")
    return _decode(path, str(path), size)


def decode_image(data: bytes, size: tuple[int, int] | None = None, name: str = "the image") -> NDArray[np.uint8]:
    """Decodes an image that is not a file, such as the body of a request; see :func:`load_image`.

    Args:
        data: content of a PNG, JPEG, BMP, PPM or WebP file.
        size: as there.
        name: what messages call it.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        DataError: as there.
    """
    check_size(size)
    return _decode(io.BytesIO(data), name, size)


def _decode(source: Path | BinaryIO, name: str, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice its limit; the limit is meant here.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=_DECODERS) as opened:
                deep = opened.mode.startswith(("I", "F"))
                image = opened if deep else ImageOps.exif_transpose(opened).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} is too large to decode ({cause(error)}); shrink it first") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name} is no image of a known kind, expected PNG, JPEG, BMP, PPM or WebP; convert it"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file system's, not a decoder's
        # Pillow's decoders let whatever a damaged file makes them meet through; there is no common base to name.
        raise DataError(f"{name} is a damaged image ({cause(error)}); copy it again or remove it") from error
    if deep:
        raise DataError(f"{name} has more than 8 bits a channel (mode {image.mode}), expected 8; convert it")
    return resize(np.array(image, np.uint8), size)


def check_size(size: tuple[int, int] | None) -> None:
    """Raises DataError for a size that is not a height and a width of at least a pixel."""
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise DataError(f"size {size}, expected height and width in pixels, each at least 1")


def resize(image: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Resizes an (H, W, 3) image bilinearly; the image itself where it has that size or none is asked for."""
    if size is None or image.shape[:2] == tuple(size):
        return image
    from PIL import Image

    height, width = size
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR), np.uint8)
