"""The data of a report: every number that the page shows, and what ``report --json`` prints.

Shares (top-1, share of inputs) are 0 to 1, percentages 0 to 100, times in the unit that their name ends in. Blocks are
counted as in the manifest: block 0 is the first, which is never gated. Records of the manifest, the runtime and the
bench are held as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from dfs_deploy.bench.result import BenchResult
from dfs_deploy.bundle.manifest import BudgetRecord, OptionRecord
from dfs_deploy.io.text import one_line
from dfs_deploy.runtimes import Substitution

SCHEMA = "dfs-deploy/report"
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Provenance:
    """The bundle: what it is and where it comes from.

    Attributes:
        name: name of its directory, without suffix.
        digest: SHA-256 of its manifest.
        bytes: size of all its files but the manifest.
        checkpoint: name of the checkpoint's file.
        checkpoint_sha256: SHA-256 of that file.
        architecture: name of the network, such as ``ResNet-38``.
        gated_blocks: number of blocks that the gate decides over.
        classes: number of classes.
        targets: precisions that it was exported in.
        calibration_method: name of the calibration method; ``None`` without calibration.
        calibration_data: name of the calibration data, or ``None``.
        calibration_samples: number of images that it was calibrated on, or ``None``.
    """

    name: str
    digest: str
    bytes: int
    checkpoint: str
    checkpoint_sha256: str
    architecture: str
    gated_blocks: int
    classes: int
    targets: tuple[str, ...]
    calibration_method: str | None
    calibration_data: str | None
    calibration_samples: int | None


@dataclass(frozen=True)
class Outcome:
    """The network's results on the inputs.

    Attributes:
        data: name of the inputs.
        inputs: number of inputs.
        labelled: whether they have labels.
        top1: share of right answers, or ``None`` without labels.
        computation_percentage: mean over the inputs.
        distinct_paths: number of different paths that they took.
    """

    data: str
    inputs: int
    labelled: bool
    top1: float | None
    computation_percentage: float
    distinct_paths: int


Kind = Literal["dynamic", "static", "budget"]
"""The network at its own operating point (its accuracy budget, else as trained), a static one, or one at a budget."""


@dataclass(frozen=True)
class Point:
    """A point of the accuracy-latency frontier; those of a bundle were timed in the same rounds, on the same inputs.

    Attributes:
        bundle: name of the bundle.
        name: name of the case in the bench: ``dfs``, ``static-int8``, ``dfs@other``, ``static-int8@other``,
            ``dfs-budget-20``.
        kind: kind of network.
        p50_ms: median latency of a call.
        p95_ms: 95th percentile of the latency, or ``None``.
        top1: share of right answers on the bench's own inputs, or ``None`` if none is known.
        computation_percentage: mean over the inputs, of a dynamic case.
        latency_ratio: median latency over that of the case ``dfs`` of the same run; not reliable if the bench is not
            ``valid``.
        top1_change: ``top1`` less that of the case ``dfs``.
        front: whether it is a static network and no other static one of the same run is both as fast and as accurate.
    """

    bundle: str
    name: str
    kind: Kind
    p50_ms: float
    p95_ms: float | None
    top1: float | None
    computation_percentage: float | None
    latency_ratio: float | None
    top1_change: float | None
    front: bool


@dataclass(frozen=True)
class Decision:
    """How often the gate chose an option at a block (the paper's Figures 8 to 10).

    Attributes:
        block: index of the block.
        group: group of the block in the backbone, from 1.
        option: name of the option.
        share: share of the inputs that took it.
    """

    block: int
    group: int
    option: str
    share: float


@dataclass(frozen=True)
class HotPath:
    """One of the commonest paths.

    Attributes:
        rank: position among the commonest, from 1.
        path: name of the option at each gated block.
        inputs: number of inputs that took it.
        share: share of the inputs.
        computation_percentage: cost of the path.
        top1: share of right answers on it, or ``None`` without labels.
    """

    rank: int
    path: tuple[str, ...]
    inputs: int
    share: float
    computation_percentage: float
    top1: float | None


@dataclass(frozen=True)
class Branch:
    """A branch of the tree of the hottest paths: the inputs that agree in all decisions up to a block.

    Attributes:
        block: index of the block.
        group: group of the block in the backbone, from 1.
        option: name of the option chosen there.
        inputs: number of inputs in the branch.
        share: share of all inputs.
        start: position among the inputs of the tree, as a share of all inputs; branches of a block do not overlap.
        end: ``start + share``.
    """

    block: int
    group: int
    option: str
    inputs: int
    share: float
    start: float
    end: float


@dataclass(frozen=True)
class EngineFigures:
    """One engine of one option of one block: how long it takes here, and how far it is from full precision.

    Attributes:
        block: index of the block.
        group: group of the block in the backbone, from 1.
        option: name of the option.
        precision: precision of the engine.
        serves: whether this engine runs if the gate chooses the option here.
        share: share of the inputs that took the option at the block.
        layout: layout in which most features arrive at the block; the engine was timed on it.
        median_us: median time of the engine by itself, at batch 1.
        samples: number of inputs whose features the error was measured on; 0 if there is nothing to compare with.
        measured_on: ``routed``: the inputs that the gate sends there; ``reached``: it sends none, so all.
        relative_rms_error: root-mean-square difference from the float32 engine of the same option, over that of its
            output; ``None`` for the float32 engine itself, and if a value is not finite.
        relative_max_error: greatest difference over the greatest output, in the same way.
        finite: whether every output was a finite number.
    """

    block: int
    group: int
    option: str
    precision: str
    serves: bool
    share: float
    layout: str
    median_us: float
    samples: int
    measured_on: Literal["routed", "reached"] | None
    relative_rms_error: float | None
    relative_max_error: float | None
    finite: bool


@dataclass(frozen=True)
class Example:
    """One of the inputs, with the path that it took.

    Attributes:
        end: ``easy``: among the cheapest paths; ``hard``: among the most expensive.
        image: PNG as a ``data:`` address.
        label: name of its class, or ``None``.
        answer: name of the class that the network saw.
        correct: whether they agree, or ``None``.
        probability: softmax of the answer's logit.
        path: name of the option at each gated block.
        computation_percentage: cost of the path.
    """

    end: Literal["easy", "hard"]
    image: str
    label: str | None
    answer: str
    correct: bool | None
    probability: float
    path: tuple[str, ...]
    computation_percentage: float


@dataclass(frozen=True)
class BundleReport:
    """All that a report says of one bundle.

    Attributes:
        facts: the bundle and where it comes from.
        options: options of the gate, in its order.
        substitutions: options that an engine of another precision serves here.
        outcome: results on the inputs.
        notes: what was assumed or looks like a mistake, one line each.
        bench: bench of this machine, or from a file; that of all bundles if they were timed together.
        bench_differs: differences between the bench and what runs now, one line each; empty for a bundle
            that another one was compared with, for the bench does not tell how it ran.
        frontier: accuracy against latency, the network at its own operating point first; with the bundle's own cases
            alone if the others are bundles of the report that were timed together.
        decisions: shares of each block and option.
        paths: the commonest, first to last.
        paths_listed: number of them.
        paths_share: share of the inputs that took one of them.
        tree: branches of the same paths.
        engines: times and errors by block, option and precision.
        budgets: operating points as calibrated at export, least first; empty if the bundle has none.
        examples: easy ones first; empty if they were not wanted.
    """

    facts: Provenance
    options: tuple[OptionRecord, ...]
    substitutions: tuple[Substitution, ...]
    outcome: Outcome
    notes: tuple[str, ...]
    bench: BenchResult
    bench_differs: tuple[str, ...]
    frontier: tuple[Point, ...]
    decisions: tuple[Decision, ...]
    paths: tuple[HotPath, ...]
    paths_listed: int
    paths_share: float
    tree: tuple[Branch, ...]
    engines: tuple[EngineFigures, ...]
    budgets: tuple[BudgetRecord, ...]
    examples: tuple[Example, ...]

    @property
    def point(self) -> str:
        """Operating point of its dynamic network in the bench, in words; empty if as trained."""
        return self.bench.point_of(self.facts.digest)

    def __repr__(self) -> str:
        return f"<BundleReport {one_line(self.facts.name)}: {self.outcome.inputs} inputs, {len(self.engines)} engines>"


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        version: version of dfs-deploy.
        made: time of making, UTC, as ISO 8601.
        bundles: one report per bundle, in the order in which they were given.
        together: whether all bundles were timed in one run, which is then the ``bench`` of each.
        schema: ``dfs-deploy/report``.
        schema_version: version of these keys.
    """

    version: str
    made: str
    bundles: tuple[BundleReport, ...]
    together: bool = False
    schema: str = SCHEMA
    schema_version: int = SCHEMA_VERSION

    def __repr__(self) -> str:
        names = ", ".join(one_line(each.facts.name) for each in self.bundles)
        return f"<Report of {len(self.bundles)} bundle(s), made {self.made}: {names}>"

    def as_json(self) -> dict[str, Any]:
        """The report as plain values: the object of ``report --json``, which the page embeds.

        Names come from outside, and a page shows them in places that no template escapes, such as a chart's tooltip:
        characters that are not visible stand in them as escapes.
        """
        value: dict[str, Any] = _visible(msgspec.to_builtins(self))
        return value


def _visible(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item if key == "image" else _visible(item) for key, item in value.items()}  # our own PNG
    if isinstance(value, list | tuple):
        return [_visible(item) for item in value]
    return one_line(value) if isinstance(value, str) else value
