"""Zip archives written by hand, so that they can lie; ``.npy`` headers with planted shapes and types."""

from __future__ import annotations

import ast
import functools
import io
import struct
import zipfile
import zlib
from dataclasses import dataclass, field, replace

from tests.fuzz.mutators.draw import Draw
from tests.fuzz.mutators.raw import mutate_bytes

_STORED, _DEFLATED = 0, 8


@dataclass(frozen=True)
class Member:
    """A member of a zip archive, and what its headers say if that is not the truth.

    Attributes:
        name: as written.
        data: content.
        method: of compression.
        packed: compressed content to write instead.
        lies: by field of the header (``crc``, ``packed``, ``size``, ``flags``, ``method``, ``offset``), what is said.
    """

    name: bytes
    data: bytes
    method: int = _STORED
    packed: bytes | None = None
    lies: dict[str, int] = field(default_factory=dict)


def members_of(content: bytes) -> list[Member]:
    """The members of a sound archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [Member(info.filename.encode(), archive.read(info), info.compress_type) for info in archive.infolist()]


def written_zip(members: list[Member], comment: bytes = b"", count: int | None = None) -> bytes:
    """Writes an archive."""
    body, directory = bytearray(), bytearray()
    for member in members:
        packed = member.packed
        if packed is None:
            packed = _deflated(member.data) if member.method == _DEFLATED else member.data
        fields = {
            "crc": zlib.crc32(member.data),
            "packed": len(packed),
            "size": len(member.data),
            "flags": 0,
            "method": member.method,
            "offset": len(body),
            **member.lies,
        }
        u32 = {key: value & 0xFFFFFFFF for key, value in fields.items()}
        common = (u32["flags"] & 0xFFFF, u32["method"] & 0xFFFF, 0, 33, u32["crc"], u32["packed"], u32["size"])
        directory += struct.pack("<IHHHHHHIII", 0x02014B50, 20, 20, *common)
        directory += struct.pack("<HHHHHII", len(member.name), 0, 0, 0, 0, 0, u32["offset"]) + member.name
        body += struct.pack("<IHHHHHIII", 0x04034B50, 20, *common) + struct.pack("<HH", len(member.name), 0)
        body += member.name + packed
    number = (len(members) if count is None else count) & 0xFFFF
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, number, number, len(directory), len(body), len(comment))
    return bytes(body + directory) + end + comment


def _deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


@functools.cache
def _zeros() -> tuple[bytes, int]:
    """A mebibyte of zeros as deflate blocks that can be repeated, and its checksum."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = bytes(1 << 20)
    return packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH), zlib.crc32(piece)


def bomb(name: bytes, mebibytes: int, head: bytes = b"") -> Member:
    """A member that unpacks to so many mebibytes of zeros behind a head, with a sound checksum."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed, checksum = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH), zlib.crc32(head)
    piece, of_piece = _zeros()
    shift = _power(8 << 20)
    for _ in range(mebibytes):
        checksum = _times(shift, checksum) ^ of_piece
    packed += piece * mebibytes + b"\x03\x00"  # an empty block, the last
    return Member(name, b"", _DEFLATED, packed, {"crc": checksum, "size": len(head) + (mebibytes << 20)})


def _times(a: int, b: int) -> int:
    """A product of polynomials modulo that of CRC-32, whose bits are reflected."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = (b >> 1) ^ (0xEDB88320 if b & 1 else 0)
    return product


@functools.cache
def _power(n: int) -> int:
    """x to the n, in the same."""
    result, base = 1 << 31, 1 << 30
    while n:
        if n & 1:
            result = _times(result, base)
        base, n = _times(base, base), n >> 1
    return result


def mutate_zip(draw: Draw, members: list[Member]) -> bytes:
    """Changes names, sizes, methods, flags, order and number of members, then sometimes bytes."""
    members, comment, count = list(members), b"", None
    for _ in range(draw.choice((0, 1, 1, 2))):
        if not members:
            break
        i = draw.randrange(len(members))
        kind = draw.choice(("lie", "lie", "rename", "twice", "drop", "cut", "method", "foreign", "comment", "count"))
        draw.note(f"zip {kind} {members[i].name[:40]!r}")
        member = members[i]
        if kind == "lie":
            what = draw.choice(("crc", "packed", "size", "flags", "method", "offset"))
            members[i] = replace(member, lies={**member.lies, what: draw.number()})
        elif kind == "rename":
            members[i] = replace(member, name=draw.text().encode("utf-8", "surrogatepass")[:60_000])
        elif kind == "twice":
            members.insert(draw.randrange(len(members) + 1), member)
        elif kind == "drop":
            del members[i]
        elif kind == "cut":
            members[i] = replace(member, data=member.data[: draw.randrange(len(member.data) + 1)])
        elif kind == "method":
            members[i] = replace(member, method=draw.choice((_STORED, _DEFLATED, 1, 9, 12, 14, 93, 99)))
        elif kind == "foreign":
            members.append(Member(draw.text().encode("utf-8", "surrogatepass")[:60_000], draw.randbytes(20)))
        elif kind == "comment":
            comment = draw.randbytes(draw.choice((1, 1000, 65_535)))
        else:
            count = draw.number()
    content = written_zip(members, comment, count)
    return mutate_bytes(draw, content) if draw.chance(0.25) else content


def npy(header: str, payload: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """An ``.npy`` with any text as header."""
    text = header.encode("latin1", "replace")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text) & (0xFFFF if version[0] == 1 else 0xFFFFFFFF))
    return b"\x93NUMPY" + bytes(version) + size + text + payload


def npy_parts(content: bytes) -> tuple[dict[str, object], bytes]:
    """Header and payload of a sound ``.npy`` of version 1."""
    (length,) = struct.unpack_from("<H", content, 8)
    return ast.literal_eval(content[10 : 10 + length].decode("latin1")), content[10 + length :]


def mutate_npy(draw: Draw, content: bytes) -> bytes:
    """Plants shapes, types and code in the header of an ``.npy``; or makes it something else."""
    header, payload = npy_parts(content)
    shape, version = tuple(header["shape"]), (1, 0)  # type: ignore[call-overload]
    kind = draw.choice(("shape", "shape", "type", "type", "order", "text", "version", "payload", "no array", "extra"))
    draw.note(f"npy {kind}")
    if kind == "shape":
        extents = list(shape)
        for _ in range(draw.choice((1, 1, 2))):
            what = draw.choice(("extent", "extent", "add", "drop"))
            if what == "extent" and extents:
                extents[draw.randrange(len(extents))] = draw.number()
            elif what == "add":
                extents.insert(draw.randrange(len(extents) + 1), draw.choice((0, 1, 1, draw.number())))
            elif extents:
                extents.pop()
        header["shape"] = tuple(extents)
        draw.note(extents)
    elif kind == "type":
        header["descr"] = draw.choice(_TYPES)
        draw.note(header["descr"])
    elif kind == "order":
        header["fortran_order"] = draw.choice((True, False, 1, "yes", None))
    elif kind == "version":
        version = draw.choice(((2, 0), (3, 0), (4, 0), (0, 0), (255, 255), (1, 1)))
    elif kind == "payload":
        payload = draw.choice((payload[:-1], b"", payload * 2, bytes(len(payload)), b"\xff" * len(payload)))
    elif kind == "no array":
        return draw.choice((b"", b"\0", draw.randbytes(100), payload, b"\x80\x04N.", b"\x93NUMPY", b"\x93NUMPY\x01\0"))
    elif kind == "extra":
        header[draw.text()] = draw.number()
    if kind == "text":
        text = draw.choice(
            (
                "__import__('os').system('touch ran')",
                "(" * 500 + ")" * 500,
                "{" * 9000,
                "-" * 5000 + "1",
                "[" + "9" * 9000 + "]",
                "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1," * 9000 + "), }",
                "{'descr': '|u1', 'fortran_order': False, 'shape': (1e9,), }",
                "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 2), }",
                "{'descr': '|u1'}",
                "{'descr': '|u1', 'fortran_order': False, 'shape': 5, }",
                "'\\",
                "\0" * 50,
                "None",
                "{1: 2, [3]: 4}",
                "{'descr': '|u1', 'descr': 'O', 'fortran_order': False, 'shape': (2,), }",
                "'a' 'b' if 1 else",
                str(header)[: draw.randrange(len(str(header)))],
            )
        )
        draw.note(text[:60])
        return npy(text, payload, draw.choice(((1, 0), (2, 0), (3, 0))))
    return npy(repr(header), payload, version)


_TYPES = (
    *(
        "|O",
        "O",
        "|V0",
        "|V8",
        "<U1",
        "<U1000000000",
        "<U0",
        "|S0",
        "|S1",
        "|S2147483647",
        "<M8[ns]",
        "<m8",
        "<c8",
        "<c16",
    ),
    *(
        "<f2",
        "<f4",
        "<f8",
        ">f4",
        "<f16",
        "|b1",
        "|i1",
        "|u1",
        "<i8",
        ">i8",
        "<u8",
        "<i4",
        "x",
        "",
        "<f3",
        ",",
        "u1,u1",
    ),
    *("(1000000,1000000)u1", "(2,2)u1", "|u1" * 3, 5, None, (), [], ("<U", 5), [("a", "<f4")], [("a", "|O")]),
    *([("a", [("b", "|u1")])], [("", "|u1"), ("", "|u1")], {"names": ["a"], "formats": ["|u1"]}, [("\x1b[2J", "|u1")]),
    *([("a", "|u1", (100000, 100000))], [("a", "<U100000000")]),
)


def mutate_npz(draw: Draw, content: bytes) -> bytes:
    """Changes an ``.npz``: arrays, members, sizes; or plants members that unpack to gigabytes."""
    members = members_of(content)
    if draw.chance(0.1):
        return mutate_bytes(draw, content)
    for i in draw.sample(range(len(members)), draw.choice((0, 1, 1, 1, 2))):
        members[i] = replace(members[i], data=mutate_npy(draw, members[i].data))
    if draw.chance(0.05):
        i = draw.randrange(len(members))
        size = draw.choice((1100, 3000))
        kind = draw.choice(("|u1", "<f4", "<U4", "<i8", "|b1"))
        width = {"|u1": 1, "<f4": 4, "<U4": 16, "<i8": 8, "|b1": 1}[kind]
        last = draw.choice(((), (3,), (8, 8, 3), (32, 32, 3)))
        items = (size << 20) // width
        for extent in last:
            items //= extent
        head = npy(repr({"descr": kind, "fortran_order": False, "shape": (items, *last)}), b"")
        draw.note(f"bomb of {size} MiB as {members[i].name!r}, {kind} ({items}, {last})")
        members[i] = bomb(members[i].name, size, head)
    return mutate_zip(draw, members) if draw.chance(0.5) else written_zip(members)
