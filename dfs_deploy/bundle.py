"""The artefact on disk: a directory ``NAME.dfs`` of ONNX files and the manifest that says what they are.

Reading checks the schema, then the digest of every file; nothing in a bundle is executed, and nothing outside its
directory is read.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from dfs_deploy.arrays import Arrays, ArraysError
from dfs_deploy.decoding import UNREADABLE
from dfs_deploy.errors import BundleError, DigestError, UsageError
from dfs_deploy.files import ASIDE, check_folder, put_folder, sha256, sync_tree_to_disk, temporary_folder
from dfs_deploy.manifest import (
    MANIFEST,
    PRODUCER,
    FileRecord,
    Head,
    Manifest,
    SourceRecord,
    architecture_of,
    contradictions,
    input_of,
    parse_manifest,
)
from dfs_deploy.options import Options
from dfs_deploy.text import first_line

SUFFIX = ".dfs"

MAX_SAMPLES = 4096
"""Most inputs that a bundle may carry; export puts in 64."""


@dataclass(frozen=True, eq=False)
class Samples:
    """A few inputs that a bundle carries, with what the PyTorch reference made of them.

    Attributes:
        images: (N, H, W, C) uint8.
        labels: (N,) int64, or -1 where none is known.
        logits: (N, classes) float32.
        path: (N, gated blocks) uint8, the option index that each gated block ran.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    path: NDArray[np.uint8]


class Bundle:
    """An opened bundle whose files have all been checked.

    Args:
        path: the directory.

    Raises:
        BundleError: the directory or its manifest cannot be read.
        SchemaVersionError: another version wrote it.
        DigestError: a file was changed, is missing, does not belong, or lies outside.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.name in ("", ".."):  # "." has none: the cache beside a bundle goes by its name
            self.path = self.path.resolve()
        content = _read_manifest(self.path)
        self.manifest = parse_manifest(content, self.path)
        self.digest = sha256(content)
        try:
            self.options = Options(option.bits for option in self.manifest.options)
            self.architecture, self.input = architecture_of(self.manifest), input_of(self.manifest)
        except UsageError as error:
            raise BundleError(f"{self.path}: {MANIFEST} cannot be: {error}") from error
        for problem in contradictions(self.manifest, self.options, self.architecture):
            raise BundleError(f"{self.path}: {MANIFEST} contradicts itself: {problem}; export again")
        _check_listing(self.path, self.manifest.files)
        for name in self.manifest.files:
            self.read(name)

    @property
    def name(self) -> str:
        """The directory's name without its suffix."""
        return self.path.name.removesuffix(SUFFIX)

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(record.size for record in self.manifest.files.values())

    def read(self, name: str) -> bytes:
        """Content of a file, checked against its digest each time it is read.

        Raises:
            DigestError: it is missing, a link, or differs from its digest.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise DigestError(f"{self.path}: {name} is not in the manifest; export the bundle again")
        file = self.path / name
        try:
            if file.is_symlink() or not file.is_file():
                raise DigestError(f"{self.path}: {name} is missing or no plain file; copy or export the bundle again")
            data = file.read_bytes()
        except OSError as error:
            raise DigestError(f"{self.path}: {name} cannot be read ({error.strerror}); copy it again") from error
        if len(data) != record.size or sha256(data) != record.sha256:
            raise DigestError(
                f"{self.path}: {name} was changed after export (its SHA-256 differs); copy or export it again"
            )
        return data

    @property
    def policy(self) -> NDArray[np.uint8] | None:
        """(gated blocks,) uint8, the option index that each block always runs; ``None`` where a gate decides."""
        names = self.manifest.policy
        return None if names is None else np.array([self.options.names.index(name) for name in names], np.uint8)

    def samples(self) -> Samples | None:
        """The inputs that the bundle carries, or ``None``.

        Raises:
            BundleError: they are damaged, or of other shapes or types than the manifest says; that is found before
                anything of them is inflated.
        """
        name = self.manifest.samples
        if name is None:
            return None
        (channels, height, width), classes = self.input.shape, self.architecture.classes
        try:
            with Arrays(io.BytesIO(self.read(name))) as archive:
                shown = archive.header("images").shape
                count = min(shown[0], MAX_SAMPLES) if shown else 0
                expected: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
                    "images": ((count, height, width, channels), np.uint8),
                    "labels": ((count,), np.int64),
                    "logits": ((count, classes), np.float32),
                    "path": ((count, self.architecture.gated_blocks), np.uint8),
                }
                for array, (shape, dtype) in expected.items():
                    archive.check(array, shape, dtype)
                samples = Samples(**{array: archive.read(array) for array in expected})
        except (ArraysError, MemoryError) as error:
            raise BundleError(f"{self.path}: {name} cannot be read ({first_line(error)}); export again") from error
        if samples.path.size and samples.path.max() >= len(self.options):
            raise BundleError(f"{self.path}: {name} has a path with no such option; export again")
        if samples.labels.size and not -1 <= samples.labels.min() <= samples.labels.max() < classes:
            raise BundleError(f"{self.path}: {name} has a label of no class; export again")
        return samples


def find_bundle(directory: str | Path = ".") -> Path:
    """The one ``*.dfs`` directory in a directory.

    Raises:
        UsageError: there is none, or several.
    """
    found = sorted(path for path in Path(directory).glob(f"*{SUFFIX}") if path.is_dir())
    if len(found) == 1:
        return found[0]
    seen = f"several bundles ({', '.join(path.name for path in found)})" if found else "no *.dfs bundle"
    remedy = "name the one that is meant" if found else "name the bundle, or make one with dfs-deploy export"
    raise UsageError(f"{seen} in the current directory, expected one; {remedy}")


def write_bundle(path: str | Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Writes a bundle whole: into a temporary directory beside ``path``, on the disk, and then put in its place.

    Args:
        path: the directory to make; a bundle that is there already is replaced, unless it holds files of others.
        manifest: without ``files``, which is filled in here.
        files: content by path in the bundle.

    Raises:
        UsageError: there is something else at ``path``, or in the bundle there.
    """
    path = Path(path)
    check_writable(path)
    records = {name: FileRecord(sha256=sha256(data), size=len(data)) for name, data in sorted(files.items())}
    content = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, files=records)), indent=1)
    with temporary_folder(path) as temporary:
        made = temporary / path.name
        for name, data in {**files, MANIFEST: content + b"\n"}.items():
            target = made / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        sync_tree_to_disk(made)
        put_folder(made, path)
    return Bundle(path)


def check_writable(path: Path) -> None:
    """Makes the folder in which a bundle is to stand.

    Raises:
        UsageError: something else stands at the path, or a bundle with files that are not its own, which replacing it
            would delete; or nothing can be written there.
    """
    head = _head(path)
    if path.is_symlink() or (path.exists() and (head is None or head.producer.get("name") != PRODUCER)):
        raise UsageError(f"{path} exists and is no bundle; give another path with --out, or remove it")
    if head is not None:
        listed = head.files if isinstance(head.files, dict) else {}
        for entry in _foreign_entries(path, listed):
            raise UsageError(
                f"{path} holds {entry.relative_to(path)}, which is no file of the bundle and would be lost; move it"
                " away, or give another --out"
            )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"no folder can be made at {path.parent} ({error.strerror}); give another --out") from error
    try:
        check_folder(path.parent)
    except OSError as error:
        raise UsageError(f"nothing can be written in {path.parent} ({error.strerror}); give another --out") from error


def source_of(path: Path) -> SourceRecord | None:
    """Checkpoint that a bundle, whole or damaged, was made from; ``None`` without a bundle, or if it does not say."""
    head = _head(path)
    try:
        return None if head is None else msgspec.convert(head.source, SourceRecord)
    except msgspec.ValidationError:
        return None


def _read_manifest(path: Path) -> bytes:
    if not path.is_dir():
        name = glob.escape(path.name)
        for aside in path.parent.glob(f".{name}.*.tmp/{name}{ASIDE}"):
            raise BundleError(
                f"no bundle at {path}, since replacing it was cut off; {aside} is the old one: move it back"
            )
        raise BundleError(f"no bundle at {path}; give the path of a NAME{SUFFIX} directory that dfs-deploy export made")
    file = path / MANIFEST
    if file.is_symlink() or not file.is_file():
        raise BundleError(f"{path} has no {MANIFEST}, so it is no bundle; make one with dfs-deploy export")
    try:
        return file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error.strerror}); check its permissions") from error


def _head(path: Path) -> Head | None:
    """What can be read of the manifest of a bundle of any version, whole or damaged; ``None`` where there is none."""
    try:
        return msgspec.json.decode((path / MANIFEST).read_bytes(), type=Head)
    except (OSError, *UNREADABLE):
        return None


def _check_listing(path: Path, files: Mapping[str, FileRecord]) -> None:
    for name in files:
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
            raise DigestError(f"{path}: the manifest lists {name!r}, which leaves the bundle; do not use this bundle")
    for entry in _foreign_entries(path, files):
        seen = entry.relative_to(path)
        if entry.is_dir():
            raise DigestError(f"{path}: {seen} is a link; a bundle holds plain files: copy it again")
        raise DigestError(f"{path}: {seen} does not belong to the bundle; remove that file")


def _foreign_entries(path: Path, files: Iterable[str]) -> Iterator[Path]:
    """Links to folders, and files that are neither the manifest nor among ``files``."""
    listed = {path / name for name in files} | {path / MANIFEST}
    for folder, folders, names in os.walk(path, followlinks=False):
        yield from (Path(folder) / name for name in folders if (Path(folder) / name).is_symlink())
        yield from (Path(folder) / name for name in names if Path(folder) / name not in listed)
