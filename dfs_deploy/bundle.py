"""The artefact on disk: a directory ``NAME.dfs`` of ONNX files and the manifest that says what they are.

The format is described in docs/bundle-format.md. Reading checks the schema, then the digest of every file; nothing in a
bundle is executed, and nothing outside its directory is read.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from dfs_deploy.architecture import Architecture
from dfs_deploy.errors import BundleError, DigestError, SchemaVersionError, UsageError
from dfs_deploy.files import sha256
from dfs_deploy.options import Options, Precision
from dfs_deploy.preprocessing import InputContract

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SUFFIX = ".dfs"

Form = Literal["float32", "uint8"]
"""How a feature map is kept: float32, or uint8 on the grid of its group."""

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the manifest: immutable, and strict about its keys."""


class FileRecord(_Record, frozen=True, kw_only=True):
    """A file of the bundle: its SHA-256 and its size in bytes."""

    sha256: Digest
    size: NotNegative


class Engine(_Record, frozen=True, kw_only=True):
    """One engine: a file for each form in which its features may arrive.

    Attributes:
        precision: of its arithmetic.
        output: the form in which it leaves its features.
        files: path in the bundle, by form of the input.
    """

    precision: Precision
    output: Form
    files: dict[Form, str]


class BlockEngines(_Record, frozen=True, kw_only=True):
    """What may run at one gated block.

    Attributes:
        index: of the block; the first block is 0 and not gated, so the least here is 1.
        skip: the projection that a skip runs, or ``None`` where a skip is free.
        options: engines by option name, the one to prefer first.
    """

    index: Positive
    skip: Engine | None
    options: dict[str, list[Engine]]


class RuntimeEngines(_Record, frozen=True, kw_only=True):
    """The engines made for one runtime.

    Attributes:
        stem: images to the first block's output.
        blocks: the gated blocks, in order.
        head: the last features to logits.
        gate: the gate's step; its weights are among its outputs.
        feature_scales: a scale a block, first block included: what one step of uint8 is worth in its output's form.
        static: by precision, the whole backbone as one engine, every block run: the baselines of a bench.
    """

    stem: Engine
    blocks: list[BlockEngines]
    head: Engine
    gate: str
    feature_scales: list[float]
    static: dict[Precision, str]


class OptionRecord(_Record, frozen=True, kw_only=True):
    """An option and its cost relative to the full-precision block."""

    name: str
    bits: Annotated[int, Meta(ge=0, le=32)]
    cost: Annotated[float, Meta(ge=0, le=1)]


class ArchitectureRecord(_Record, frozen=True, kw_only=True):
    """See :class:`dfs_deploy.architecture.Architecture`."""

    name: str
    groups: list[Positive]
    widths: list[Positive]
    classes: Positive
    image_shape: tuple[Positive, Positive, Positive]
    gate_embedding: Positive
    gate_hidden: Positive


class InputRecord(_Record, frozen=True, kw_only=True):
    """See :class:`dfs_deploy.preprocessing.InputContract`."""

    shape: tuple[Positive, Positive, Positive]
    mean: list[float]
    std: list[float]
    class_names: list[str]


class RangeRecord(_Record, frozen=True, kw_only=True):
    """One calibrated interval.

    Attributes:
        block: index of the block.
        option: name of the option, or ``static`` for the static INT8 baseline.
        tensor: ``images``, ``conv1``, ``conv2``, ``projection`` (inputs), ``conv2_out``, ``projection_out`` and
            ``output``.
        low: least value.
        high: greatest value.
        source: ``routed``: measured on what the gate sends there; ``reached``: the gate sent nothing, so measured on
            all that reached the block; ``checkpoint``: the checkpoint's own; ``statistics``: from batch normalisation.
        samples: how many samples it was measured on.
    """

    block: NotNegative
    option: str
    tensor: Literal["images", "conv1", "conv2", "projection", "conv2_out", "projection_out", "output"]
    low: float
    high: float
    source: Literal["routed", "reached", "checkpoint", "statistics"]
    samples: NotNegative


class CalibrationRecord(_Record, frozen=True, kw_only=True):
    """How the ranges of the INT8 engines came about."""

    method: str
    data: str | None
    samples: NotNegative
    seed: int
    weight_bits: Literal[7, 8]
    ranges: list[RangeRecord]


class AccuracyRecord(_Record, frozen=True, kw_only=True):
    """What export measured on its own calibration data; shares are 0 to 1, percentages 0 to 100.

    Attributes:
        data: name of the data set.
        samples: images measured.
        top1_reference: share of right answers of the PyTorch reference.
        top1_bundle: likewise, of the bundle on ONNX Runtime.
        top1_static: likewise, of each static baseline.
        route_agreement: share of block decisions equal to the reference's.
        computation_percentage_reference: mean over the samples.
        computation_percentage_bundle: likewise.
        max_abs_logit_error: greatest difference of a logit.
        option_share: for each gated block, the share of samples that took each option, in the bundle.
    """

    data: str
    samples: Positive
    top1_reference: float | None
    top1_bundle: float | None
    top1_static: dict[Precision, float]
    route_agreement: float
    computation_percentage_reference: float
    computation_percentage_bundle: float
    max_abs_logit_error: float
    option_share: list[list[float]]


class ServedRecord(_Record, frozen=True, kw_only=True):
    """An option that an engine of another precision than its own serves, decided at export."""

    option: str
    wanted: Precision
    served_by: Precision
    reason: str


class SourceRecord(_Record, frozen=True, kw_only=True):
    """The checkpoint that the bundle was made from."""

    file: str
    format: str
    sha256: Digest
    assumptions: list[str]


class Manifest(_Record, frozen=True, kw_only=True):
    """``manifest.json``: what the files of a bundle are."""

    schema_version: int
    producer: dict[str, str]
    source: SourceRecord
    architecture: ArchitectureRecord
    options: list[OptionRecord]
    targets: list[Precision]
    input: InputRecord
    runtimes: dict[str, RuntimeEngines]
    calibration: CalibrationRecord | None
    accuracy: AccuracyRecord | None
    substitutions: list[ServedRecord]
    samples: str | None
    files: dict[str, FileRecord]


class _VersionOnly(msgspec.Struct):
    schema_version: int


@dataclass(frozen=True)
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
        content = _read_manifest(self.path)
        self.manifest = parse_manifest(content, self.path)
        self.digest = sha256(content)
        self.options = Options(option.bits for option in self.manifest.options)
        self.architecture = _architecture(self.manifest, self.path)
        self.input = _input_contract(self.manifest, self.path)
        _check_consistency(self)
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
        if file.is_symlink() or not file.is_file():
            raise DigestError(f"{self.path}: {name} is missing or no plain file; copy or export the bundle again")
        data = file.read_bytes()
        if len(data) != record.size or sha256(data) != record.sha256:
            raise DigestError(
                f"{self.path}: {name} was changed after export (its SHA-256 differs); copy or export it again"
            )
        return data

    def samples(self) -> Samples | None:
        """The inputs that the bundle carries, or ``None``."""
        if self.manifest.samples is None:
            return None
        try:
            with np.load(io.BytesIO(self.read(self.manifest.samples)), allow_pickle=False) as archive:
                return Samples(archive["images"], archive["labels"], archive["logits"], archive["path"])
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise BundleError(f"{self.path}: {self.manifest.samples} cannot be read ({error}); export again") from error


def find_bundle(directory: str | Path = ".") -> Path:
    """The one ``*.dfs`` directory in a directory.

    Raises:
        UsageError: there is none, or several.
    """
    found = sorted(path for path in Path(directory).glob(f"*{SUFFIX}") if path.is_dir())
    if len(found) == 1:
        return found[0]
    seen = f"several bundles ({', '.join(path.name for path in found)})" if found else "no *.dfs bundle"
    raise UsageError(
        f"{seen} in the current directory, expected one; name the bundle, or make one with dfs-deploy export"
    )


def write_bundle(path: str | Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Writes a bundle whole: into a temporary directory beside ``path``, which is then renamed.

    Args:
        path: the directory to make; a bundle that is there already is replaced.
        manifest: without ``files``, which is filled in here.
        files: content by path in the bundle.

    Raises:
        UsageError: there is something else at ``path``.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not (path / MANIFEST).is_file()):
        raise UsageError(f"{path} exists and is no bundle; give another path with --out, or remove it")
    records = {name: FileRecord(sha256=sha256(data), size=len(data)) for name, data in sorted(files.items())}
    content = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, files=records)), indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        made = temporary / path.name
        for name, data in {**files, MANIFEST: content + b"\n"}.items():
            target = made / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        if path.exists():
            path.rename(temporary / "replaced")
        made.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Bundle(path)


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """Reads a manifest and checks it against the schema.

    Args:
        content: of ``manifest.json``.
        path: of the bundle, for messages.

    Raises:
        SchemaVersionError: another version wrote it.
        BundleError: it is not JSON, or a key is missing, unknown or of another type.
    """
    try:
        version = msgspec.json.decode(content, type=_VersionOnly).schema_version
        if version != SCHEMA_VERSION:
            newer = "update dfs-deploy" if version > SCHEMA_VERSION else "export it again"
            raise SchemaVersionError(f"{path} has schema version {version}, expected {SCHEMA_VERSION}; {newer}")
        return msgspec.json.decode(content, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{path}: {MANIFEST} is malformed ({error}); copy or export the bundle again") from error


def _read_manifest(path: Path) -> bytes:
    if not path.is_dir():
        raise BundleError(f"no bundle at {path}; give the path of a NAME{SUFFIX} directory that dfs-deploy export made")
    file = path / MANIFEST
    if file.is_symlink() or not file.is_file():
        raise BundleError(f"{path} has no {MANIFEST}, so it is no bundle; make one with dfs-deploy export")
    return file.read_bytes()


def _architecture(manifest: Manifest, path: Path) -> Architecture:
    record = manifest.architecture
    try:
        return Architecture(
            groups=tuple(record.groups),
            widths=tuple(record.widths),
            classes=record.classes,
            image_shape=record.image_shape,
            gate_embedding=record.gate_embedding,
            gate_hidden=record.gate_hidden,
        )
    except UsageError as error:
        raise BundleError(f"{path}: {error}") from error


def _input_contract(manifest: Manifest, path: Path) -> InputContract:
    record = manifest.input
    try:
        return InputContract(record.shape, tuple(record.mean), tuple(record.std), tuple(record.class_names))
    except UsageError as error:
        raise BundleError(f"{path}: {error}") from error


def _check_consistency(bundle: Bundle) -> None:
    """What the schema cannot say: parts of the manifest that must agree with each other."""
    manifest, blocks = bundle.manifest, bundle.architecture.gated_blocks
    names = {option.name for option in bundle.options if not option.skips}
    if [(o.name, o.cost) for o in manifest.options] != [(o.name, o.cost) for o in bundle.options]:
        raise BundleError(f"{bundle.path}: names or costs of options do not go with their bits; export again")
    if bundle.input.shape != bundle.architecture.image_shape:
        raise BundleError(f"{bundle.path}: input shape and architecture disagree; export again")
    for runtime, engines in manifest.runtimes.items():
        complete = [block.index for block in engines.blocks] == list(range(1, blocks + 1)) and all(
            set(block.options) == names and all(block.options.values()) for block in engines.blocks
        )
        if not complete or len(engines.feature_scales) != blocks + 1:
            raise BundleError(
                f"{bundle.path}: the {runtime} engines do not cover every gated block and option; export again"
            )


def _check_listing(path: Path, files: Mapping[str, FileRecord]) -> None:
    for name in files:
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
            raise DigestError(f"{path}: the manifest lists {name!r}, which leaves the bundle; do not use this bundle")
    listed = {path / name for name in files} | {path / MANIFEST}
    for folder, folders, names in os.walk(path, followlinks=False):
        for link in (Path(folder) / name for name in folders if (Path(folder) / name).is_symlink()):
            raise DigestError(f"{path}: {link.relative_to(path)} is a link; a bundle holds plain files: copy it again")
        for file in (Path(folder) / name for name in names):
            if file not in listed:
                raise DigestError(f"{path}: {file.relative_to(path)} does not belong to the bundle; remove that file")
