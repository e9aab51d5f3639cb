"""Headers of image files, read before any decoder sees the file.

The decoders of a general library trust the file: they allocate as many pixels as it claims, inflate its comments, and
read 16 bits per channel as 8. So the header is checked here, and the decoder gets only the parts of the file that hold
pixels, without comments, colour profiles, previews and further frames.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

Format = Literal["PNG", "JPEG", "WEBP", "BMP", "PPM"]

MAX_IMAGE_PIXELS = 1 << 26
"""Most pixels of an image: 8192 x 8192."""

MAX_HEAVY_PIXELS = 1 << 25
"""Most pixels of a WebP or progressive JPEG, whose decoders take up to 16 bytes per pixel."""

MAX_SLOW_PIXELS = 1 << 20
"""Most pixels of an image that Pillow decodes in Python: a PPM in text or with an odd range, a BMP with run lengths."""

MAX_IMAGE_SIDE = 65_535
"""Most pixels of a row or column, which is also the limit of JPEG; bounds the memory to resize one of them."""

MAX_SCANNED_PIXELS = 1 << 30
"""Most pixels over all scans of a progressive JPEG, each of which visits the whole image."""

_MAX_PIECES = 1 << 17
"""Most chunks of a PNG or WebP file, and most segments of a JPEG."""

_PPM_HEADER = 4096
"""Most bytes of the header of a PPM."""


class HeaderError(ValueError):
    """A header that is damaged, incomplete or unsupported; the text says what was seen."""


@dataclass(frozen=True)
class Header:
    """Header of an image file.

    Attributes:
        format: format of the file.
        width: pixels per row, as stored.
        height: pixels per column, as stored.
        bits: most bits per channel.
        most_pixels: limit for this kind of file.
        content: content of the file, without parts that the pixels do not depend on.
        exif: TIFF structure of the EXIF data, or ``None``.
    """

    format: Format
    width: int
    height: int
    bits: int
    most_pixels: int
    content: bytes
    exif: bytes | None = None


def read_header(data: bytes) -> Header | None:
    """Header of an image file, given its whole content; ``None`` if the format is unknown.

    Raises:
        HeaderError: the header is damaged or contradicts itself.
    """
    for begins, read in _READERS:
        if re.match(begins, data, re.DOTALL):
            try:
                return read(data)
            except (struct.error, IndexError) as error:
                raise HeaderError("it ends within its header") from error
    return None


def orientation_of(exif: bytes) -> int:
    """Orientation, 1 to 8, in EXIF data; 1 if they give none. Raises HeaderError if they are no TIFF structure."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        raise HeaderError("no TIFF structure")
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, at)
            if tag == 0x0112:
                if kind != 3 or value > 8:
                    raise HeaderError(f"orientation {value} of type {kind}")
                return int(value) or 1  # 0 is written for "unknown"
    except struct.error as error:
        raise HeaderError("it is incomplete") from error
    return 1


def _png(data: bytes) -> Header:
    """Keeps the chunks that hold pixels, and checks their CRCs, which Pillow does not check for pixels."""
    view = memoryview(data)
    content, exif, at = [view[:8]], None, 8
    width, height, bits = 0, 0, 0
    for _ in range(_MAX_PIECES):
        length, name = struct.unpack_from(">I4s", data, at)
        body = view[at + 8 : at + 8 + length]
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            if struct.unpack_from(">I", data, at + 8 + length)[0] != zlib.crc32(body, zlib.crc32(name)):
                raise HeaderError(f"the sum of its {name.decode()} is wrong")
            content.append(view[at : at + 12 + length])
        elif name == b"eXIf":
            exif = bytes(body)
        if name == b"IHDR":
            if len(content) != 2:
                raise HeaderError("two headers")
            width, height, bits = struct.unpack_from(">IIB", body)
        elif len(content) < 2:
            raise HeaderError("no header first")
        if name == b"IEND":
            return Header("PNG", width, height, bits, MAX_IMAGE_PIXELS, b"".join(content), exif)
        at += 12 + length
    raise HeaderError(f"more than {_MAX_PIECES:,} chunks")


_NO_FILL = re.compile(rb"[^\xff]")
"""Second byte of a marker, after any number of fill bytes."""


def _jpeg(data: bytes) -> Header:
    """Keeps the segments that the decoder needs: tables, frame, and the two that define the colour space."""
    content, exif, at = [memoryview(data)[:2]], None, 2
    frame = b""
    progressive = False
    for _ in range(_MAX_PIECES):
        at = data.find(b"\xff", at)  # bytes between segments are ignored, as decoders do
        begin = None if at < 0 else _NO_FILL.search(data, at)
        if begin is None:
            raise HeaderError("it has no pixels")
        at = begin.start() - 1
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xD8) or 0xD0 <= marker <= 0xD7:  # no segments
            at += 2
            continue
        if marker == 0xD9:
            raise HeaderError("it ends before its pixels")
        (length,) = struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + length]
        if len(segment) != 2 + length or length < 2:
            raise HeaderError("it ends within its header")
        if marker == 0xDA:
            break
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            exif = segment[10:] if exif is None else exif
        elif marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            content.append(memoryview(segment))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if frame:
                raise HeaderError("two frames")
            frame, progressive = segment, marker in (0xC2, 0xC6, 0xCA, 0xCE)
        at += 2 + length
    else:
        raise HeaderError(f"more than {_MAX_PIECES:,} segments")
    bits, height, width = struct.unpack_from(">BHH", frame, 4)
    if progressive:
        ends = data.find(b"\xff\xd9", at)
        scans = data.count(b"\xff\xda", at, ends if ends >= 0 else len(data))
        if scans * width * height > MAX_SCANNED_PIXELS:
            raise HeaderError(f"{scans} scans of {width}x{height} pixels")
    content.append(memoryview(data)[at:])
    limit = MAX_HEAVY_PIXELS if progressive else MAX_IMAGE_PIXELS
    return Header("JPEG", width, height, bits, limit, b"".join(content), exif)


def _webp(data: bytes) -> Header:
    width = height = 0
    exif, at = None, 12
    for piece in range(_MAX_PIECES):
        if at + 8 > len(data):
            break
        name, length = struct.unpack_from("<4sI", data, at)
        if piece == 0:
            width, height = _webp_size(name, data[at + 8 : at + 18])
        elif name == b"EXIF":
            exif = data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
        at += 8 + length + length % 2
    else:
        raise HeaderError(f"more than {_MAX_PIECES:,} chunks")
    return Header("WEBP", width, height, 8, MAX_HEAVY_PIXELS, data, exif)


def _webp_size(name: bytes, start: bytes) -> tuple[int, int]:
    """Width and height from the first chunk: simple lossy, lossless, or with extensions."""
    if name == b"VP8 " and start[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", start, 6)
        return width & 0x3FFF, height & 0x3FFF
    if name == b"VP8L" and start[:1] == b"\x2f":
        (packed,) = struct.unpack_from("<I", start, 1)
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if name == b"VP8X" and len(start) == 10:
        return int.from_bytes(start[4:7], "little") + 1, int.from_bytes(start[7:10], "little") + 1
    raise HeaderError(f"it begins with {name!r}")


def _bmp(data: bytes) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header("BMP", width, height, 8, MAX_IMAGE_PIXELS, data)
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    run_lengths = compression in (1, 2)
    limit = MAX_SLOW_PIXELS if run_lengths else MAX_IMAGE_PIXELS
    if run_lengths and width > MAX_SLOW_PIXELS >> 8:
        # The decoder allocates a jump of up to 255 rows before it checks it.
        raise HeaderError(f"run lengths in rows of {width} pixels")
    return Header("BMP", width, abs(height), 8, limit, data)


_PPM = re.compile(rb"(P[1-6f])(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})\s")
_PPM_RANGE = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*(\d{1,9})\s")


def _ppm(data: bytes) -> Header:
    head = data[:_PPM_HEADER]
    found = _PPM.match(head)
    if found is None:
        raise HeaderError("no width and height")
    kind, width, height = found[1], int(found[2]), int(found[3])
    bits, slow = 8, kind in (b"P1", b"P2", b"P3")
    if kind == b"Pf":
        bits = 32
    elif kind not in (b"P1", b"P4"):
        greatest = _PPM_RANGE.match(head, found.end())
        if greatest is None:
            raise HeaderError("no greatest value")
        bits = max(8, int(greatest[1]).bit_length())
        slow = slow or int(greatest[1]) != 255
    return Header("PPM", width, height, bits, MAX_SLOW_PIXELS if slow else MAX_IMAGE_PIXELS, data)


_READERS = (
    (rb"\x89PNG\r\n\x1a\n", _png),
    (rb"\xff\xd8\xff", _jpeg),
    (rb"RIFF....WEBP", _webp),
    (rb"BM", _bmp),
    (rb"P[1-6f][\s#]", _ppm),
)
