"""Kind of a file or folder by its first bytes, for messages to a user who gave the wrong one."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfs_deploy.io.text import one_line

Role = Literal["bundle", "checkpoint", "data", "image", "video", "model", "part", "record", "other"]
"""Use of a path: ``model`` is a network of another tool, ``part`` is a part or the cache of a bundle, and ``record``
is a JSON file or the folder of a training run."""

_HEAD = 4096
"""Bytes of a file that are inspected."""

_MANIFEST = "manifest.json"

JOB_FILE = "job.json"
"""File that makes a folder that of a training run."""

GIT_LFS_MARK = b"version https://git-lfs.github.com/spec/"
"""Beginning of the pointer that Git LFS leaves instead of a file that was not fetched."""


@dataclass(frozen=True)
class Kind:
    """Kind of a file or folder.

    Attributes:
        name: noun with its article, such as ``a PyTorch checkpoint``.
        role: use of such a path.
        remedy: instruction for a user who gave it in the wrong place; ``PATH`` is replaced by the path.
    """

    name: str
    role: Role
    remedy: str


_BUNDLE = "it is exported already: give it as BUNDLE, as in dfs-deploy run PATH photo.png"
_CHECKPOINT = "dfs-deploy export PATH makes a bundle of it; verify takes it as --checkpoint"
_DATA = "labelled images are given as --data or --calibration-data"
_IMAGE = "images are given after the bundle, as in dfs-deploy run BUNDLE PATH"
_VIDEO = "videos are given after the bundle, by a name with their own ending, such as .mp4"
_MODEL = "bundles are made of checkpoints: give the checkpoint that it was made from to dfs-deploy export"
_ARCHIVE = "unpack it, and give what was in it"
_OTHER = "check the path"

_MAGIC: tuple[tuple[bytes, int, str, Role, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", 0, "a PNG image", "image", _IMAGE),
    (b"\xff\xd8\xff", 0, "a JPEG image", "image", _IMAGE),
    (b"BM", 0, "a BMP image", "image", _IMAGE),
    (b"GIF8", 0, "a GIF image", "image", "convert it to PNG or JPEG"),
    (b"II*\0", 0, "a TIFF image", "image", "convert it to PNG or JPEG"),
    (b"MM\0*", 0, "a TIFF image", "image", "convert it to PNG or JPEG"),
    (b"WEBP", 8, "a WebP image", "image", _IMAGE),
    (b"\x93NUMPY", 0, "a NumPy array", "data", f"{_DATA}, in an .npz with x and y"),
    (b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", 2, "a PyTorch checkpoint", "checkpoint", _CHECKPOINT),
    (b"ORTM", 4, "an ONNX Runtime model (.ort)", "model", _MODEL),
    (b"TFL3", 4, "a TensorFlow Lite model", "model", _MODEL),
    (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file", "model", _MODEL),
    (b"AVI ", 8, "an AVI video", "video", _VIDEO),
    (b"ftyp", 4, "an MP4 or QuickTime video", "video", _VIDEO),
    (b"\x1aE\xdf\xa3", 0, "a Matroska or WebM video", "video", _VIDEO),
    (b"%PDF-", 0, "a PDF document", "other", _OTHER),
    (GIT_LFS_MARK, 0, "a Git LFS pointer", "other", "fetch its content: git lfs pull"),
    (b"\x1f\x8b", 0, "a compressed archive (gzip)", "other", _ARCHIVE),
    (b"BZh", 0, "a compressed archive (bzip2)", "other", _ARCHIVE),
    (b"\xfd7zXZ\0", 0, "a compressed archive (xz)", "other", _ARCHIVE),
    (b"\x28\xb5\x2f\xfd", 0, "a compressed archive (zstd)", "other", _ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7z archive", "other", _ARCHIVE),
    (b"ustar", 257, "a tar archive", "other", _ARCHIVE),
    (b"\x7fELF", 0, "a program or library", "other", _OTHER),
)


def read_head(path: Path, size: int) -> bytes:
    """First bytes of a regular file; empty for anything else, which is not opened.

    Args:
        path: any path.
        size: most bytes that are read.

    Raises:
        OSError: the file does not exist or cannot be read.
    """
    if not path.is_file():
        return b""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as stream:
        return stream.read(size) if stat.S_ISREG(os.fstat(stream.fileno()).st_mode) else b""


def kind_of(path: str | Path) -> Kind | None:
    """Kind of a file or folder by its first bytes; nothing is loaded, and a FIFO is not opened.

    Args:
        path: a file or folder.

    Returns:
        The kind; ``None`` if the path does not exist, cannot be read, or is of no known kind.
    """
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return _folder(path)
        if not stat.S_ISREG(status.st_mode):
            return Kind("no regular file", "other", "give a file or a folder")
        kind = kind_of_content(read_head(path, _HEAD), status.st_size)
        if kind is _JSON and path.name == _MANIFEST:
            return Kind("the manifest of a bundle", "part", f"give the folder that it is in: {path.parent}")
        return kind
    except (OSError, ValueError):  # ValueError: a path with a zero byte in it
        return None


def kind_of_content(head: bytes, size: int) -> Kind | None:
    """Kind of a file by its first bytes.

    Args:
        head: first bytes of the file, some thousands or all.
        size: size of the file in bytes.

    Returns:
        The kind; ``None`` if it is unknown.
    """
    if not head:
        return Kind("an empty file", "other", "copy or make it again")
    for magic, offset, name, role, remedy in _MAGIC:
        if head.startswith(magic, offset):
            return Kind(name, role, remedy)
    if head.startswith(b"PK\x03\x04"):
        return _zip(head[:_HEAD])
    for matches, kind in _SIGNS:
        if matches(head, size):
            return kind
    return _JSON if head[:_HEAD].lstrip()[:1] in (b"{", b"[") else None


def given_instead(path: str | Path, expected: str, role: Role) -> str | None:
    """Message about a path that is of another kind than expected.

    Args:
        path: path that was given.
        expected: noun with its article, such as ``a bundle (a NAME.dfs folder)``.
        role: expected role.

    Returns:
        One line, such as ``net.pt is a PyTorch checkpoint, expected a bundle; dfs-deploy export net.pt makes ...``;
        ``None`` if the path has the expected role, or is of no known kind.
    """
    kind = kind_of(path)
    if kind is None or kind.role == role:
        return None
    return f"{path} is {kind.name}, expected {expected}; {kind.remedy.replace('PATH', shlex.quote(one_line(path)))}"


def _folder(path: Path) -> Kind | None:
    manifest = path / _MANIFEST
    if os.path.lexists(manifest) and (path.suffix == ".dfs" or b'"schema_version"' in read_head(manifest, _HEAD)):
        return Kind("a bundle", "bundle", _BUNDLE)
    if path.name.endswith(".dfs.cache"):
        bundle = one_line(path.name.removesuffix(".cache"))
        return Kind("the cache of a bundle", "part", f"give the bundle next to it, {bundle}")
    if (path / "checkpoint.pt").is_file():
        return Kind("the folder of a training run", "record", "give the checkpoint.pt in it")
    return None


def _zip(head: bytes) -> Kind:
    """Kind of a ZIP archive by the name of its first member and the other first bytes."""
    first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if first.endswith((b"/data.pkl", b"/.format_version", b"/version", b"/byteorder")) or b"/data.pkl" in head:
        return Kind("a PyTorch checkpoint", "checkpoint", _CHECKPOINT)
    if first.endswith(b".npy"):
        return Kind("an .npz archive of arrays", "data", _DATA)
    return Kind("a ZIP archive", "other", _ARCHIVE)


def _is_safetensors(head: bytes, size: int) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def _is_onnx(head: bytes, size: int) -> bool:
    """Whether a file begins as an ONNX model: field 1 of the message, its IR version, then another field."""
    return (
        len(head) > 2
        and head[0] == 0x08
        and 1 <= head[1] <= 0x20
        and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)
    )


_JSON = Kind("a JSON file", "record", _OTHER)

_SIGNS: tuple[tuple[Callable[[bytes, int], object], Kind], ...] = (
    (_is_safetensors, Kind("a .safetensors checkpoint", "checkpoint", _CHECKPOINT)),
    (_is_onnx, Kind("an ONNX model", "model", _MODEL)),
    (lambda head, size: re.match(rb"\x80[\x02-\x05]", head), Kind("a Python pickle", "checkpoint", _CHECKPOINT)),
    (lambda head, size: re.match(rb"P[1-7]\s", head), Kind("a PPM image", "image", _IMAGE)),
    (lambda head, size: re.match(rb"\0\0\x01[\xb3\xba]", head), Kind("an MPEG video", "video", _VIDEO)),
    (lambda head, size: re.match(rb"(?i)\s*<(!doctype html|html)", head), Kind("a web page", "other", _OTHER)),
)
