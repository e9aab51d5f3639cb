"""Kind of a file or folder by its first bytes, for messages to a user who gave the wrong one."""

from __future__ import annotations

import os
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfs_deploy.io.files import read_head
from dfs_deploy.io.text import one_line

Role = Literal["bundle", "checkpoint", "data", "image", "video", "model", "part", "record", "run", "archive", "other"]
"""Use of a path: ``model`` is a network of another tool, ``part`` is a part or the cache of a bundle, ``record`` is
a JSON file, and ``run`` the folder of a training run."""

_HEAD = 4096
"""Bytes of a file that are inspected."""

_MANIFEST = "manifest.json"

JOB_FILE = "job.json"
"""File in the folder of every training run, with the job."""

GIT_LFS_MARK = b"version https://git-lfs.github.com/spec/"
"""Beginning of the pointer that Git LFS leaves instead of a file that was not fetched."""

_REMEDIES: dict[Role, str] = {
    "bundle": "it is exported already: give it as BUNDLE, as in dfs-deploy run PATH photo.png",
    "checkpoint": "dfs-deploy export PATH makes a bundle of it; verify takes it as --checkpoint",
    "data": "labelled images are given as --data or --calibration-data, as an .npz with x and y or a folder by class",
    "image": "images are given after the bundle, as in dfs-deploy run BUNDLE PATH, as PNG, JPEG, BMP, PPM or WebP",
    "video": "videos are given after the bundle, by a name with their own ending, such as .mp4",
    "model": "bundles are made of checkpoints: give the checkpoint that it was made from to dfs-deploy export",
    "part": "give the folder NAME.dfs of the bundle itself",
    "record": "check the path",
    "run": "dfs-deploy export PATH/checkpoint.pt makes a bundle of it",
    "archive": "unpack it, and give what was in it",
    "other": "check the path",
}

_REMEDIES_FOR: dict[tuple[Role, Role], str] = {
    ("run", "bundle"): "dfs-deploy export PATH/checkpoint.pt first, then give the bundle",
    ("run", "checkpoint"): "give the checkpoint.pt in it",
}
"""What to do about a role, the first, if another is expected, the second, and ``_REMEDIES`` does not fit."""


@dataclass(frozen=True)
class Kind:
    """Kind of a file or folder.

    Attributes:
        name: noun with its article, such as ``a PyTorch checkpoint``.
        role: use of such a path.
    """

    name: str
    role: Role


_JSON = Kind("a JSON file", "record")

_SIGNS: tuple[tuple[bytes, Kind], ...] = (
    (rb"\x89PNG\r\n\x1a\n", Kind("a PNG image", "image")),
    (rb"\xff\xd8\xff", Kind("a JPEG image", "image")),
    (rb"BM", Kind("a BMP image", "image")),
    (rb"GIF8", Kind("a GIF image", "image")),
    (rb"II\*\0|MM\0\*", Kind("a TIFF image", "image")),
    (rb".{8}WEBP", Kind("a WebP image", "image")),
    (rb"P[1-7]\s", Kind("a PPM image", "image")),
    (rb".{8}AVI |\x1aE\xdf\xa3|.{4}ftyp|\0\0\x01[\xb3\xba]", Kind("a video", "video")),
    (rb"\x93NUMPY", Kind("a NumPy array", "data")),
    (rb"PK\x03\x04.{26}[^/\0]{1,256}?\.npy", Kind("an .npz archive of arrays", "data")),
    (rb"PK\x03\x04.*/(data\.pkl|\.format_version|version|byteorder)", Kind("a PyTorch checkpoint", "checkpoint")),
    (rb"PK\x03\x04", Kind("a ZIP archive", "archive")),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf|.{257}ustar", Kind("a compressed archive", "archive")),
    (rb"..\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", Kind("a PyTorch checkpoint", "checkpoint")),
    (rb".{8}\{\"", Kind("a .safetensors checkpoint", "checkpoint")),
    (rb"\x80[\x02-\x05]", Kind("a Python pickle", "checkpoint")),
    (rb".{4}ORTM", Kind("an ONNX Runtime model (.ort)", "model")),
    # Field 1 of the message, its IR version, then another field.
    (rb"\x08[\x01-\x20][\x12\x1a\"(2:B]", Kind("an ONNX model", "model")),
    (re.escape(GIT_LFS_MARK), Kind("a Git LFS pointer, whose content git lfs pull fetches", "other")),
    (rb"(?i)\s*<(!doctype html|html)", Kind("a web page", "other")),
    (rb"\s*[{\[]", _JSON),
)


def kind_of(path: str | Path) -> Kind | None:
    """Kind of a file or folder by its first bytes; ``None`` if it does not exist, cannot be read, or is not known.

    Nothing is loaded, and a FIFO is not opened.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _kind_of_folder(path)
        if not stat.S_ISREG(mode):
            return Kind("no regular file", "other")
        kind = kind_of_content(read_head(path, _HEAD))
        return Kind("the manifest of a bundle", "part") if kind is _JSON and path.name == _MANIFEST else kind
    except (OSError, ValueError):  # ValueError: a path with a zero byte in it
        return None


def kind_of_content(head: bytes) -> Kind | None:
    """Kind of a file by its first bytes, some thousands or all; ``None`` if it is unknown."""
    if not head:
        return Kind("an empty file", "other")
    return next((kind for sign, kind in _SIGNS if re.match(sign, head[:_HEAD], re.DOTALL)), None)


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
    remedy = _REMEDIES_FOR.get((kind.role, role), _REMEDIES[kind.role])
    remedy = remedy.replace("PATH", shlex.quote(one_line(path)))
    return f"{path} is {kind.name}, expected {expected}; {remedy}"


def _kind_of_folder(path: Path) -> Kind | None:
    manifest = path / _MANIFEST
    if os.path.lexists(manifest) and (
        path.suffix == ".dfs" or b'"schema_version"' in read_head(manifest, _HEAD, follow=False)
    ):
        return Kind("a bundle", "bundle")
    if path.name.endswith(".dfs.cache"):
        return Kind("the cache of a bundle", "part")
    if (path / "checkpoint.pt").is_file():
        return Kind("the folder of a training run", "run")
    return None
