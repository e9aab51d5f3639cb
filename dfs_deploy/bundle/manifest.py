"""Schema of ``manifest.json``, strict about its keys; docs/bundle-format.md describes it for people."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from dfs_deploy.errors import BundleError, SchemaVersionError
from dfs_deploy.geometry import Interpolation
from dfs_deploy.io.json_files import Digest, Name, Percentage, Share, VersionedFormat
from dfs_deploy.network import MAX_BLOCKS, Architecture, Block, GateSize, cifar_resnet
from dfs_deploy.options import Precision
from dfs_deploy.preprocessing import (
    MAX_CLASSES,
    MAX_MEAN,
    MAX_NAME,
    MAX_STD,
    MIN_STD,
    InputContract,
)
from dfs_deploy.system.cpu import TargetCpu

SCHEMA_VERSION = 5
MANIFEST = "manifest.json"
PRODUCER = "dfs-deploy"

Layout = Literal["float32", "uint8"]
"""Layout of a feature map: float32 (N, C, H, W), or uint8 (N, H, W, C) on the grid of its group."""

RuntimeName = Annotated[str, Meta(pattern=r"^(onnxruntime|tensorrt)\Z")]

MAX_FILE = 1 << 30
"""Most bytes of a file of a bundle, except that of the weights, which are read one by one."""

MAX_BUNDLE = 16 << 30
"""Most bytes of all files of a bundle."""

# Numbers and lengths are bounded, so that no manifest can exhaust the memory or time of a reader.
ClassName = Annotated[str, Meta(max_length=MAX_NAME)]

Sentence = Annotated[str, Meta(max_length=4096)]
Positive = Annotated[int, Meta(ge=1, le=1 << 16)]
NotNegative = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Value = Annotated[float, Meta(ge=-3.5e38, le=3.5e38)]
Scale = Annotated[float, Meta(ge=1e-38, le=1e38)]
"""Positive number that float32 can represent."""

Change = Annotated[float, Meta(ge=-1, le=1)]
"""Difference of two shares."""

ZeroPoint = Annotated[int, Meta(ge=0, le=255)]

PixelMean = Annotated[float, Meta(ge=-MAX_MEAN, le=MAX_MEAN)]
PixelDeviation = Annotated[float, Meta(ge=MIN_STD, le=MAX_STD)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Part of the manifest: immutable, and strict about its keys."""


class FileRecord(_Record, frozen=True, kw_only=True):
    """SHA-256 and size in bytes of a file of the bundle."""

    sha256: Digest
    size: Annotated[int, Meta(ge=0, le=MAX_BUNDLE)]


class Engine(_Record, frozen=True, kw_only=True):
    """One engine, with a file for one layout of its input or for each.

    Attributes:
        precision: precision of the arithmetic.
        output: layout of the output.
        files: path in the bundle, by layout of the input. Features that arrive in a layout without a file are converted
            first, on the grid of the block before.
    """

    precision: Precision
    output: Layout
    files: dict[Layout, Name]


class BlockEngines(_Record, frozen=True, kw_only=True):
    """Engines of one block after the first.

    Attributes:
        index: index of the block, at least 1, because block 0 belongs to the stem.
        skip: projection that a skip runs, or ``None`` if a skip is free.
        options: engines by option name, the preferred one first.
    """

    index: Positive
    skip: Engine | None
    options: dict[Name, Annotated[list[Engine], Meta(max_length=8)]]


class RuntimeEngines(_Record, frozen=True, kw_only=True):
    """Engines for one runtime.

    Attributes:
        stem: engine from images to the output of the first block.
        blocks: engines of the blocks after the first, in order.
        head: engine from the last features to logits.
        gate: file of the gate's step, whose outputs include its weights; ``None`` for a static policy.
        feature_scales: scale of the uint8 grid of each block's output, the first block included.
        feature_zero_points: zero point of each of these grids: the value v means ``scale * (v - zero_point)``.
        static: file of the whole backbone in one precision, by precision; the baselines of bench.
    """

    stem: Engine
    blocks: list[BlockEngines]
    head: Engine
    gate: Name | None
    feature_scales: list[Scale]
    feature_zero_points: list[ZeroPoint]
    static: dict[Precision, Name]


class OptionRecord(_Record, frozen=True, kw_only=True):
    """Option of the gate, with its cost relative to the full-precision block."""

    name: Name
    bits: Annotated[int, Meta(ge=0, le=32)]
    cost: Annotated[float, Meta(ge=0, le=1)]


class InputRecord(_Record, frozen=True, kw_only=True):
    """Input contract; see ``InputContract``."""

    shape: tuple[Positive, Positive, Positive]
    mean: list[PixelMean]
    std: list[PixelDeviation]
    class_names: Annotated[list[ClassName], Meta(max_length=MAX_CLASSES)]
    resize: Positive | None
    interpolation: Interpolation


class RangeRecord(_Record, frozen=True, kw_only=True):
    """Calibrated interval of one tensor.

    Attributes:
        block: index of the block.
        option: name of the option; ``always`` for what runs the same way whatever the gate decides (stem, head and
            skips), or ``static`` for the static INT8 baseline.
        tensor: name of a value in the block's graphs: the name of the node that makes it, ``input`` or ``output``.
        low: least value.
        high: greatest value.
        source: ``routed`` if measured on the samples that the gate sent there, ``reached`` if it sent none and all
            samples at the block were used, ``checkpoint`` if stored in the checkpoint, or ``statistics`` if derived
            from batch normalisation.
        samples: number of samples.
    """

    block: NotNegative
    option: Name
    tensor: Name
    low: Value
    high: Value
    source: Literal["routed", "reached", "checkpoint", "statistics"]
    samples: NotNegative


class CalibrationRecord(_Record, frozen=True, kw_only=True):
    """Calibration of the INT8 engines.

    Attributes:
        method: source of the ranges.
        data: name of the data set; ``None`` without data.
        samples: number of images.
        seed: seed that images were drawn with.
        weight_bits: bits of the weights of engines for ONNX Runtime.
        target_cpu: kind of CPU that these were made for; ``None`` if an earlier version made them.
        ranges: interval of every tensor that is rounded.
    """

    method: Name
    data: Name | None
    samples: NotNegative
    seed: NotNegative
    weight_bits: Literal[7, 8]
    target_cpu: TargetCpu | None = None
    ranges: list[RangeRecord]


class AccuracyRecord(_Record, frozen=True, kw_only=True):
    """Measurements of export on the calibration data; shares are 0 to 1, percentages 0 to 100.

    Attributes:
        data: name of the data set.
        samples: number of images.
        top1_reference: accuracy of the PyTorch reference.
        top1_bundle: accuracy of the bundle on ONNX Runtime.
        top1_static: accuracy of each static baseline, by precision.
        route_agreement: share of block decisions that equal the reference's.
        computation_percentage_reference: mean over the samples, in the reference.
        computation_percentage_bundle: mean over the samples, in the bundle.
        max_abs_logit_error: largest absolute difference of a logit.
        option_share: share of samples that took each option in the bundle, for each block after the first.
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
    """Operating point of the gate, measured on calibration data with the bundle's runtime.

    Attributes:
        budget: requested computation, as a share of running every decided block in full precision.
        bias: bias that reaches the budget: ``bias`` times the cost of an option is subtracted from its score; negative
            if the network is to compute more than it was trained for.
        computation_percentage: measured computation, mean over the samples.
        top1: accuracy, or ``None`` without labels.
        latency_ms: median latency of one image on the measuring machine, or ``None``.
        samples: number of images.
    """

    budget: Share
    bias: Annotated[float, Meta(ge=-1e6, le=1e6)]
    computation_percentage: Percentage
    top1: Share | None
    latency_ms: Annotated[float, Meta(gt=0)] | None
    samples: Annotated[int, Meta(ge=1)]


class AccuracyHalf(_Record, frozen=True, kw_only=True):
    """One half of the images that an accuracy budget was made on, with the figures measured on it.

    Attributes:
        samples: number of images.
        top1: accuracy with the budget.
        top1_trained: accuracy with the gate as trained.
        top1_reference: accuracy of the reference.
        top1_change: ``top1`` less ``top1_reference``.
        top1_change_low: lower end of the 95 % interval of that; see ``dfs_deploy.paired``.
        top1_change_high: upper end.
        computation_percentage: computation with the budget, mean over the images.
        computation_percentage_trained: computation with the gate as trained.
        time_percentage: time of the decided blocks by the latency table, 100 for the slowest path; ``None`` without a
            table.
        time_percentage_trained: the same with the gate as trained.
    """

    samples: Annotated[int, Meta(ge=1)]
    top1: Share
    top1_trained: Share
    top1_reference: Share
    top1_change: Change
    top1_change_low: Change
    top1_change_high: Change
    computation_percentage: Percentage
    computation_percentage_trained: Percentage
    time_percentage: Percentage | None
    time_percentage_trained: Percentage | None


class ReferenceRecord(_Record, frozen=True, kw_only=True):
    """Network that an accuracy budget may not fall too far below.

    Attributes:
        kind: ``most-precise-path`` (this network with every block at its most precise option), ``as-trained`` (this
            network as its gate was trained), ``bundle`` or ``checkpoint``.
        name: name of the bundle or the file; ``None`` for this network itself.
        sha256: digest of that bundle or file; ``None`` for this network itself.
    """

    kind: Literal["most-precise-path", "as-trained", "bundle", "checkpoint"]
    name: Name | None
    sha256: Digest | None


class AccuracyBudget(_Record, frozen=True, kw_only=True):
    """Cheapest operating point that loses little accuracy, which a runtime of the bundle holds by default.

    Attributes:
        max_top1_drop: share of right answers that it may lose against the reference.
        bias: bias on the gate's scores: ``bias`` times the price of an option is subtracted from its score.
        prices: (blocks after the first, options) price of each option: its time by a latency table; ``None`` for its
            computation, as of a ``BudgetRecord``.
        machine: machine that the latency table is of; ``None`` without one.
        reference: network that it is compared with.
        data: name of the data set.
        seed: seed by which its images were divided into two halves.
        chosen: half that the bias was chosen on.
        checked: other half, which shows what the choice is worth.
        looks: number of choices that were checked until one was not seen to lose more than is allowed. If above 1, the
            check had a part in the choice, so its interval is too good to prove anything.
    """

    max_top1_drop: Share
    bias: Annotated[float, Meta(ge=-1e6, le=1e6)]
    prices: list[list[Annotated[float, Meta(ge=0, le=1e6)]]] | None
    machine: Name | None
    reference: ReferenceRecord
    data: Name
    seed: NotNegative
    chosen: AccuracyHalf
    checked: AccuracyHalf
    looks: Positive

    @property
    def within(self) -> bool:
        """Whether all of the check's 95 % interval lies within the drop that is allowed."""
        return self.checked.top1_change_low >= -self.max_top1_drop

    @property
    def proved(self) -> bool:
        """Whether the check shows, with 95 % confidence, that no more is lost than is allowed.

        It does not if several choices were checked: one of them may be within by luck alone.
        """
        return self.within and self.looks == 1

    @property
    def refuted(self) -> bool:
        """Whether the check shows, with 95 % confidence, that more is lost than is allowed."""
        return self.checked.top1_change_high < -self.max_top1_drop

    @property
    def images_needed(self) -> int | None:
        """Images, both halves together, for which the check would prove or refute, if its estimate stayed.

        The interval narrows with the square root of their number; ``None`` if the estimate is what is just allowed.
        """
        away = abs(self.checked.top1_change + self.max_top1_drop)
        if away < 1e-6:
            return None
        width = (self.checked.top1_change_high - self.checked.top1_change_low) / 2.0
        return 2 * math.ceil(self.checked.samples * (width / away) ** 2)


class ServedRecord(_Record, frozen=True, kw_only=True):
    """Option that runs on an engine of another precision, as decided at export."""

    option: Name
    wanted: Precision
    served_by: Precision
    reason: Sentence


class SourceRecord(_Record, frozen=True, kw_only=True):
    """Checkpoint that the bundle was made from.

    Attributes:
        assumptions: facts that the checkpoint does not contain and that were assumed, one line each.
        weights_key: name of the weights that were taken; ``None`` if there is only one set.
    """

    file: Name
    format: Name
    sha256: Digest
    assumptions: Annotated[list[Sentence], Meta(max_length=256)]
    weights_key: Name | None


class Manifest(_Record, frozen=True, kw_only=True):
    """``manifest.json``: description of a bundle and its files.

    Attributes:
        policy: name of the option that each block after the first always runs, for a network without a gate; else
            ``None``.
        budgets: operating points of the gate, by rising budget; empty if none was calibrated.
        accuracy_budget: operating point that a runtime holds by default; ``None`` for the gate as trained.
        weights: file with the large constants of all ONNX files, each once; ``None`` if they are inside.
    """

    schema_version: int
    producer: Annotated[dict[Name, Name], Meta(max_length=64)]
    source: SourceRecord
    architecture: Architecture
    options: list[OptionRecord]
    policy: list[Name] | None
    budgets: list[BudgetRecord]
    accuracy_budget: AccuracyBudget | None = None
    targets: list[Precision]
    input: InputRecord
    runtimes: dict[RuntimeName, RuntimeEngines]
    calibration: CalibrationRecord | None
    accuracy: AccuracyRecord | None
    substitutions: list[ServedRecord]
    samples: Name | None
    weights: Name | None
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
_BLOCK = _older(Block, ("macs",))
_ARCHITECTURE = _older(
    Architecture,
    (),
    blocks=Annotated[tuple[_BLOCK, ...], Meta(min_length=1, max_length=MAX_BLOCKS)],  # type: ignore[valid-type]
)
_ENGINES = _older(RuntimeEngines, ("feature_zero_points",))
_BEFORE_5: dict[str, Any] = {
    "input": _older(InputRecord, ("resize", "interpolation")),
    "runtimes": dict[RuntimeName, _ENGINES],  # type: ignore[valid-type]
}
_NEW_IN_5 = ("accuracy_budget", "weights")
_OLDER = {
    1: _older(Manifest, ("policy", "budgets", *_NEW_IN_5), source=_SOURCE, architecture=_CifarResNet, **_BEFORE_5),
    2: _older(Manifest, _NEW_IN_5, source=_SOURCE, architecture=_CifarResNet, **_BEFORE_5),
    3: _older(Manifest, _NEW_IN_5, architecture=_CifarResNet, **_BEFORE_5),
    4: _older(Manifest, _NEW_IN_5, architecture=_ARCHITECTURE, **_BEFORE_5),
}
"""Manifests of older versions.

Version 2 added ``policy`` and ``budgets``, 3 ``weights_key``, 4 the explicit blocks, and 5 multiply-adds, zero points,
shared weights, how images are resized, and, both optional, ``target_cpu`` and ``accuracy_budget``.
"""


def _from_older(older: msgspec.Struct) -> Manifest:
    """A manifest of an older version as this version has it; raises UsageError if its architecture is impossible."""
    values = {"policy": None, "budgets": [], "weights": None, **msgspec.structs.asdict(older)}
    source = {"weights_key": None, **msgspec.structs.asdict(values["source"])}
    values["source"] = SourceRecord(**source)
    network = msgspec.structs.asdict(values["architecture"])
    if isinstance(values["architecture"], _CifarResNet):
        del network["name"]
        network |= {"groups": tuple(network["groups"]), "widths": tuple(network["widths"])}
        # The computation of an older bundle was reported as a mean over its blocks, and stays that.
        values["architecture"] = cifar_resnet(**network).without_macs()
    else:
        network["blocks"] = tuple(Block(**msgspec.structs.asdict(block)) for block in network["blocks"])
        values["architecture"] = Architecture(**network)
    values["input"] = InputRecord(**msgspec.structs.asdict(values["input"]), resize=None, interpolation="bilinear")
    values["runtimes"] = {
        name: RuntimeEngines(**msgspec.structs.asdict(engines), feature_zero_points=[0] * len(engines.feature_scales))
        for name, engines in values["runtimes"].items()
    }
    return Manifest(**{**values, "schema_version": SCHEMA_VERSION})


class SourceHead(msgspec.Struct):
    """File name and SHA-256 of the checkpoint, in a manifest of any version."""

    file: Name
    sha256: Digest


class _Producer(msgspec.Struct, frozen=True):
    name: str = ""


class Head(msgspec.Struct):
    """Readable part of a manifest of any version.

    Attributes:
        source: checkpoint that the bundle was made from, if the manifest names one.
        files: names of the files.
    """

    schema_version: int
    producer: _Producer = _Producer()
    source: SourceHead | None = None
    files: dict[str, msgspec.Raw] = {}

    @property
    def is_ours(self) -> bool:
        """Whether the manifest names dfs-deploy as its producer."""
        return self.producer.name == PRODUCER


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
    """Reads a manifest of any supported version, as the newest one; the path of the bundle is for messages.

    Raises:
        SchemaVersionError: the version is not supported.
        BundleError: it is not JSON, or a key is missing, unknown or of another type.
    """
    return FORMAT.decode(content, path / MANIFEST)


def input_of(manifest: Manifest) -> InputContract:
    """Input contract of a manifest; raises UsageError if it is impossible."""
    record = manifest.input
    mean, std, class_names = tuple(record.mean), tuple(record.std), tuple(record.class_names)
    return InputContract(record.shape, mean, std, class_names, record.resize, record.interpolation)
