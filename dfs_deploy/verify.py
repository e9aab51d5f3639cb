"""The verb ``verify``: a bundle compared with the checkpoint that it was made from, and the result kept in a file.

A result can be judged again with other thresholds, without PyTorch and without running anything:

    found = dfs_deploy.verify("net.dfs", "net.pt", "data.npz")
    found.passed, found.missed(max_top1_drop=0.01)
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from dfs_deploy.errors import CheckpointError, SavedResultError, UsageError
from dfs_deploy.io.files import sha256_file
from dfs_deploy.io.json_files import LONGEST_NAME, Digest, Name, Percentage, Share, VersionedFormat
from dfs_deploy.io.text import one_line
from dfs_deploy.options import Budget
from dfs_deploy.progress import Progress, silent
from dfs_deploy.system.libraries import required
from dfs_deploy.thresholds import VERIFY_MAX_COMPUTATION_CHANGE, VERIFY_MAX_TOP1_DROP, VERIFY_MIN_ROUTE_AGREEMENT
from dfs_deploy.verbs import make_callable

if TYPE_CHECKING:
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.data import AnyImages
    from dfs_deploy.exporters.validation import EngineDeviation
    from dfs_deploy.models import DFSNetwork

__all__ = ["DeviationRecord", "Verification", "check_thresholds", "load_verification", "save_verification", "verify"]

SCHEMA: Final = "dfs-deploy/verify"
SCHEMA_VERSION: Final = 2
"""Version 2 added ``notes`` and ``assumptions``; a file of version 1 is read as if they were empty."""

PER_BLOCK_SAMPLES: Final = 256
"""Maximum number of images that the deviations of engines are measured on; fewer if they are large."""

_ROUNDING = 1e-9

_LOG = logging.getLogger(__name__)


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the file: immutable, and strict about its keys."""


class DeviationRecord(_Record, frozen=True, kw_only=True):
    """Deviation of one engine of a block from what its option means in the PyTorch reference.

    Attributes:
        block: index of the block.
        option: name of the option.
        precision: precision of the engine.
        runtime: runtime that the engine was made for.
        layout: layout of the features that it takes.
        max_relative: greatest absolute error over the greatest absolute output; ``None`` if a value is not finite.
        rms_relative: root-mean-square error over that of the output; ``None`` if a value is not finite.
        tolerance: limit that export holds engines to: on ``rms_relative`` for INT8, on ``max_relative`` for others.
        passed: whether the deviation is within the tolerance.
    """

    block: Annotated[int, Meta(ge=0)]
    option: Name
    precision: Name
    runtime: Name
    layout: Name = msgspec.field(name="form")
    max_relative: float | None
    rms_relative: float | None
    tolerance: float
    passed: bool

    @property
    def judged(self) -> float | None:
        """The figure that the tolerance limits."""
        return self.rms_relative if self.precision == "int8" else self.max_relative


class Verification(_Record, frozen=True, kw_only=True):
    """A bundle compared with its reference; shares are 0 to 1, percentages 0 to 100.

    Attributes:
        schema: name of the file's format.
        schema_version: version of its keys.
        version: version of dfs-deploy.
        bundle: name of the bundle.
        bundle_digest: SHA-256 of its manifest.
        checkpoint: name of the checkpoint's file.
        checkpoint_sha256: SHA-256 of that file.
        data: name of the data set.
        seed: seed that images were drawn with.
        budget: budget that the bundle was asked to run at; ``None`` for its own, see ``Runtime.set_budget``.
        samples: number of images compared.
        top1_reference: share of right answers of the reference; ``None`` without labels.
        top1_bundle: share of right answers of the bundle; ``None`` without labels.
        route_agreement: share of block decisions equal to the reference's.
        block_agreement: route agreement at each gated block.
        computation_percentage_reference: mean over the images, in the reference.
        computation_percentage_bundle: mean over the images, in the bundle.
        max_abs_logit_error: greatest difference of a logit; ``None`` if one is not finite.
        per_block: deviation of each engine; ``None`` if it was not asked for.
        notes: facts about the data that the result depends on, and signs that it may be wrong, one line each.
        assumptions: assumptions about the checkpoint, one line each.
    """

    schema: Literal["dfs-deploy/verify"] = SCHEMA
    schema_version: Literal[1, 2] = SCHEMA_VERSION
    version: Name
    bundle: Name
    bundle_digest: Digest
    checkpoint: Name
    checkpoint_sha256: Digest
    data: Name
    seed: int
    budget: Share | Literal["trained"] | None
    samples: Annotated[int, Meta(ge=1)]
    top1_reference: Share | None
    top1_bundle: Share | None
    route_agreement: Share
    block_agreement: list[Share]
    computation_percentage_reference: Percentage
    computation_percentage_bundle: Percentage
    max_abs_logit_error: float | None
    per_block: list[DeviationRecord] | None
    notes: list[str] = []
    assumptions: list[str] = []

    def __repr__(self) -> str:
        missed = self.missed()
        outcome = f"missed: {'; '.join(missed)}" if missed else "passed"
        return f"<Verification {self.bundle} on {self.samples} images: {outcome}>"

    def missed(
        self,
        max_top1_drop: float = VERIFY_MAX_TOP1_DROP,
        min_route_agreement: float = VERIFY_MIN_ROUTE_AGREEMENT,
        max_computation_change: float = VERIFY_MAX_COMPUTATION_CHANGE,
    ) -> tuple[str, ...]:
        """The thresholds that the bundle misses, one line each; a figure equal to its threshold does not miss it.

        Args:
            max_top1_drop: share of right answers that may be lost, 0 to 1.
            min_route_agreement: share of block decisions that must agree, 0 to 1.
            max_computation_change: change of the computation percentage that is allowed, in points.

        Raises:
            UsageError: a threshold outside these ranges.
        """
        check_thresholds(max_top1_drop, min_route_agreement, max_computation_change)
        missed = []
        drop = (self.top1_reference or 0.0) - (self.top1_bundle or 0.0)
        change = abs(self.computation_percentage_bundle - self.computation_percentage_reference)
        if not drop <= max_top1_drop + _ROUNDING:
            missed.append(f"top-1 fell by {100 * drop:.2f} points, at most {100 * max_top1_drop:.2f} allowed")
        if not self.route_agreement >= min_route_agreement - _ROUNDING:
            seen, wanted = 100 * self.route_agreement, 100 * min_route_agreement
            missed.append(f"routes agree on {seen:.2f} %, at least {wanted:.2f} % wanted")
        if not change <= max_computation_change + _ROUNDING:
            missed.append(f"computation changed by {change:.2f} points, at most {max_computation_change:.2f} allowed")
        if self.max_abs_logit_error is None or not math.isfinite(self.max_abs_logit_error):
            missed.append("a logit is NaN or infinite")
        return tuple(missed)

    @property
    def passed(self) -> bool:
        """Whether the bundle meets every threshold of ``dfs_deploy.thresholds``."""
        return not self.missed()

    def as_json(self) -> dict[str, Any]:
        """Every key, as plain values."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value


def check_thresholds(max_top1_drop: float, min_route_agreement: float, max_computation_change: float) -> None:
    """Raises UsageError for thresholds out of range; see ``Verification.missed``."""
    for flag, value, greatest, unit, usual in (
        ("--max-top1-drop", max_top1_drop, 1, "a share", VERIFY_MAX_TOP1_DROP),
        ("--min-route-agreement", min_route_agreement, 1, "a share", VERIFY_MIN_ROUTE_AGREEMENT),
        ("--max-computation-change", max_computation_change, 100, "points", VERIFY_MAX_COMPUTATION_CHANGE),
    ):
        if not 0 <= value <= greatest:  # NaN as well
            raise UsageError(f"{flag} {value:g}, expected {unit}, 0 to {greatest}; give one, as in {usual:g}")


def verify(
    bundle: str | Path | Bundle,
    checkpoint: str | Path,
    data: AnyImages | str | Path,
    *,
    weights_key: str | None = None,
    samples: int | None = None,
    per_block: bool = False,
    budget: Budget = None,
    threads: int | None = None,
    plan: bool = True,
    prepared: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> Verification:
    """Runs a bundle and its PyTorch reference on the same images; needs the extra ``export``.

    Args:
        bundle: a bundle, or its path.
        checkpoint: path of the checkpoint that it was made from.
        data: images, or their path, as in ``dfs_deploy.load_dataset``.
        weights_key: weights to take from the checkpoint; ``None`` for those that export took.
        samples: number of images to draw; ``None`` for all.
        per_block: whether the deviation of each engine is measured as well.
        budget: budget of the bundle and the reference, see ``Runtime.set_budget``.
        threads: CPU threads of PyTorch and of an engine; ``None`` for what the machine grants PyTorch, 1 for an engine.
        plan: whether the choice of engines that ``bench --save-plan`` measured here is used.
        prepared: whether engines prepared for this machine run.
        seed: seed that images are drawn with, 0 or above.
        progress: callback of the progress.

    Raises:
        MissingExtraError: PyTorch is not installed.
        BundleError: the bundle cannot be read.
        CheckpointError: the checkpoint cannot be read, or holds another network than the bundle.
        DataError: the data cannot be read, or has a class that the network does not know.
    """
    with required():
        import torch

        from dfs_deploy.checkpoints import CheckpointFacts, load_checkpoint
        from dfs_deploy.exporters import compare
        from dfs_deploy.exporters.reference import Reference, images_at_once
        from dfs_deploy.exporters.validation import compare_engines
        from dfs_deploy.models.threads import torch_threads
    from dfs_deploy import __version__
    from dfs_deploy.data import open_dataset
    from dfs_deploy.runtimes import Runtime

    checkpoint = Path(checkpoint)
    opened = Runtime(bundle, threads=threads, plan=plan, prepared=prepared, budget=budget)
    with opened as runtime, torch_threads(threads):
        source = runtime.bundle.manifest.source
        # Export settled what the checkpoint leaves open; here only the choice of weights matters.
        facts = CheckpointFacts(weights_key or source.weights_key, input_size=runtime.input.shape[1:])
        loaded = load_checkpoint(checkpoint, runtime.options, facts)
        _check_network(checkpoint, loaded.network, runtime.bundle)
        images = open_dataset(data, size=runtime.input.geometry) if isinstance(data, str | Path) else data
        labelled = images.labelled_for(runtime.bundle.architecture.classes, runtime.input.class_names)
        drawn = labelled if samples is None else labelled.subset(samples, seed)
        _LOG.info("%s against %s on %d images", runtime.bundle.path, checkpoint, len(drawn))
        result = compare(runtime, loaded.network, drawn, progress)
        deviations = None
        if per_block:
            progress("comparing engines", 0.0)
            count = images_at_once(runtime.input.shape, PER_BLOCK_SAMPLES)
            normalized = runtime.input.normalize(drawn.select(slice(count)).load().images)
            reference = Reference.of(loaded.network, torch.from_numpy(normalized))
            deviations = compare_engines(runtime.bundle, reference)
        return Verification(
            version=__version__,
            bundle=one_line(runtime.bundle.name, LONGEST_NAME),
            bundle_digest=runtime.bundle.digest,
            checkpoint=one_line(checkpoint.name, LONGEST_NAME),
            checkpoint_sha256=sha256_file(checkpoint),
            data=one_line(drawn.name, LONGEST_NAME),
            seed=seed,
            budget=budget,
            samples=result.samples,
            top1_reference=result.top1_reference,
            top1_bundle=result.top1_bundle,
            route_agreement=result.route_agreement,
            block_agreement=list(result.block_agreement),
            computation_percentage_reference=result.computation_percentage_reference,
            computation_percentage_bundle=result.computation_percentage_bundle,
            max_abs_logit_error=_finite(result.max_abs_logit_error),
            per_block=None if deviations is None else [_recorded(d) for d in deviations if d.option is not None],
            notes=[*drawn.notes, *result.suspicions],
            assumptions=list(dict.fromkeys((*source.assumptions, *loaded.notes))),
        )


def _check_network(checkpoint: Path, network: DFSNetwork, bundle: Bundle) -> None:
    """Refuses a checkpoint of another network or policy than a bundle's."""
    if network.architecture.without_macs() != bundle.architecture.without_macs():
        raise CheckpointError(
            f"{checkpoint} is another network than {bundle.path} was made from:"
            f" {network.architecture.beside(bundle.architecture)}; give the bundle's own"
        )
    names = None if network.policy is None else [network.options[choice].name for choice in network.policy]
    if names != bundle.manifest.policy:
        seen, expected = (",".join(policy) if policy else "a gate" for policy in (names, bundle.manifest.policy))
        raise CheckpointError(
            f"{checkpoint} decides by {seen}, expected {expected}, as {bundle.path} does; give the bundle's own"
        )


def _recorded(found: EngineDeviation) -> DeviationRecord:
    from dfs_deploy.exporters.validation import TOLERANCES

    if found.block is None or found.option is None:
        raise ValueError(f"{found.label} is not the engine of a block")
    return DeviationRecord(
        block=found.block,
        option=found.option,
        precision=found.precision,
        runtime=found.runtime,
        layout=found.layout,
        max_relative=_finite(found.max_relative),
        rms_relative=_finite(found.rms_relative),
        tolerance=TOLERANCES[found.precision],
        passed=found.passed,
    )


def _finite(value: float) -> float | None:
    """The value, or ``None`` if it is NaN or infinite, which JSON cannot hold."""
    return value if math.isfinite(value) else None


FORMAT = VersionedFormat(
    "saved result",
    Verification,
    SCHEMA_VERSION,
    "make it with dfs-deploy verify --save",
    error=SavedResultError,
    mark=("schema", SCHEMA),
    older={1: (Verification, lambda found: msgspec.structs.replace(found, schema_version=SCHEMA_VERSION))},
)


def save_verification(path: Path, verification: Verification) -> None:
    """Writes a result to a file, which is replaced as a whole."""
    FORMAT.write(path, verification)


def load_verification(path: Path, bundle: str | Path | None = None) -> Verification:
    """Reads a result that ``save_verification`` wrote, strictly.

    Args:
        path: file of the result.
        bundle: path of the bundle that it must be about; ``None`` for any.

    Raises:
        SavedResultError: the file cannot be read, is of another version, a key is missing, unknown or of another type,
            or the result is about another bundle.
        BundleError: the bundle cannot be read.
    """
    found = FORMAT.read(path)
    if bundle is not None:
        from dfs_deploy.bundle import Bundle

        digest = Bundle(bundle).digest
        if digest != found.bundle_digest:
            raise SavedResultError(
                f"{path} is about a bundle with digest {found.bundle_digest[:12]}, {bundle} has {digest[:12]};"
                " verify that bundle"
            )
    return found


make_callable(__name__)
