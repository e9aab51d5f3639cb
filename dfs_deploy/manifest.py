"""The schema of ``manifest.json``, strict about its keys, and what the schema cannot say.

docs/bundle-format.md describes it for people.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from dfs_deploy.architecture import Architecture
from dfs_deploy.decoding import UNREADABLE
from dfs_deploy.errors import BundleError, SchemaVersionError
from dfs_deploy.options import Option, Options, Precision
from dfs_deploy.preprocessing import InputContract

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
PRODUCER = "dfs-deploy"

Form = Literal["float32", "uint8"]
"""How a feature map is kept: float32, or uint8 on the grid of its group."""

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Meta(ge=1, le=1 << 16)]
"""Bounded, so that no manifest makes a reader take memory without end."""

NotNegative = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Percentage = Annotated[float, Meta(ge=0, le=100)]


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
        gate: the gate's step; its weights are among its outputs. ``None`` for a network with a static policy.
        feature_scales: a scale a block, first block included: what one step of uint8 is worth in its output's form.
        static: by precision, the whole backbone as one engine, every block run: the baselines of a bench.
    """

    stem: Engine
    blocks: list[BlockEngines]
    head: Engine
    gate: str | None
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
    groups: Annotated[list[Annotated[int, Meta(ge=1, le=1000)]], Meta(max_length=16)]
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
        tensor: ``images``, ``conv1``, ``conv2``, ``projection`` (inputs), ``conv2_out``, ``projection_out``,
            ``shortcut`` and ``output``.
        low: least value.
        high: greatest value.
        source: ``routed``: measured on what the gate sends there; ``reached``: the gate sent nothing, so measured on
            all that reached the block; ``checkpoint``: the checkpoint's own; ``statistics``: from batch normalisation.
        samples: how many samples it was measured on.
    """

    block: NotNegative
    option: str
    tensor: Literal["images", "conv1", "conv2", "projection", "conv2_out", "projection_out", "shortcut", "output"]
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
    samples: Annotated[int, Meta(ge=1)]
    top1_reference: float | None
    top1_bundle: float | None
    top1_static: dict[Precision, float]
    route_agreement: float
    computation_percentage_reference: float
    computation_percentage_bundle: float
    max_abs_logit_error: float
    option_share: list[list[float]]


class BudgetRecord(_Record, frozen=True, kw_only=True):
    """An operating point of the gate, measured on calibration data in the bundle's own runtime.

    Attributes:
        budget: computation that was asked for, as a share of running every gated block in full precision.
        bias: that holds it: ``bias`` times an option's cost is taken from the option's score; negative where the
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

    option: str
    wanted: Precision
    served_by: Precision
    reason: str


class SourceRecord(_Record, frozen=True, kw_only=True, omit_defaults=True):
    """The checkpoint that the bundle was made from.

    Attributes:
        assumptions: what it does not say and was taken for granted, a line each.
        weights_key: which of several weights in it were taken; ``None`` if there is one.
    """

    file: str
    format: str
    sha256: Digest
    assumptions: list[str]
    weights_key: str | None = None


class Manifest(_Record, frozen=True, kw_only=True):
    """``manifest.json``: what the files of a bundle are.

    Attributes:
        policy: for a network without a gate, the name of the option that each gated block always runs; else ``None``.
        budgets: operating points of the gate, least budget first; empty where none was calibrated.
    """

    schema_version: int
    producer: dict[str, str]
    source: SourceRecord
    architecture: ArchitectureRecord
    options: list[OptionRecord]
    policy: list[str] | None
    budgets: list[BudgetRecord]
    targets: list[Precision]
    input: InputRecord
    runtimes: dict[str, RuntimeEngines]
    calibration: CalibrationRecord | None
    accuracy: AccuracyRecord | None
    substitutions: list[ServedRecord]
    samples: str | None
    files: dict[str, FileRecord]


class Head(msgspec.Struct):
    """What can be read of a manifest of any version."""

    schema_version: int
    producer: dict[str, Any] = {}
    files: Any = None


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """Reads a manifest of this or an older version and checks it against the schema.

    Args:
        content: of ``manifest.json``.
        path: of the bundle, for messages.

    Returns:
        The manifest as this version has it, whichever it was written in.

    Raises:
        SchemaVersionError: a newer version wrote it, or one that never was.
        BundleError: it is not JSON, or a key is missing, unknown or of another type.
    """
    try:
        version = msgspec.json.decode(content, type=Head).schema_version
        if not 1 <= version <= SCHEMA_VERSION:
            known, remedy = f"1 to {SCHEMA_VERSION}", "update dfs-deploy" if version > 1 else "export it again"
            raise SchemaVersionError(f"{path} has schema version {version}, expected {known}; {remedy}")
        if version == 1:
            return msgspec.convert(_upgraded(msgspec.json.decode(content)), Manifest)
        return msgspec.json.decode(content, type=Manifest)
    except UNREADABLE as error:
        raise BundleError(f"{path}: {MANIFEST} is malformed ({error}); copy or export the bundle again") from error


def _upgraded(first: dict[str, Any]) -> dict[str, Any]:
    """The values of a version 1 manifest as version 2 has them; a key that version 1 did not have is refused."""
    added: dict[str, Any] = {"policy": None, "budgets": []}
    for key in sorted(added.keys() & first.keys()):
        raise msgspec.ValidationError(f"Object contains unknown field `{key}`")
    return {**first, **added, "schema_version": 2}


def architecture_of(manifest: Manifest) -> Architecture:
    """The architecture; raises UsageError where it cannot be."""
    record = manifest.architecture
    return Architecture(
        groups=tuple(record.groups),
        widths=tuple(record.widths),
        classes=record.classes,
        image_shape=record.image_shape,
        gate_embedding=record.gate_embedding,
        gate_hidden=record.gate_hidden,
    )


def input_of(manifest: Manifest) -> InputContract:
    """The input contract; raises UsageError where it cannot be."""
    record = manifest.input
    return InputContract(record.shape, tuple(record.mean), tuple(record.std), tuple(record.class_names))


def contradictions(manifest: Manifest, options: Options, architecture: Architecture) -> Iterator[str]:
    """What the schema cannot say: yields a line for each part of a manifest that does not go with another."""
    if [(o.name, o.cost) for o in manifest.options] != [(o.name, o.cost) for o in options]:
        yield "names or costs of options do not go with their bits"
    if manifest.input.shape != architecture.image_shape:
        yield "input shape and architecture disagree"
    if manifest.input.class_names and len(manifest.input.class_names) != architecture.classes:
        yield f"{len(manifest.input.class_names)} class names for {architecture.classes} classes"
    if manifest.samples is not None and manifest.samples not in manifest.files:
        yield f"{manifest.samples} is not among its files"
    points = manifest.budgets
    if any(low.budget >= high.budget or low.bias < high.bias for low, high in itertools.pairwise(points)):
        yield "budgets do not rise, or their biases do not fall"
    if manifest.policy is not None:
        for problem in _policy_problems(manifest.policy, manifest, options, architecture):
            yield problem
            return  # what follows asks the policy about every block
    for name, engines in manifest.runtimes.items():
        for problem in _gaps(engines, manifest, options, architecture):
            yield f"the {name} engines {problem}"


def _policy_problems(
    policy: list[str], manifest: Manifest, options: Options, architecture: Architecture
) -> Iterator[str]:
    if len(policy) != architecture.gated_blocks:
        yield f"a policy for {len(policy)} gated blocks, the architecture has {architecture.gated_blocks}"
    for name in sorted(set(policy) - set(options.names)):
        yield f"the policy names option {name!r}, which is not among {options}"
    if manifest.budgets:
        yield "budgets for a network whose policy is static"


def _gaps(engines: RuntimeEngines, manifest: Manifest, options: Options, architecture: Architecture) -> Iterator[str]:
    if len(engines.blocks) != architecture.gated_blocks:  # counted before a block of it is made
        yield f"are for {len(engines.blocks)} gated blocks, the architecture has {architecture.gated_blocks}"
        return
    if (engines.gate is None) != (manifest.policy is not None):
        yield "have a gate beside a static policy, or neither"
    shapes = list(architecture.block_shapes())
    if [block.index for block in engines.blocks] != [shape.index for shape in shapes[1:]]:
        yield "do not cover every gated block"
        return
    if len(engines.feature_scales) != len(shapes) or min(engines.feature_scales) <= 0.0:
        yield "have no positive feature scale for every block"
    choices = _choices(manifest, options, architecture)
    for block, shape, choice in zip(engines.blocks, shapes[1:], choices, strict=True):
        names = {option.name for option in choice if not option.skips}
        if set(block.options) != names or not all(block.options.values()):
            yield f"do not cover every option of block {block.index}"
        if any(option.skips for option in choice) and (block.skip is not None) != shape.projects:
            yield f"have a projection too many or too few at block {block.index}"
    yield from _unreached(engines, choices)
    files = [*engines.static.values(), *([] if engines.gate is None else [engines.gate])]
    every = [engines.stem, engines.head]
    for block in engines.blocks:
        every += [engine for served in block.options.values() for engine in served]
        every += [] if block.skip is None else [block.skip]
    files += [file for engine in every for file in engine.files.values()]
    for file in sorted(set(files) - set(manifest.files)):
        yield f"name {file}, which is not among the bundle's files"


def _choices(manifest: Manifest, options: Options, architecture: Architecture) -> list[list[Option]]:
    """The options that each gated block may run: all of them, or with a policy its own."""
    if manifest.policy is None:
        return [list(options)] * architecture.gated_blocks
    return [[option for option in options if option.name == name] for name in manifest.policy]


def _unreached(engines: RuntimeEngines, choices: list[list[Option]]) -> Iterator[str]:
    """A line for each engine that has no variant for a form in which features may reach it."""

    def missing(engine: Engine, forms: set[Form], label: str) -> Iterator[str]:
        for form in sorted(forms - set(engine.files)):
            yield f"have no variant of {label} for {form} features, which may reach it"

    yield from missing(engines.stem, {"float32"}, "the stem")
    forms: set[Form] = {engines.stem.output}
    for block, choice in zip(engines.blocks, choices, strict=True):
        skips = any(option.skips for option in choice)
        left: set[Form] = forms if skips and block.skip is None else set()
        served = [(name, engine) for name, listed in block.options.items() for engine in listed]
        if skips and block.skip is not None:
            served.append(("skip", block.skip))
        for name, engine in served:
            yield from missing(engine, forms, f"block {block.index}, option {name}")
        forms = left | {engine.output for _, engine in served}
    yield from missing(engines.head, forms, "the head")
