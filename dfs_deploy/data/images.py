"""Decoding of images: limits are checked before anything is decoded, and large images are resized strip by strip.

Thread-safe: no setting of the process or of Pillow is changed.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.data.entries import os_errors_as_data_errors
from dfs_deploy.data.image_headers import MAX_IMAGE_SIDE, Header, HeaderError, orientation_of, read_header
from dfs_deploy.errors import DataError, InputError
from dfs_deploy.geometry import MAX_WHOLE_PIXELS, Frame, Geometry, resize
from dfs_deploy.io.files import read_file
from dfs_deploy.io.text import first_line, one_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_IMAGE_BYTES = 1 << 28
"""Most bytes of an image file."""

_STRIP_PIXELS = 1 << 20
"""Pixels per strip."""

Size = tuple[int, int] | Geometry | None
"""Height and width to resize to, in pixels, a geometry that may crop as well, or ``None`` for an image's own size."""

_KINDS = "PNG, JPEG, BMP, PPM or WebP"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded image.

    Attributes:
        pixels: (H, W, 3) uint8, RGB, upright.
        size: height and width of the upright image before it was resized.
        note: one line on what was ignored in the file, or ``None``.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    note: str | None


def load_image(path: str | Path, size: Size = None) -> NDArray[np.uint8]:
    """Decodes an image upright, as its EXIF orientation says.

    Unreadable EXIF data are ignored with a warning in the log, and the image is not turned. Transparency is dropped: a
    pixel keeps its colour, whatever its opacity. Only the first frame is read.

    An image of up to ``MAX_WHOLE_PIXELS`` pixels is decoded and resized in one piece. A larger JPEG is decoded at 1/2,
    1/4 or 1/8 of its size, whichever is smallest and still has twice the height and width of ``size``. Other large
    images, and a JPEG that is still larger, are resized along the rows and then along the columns, strip by strip.

    Args:
        path: a PNG, JPEG, BMP, PPM or WebP file of at most ``MAX_IMAGE_BYTES``.
        size: height and width to resize to, in pixels, bilinearly (averaging over the covered area if the image
            shrinks); or a geometry, such as ``Runtime.input.geometry``, which may crop and interpolate otherwise;
            ``None`` keeps the image's own.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        DataError: the file is missing, no regular file, damaged, of an unknown format, has more than 8 bits per channel
            or more pixels than the limits in ``dfs_deploy.data.image_headers``, or needs too much memory.
    """
    read = read_image(path, geometry_of(size))
    _say(read, str(path))
    return read.pixels


def decode_image(data: bytes, size: Size = None, name: str = "the image") -> NDArray[np.uint8]:
    """Decodes the content of an image file, such as the body of a request; see ``load_image``."""
    read = _decode(data, name, geometry_of(size))
    _say(read, name)
    return read.pixels


@os_errors_as_data_errors
def read_image(path: str | Path, frame: Frame | None = None) -> Decoded:
    """Same as ``load_image``, in any frame, but returns the note instead of logging it."""
    path = Path(path)
    if not path.is_file():
        seen = f"{path} is no image file" if path.exists() else f"there is no image at {path}"
        raise DataError(f"{seen}; give a {_KINDS} file")
    try:
        return _decode(read_file(path, MAX_IMAGE_BYTES), str(path), frame)
    except MemoryError as error:
        raise _too_large(str(path)) from error


@os_errors_as_data_errors
def read_size(path: str | Path) -> tuple[int, int]:
    """Upright height and width of an image, from its header; nothing is decoded. The errors are ``load_image``'s."""
    path = Path(path)
    header, orientation, _ = _checked_header(read_file(path, MAX_IMAGE_BYTES), str(path))
    return _upright_size(header, orientation)


def _checked_header(data: bytes, name: str) -> tuple[Header, int, str | None]:
    """Header, orientation, and one line on what was ignored."""
    try:
        header = read_header(data)
    except HeaderError as error:
        raise DataError(f"{name} is a damaged image ({error}); copy it again or remove it") from error
    if header is None:
        raise DataError(f"{name} is no image of a known format, expected {_KINDS}; convert it")
    _check_header(header, name)
    orientation, note = 1, None
    if header.exif is not None:
        try:
            orientation = orientation_of(header.exif)
        except HeaderError as error:
            note = f"its EXIF data are unreadable ({error}), so it was not turned"
    return header, orientation, note


def _upright_size(header: Header, orientation: int) -> tuple[int, int]:
    return (header.width, header.height) if orientation >= 5 else (header.height, header.width)


def _decode(data: bytes, name: str, frame: Frame | None) -> Decoded:
    header, orientation, note = _checked_header(data, name)
    try:
        pixels = _pixels(header, orientation, frame)
    except MemoryError as error:
        raise _too_large(name) from error
    except ImportError:
        raise  # Pillow is missing or broken, not the image
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # from the file system, not from a decoder
        # Pillow's decoders raise errors of many types for a damaged file; they have no common base class.
        raise DataError(f"{name} is a damaged image ({first_line(error)}); copy it again or remove it") from error
    return Decoded(pixels, _upright_size(header, orientation), note)


def _check_header(header: Header, name: str) -> None:
    width, height, most = header.width, header.height, header.most_pixels
    if width < 1 or height < 1:
        raise DataError(f"{name} is a damaged image ({width}x{height} pixels); copy it again or remove it")
    if header.bits > 8:
        raise DataError(f"{name} has {header.bits} bits per channel, expected 8; convert it to 8 bits")
    if width * height > most or max(width, height) > MAX_IMAGE_SIDE:
        bound = f"at most {most:,} pixels ({header.format}) and {MAX_IMAGE_SIDE:,} on a side"
        raise DataError(f"{name} is too large to decode: {width}x{height} pixels, expected {bound}; shrink it first")


def _too_large(name: str) -> DataError:
    return DataError(f"{name} does not fit into memory; shrink it, or give this process more memory")


def _say(read: Decoded, name: str) -> None:
    if read.note is not None:
        _LOG.warning("%s: %s", one_line(name), read.note)


def _opened(header: Header) -> ImageFile:
    """Opens the decoder of a format. ``Image.open`` is avoided: it has a limit of its own and starts other programs."""
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, WebPImagePlugin

    decoders: dict[str, type[ImageFile]] = {
        "BMP": BmpImagePlugin.BmpImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "PPM": PpmImagePlugin.PpmImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
    }
    image = decoders[header.format](io.BytesIO(header.content))
    if image.size != (header.width, header.height):
        raise ValueError(f"{image.width}x{image.height} pixels, its header says {header.width}x{header.height}")
    return image


def _pixels(header: Header, orientation: int, frame: Frame | None) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 pixels, upright and in their frame."""
    image: Image = _opened(header)
    sideways, backwards = orientation >= 5, orientation in (3, 4, 7, 8)
    if header.format == "JPEG" and frame is not None and header.width * header.height > MAX_WHOLE_PIXELS:
        # The decoder never goes below the requested size.
        rows, columns = frame.reduced(_upright_size(header, orientation))
        image.draft(None, (2 * rows, 2 * columns) if sideways else (2 * columns, 2 * rows))
    height, width = image.size if sideways else image.size[::-1]
    if width * height <= MAX_WHOLE_PIXELS:
        upright = _upright(image, orientation)
        return upright if frame is None else frame(upright)
    size = (height, width) if frame is None else frame.reduced((height, width))
    interpolation = "bilinear" if frame is None else frame.interpolation
    pixels = np.empty((height, size[1], 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = (height - bottom, height - top) if backwards else (top, bottom)
        box = (first, 0, last, image.height) if sideways else (0, first, image.width, last)
        strip = _upright(image.crop(box), orientation)
        pixels[top:bottom] = resize(strip, (bottom - top, size[1]), interpolation)
    pixels = resize(pixels, size, interpolation)
    return pixels if frame is None else frame(pixels)


def _upright(image: Image, orientation: int) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 pixels, turned by an EXIF orientation."""
    from PIL.Image import Transpose

    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    image = image if image.mode == "RGB" else image.convert("RGB")
    return np.array(image if turn is None else image.transpose(turn), np.uint8)


def geometry_of(size: Size) -> Geometry | None:
    """The geometry that a size means; raises DataError unless it is a height and a width of at least one pixel each."""
    if size is None or isinstance(size, Geometry):
        return size
    try:
        return Geometry(size)
    except InputError as error:
        raise DataError(str(error)) from error
