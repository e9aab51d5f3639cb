"""The data of a report. Every number that the page shows is in it, and ``report --json`` prints it.

Shares (top-1, share of inputs) are 0 to 1, percentages 0 to 100, times in the unit that their name ends in. Blocks are
counted as in the manifest: block 0 is the first, which is never gated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from dfs_deploy.bench.result import BenchResult
from dfs_deploy.io.text import one_line

SCHEMA = "dfs-deploy/report"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class OptionFacts:
    """An option of the gate: its name, bits and cost relative to the full-precision block."""

    name: str
    bits: int
    cost: float


@dataclass(frozen=True)
class BundleFacts:
    """What a bundle is.

    Attributes:
        name: of the directory, without suffix.
        digest: SHA-256 of its manifest.
        bytes: of all its files but the manifest.
        checkpoint: name of the checkpoint's file.
        checkpoint_sha256: of that file.
        architecture: as ``ResNet-38``.
        gated_blocks: how many blocks the gate decides over.
        classes: how many classes there are.
        targets: precisions that it was exported in.
        calibration_method: ``None`` where nothing was calibrated.
        calibration_data: name of the calibration data, or ``None``.
        calibration_samples: how many images were used.
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
class SubstitutionFacts:
    """An option that an engine of another precision serves here, and why; ``blocks`` says at how many blocks."""

    option: str
    wanted: str
    served_by: str
    reason: str
    blocks: int


@dataclass(frozen=True)
class Outcome:
    """What the network made of the inputs.

    Attributes:
        data: name of the inputs.
        inputs: how many there were.
        labelled: whether accuracy could be told.
        top1: share of right answers, or ``None`` without labels.
        computation_percentage: mean over the inputs.
        distinct_paths: how many different paths they took.
    """

    data: str
    inputs: int
    labelled: bool
    top1: float | None
    computation_percentage: float
    distinct_paths: int


Kind = Literal["dynamic", "static", "budget"]
"""The network at its trained point, a static network, or the network at a budget."""


@dataclass(frozen=True)
class Point:
    """A point of the accuracy-latency frontier.

    Attributes:
        bundle: name of the bundle.
        name: name of the case in the bench: ``dfs``, ``static-int8``, ``static-int8@other``, ``dfs-budget-20``.
        kind: what it is; all points of a bundle were timed in the same turns, on the same inputs.
        p50_ms: median latency of a call.
        p95_ms: 95th percentile, or ``None``.
        top1: share of right answers on the bench's own inputs, or ``None`` where none is known.
        computation_percentage: of a dynamic case.
        latency_ratio: median latency over that of the network at its trained point, in the same run; nothing to rely on
            where the bench says that it is not ``valid``.
        top1_change: ``top1`` less that of the network at its trained point.
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


@dataclass(frozen=True)
class Decision:
    """How often the gate chose an option at a block (the paper's Figures 8 to 10).

    Attributes:
        block: index of the block.
        group: of the backbone, from 1.
        option: name.
        share: of the inputs.
    """

    block: int
    group: int
    option: str
    share: float


@dataclass(frozen=True)
class HotPath:
    """One of the commonest paths.

    Attributes:
        rank: from 1.
        path: option name a gated block.
        inputs: how many took it.
        share: of the inputs.
        computation_percentage: of the path.
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
        group: of the backbone, from 1.
        option: chosen there.
        inputs: how many came this way.
        share: of all inputs.
        start: where it lies among the inputs of the tree, as a share of all inputs; branches of a block do not overlap.
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
        group: of the backbone, from 1.
        option: name.
        precision: of the engine.
        serves: whether this engine runs when the gate chooses the option here.
        share: of the inputs that took the option at the block.
        layout: in which most features arrive at the block; the engine was timed on that.
        median_us: of the engine by itself, at batch 1.
        samples: inputs whose features the error was measured on; 0 where there is nothing to compare with.
        measured_on: ``routed``: the inputs that the gate sends there; ``reached``: it sends none, so all.
        relative_rms_error: root-mean-square difference from the float32 engine of the same option, over that of its
            output; ``None`` for the float32 engine itself, and where a value is not finite.
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
class BudgetPoint:
    """A budget that the bundle was calibrated for, as export measured it; see the manifest's ``budgets``."""

    budget_percentage: float
    bias: float
    computation_percentage: float
    top1: float | None
    latency_ms: float | None
    samples: int


@dataclass(frozen=True)
class Example:
    """One of the inputs, with the path that it took.

    Attributes:
        end: ``easy``: among the cheapest paths; ``hard``: among the dearest.
        image: PNG as a ``data:`` address.
        label: name of its class, or ``None``.
        answer: name of the class that the network saw.
        correct: whether they agree, or ``None``.
        probability: softmax of the answer's logit.
        path: option name a gated block.
        computation_percentage: of the path.
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
    """All that is told of one bundle.

    Attributes:
        facts: what it is.
        options: of the gate, in its order.
        substitutions: engines that stand in for others here.
        outcome: what the network made of the inputs.
        notes: what was assumed or looks like a mistake, a line each.
        bench: of this machine, or from a file; ``None`` where none was made.
        bench_differs: what ran otherwise when the bench was made than it does now, a line each.
        frontier: accuracy against latency.
        decisions: for each block and option.
        paths: the commonest, first to last.
        paths_listed: how many these are.
        paths_share: of the inputs that took one of these.
        tree: of the same paths.
        engines: by block, option and precision.
        budgets: sorted; empty where the bundle carries none.
        examples: easy ones first; empty where they were not wanted.
    """

    facts: BundleFacts
    options: tuple[OptionFacts, ...]
    substitutions: tuple[SubstitutionFacts, ...]
    outcome: Outcome
    notes: tuple[str, ...]
    bench: BenchResult | None
    bench_differs: tuple[str, ...]
    frontier: tuple[Point, ...]
    decisions: tuple[Decision, ...]
    paths: tuple[HotPath, ...]
    paths_listed: int
    paths_share: float
    tree: tuple[Branch, ...]
    engines: tuple[EngineFigures, ...]
    budgets: tuple[BudgetPoint, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        schema: ``dfs-deploy/report``.
        schema_version: of these keys.
        version: of dfs-deploy.
        made: when, UTC, as ISO 8601.
        bundles: in the order in which they were given.
    """

    version: str
    made: str
    bundles: tuple[BundleReport, ...]
    schema: str = SCHEMA
    schema_version: int = SCHEMA_VERSION


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain values: the object of ``report --json``, and what the page embeds.

    Names are another's text, and a page shows them in places that no template escapes, such as a chart's tooltip: what
    is no visible character stands in them as an escape.
    """
    value: dict[str, Any] = _visible(msgspec.to_builtins(report))
    return value


def _visible(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item if key == "image" else _visible(item) for key, item in value.items()}  # no name: our PNG
    if isinstance(value, list | tuple):
        return [_visible(item) for item in value]
    return one_line(value) if isinstance(value, str) else value
