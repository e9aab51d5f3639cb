"""The schema of ``manifest.json``, strict about its keys, and what the schema cannot say.

docs/bundle-format.md describes it for people.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from dfs_deploy.errors import BundleError, SchemaVersionError
from dfs_deploy.io.json_files import Digest, MalformedError, Name, Percentage, Share, VersionedFormat, decode_json
from dfs_deploy.network import Architecture, GateSize, cifar_resnet
from dfs_deploy.options import Precision
from dfs_deploy.preprocessing import (
    MAX_CLASSES,
    MAX_MEAN,
    MAX_NAME,
    MAX_STD,
    MIN_STD,
    InputContract,
)

SCHEMA_VERSION = 4
MANIFEST = "manifest.json"
PRODUCER = "dfs-deploy"

Layout = Literal["float32", "uint8"]
"""How a feature map is kept: float32, or uint8 on the grid of its group."""

RuntimeName = Annotated[str, Meta(pattern=r"^(onnxruntime|tensorrt)\Z")]

MAX_FILE = 1 << 30
"""Most bytes of a file of a bundle."""

MAX_BUNDLE = 16 << 30
"""Most bytes of all files of a bundle."""

# Numbers and lengths are bounded, so that no manifest makes a reader take memory or time without end.
ClassName = Annotated[str, Meta(max_length=MAX_NAME)]

Sentence = Annotated[str, Meta(max_length=4096)]
Positive = Annotated[int, Meta(ge=1, le=1 << 16)]
NotNegative = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Value = Annotated[float, Meta(ge=-3.5e38, le=3.5e38)]
Scale = Annotated[float, Meta(ge=1e-38, le=1e38)]
"""Within what float32 holds."""

PixelMean = Annotated[float, Meta(ge=-MAX_MEAN, le=MAX_MEAN)]
PixelDeviation = Annotated[float, Meta(ge=MIN_STD, le=MAX_STD)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the manifest: immutable, and strict about its keys."""


class FileRecord(_Record, frozen=True, kw_only=True):
    """A file of the bundle: its SHA-256 and its size in bytes."""

    sha256: Digest
    size: Annotated[int, Meta(ge=0, le=MAX_FILE)]


class Engine(_Record, frozen=True, kw_only=True):
    """One engine: a file for each layout in which its features may arrive.

    Attributes:
        precision: precision of its arithmetic.
        output: the layout in which it leaves its features.
        files: path in the bundle, by layout of the input.
    """

    precision: Precision
    output: Layout
    files: dict[Layout, Name]


class BlockEngines(_Record, frozen=True, kw_only=True):
    """What may run at one gated block.

    Attributes:
        index: index of the block; the first block is 0 and not gated, so the least here is 1.
        skip: the projection that a skip runs, or ``None`` where a skip is free.
        options: engines by option name, the one to prefer first.
    """

    index: Positive
    skip: Engine | None
    options: dict[Name, Annotated[list[Engine], Meta(max_length=8)]]


class RuntimeEngines(_Record, frozen=True, kw_only=True):
    """The engines made for one runtime.

    Attributes:
        stem: images to the first block's output.
        blocks: the gated blocks, in order.
        head: the last features to logits.
        gate: the gate's step; its weights are among its outputs. ``None`` for a network with a static policy.
        feature_scales: a scale a block, first block included: what one step of uint8 is worth in its output's layout.
        static: file of the whole backbone as one engine, every block run, by precision: the baselines of a bench.
    """

    stem: Engine
    blocks: list[BlockEngines]
    head: Engine
    gate: Name | None
    feature_scales: list[Scale]
    static: dict[Precision, Name]


class OptionRecord(_Record, frozen=True, kw_only=True):
    """An option and its cost relative to the full-precision block."""

    name: Name
    bits: Annotated[int, Meta(ge=0, le=32)]
    cost: Annotated[float, Meta(ge=0, le=1)]


class InputRecord(_Record, frozen=True, kw_only=True):
    """See :class:`dfs_deploy.preprocessing.InputContract`."""

    shape: tuple[Positive, Positive, Positive]
    mean: list[PixelMean]
    std: list[PixelDeviation]
    class_names: Annotated[list[ClassName], Meta(max_length=MAX_CLASSES)]


class RangeRecord(_Record, frozen=True, kw_only=True):
    """One calibrated interval.

    Attributes:
        block: index of the block.
        option: name of the option, or ``static`` for the static INT8 baseline.
        tensor: ``images``, ``conv1``, ``conv2``, ``projection`` (inputs), ``conv2_out``, ``projection_out``,
            ``shortcut`` and ``output``.
        low: least value.
        high: greatest value.
        source: ``routed``: measured on what the gate sends there; ``reached``: the gate sent nothing, so measured on
            all that reached the block; ``checkpoint``: the checkpoint's own; ``statistics``: from batch normalisation.
        samples: how many samples it was measured on.
    """

    block: NotNegative
    option: Name
    tensor: Literal["images", "conv1", "conv2", "projection", "conv2_out", "projection_out", "shortcut", "output"]
    low: Value
    high: Value
    source: Literal["routed", "reached", "checkpoint", "statistics"]
    samples: NotNegative


class CalibrationRecord(_Record, frozen=True, kw_only=True):
    """How the ranges of the INT8 engines came about."""

    method: Name
    data: Name | None
    samples: NotNegative
    seed: NotNegative
    weight_bits: Literal[7, 8]
    ranges: list[RangeRecord]


class AccuracyRecord(_Record, frozen=True, kw_only=True):
    """What export measured on its own calibration data; shares are 0 to 1, percentages 0 to 100.

    Attributes:
        data: name of the data set.
        samples: images measured.
        top1_reference: share of right answers of the PyTorch reference.
        top1_bundle: share of right answers of the bundle on ONNX Runtime.
        top1_static: share of right answers of each static baseline, by precision.
        route_agreement: share of block decisions equal to the reference's.
        computation_percentage_reference: mean over the samples, in the reference.
        computation_percentage_bundle: mean over the samples, in the bundle.
        max_abs_logit_error: greatest difference of a logit.
        option_share: for each gated block, the share of samples that took each option, in the bundle.
    """

    data: Name
    samples: Annotated[int, Meta(ge=1)]
    top1_reference: Share | None
    top1_bundle: Share | None
    top1_static: dict[Precision, Share]
    route_agreement: Share
    computation_percentage_reference: Percentage
    computation_percentage_bundle: Percentage
    max_abs_logit_error: Annotated[float, Meta(ge=0)]
    option_share: list[list[Share]]


class BudgetRecord(_Record, frozen=True, kw_only=True):
    """An operating point of the gate, measured on calibration data in the bundle's own runtime.

    Attributes:
        budget: computation that was asked for, as a share of running every gated block in full precision.
        bias: bias that holds it: ``bias`` times an option's cost is taken from the option's score; negative where the
            network is to compute more than it was trained to.
        computation_percentage: measured with it; mean over the samples.
        top1: share of right answers, or ``None`` where the data have no labels.
        latency_ms: median of one image on the machine that measured, or ``None``.
        samples: images measured.
    """

    budget: Share
    bias: Annotated[float, Meta(ge=-1e6, le=1e6)]
    computation_percentage: Percentage
    top1: Share | None
    latency_ms: Annotated[float, Meta(gt=0)] | None
    samples: Annotated[int, Meta(ge=1)]


class ServedRecord(_Record, frozen=True, kw_only=True):
    """An option that an engine of another precision than its own serves, decided at export."""

    option: Name
    wanted: Precision
    served_by: Precision
    reason: Sentence


class SourceRecord(_Record, frozen=True, kw_only=True):
    """The checkpoint that the bundle was made from.

    Attributes:
        assumptions: what it does not say and was taken for granted, one line each.
        weights_key: which of several weights in it were taken; ``None`` if there is one.
    """

    file: Name
    format: Name
    sha256: Digest
    assumptions: Annotated[list[Sentence], Meta(max_length=256)]
    weights_key: Name | None


class Manifest(_Record, frozen=True, kw_only=True):
    """``manifest.json``: what the files of a bundle are.

    Attributes:
        policy: for a network without a gate, the name of the option that each gated block always runs; else ``None``.
        budgets: operating points of the gate, least budget first; empty if none was calibrated.
    """

    schema_version: int
    producer: Annotated[dict[Name, Name], Meta(max_length=64)]
    source: SourceRecord
    architecture: Architecture
    options: list[OptionRecord]
    policy: list[Name] | None
    budgets: list[BudgetRecord]
    targets: list[Precision]
    input: InputRecord
    runtimes: dict[RuntimeName, RuntimeEngines]
    calibration: CalibrationRecord | None
    accuracy: AccuracyRecord | None
    substitutions: list[ServedRecord]
    samples: Name | None
    files: dict[Name, FileRecord]

    @property
    def int8_weight_bits(self) -> int | None:
        """Bits of the INT8 weights of the engines for ONNX Runtime; ``None`` if there are none."""
        if self.calibration is None or "int8" not in self.targets or "onnxruntime" not in self.runtimes:
            return None
        return self.calibration.weight_bits


class _CifarResNet(_Record, frozen=True, kw_only=True):
    """The architecture in versions 1 to 3, which know CIFAR ResNets only."""

    name: Name
    groups: Annotated[list[Annotated[int, Meta(ge=1, le=1000)]], Meta(max_length=16)]
    widths: Annotated[list[Positive], Meta(max_length=16)]
    classes: Positive
    image_shape: tuple[Positive, Positive, Positive]
    gate_embedding: GateSize
    gate_hidden: GateSize


def _older(record: type[msgspec.Struct], without: Collection[str], **types: Any) -> type[msgspec.Struct]:
    """A record as an older version had it: without some fields, and with other types of some others."""
    fields = [(f.name, types.get(f.name, f.type)) for f in msgspec.structs.fields(record) if f.name not in without]
    return msgspec.defstruct(f"_Older{record.__name__}", fields, frozen=True, forbid_unknown_fields=True, kw_only=True)


_SOURCE = _older(SourceRecord, ("weights_key",))
_OLDER = {
    1: _older(Manifest, ("policy", "budgets"), source=_SOURCE, architecture=_CifarResNet),
    2: _older(Manifest, (), source=_SOURCE, architecture=_CifarResNet),
    3: _older(Manifest, (), architecture=_CifarResNet),
}
"""Manifests of older versions: version 2 added ``policy`` and ``budgets``, 3 ``weights_key``, 4 the explicit blocks."""


def _from_older(older: msgspec.Struct) -> Manifest:
    """A manifest of an older version as this version has it; raises UsageError if its architecture is impossible."""
    values = {"policy": None, "budgets": [], **msgspec.structs.asdict(older)}
    source = {"weights_key": None, **msgspec.structs.asdict(values["source"])}
    network = msgspec.structs.asdict(values["architecture"])
    del network["name"]
    network |= {"groups": tuple(network["groups"]), "widths": tuple(network["widths"])}
    values |= {"source": SourceRecord(**source), "architecture": cifar_resnet(**network)}
    return Manifest(**{**values, "schema_version": SCHEMA_VERSION})


class Head(msgspec.Struct):
    """What can be read of a manifest of any version."""

    schema_version: int
    producer: msgspec.Raw = msgspec.Raw(b"{}")
    source: msgspec.Raw = msgspec.Raw(b"null")
    files: msgspec.Raw = msgspec.Raw(b"{}")

    @property
    def is_ours(self) -> bool:
        """Whether it says that dfs-deploy wrote it."""
        try:
            return decode_json(bytes(self.producer), _Producer).name == PRODUCER
        except MalformedError:
            return False

    @property
    def listed(self) -> frozenset[str]:
        """Names of its files; empty if they cannot be read."""
        try:
            return frozenset(decode_json(bytes(self.files), dict[str, msgspec.Raw]))
        except MalformedError:
            return frozenset()

    @property
    def made_from(self) -> SourceHead | None:
        """The checkpoint that it says it was made from; ``None`` if it does not say, or cannot be read."""
        try:
            return decode_json(bytes(self.source), SourceHead)
        except MalformedError:
            return None


class SourceHead(msgspec.Struct):
    """What can be read of the checkpoint in a manifest of any version: its file's name, and the SHA-256 of that."""

    file: Name
    sha256: Digest


class _Producer(msgspec.Struct):
    name: str = ""


FORMAT = VersionedFormat(
    "manifest of a bundle",
    Manifest,
    SCHEMA_VERSION,
    "copy or export the bundle again",
    error=BundleError,
    version_error=SchemaVersionError,
    older={version: (older, _from_older) for version, older in _OLDER.items()},
)


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """Reads a manifest of this or an older version and checks it against the schema.

    Args:
        content: content of ``manifest.json``.
        path: path of the bundle, for messages.

    Returns:
        The manifest as this version has it, whichever it was written in.

    Raises:
        SchemaVersionError: a newer version wrote it, or one that never was.
        BundleError: it is not JSON, or a key is missing, unknown or of another type.
    """
    return FORMAT.decode(content, path / MANIFEST)


def input_of(manifest: Manifest) -> InputContract:
    """The input contract; raises UsageError if it cannot be."""
    record = manifest.input
    return InputContract(record.shape, tuple(record.mean), tuple(record.std), tuple(record.class_names))
