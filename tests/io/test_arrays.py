from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest

from dfs_deploy.io import arrays
from dfs_deploy.io.arrays import MAX_MEMBERS, Arrays, ArraysError
from tests.checks import MakesFolder, refuses

GOOD: dict[str, Any] = {
    "images": np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3),
    "labels": np.array([1, -1]),
    "logits": np.linspace(-1, 1, 20, dtype=np.float32).reshape(2, 10),
    "names": np.array(["cat", "dog"]),
}


def packed(compressed: bool = True, **values: Any) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **values)
    return stream.getvalue()


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def header(text: str) -> bytes:
    body = text.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


def read(data: bytes, *names: str) -> dict[str, Any]:
    with Arrays(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in (names or sorted(archive.names))}


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_come_as_they_were_packed(compressed: bool) -> None:
    values = {**GOOD, "turned": np.asfortranarray(GOOD["logits"]), "one": np.float64(3.5), "none": np.zeros((0, 3))}
    found = read(packed(compressed, **values))
    assert set(found) == set(values)
    for name, array in found.items():
        np.testing.assert_array_equal(array, values[name])
        assert array.dtype == np.asarray(values[name]).dtype
    found["images"][0] = 0  # its own memory


def test_what_an_array_says_of_itself_is_known_before_it_is_read() -> None:
    with Arrays(io.BytesIO(packed(**GOOD))) as archive:
        assert archive.header("logits").shape == (2, 10)
        assert archive.header("logits").nbytes == 80
        archive.check("labels", (2,), np.int64)
        with refuses(ArraysError, "labels of shape (2,) int64", "(3,) int64"):
            archive.check("labels", (3,), np.int64)
        with refuses(ArraysError, "float32"):
            archive.check("logits", (2, 10), np.float64)
        with refuses(ArraysError, "80 bytes", "at most 79"):
            archive.read("logits", 79)
        with refuses(ArraysError, "others", "missing"):
            archive.read("others")


def test_pickles_are_never_loaded(tmp_path: Any) -> None:
    trap = MakesFolder(tmp_path / "made")
    stream = io.BytesIO()
    np.savez(stream, x=np.array([trap], object), allow_pickle=True)
    with refuses(ArraysError, "x cannot be read", "pickle"):
        read(stream.getvalue())
    assert not trap.path.exists()


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), 'more': 1}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-4,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2.0,)}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,)}",
        "{'descr': 'nothing', 'fortran_order': False, 'shape': (4,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4,)",
        "__import__('os').mkdir('/tmp/never')",
        "(" * 900,
        "[" * 2000,
        "",
    ],
)
def test_headers_that_cannot_be_are_one_error(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with refuses(ArraysError, "x cannot be read"):
            read(zipped(x=header(text) + bytes(16)))


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUM", b"text", b"\x93NUMPY\x07\x00" + bytes(40), header("{'descr': '<f4', ")[:12]]
)
def test_members_that_are_no_arrays_are_one_error(content: bytes) -> None:
    with refuses(ArraysError, "x cannot be read"):
        read(zipped(x=content))


def test_sizes_that_contradict_each_other_are_refused_before_anything_is_read() -> None:
    told = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d,)}"
    for count in (15, 17, 2**40):
        with refuses(ArraysError, f"{count:,} bytes by its header, 16 by the archive"):
            read(zipped(x=header(told % count) + bytes(16)))


BOMB = """
import io, resource
from tests.io.test_arrays import bomb
from dfs_deploy.io.arrays import Arrays, ArraysError
data = bomb()
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    with Arrays(io.BytesIO(data)) as archive:
        archive.read("x")
except ArraysError as error:
    print(error)
"""


def bomb() -> bytes:
    """An array of zeros in a thousandth of its size: 4 GB in 4 MB."""
    piece, pieces = 1 << 24, 255
    start = header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({piece * pieces},)}}")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = deflate.compress(start) + deflate.flush(zlib.Z_FULL_FLUSH)
    body += pieces * (deflate.compress(bytes(piece)) + deflate.flush(zlib.Z_FULL_FLUSH)) + b"\3\0"
    sizes = struct.pack("<III", 0, len(body), len(start) + piece * pieces)
    local = b"PK\3\4" + struct.pack("<HHHI", 20, 0, 8, 0) + sizes + struct.pack("<HH", 5, 0) + b"x.npy"
    entry = b"PK\1\2" + struct.pack("<HHHHI", 20, 20, 0, 8, 0) + sizes + struct.pack("<HHHHHII", 5, 0, 0, 0, 0, 0, 0)
    entry += b"x.npy"
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local) + len(body), 0)
    return local + body + entry + end


def test_a_bomb_is_refused_by_its_header_and_takes_no_memory() -> None:
    ran = subprocess.run([sys.executable, "-c", BOMB], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "x takes 4,278,190,080 bytes out of" in ran.stdout
    assert "at most 200 times" in ran.stdout


def test_only_large_arrays_are_held_to_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = np.zeros(1 << 20, np.uint8)
    assert len(read(packed(x=blank))["x"]) == 1 << 20
    monkeypatch.setattr(arrays, "UNQUESTIONED_BYTES", 1 << 19)
    with refuses(ArraysError, "1,048,576 bytes out of"):
        read(packed(x=blank))
    assert len(read(packed(compressed=False, x=blank))["x"]) == 1 << 20
    # A size that only the directory claims is no excuse.
    data = bytearray(packed(x=blank))
    at = data.rindex(b"PK\x01\x02")
    data[at + 20 : at + 24] = struct.pack("<I", 1 << 28)
    with refuses(ArraysError, "beyond the archive"):
        read(bytes(data))


def test_many_members_and_two_of_one_name_are_refused() -> None:
    assert len(read(zipped(**{f"a{i}": header_of_nothing() for i in range(MAX_MEMBERS)}))) == MAX_MEMBERS
    with refuses(ArraysError, "257 members"):
        read(zipped(**{f"a{i}": header_of_nothing() for i in range(MAX_MEMBERS + 1)}))
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("x.npy", header_of_nothing())
            archive.writestr("x.npy", header_of_nothing())
    with refuses(ArraysError, "two members of one name"):
        read(stream.getvalue())


def test_a_directory_without_end_is_refused_before_it_is_read() -> None:
    with refuses(ArraysError, "a part of more than"):
        read(zipped(**{f"{'a' * 200}{i}": b"" for i in range(6000)}))


def header_of_nothing() -> bytes:
    return header("{'descr': '|u1', 'fortran_order': False, 'shape': (0,)}")


def test_what_is_encrypted_or_packed_otherwise_is_named() -> None:
    data = bytearray(packed(x=np.zeros(3)))
    at = data.rindex(b"PK\x01\x02")
    data[at + 8] |= 1
    with refuses(ArraysError, "encrypted"):
        read(bytes(data))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", header_of_nothing())
    with refuses(ArraysError, "another method"):
        read(stream.getvalue())


def test_a_member_whose_sum_is_wrong_is_refused() -> None:
    data = bytearray(packed(compressed=False, x=np.zeros(300, np.uint8)))
    data[data.index(b"\n") + 50] = 1
    with refuses(ArraysError, "x cannot be read", "CRC"):
        read(bytes(data))


@pytest.mark.parametrize(("order", "letter"), [("<", 0x110000), (">", 2**32 - 1)])
def test_text_of_letters_that_there_are_not_is_refused(order: str, letter: int) -> None:
    letters = np.array([ord("a"), letter], f"{order}u4")
    with refuses(ArraysError, "invalid code points"):
        read(packed(names=letters.view(f"{order}U2")))
    letters[1] = sys.maxunicode
    assert read(packed(names=letters.view(f"{order}U2")))["names"].tolist() == ["a\U0010ffff"]


def test_what_is_no_archive_is_named() -> None:
    for data in (b"", b"text", packed(**GOOD)[:-30]):
        with refuses(ArraysError, "not a readable .npz archive"):
            read(data)


def test_damage_in_the_compressed_bytes_is_one_error() -> None:
    data = packed(x=np.random.default_rng(0).integers(0, 256, 4096, np.uint8))
    for at in range(60, len(data) - 200, 97):
        changed = bytearray(data)
        changed[at] ^= 0x55
        with refuses(ArraysError):
            read(bytes(changed))
