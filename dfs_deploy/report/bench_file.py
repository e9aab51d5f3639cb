"""The figures of a bench as a report takes them, from a run or from a file that ``bench --json`` wrote.

Keys that a report does not show are passed over, so that a newer bench can say more; what is shown must be there and of
its type.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from dfs_deploy.errors import DataError, UsageError
from dfs_deploy.io.json_files import MalformedError, Measured, Share, read_json
from dfs_deploy.io.text import first_line


class Latency(msgspec.Struct, frozen=True):
    """Percentiles of a call, in milliseconds; ``None`` where too few calls were measured to tell."""

    p50: Measured
    p90: Measured | None
    p95: Measured | None
    p99: Measured | None
    cov: float | None = None


class IntervalFigures(msgspec.Struct, frozen=True):
    """An estimate and where the true value lies with 95 % confidence."""

    value: float
    low: float
    high: float


class CaseFigures(msgspec.Struct, frozen=True):
    """One case, under the keys of ``bench --json``."""

    name: str
    batch: int
    latency_ms: Latency
    throughput_per_s: float
    iterations: int
    top1: Share | None = None
    computation_percentage: float | None = None
    engine_ms: float | None = None
    gate_us: float | None = None
    gate_share: float | None = None
    dispatch_efficiency: float | None = None
    dispatch_efficiency_interval: IntervalFigures | None = None
    joules_per_image: float | None = None


class MachineFacts(msgspec.Struct, frozen=True):
    """Where it ran."""

    cpu: str
    cores: int
    system: str
    int8: str = ""
    quota: float | None = None


class RuntimeFacts(msgspec.Struct, frozen=True):
    """What ran it."""

    runtime: str
    version: str
    provider: str = ""
    gate: str = ""
    plan: str = ""
    layout: str = ""


class BenchedBundle(msgspec.Struct, frozen=True):
    """Which bundle it was."""

    digest: str
    name: str = ""


class ProblemFacts(msgspec.Struct, frozen=True):
    """A reason why a bench is INVALID, and what to do."""

    what: str
    remedy: str = ""


class VerdictFacts(msgspec.Struct, frozen=True):
    """What to ship, by which rule, and what that does not rest on firmly."""

    words: str
    rule: str = ""
    choice: str | None = None
    caveats: list[str] = []


class BenchFigures(msgspec.Struct, frozen=True):
    """A bench, under the keys of ``bench --json``."""

    device: str
    threads: int | None
    seed: int
    data: str
    inputs: int
    machine: MachineFacts
    runtime: RuntimeFacts
    clock: str
    cases: list[CaseFigures]
    noisy: list[str] = []
    valid: bool | None = None
    problems: list[ProblemFacts] = []
    verdict: VerdictFacts | None = None
    bundle: BenchedBundle | None = None

    def case(self, name: str) -> CaseFigures | None:
        """The case of a name, or ``None``."""
        return next((case for case in self.cases if case.name == name), None)


def bench_figures(result: dict[str, Any]) -> BenchFigures:
    """The figures of a bench that has just run, from its ``as_json()``."""
    return msgspec.convert(result, BenchFigures)


def load_bench(path: Path) -> BenchFigures:
    """Reads a file that ``bench --json`` wrote.

    Raises:
        DataError: it cannot be read, or is no such object.
    """
    try:
        figures = read_json(path, BenchFigures)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}); make it with dfs-deploy bench --json") from error
    except MalformedError as error:
        raise DataError(f"{path} is no bench result ({error}); make it with dfs-deploy bench --json") from error
    if figures.case("dfs") is None:
        raise DataError(f"{path} has no case named dfs; make it with dfs-deploy bench --json")
    return figures


def match_benches(
    digests: Sequence[str], benches: Sequence[tuple[Path, BenchFigures]]
) -> tuple[BenchFigures | None, ...]:
    """Finds the bench of each bundle: by its digest where the file tells it, else by position.

    Args:
        digests: of the bundles.
        benches: files and what they hold; fewer than bundles where some are to be timed now.

    Returns:
        For each bundle its bench, or ``None``.

    Raises:
        DataError: a file is of another bundle.
        UsageError: it cannot be told which bundle a file is of.
    """
    found: list[BenchFigures | None] = [None] * len(digests)
    for position, (path, figures) in enumerate(benches):
        if figures.bundle is None:
            if len(benches) != len(digests):
                raise UsageError(
                    f"{path} does not say which of {len(digests)} bundles it is of; give one file a bundle, in order"
                )
            place = position
        elif figures.bundle.digest in digests:
            place = digests.index(figures.bundle.digest)
        else:
            raise DataError(
                f"{path} is of a bundle with digest {figures.bundle.digest[:12]}, expected"
                f" {' or '.join(digest[:12] for digest in digests)}; run dfs-deploy bench again"
            )
        if found[place] is not None:
            raise UsageError(f"{path} is of the same bundle as a file before it; give one file a bundle")
        found[place] = figures
    return tuple(found)
