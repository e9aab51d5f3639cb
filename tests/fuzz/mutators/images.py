"""Image files, changed chunk by chunk with sums that fit: planted sizes, odd metadata, pixels that never end."""

from __future__ import annotations

import re
import struct
import zlib

from tests.fuzz.mutators.draw import Draw
from tests.fuzz.mutators.raw import mutate_bytes

_PNG = b"\x89PNG\r\n\x1a\n"
_EXTENTS = (0, 1, 2, 7, 255, 4096, 9400, 20_000, 65_535, 65_536, 10**6, 2**30, 2**31 - 1, 2**31, 2**32 - 1)


def mutate_image(draw: Draw, content: bytes) -> bytes:
    """Changes an image by what its first bytes say it is."""
    if draw.chance(0.12):
        return mutate_bytes(draw, content)
    if content.startswith(_PNG):
        changed = _mutate_png(draw, content)
    elif content.startswith(b"\xff\xd8"):
        changed = _mutate_jpeg(draw, content)
    elif content.startswith(b"BM"):
        changed = _mutate_bmp(draw, content)
    elif content.startswith(b"RIFF"):
        changed = _mutate_webp(draw, content)
    else:
        changed = _mutate_ppm(draw, content)
    return mutate_bytes(draw, changed) if draw.chance(0.1) else changed


def png_of_zeros(width: int, height: int, depth: int = 1, colour: int = 0, interlace: int = 0) -> bytes:
    """A PNG of a few kilobytes and as many pixels as it says."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = 1 + -(-width * depth * channels // 8)
    packer = zlib.compressobj(9)
    piece = bytes(row)
    body = b"".join(packer.compress(piece) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    chunks = [(b"IHDR", head), *([(b"PLTE", bytes(6))] if colour == 3 else []), (b"IDAT", body), (b"IEND", b"")]
    return _PNG + b"".join(_png_chunk(kind, data) for kind, data in chunks)


def _png_chunk(kind: bytes, data: bytes, length: int | None = None, checksum: int | None = None) -> bytes:
    size = (len(data) if length is None else length) & 0xFFFFFFFF
    found = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", size) + kind + data + struct.pack(">I", found)


def _png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], len(_PNG)
    while place + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def _mutate_png(draw: Draw, content: bytes) -> bytes:
    chunks = _png_chunks(content)
    lies: dict[int, tuple[int | None, int | None]] = {}
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.choice(
            ("head", "head", "head", "drop", "twice", "swap", "foreign", "foreign", "lie", "pixels", "bomb")
        )
        at = draw.randrange(len(chunks)) if chunks else 0
        draw.note(f"png {kind} {chunks[at][0] if chunks else b''!r}")
        if kind == "head":
            head = bytearray(chunks[0][1]) if chunks and len(chunks[0][1]) >= 13 else bytearray(13)
            field = draw.choice(("width", "height", "both", "depth", "colour", "other"))
            if field in ("width", "both"):
                struct.pack_into(">I", head, 0, draw.choice(_EXTENTS))
            if field in ("height", "both"):
                struct.pack_into(">I", head, 4, draw.choice(_EXTENTS))
            if field == "depth":
                head[8] = draw.choice((0, 1, 2, 4, 8, 16, 32, 255))
            if field == "colour":
                head[9] = draw.choice((0, 1, 2, 3, 4, 5, 6, 7, 255))
            if field == "other":
                head[draw.choice((10, 11, 12))] = draw.choice((0, 1, 2, 255))
            draw.note(head.hex())
            chunks[:1] = [(b"IHDR", bytes(head))]
        elif kind == "bomb":
            side = draw.choice((3000, 9400, 30_000))
            depth, colour = draw.choice(((1, 0), (8, 0), (1, 3), (8, 2), (8, 6), (16, 2), (16, 0)))
            if side * side * depth * {0: 1, 2: 3, 3: 1, 6: 4}[colour] > 1 << 31:
                side = 9400
            draw.note(f"{side} x {side}, depth {depth}, colour {colour}")
            return png_of_zeros(side, side, depth, colour, draw.choice((0, 0, 1)))
        elif not chunks:
            continue
        elif kind == "drop":
            del chunks[at]
        elif kind == "twice":
            chunks[at:at] = [chunks[at]] * draw.choice((1, 3, 200))
        elif kind == "swap":
            other = draw.randrange(len(chunks))
            chunks[at], chunks[other] = chunks[other], chunks[at]
        elif kind == "foreign":
            chunks.insert(draw.randrange(len(chunks) + 1), _odd_chunk(draw))
        elif kind == "lie":
            lies[at] = draw.choice(((draw.number(), None), (None, draw.number() & 0xFFFFFFFF), (2**31 - 1, None)))
        else:
            data = chunks[at][1]
            chunks[at] = (chunks[at][0], mutate_bytes(draw, data) if data else draw.randbytes(9))
    return _PNG + b"".join(_png_chunk(kind, data, *lies.get(i, (None, None))) for i, (kind, data) in enumerate(chunks))


def _odd_chunk(draw: Draw) -> tuple[bytes, bytes]:
    zeros = zlib.compress(bytes(draw.choice((100, 2 << 20, 80 << 20))))
    kind, data = draw.choice(
        (
            (b"eXIf", _odd_exif(draw)),
            (b"tEXt", b"k\0" + b"v" * draw.choice((3, 2 << 20))),
            (b"zTXt", b"k\0\0" + zeros),
            (b"iTXt", b"k\0\1\0\0\0" + zeros),
            (b"iCCP", b"p\0\0" + zeros),
            (b"tRNS", draw.randbytes(draw.choice((0, 1, 6, 300)))),
            (b"PLTE", draw.randbytes(draw.choice((0, 2, 3, 768, 900)))),
            (b"gAMA", draw.randbytes(4)),
            (b"pHYs", draw.randbytes(draw.choice((2, 9)))),
            (b"acTL", struct.pack(">II", draw.number() & 0xFFFFFFFF, 0)),
            (b"fcTL", struct.pack(">IIIIIHHBB", 0, draw.choice(_EXTENTS), draw.choice(_EXTENTS), 0, 0, 1, 1, 0, 0)),
            (b"IDAT", zeros),
            (b"IEND", b""),
            (b"\x1b[2J", b"x"),
            (b"JUNK", draw.randbytes(50)),
        )
    )
    draw.note(kind)
    return kind, data


def _odd_exif(draw: Draw) -> bytes:
    """TIFF tags that say odd things."""
    entries = [
        (
            draw.choice((0x0112, 0x010E, 0x8769, 0x8825, 0x0201, 0x927C, 0xA005)),
            draw.randrange(0, 14),
            draw.choice((0, 1, 4, 10**6, 2**32 - 1)),
            draw.choice((0, 1, 6, 8, 9, 26, 2**31, 2**32 - 1)),
        )
        for _ in range(draw.choice((0, 1, 2, 30)))
    ]
    order = draw.choice(("<", ">"))
    body = struct.pack(order + "H", draw.choice((len(entries), 65_535)))
    body += b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", draw.choice((8, 8, 0, 2**31, 10**6)))
    return draw.choice((b"", b"Exif\0\0")) + draw.choice(
        (head + body + struct.pack(order + "I", draw.choice((0, 8))), b"no tiff", head, b"")
    )


def _mutate_jpeg(draw: Draw, content: bytes) -> bytes:
    segments, place = [], 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        (length,) = struct.unpack_from(">H", content, place + 2)
        segments.append((marker, content[place + 4 : place + 2 + length]))
        place += 2 + length
        if marker == 0xDA:
            break
    rest = content[place:]
    lies: dict[int, int] = {}
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.choice(
            ("frame", "frame", "frame", "drop", "twice", "swap", "foreign", "lie", "bytes", "scan", "exif")
        )
        at = draw.randrange(len(segments)) if segments else 0
        frame = next((i for i, (marker, _) in enumerate(segments) if 0xC0 <= marker <= 0xC2), None)
        draw.note(f"jpeg {kind}")
        if kind == "frame" and frame is not None:
            data = bytearray(segments[frame][1])
            field = draw.randrange(5)
            if field in (0, 1) and len(data) > 4:
                struct.pack_into(">H", data, 1, draw.choice(_EXTENTS) & 0xFFFF)
            if field in (1, 2) and len(data) > 4:
                struct.pack_into(">H", data, 3, draw.choice(_EXTENTS) & 0xFFFF)
            if field == 3 and data:
                data[0] = draw.choice((0, 1, 8, 12, 16, 255))
            if field == 4 and len(data) > 5:
                data[draw.randrange(5, len(data))] = draw.choice((0, 1, 2, 3, 4, 0x11, 0x22, 0x44, 255))
            marker = draw.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA)) if draw.chance(0.2) else segments[frame][0]
            draw.note(data.hex())
            segments[frame] = (marker, bytes(data))
        elif kind == "foreign":
            odd = draw.choice(
                (
                    (0xE1, b"Exif\0\0" + _odd_exif(draw)),
                    (0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)),
                    (0xFE, b"\x1b[2J" * 100),
                    (0xEE, b"Adobe\0d\0\0\0\0" + bytes([draw.randrange(4)])),
                    (0xDD, b"\0\1"),
                    (0xE2, b"MPF\0" + _odd_exif(draw)[:60_000]),
                    (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x " + b"a" * 60_000),
                )
            )
            segments.insert(draw.randrange(len(segments) + 1), odd)
        elif kind == "exif":
            segments = [(0xE1, b"Exif\0\0" + _odd_exif(draw)), *(s for s in segments if s[0] != 0xE1)]
        elif kind == "scan":
            rest = draw.choice(
                (
                    mutate_bytes(draw, rest),
                    rest[: draw.randrange(len(rest) + 1)],
                    b"",
                    rest.replace(b"\xff\xd9", b"") * (200 if len(rest) < 10_000 else 1),
                    b"\xff\xd9",
                )
            )
        elif not segments:
            continue
        elif kind == "drop":
            del segments[at]
        elif kind == "twice":
            segments[at:at] = [segments[at]] * draw.choice((1, 3, 100))
        elif kind == "swap":
            other = draw.randrange(len(segments))
            segments[at], segments[other] = segments[other], segments[at]
        elif kind == "lie":
            lies[at] = draw.number() & 0xFFFF
        elif segments[at][1]:
            segments[at] = (segments[at][0], mutate_bytes(draw, segments[at][1])[:65_533])
    body = b"".join(
        bytes((0xFF, marker)) + struct.pack(">H", lies.get(i, len(data) + 2)) + data
        for i, (marker, data) in enumerate(segments)
    )
    return b"\xff\xd8" + body + rest


def _mutate_bmp(draw: Draw, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        offset, size = draw.choice(
            ((2, 4), (10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4), (50, 4))
        )
        value = draw.choice((*_EXTENTS, 12, 40, 56, 108, 124, 3, 4, 8, 16, 24, 32, 64))
        if offset in (18, 22) and draw.chance(0.3):
            value = -value
        changed[offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        draw.note(f"bmp {offset}: {value}")
    return bytes(changed)


def _mutate_ppm(draw: Draw, content: bytes) -> bytes:
    kind = draw.choice(("number", "number", "number", "magic", "text", "cut", "comment"))
    draw.note(f"ppm {kind}")
    if kind == "number":
        numbers = list(re.finditer(rb"\d+", content[2:40]))
        found = draw.choice(numbers)
        value = str(draw.choice((*_EXTENTS, -1, 10**30, "1e9", "0x10", ""))).encode()
        draw.note(value)
        return content[: 2 + found.start()] + value + content[2 + found.end() :]
    if kind == "magic":
        return (
            draw.choice((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7", b"PF", b"Pf", b"Py", b"P0", b"P8"))
            + content[2:]
        )
    if kind == "text":
        return b"P3 20000 20000 255\n" + b"1 " * draw.choice((10, 10**6)) if draw.chance(0.5) else b"P3 " + b"9" * 10**6
    if kind == "comment":
        return content[:3] + b"#" + b"x" * draw.choice((10, 10**6)) + draw.choice((b"\n", b"")) + content[3:]
    return content[: draw.randrange(len(content))]


def _mutate_webp(draw: Draw, content: bytes) -> bytes:
    chunks, place = [], 12
    while place + 8 <= len(content):
        (length,) = struct.unpack_from("<I", content, place + 4)
        chunks.append((content[place : place + 4], content[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    lies: dict[int, int] = {}
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.choice(("canvas", "drop", "twice", "swap", "lie", "bytes", "bytes", "foreign"))
        at = draw.randrange(len(chunks)) if chunks else 0
        draw.note(f"webp {kind}")
        if kind == "canvas":
            extents = (draw.choice(_EXTENTS) & 0xFFFFFF).to_bytes(3, "little") + (
                draw.choice(_EXTENTS) & 0xFFFFFF
            ).to_bytes(3, "little")
            chunks = [
                (b"VP8X", bytes([draw.randrange(256)]) + bytes(3) + extents),
                *(c for c in chunks if c[0] != b"VP8X"),
            ]
        elif kind == "foreign":
            chunks.insert(
                draw.randrange(len(chunks) + 1),
                (
                    draw.choice((b"EXIF", b"ICCP", b"XMP ", b"ALPH", b"ANIM", b"ANMF", b"JUNK")),
                    draw.choice((_odd_exif(draw), draw.randbytes(30), bytes(6))),
                ),
            )
        elif not chunks:
            continue
        elif kind == "drop":
            del chunks[at]
        elif kind == "twice":
            chunks[at:at] = [chunks[at]] * draw.choice((1, 3, 500))
        elif kind == "swap":
            other = draw.randrange(len(chunks))
            chunks[at], chunks[other] = chunks[other], chunks[at]
        elif kind == "lie":
            lies[at] = draw.number() & 0xFFFFFFFF
        elif chunks[at][1]:
            chunks[at] = (chunks[at][0], mutate_bytes(draw, chunks[at][1]))
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", lies.get(i, len(data))) + data + bytes(len(data) % 2)
        for i, (name, data) in enumerate(chunks)
    )
    return b"RIFF" + struct.pack("<I", draw.choice((len(body),) * 5 + (draw.number() & 0xFFFFFFFF,))) + body
