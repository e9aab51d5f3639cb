"""Reading of ``.npz`` archives from others: checked before anything is decompressed, and never unpickled.

An archive states the size of its arrays in three places: in its directory, in the header of each array, and by its
number of bytes. These are compared with each other and with the expectation of the caller; then each array is read
into memory of exactly its size.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from dfs_deploy.io.files import BoundedReads
from dfs_deploy.io.text import first_line, one_line

MAX_ARRAY_BYTES = 1 << 34
"""Most bytes of an array: 16 GiB, more than 5 million images of 32x32 pixels."""

MAX_MEMBERS = 256
"""Most arrays in an archive."""

MAX_RATIO = 200
"""Largest compression ratio of an array of more than ``UNQUESTIONED_BYTES``."""

UNQUESTIONED_BYTES = 1 << 28
"""Bytes up to which any compression ratio is allowed: blank images shrink a thousandfold."""

_MAX_READ = 1 << 20
"""Most bytes per read of an array or of an archive's directory, which takes a few hundred per array."""

_MAX_HEADER = 1024
"""Most bytes of an array's header; shape and type take about 120."""


class ArraysError(ValueError):
    """An archive that is damaged, hostile or not as expected; the text is one line without the name of the file."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


@dataclass(frozen=True)
class ArrayHeader:
    """Header of an array in an archive.

    Attributes:
        shape: length of each axis.
        dtype: type of the elements, without objects or fields.
        fortran: whether elements are in Fortran order.
        offset: size of the header in bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize


class Arrays:
    """An opened ``.npz`` archive.

    Args:
        stream: the archive; it must stay open.

    Raises:
        ArraysError: it is no archive, or its directory is damaged or too large.
        OSError: the file system failed.
    """

    def __init__(self, stream: BinaryIO) -> None:
        with _one_error("not a readable .npz archive"):
            self._archive = zipfile.ZipFile(BoundedReads(stream, _MAX_READ))
            members, size = self._archive.infolist(), stream.seek(0, io.SEEK_END)
            if len(members) > MAX_MEMBERS:
                raise ArraysError(f"{len(members):,} members, expected at most {MAX_MEMBERS}")
            self._members = {member.filename.removesuffix(".npy"): member for member in members}
            if len(self._members) != len(members):
                raise ArraysError("two members of one name")
            if any(member.header_offset + member.compress_size > size for member in members):
                raise ArraysError("a member that ends beyond the archive")
            self._headers: dict[str, ArrayHeader] = {}

    def __enter__(self) -> Arrays:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._archive.close()

    @property
    def names(self) -> frozenset[str]:
        """Names of the members, without ``.npy``."""
        return frozenset(self._members)

    def header(self, name: str) -> ArrayHeader:
        """Reads the header of an array; nothing after the header is decompressed.

        Raises:
            ArraysError: the member is missing, no array, or of Python objects, or its sizes contradict each other.
        """
        if name not in self._headers:
            with _one_error(f"{name} cannot be read"):
                self._headers[name] = self._read_header(name)
        return self._headers[name]

    def check(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        """Checks shape and type of an array by its header.

        Raises:
            ArraysError: shape or type differ, or the header is malformed; see ``header``.
        """
        header = self.header(name)
        if header.shape != shape or header.dtype != dtype:
            raise ArraysError(f"{name} of shape {header.shape} {header.dtype}, expected {shape} {np.dtype(dtype)}")

    def read(self, name: str, limit: int = MAX_ARRAY_BYTES) -> NDArray[Any]:
        """Reads an array.

        Args:
            name: one of ``names``.
            limit: most bytes of the elements.

        Raises:
            ArraysError: the array is damaged or larger, or its header is malformed; see ``header``.
            MemoryError: the array does not fit into memory.
            OSError: the file system failed.
        """
        header, member = self.header(name), self._members[name]
        size = header.nbytes
        if size > limit:
            raise ArraysError(f"{name} takes {size:,} bytes, at most {limit:,} are read")
        if size > max(UNQUESTIONED_BYTES, MAX_RATIO * member.compress_size):
            seen = f"{name} takes {size:,} bytes out of {member.compress_size:,}"
            raise ArraysError(f"{seen}, at most {MAX_RATIO} times as many are read")
        with _one_error(f"{name} cannot be read"), self._archive.open(member) as stream:
            stream.read(header.offset)
            content, filled = np.empty(size, np.uint8), 0
            while filled < size:
                piece = stream.read(min(_MAX_READ, size - filled))
                if not piece:
                    raise ArraysError(f"it ends after {filled:,} of {size:,} bytes")
                content[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
                filled += len(piece)
            if stream.read(1):  # zipfile checks the CRC at the end
                raise ArraysError("more bytes than its header says")
            if header.dtype.kind == "U" and (content.view(_code_points(header.dtype)) > sys.maxunicode).any():
                raise ArraysError("it holds invalid code points")  # which NumPy cannot convert to text
            return content.view(header.dtype).reshape(header.shape, order="F" if header.fortran else "C")

    def _read_header(self, name: str) -> ArrayHeader:
        if name not in self._members:
            raise ArraysError("it is missing")
        member = self._members[name]
        if member.flag_bits & 1:
            raise ArraysError("it is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArraysError("it is compressed by another method than deflate")
        with self._archive.open(member) as stream:
            start = io.BytesIO(stream.read(_MAX_HEADER + npy.MAGIC_LEN + 4))
        if start.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
            raise ArraysError("it is no array")
        start.seek(0)
        version = npy.read_magic(start)
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(start, _MAX_HEADER)
        elif version == (2, 0):
            shape, fortran, dtype = npy.read_array_header_2_0(start, _MAX_HEADER)
        else:
            raise ArraysError(f"it is of version {version[0]}.{version[1]}")
        if dtype.hasobject:
            raise ArraysError("it holds Python objects (a pickle), which are never loaded")
        if dtype.kind not in "biufcSU" or dtype.subdtype is not None or not dtype.itemsize:
            raise ArraysError(f"it is of type {one_line(dtype, 80)}")
        if any(type(length) is not int or length < 0 for length in shape):
            raise ArraysError(f"it is of shape {one_line(shape, 80)}")
        header = ArrayHeader(shape, dtype, fortran, start.tell())
        if header.offset + header.nbytes != member.file_size:
            seen = f"{header.nbytes:,} bytes by its header, {member.file_size - header.offset:,} by the archive"
            raise ArraysError(seen)
        return header


def _code_points(text: np.dtype[Any]) -> np.dtype[Any]:
    """Type of the code points of text: integers in the same byte order."""
    return np.dtype(np.uint32).newbyteorder(text.byteorder)


@contextlib.contextmanager
def _one_error(what: str) -> Iterator[None]:
    """Turns the errors of zipfile and NumPy for a damaged archive into ArraysError."""
    try:
        yield
    except ArraysError as error:
        raise ArraysError(f"{what} ({error})") from error
    except MemoryError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise  # from the file system
        raise ArraysError(f"{what} ({first_line(error)})") from error
    except Exception as error:
        # AttributeError, EOFError, KeyError, NotImplementedError, OverflowError, RuntimeError, SyntaxError, TypeError,
        # ValueError, struct.error, tokenize.TokenError, zlib.error, BadZipFile: they have no common base class.
        raise ArraysError(f"{what} ({first_line(error)})") from error
