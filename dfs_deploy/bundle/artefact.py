"""Reading a bundle: a directory ``NAME.dfs`` of ONNX files and the manifest that describes them.

Opening checks the schema, then the digest of every file. ``Bundle.read`` gives a file as it is, ``Bundle.model`` an
ONNX file together with the weights that all of them share (``dfs_deploy.bundle.weights``). An engine must also be a
graph that an export could have written (``dfs_deploy.bundle.engine_check``). Nothing in a bundle is executed, and
nothing outside its directory is read, not even through links. Files that the manifest does not list are never read; the
log names them.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import io
import logging
import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from dfs_deploy.bundle.consistency import contradictions
from dfs_deploy.bundle.engine_check import check_engine, engine_uses
from dfs_deploy.bundle.manifest import MANIFEST, MAX_BUNDLE, FileRecord, Head, SourceHead, input_of, parse_manifest
from dfs_deploy.bundle.weights import WeightsFile, inlined
from dfs_deploy.errors import BundleError, DigestError, UsageError
from dfs_deploy.io.arrays import Arrays, ArraysError
from dfs_deploy.io.files import (
    UnfitFileError,
    first_link,
    is_litter,
    opened_file,
    read_file,
    sha256,
)
from dfs_deploy.io.json_files import MAX_JSON, MalformedError, read_json
from dfs_deploy.io.kinds import GIT_LFS_MARK, given_instead
from dfs_deploy.io.text import first_line, one_line
from dfs_deploy.network import Architecture
from dfs_deploy.options import Options, Precision
from dfs_deploy.system.cpu import made_for_another_cpu

SUFFIX = ".dfs"

_LOG = logging.getLogger(__name__)

_PLAIN_NAME = re.compile(r"(?:\w[\w.-]*(?<!\.)/)*\w[\w.-]*(?<!\.)", re.ASCII)
"""Name of the same file on every system: no parent folder, no drive, only ASCII letters."""

_DEVICES = re.compile(r"(?:^|/)(?:con|prn|aux|nul|(?:com|lpt)[0-9])(?:\.[^/]*)?(?:/|$)", re.IGNORECASE)
"""Names of devices on Windows, with any suffix."""

_POINTER_BYTES = 1024
_NAMED_FOREIGN = 5

MAX_SAMPLES = 4096
"""Most inputs in a bundle; export adds 64."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs in a bundle, with the results of the PyTorch reference.

    Attributes:
        images: (N, H, W, C) uint8.
        labels: (N,) int64, -1 if the class of an image is unknown.
        logits: (N, classes) float32.
        path: (N, blocks) uint8, index of the option that each block after the first ran.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    path: NDArray[np.uint8]

    def __repr__(self) -> str:
        return f"<Samples: {len(self.images)} images {self.images.shape[1:]}>"


class Bundle:
    """An opened bundle, with the digests of all files checked.

    Args:
        path: the directory.

    Raises:
        BundleError: the directory or its manifest cannot be read, or the manifest contradicts itself.
        SchemaVersionError: the schema version of the manifest is not supported.
        DigestError: a file was changed, is missing, is a link, or is outside the directory.

    Attributes:
        path: the directory.
        manifest: description of the files.
        digest: SHA-256 of the manifest.
        options: options that the gate chooses from.
        input: input contract of the network.
        weights: constants that its ONNX files share; ``None`` if all are inside.
        foreign: relative paths of files, links and folders that the manifest does not list; they are never read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.name in ("", ".."):  # "." has no name, and the cache is named after the bundle
            self.path = self.path.resolve()
        content = _read_manifest(self.path)
        self.manifest = parse_manifest(content, self.path)
        self.digest = sha256(content)
        try:
            self.options = Options(option.bits for option in self.manifest.options)
            self.input = input_of(self.manifest)
        except UsageError as error:
            raise BundleError(f"{self.path}: {MANIFEST} is impossible: {error}") from error
        for problem in contradictions(self.manifest, self.options):
            raise BundleError(f"{self.path}: {MANIFEST} contradicts itself: {problem}; export again")
        _check_names(self.path, self.manifest.files)
        self.weights: WeightsFile | None = None
        for name in self.manifest.files:
            if name == self.manifest.weights:
                self.weights = self._open_weights(name)
            else:
                self._content(name)
        self._unchecked = engine_uses(self.manifest, self.options)
        self._outside: dict[str, int] = {}
        _LOG.info("%s: opened, digest %s, %d files", one_line(self.path), self.digest[:12], len(self.manifest.files))
        self.foreign = tuple(sorted(foreign_entries(self.path, self.manifest.files, within=False)))
        if self.foreign:
            level = logging.INFO if all(map(is_litter_entry, self.foreign)) else logging.WARNING
            _LOG.log(level, "%s", one_line(f"{self.path}: {_listed(self.foreign)} not in its manifest and ignored"))

    def __repr__(self) -> str:
        return f"<Bundle {describe_bundle(self)}, {len(self.manifest.files)} files>"

    @property
    def architecture(self) -> Architecture:
        """Description of the network."""
        return self.manifest.architecture

    @property
    def name(self) -> str:
        """The directory's name without its suffix."""
        return self.path.name.removesuffix(SUFFIX)

    @property
    def size(self) -> int:
        """Bytes of all files except the manifest."""
        return sum(record.size for record in self.manifest.files.values())

    @property
    def cpu_mismatch(self) -> str | None:
        """A line with cost and remedy if the INT8 engines suit another kind of CPU than this machine's; else ``None``.

        See ``made_for_another_cpu``.
        """
        record = self.manifest.calibration
        made_for = None if record is None else record.target_cpu
        return made_for_another_cpu(self.manifest.int8_weight_bits, made_for=made_for)

    def read(self, name: str) -> bytes:
        """Content of a file; its digest is checked each time, and an engine is checked the first time.

        Raises:
            DigestError: the file is missing, is a link, or differs from its digest.
            BundleError: the file is an engine that no export could have written.
        """
        data = self._content(name)
        for use in self._unchecked.get(name, ()):
            self._outside[name] = check_engine(data, f"{self.path}: {name}", use, self.weights)
        if sum(list(self._outside.values())) > MAX_BUNDLE:
            raise BundleError(
                f"{self.path}: its engines refer to more than {MAX_BUNDLE:,} bytes of weights; do not use a bundle from"
                " an unknown source"
            )
        self._unchecked.pop(name, None)  # the digest guarantees the same content next time
        return data

    def model(self, name: str) -> bytes:
        """ONNX model in a file, with the constants that the bundle keeps in its file of weights.

        Raises:
            DigestError: the file or the weights are missing, are a link, or differ from their digests.
            BundleError: the file is no model, or one that no export could have written.
        """
        return inlined(self.read(name), self.weights, f"{self.path}: {name}")

    def without(self, precision: Precision) -> Bundle:
        """This bundle for a machine that is slow in a precision: options use their other engines, if they have some."""
        twin = copy.copy(self)
        runtimes = {}
        for name, engines in self.manifest.runtimes.items():
            blocks = []
            for block in engines.blocks:
                others = {
                    option: [engine for engine in made if engine.precision != precision] or made
                    for option, made in block.options.items()
                }
                blocks.append(msgspec.structs.replace(block, options=others))
            runtimes[name] = msgspec.structs.replace(engines, blocks=blocks)
        twin.manifest = msgspec.structs.replace(self.manifest, runtimes=runtimes)
        return twin

    def _content(self, name: str) -> bytes:
        record = self.manifest.files.get(name)
        if record is None:
            raise DigestError(f"{self.path}: {name} is not in the manifest; export the bundle again")
        with self._opened(name, record) as stream:
            data = stream.read(os.fstat(stream.fileno()).st_size + 1)  # read() allocates what it is asked for
        if len(data) != record.size or sha256(data) != record.sha256:
            raise self._changed(name, data)
        return data

    @contextlib.contextmanager
    def _opened(self, name: str, record: FileRecord) -> Iterator[BinaryIO]:
        """A file of the bundle, opened for reading; raises DigestError for anything else at its place."""
        try:
            _check_no_link(self.path, name, DigestError)
            with opened_file(self.path / name, max(record.size, _POINTER_BYTES), follow=False) as stream:
                yield stream
        except FileNotFoundError as error:
            raise DigestError(f"{self.path}: {name} is missing; copy or export the bundle again") from error
        except UnfitFileError as error:
            if error.errno == errno.EFBIG:  # larger than the manifest says
                raise self._changed(name, b"") from error
            raise DigestError(f"{self.path}: {name} {error.strerror}; copy or export the bundle again") from error
        except OSError as error:
            raise DigestError(f"{self.path}: {name} cannot be read ({first_line(error)}); copy it again") from error

    def _changed(self, name: str, data: bytes) -> DigestError:
        """Error for a file that begins with other content than the manifest says."""
        if data.startswith(GIT_LFS_MARK):
            return DigestError(f"{self.path}: {name} is a Git LFS pointer; fetch the files with git lfs pull")
        return DigestError(
            f"{self.path}: {name} was changed after export (its SHA-256 differs); copy or export it again"
        )

    def _open_weights(self, name: str) -> WeightsFile:
        record = self.manifest.files[name]
        return WeightsFile(
            name,
            record.size,
            record.sha256,
            functools.partial(self._opened, name, record),
            functools.partial(self._changed, name),
        )

    @property
    def policy(self) -> NDArray[np.uint8] | None:
        """(blocks,) uint8, option of each block after the first that it always runs; ``None`` if a gate decides."""
        names = self.manifest.policy
        return None if names is None else np.array([self.options.names.index(name) for name in names], np.uint8)

    def samples(self) -> Samples | None:
        """Inputs in the bundle, or ``None``.

        Raises:
            BundleError: they are damaged, or have other shapes or types than the manifest says, which is checked before
                anything is decompressed.
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
            raise BundleError(f"{self.path}: {name} has a path with an unknown option; export again")
        allowed = self.architecture.allowed(self.options)
        if not allowed[np.arange(self.architecture.gated_blocks), samples.path].all():
            raise BundleError(f"{self.path}: {name} has a path with an option that its block may not run; export again")
        if samples.labels.size and not -1 <= samples.labels.min() <= samples.labels.max() < classes:
            raise BundleError(f"{self.path}: {name} has a label outside the classes; export again")
        return samples


def find_bundle(directory: str | Path = ".") -> Path:
    """Finds the only ``*.dfs`` directory in a directory.

    Raises:
        UsageError: there is none, or more than one.
    """
    found = sorted(path for path in Path(directory).glob(f"*{SUFFIX}") if path.is_dir())
    if len(found) == 1:
        return found[0]
    seen = f"several bundles ({', '.join(path.name for path in found)})" if found else "no *.dfs bundle"
    remedy = "name one of them" if found else "name the bundle, or make one with dfs-deploy export"
    where = "in the current directory" if Path(directory) == Path() else f"in {directory}"
    raise UsageError(f"{seen} {where}, expected one; {remedy}")


def describe_bundle(bundle: Bundle) -> str:
    """Path, network and options of a bundle, in a few words."""
    return f"{one_line(bundle.path)}: {bundle.architecture.name}, options {bundle.options}"


def open_bundles(given: Bundle | str | Path | Iterable[Bundle | str | Path]) -> list[Bundle]:
    """Opens one bundle or several, by their paths; those that are open already are returned as they are."""
    each = [given] if isinstance(given, Bundle | str | Path) else given
    return [bundle if isinstance(bundle, Bundle) else Bundle(bundle) for bundle in each]


def other_than_bundle(path: str | Path) -> str | None:
    """One line about a path that is something other than a bundle; ``None`` if its kind is unknown."""
    return given_instead(path, f"a bundle (a NAME{SUFFIX} folder)", "bundle")


def source_of(path: Path) -> SourceHead | None:
    """Checkpoint that a bundle, even a damaged one, was made from; ``None`` if that is unknown."""
    head = read_head(path)
    return None if head is None else head.source


def _read_manifest(path: Path) -> bytes:
    file = path / MANIFEST
    try:
        if not path.is_dir():
            raise _no_bundle(path)
        _check_no_link(path, MANIFEST, BundleError)
        content = read_file(file, MAX_JSON, follow=False)
    except FileNotFoundError as error:
        raise BundleError(
            other_than_bundle(path)
            or f"{path} is no bundle, because it has no {MANIFEST}; make one with dfs-deploy export"
        ) from error
    except UnfitFileError as error:
        raise BundleError(f"{file} {error.strerror}; copy or export the bundle again") from error
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({first_line(error)}); check its path and permissions") from error
    return content


def _no_bundle(path: Path) -> BundleError:
    """Error for a path that is no directory."""
    seen = f"{path} is a file, and no bundle" if path.exists() else f"no bundle at {path}"
    return BundleError(
        other_than_bundle(path) or f"{seen}; give the path of a NAME{SUFFIX} directory that dfs-deploy export made"
    )


def _check_no_link(path: Path, name: str, refusal: type[BundleError]) -> None:
    """Raises ``refusal`` if a file of a bundle is a link, or is reached through a link in the bundle.

    Digests would protect its content; but opening a stranger's bundle must not open files elsewhere.
    """
    link = first_link(path / name, path)
    if link is None:
        return
    entry = link.relative_to(path)
    if not link.exists():
        raise refusal(f"{path}: {entry} is a link to {link.readlink()}, which does not exist; fetch that file first")
    raise refusal(
        f"{path}: {entry} is a link, as in caches of model hubs and DVC, and nothing outside a bundle is read; copy the"
        f" files that links lead to: cp -rL {shlex.quote(str(path))} COPY{SUFFIX}"
    )


def read_head(path: Path) -> Head | None:
    """Readable part of the manifest of a bundle, of any version, even a damaged one; ``None`` if there is none."""
    try:
        return read_json(path / MANIFEST, Head, follow=False)
    except (OSError, MalformedError):
        return None


def is_litter_entry(entry: str) -> bool:
    """Whether an entry, or a folder above it, is one that systems or editors leave."""
    return any(map(is_litter, Path(entry).parts))


def _check_names(path: Path, names: Collection[str]) -> None:
    seen: dict[str, str] = {MANIFEST: MANIFEST}
    for name in names:
        if not _PLAIN_NAME.fullmatch(name) or _DEVICES.search(name):
            raise DigestError(
                f"{path}: the manifest lists {name!r}, expected a name within the bundle such as common/stem.onnx; do"
                " not use this bundle"
            )
        twin = seen.setdefault(name.lower(), name)
        if twin != name or name == MANIFEST:
            raise DigestError(f"{path}: the manifest lists both {name!r} and {twin!r}; do not use this bundle")


def foreign_entries(path: Path, listed: Collection[str], *, within: bool) -> Iterator[str]:
    """Relative paths of entries of a bundle that are neither its manifest nor listed in it.

    Args:
        path: the bundle.
        listed: names of the files in the manifest.
        within: whether to yield each file in a foreign folder instead of the folder itself.
    """
    known = {MANIFEST, *listed}
    holding = {name[:end] for name in known for end, letter in enumerate(name) if letter == "/"}
    for folder, folders, files in os.walk(path):
        above = "".join(f"{part}/" for part in Path(folder).relative_to(path).parts)
        for each in folders.copy():
            if Path(folder, each).is_symlink() or not (within or f"{above}{each}" in holding):
                folders.remove(each)
                yield f"{above}{each}/"
        yield from (f"{above}{each}" for each in files if f"{above}{each}" not in known)


def _listed(names: Collection[str]) -> str:
    """A few of the names, followed by ``is`` or ``are``."""
    shown = ", ".join(list(names)[:_NAMED_FOREIGN])
    more = len(names) - _NAMED_FOREIGN
    words = f"{shown} and {more} more" if more > 0 else shown
    return f"{words} {'is' if len(names) == 1 else 'are'}"
