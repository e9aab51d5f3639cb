"""A bench against an earlier one: ratios within each run, so that the machine's speed on the day cancels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from dfs_deploy.bench.devices import RUNTIME_OF
from dfs_deploy.bench.inputs import draw_inputs
from dfs_deploy.bench.intervals import Interval
from dfs_deploy.bench.machine import Machine, describe_machine
from dfs_deploy.bench.results import SCHEMA_VERSION, BenchResult
from dfs_deploy.bench.validity import MAX_UNCERTAINTY, unsteady
from dfs_deploy.bundle import Bundle
from dfs_deploy.data import Dataset, ImageFolder
from dfs_deploy.errors import ArtefactError, CheckFailedError, UsageError
from dfs_deploy.io.files import read_file, write_whole
from dfs_deploy.io.json_files import MAX_JSON, MalformedError, Measured, Name, Share, decode_json
from dfs_deploy.io.text import first_line, one_line

NOISE_BAND = 0.05
"""Change of a ratio that two runs of the same thing may show: each agrees with another to this (docs/bench.md)."""


class _Record(msgspec.Struct, frozen=True):
    """A part of a saved bench that a comparison reads; other keys are left alone."""


class _Interval(_Record, frozen=True):
    value: Measured
    low: Measured
    high: Measured

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval from {self.low:g} to {self.high:g}")


class _Ratio(_Record, frozen=True):
    over: Name
    mean: _Interval

    @property
    def uncertainty(self) -> float:
        """Of the mean; see ``Interval``."""
        return Interval(self.mean.value, self.mean.low, self.mean.high).uncertainty


class _Latency(_Record, frozen=True):
    p50: Measured


class _Case(_Record, frozen=True):
    name: Name
    batch: Annotated[int, Meta(ge=1)]
    latency_ms: _Latency
    ratio: _Ratio | None
    top1: Share | None = None


class _Bundle(_Record, frozen=True):
    digest: Name
    checkpoint: Name
    architecture: Name


class _Machine(_Record, frozen=True):
    cpu: Name
    cores: int
    system: Name
    int8: Name
    quota: float | None = None


class Baseline(_Record, frozen=True):
    """What a comparison reads of the object of ``bench --json``."""

    schema_version: int
    bundle: _Bundle
    device: Name
    threads: int | None
    seed: int
    budget: float | None
    data: Name
    inputs: int
    machine: _Machine
    runtime: dict[str, Any]
    valid: bool
    cases: list[_Case]


@dataclass(frozen=True)
class Change:
    """How one case's ratio over the normaliser changed.

    Attributes:
        name: of the case.
        over: name of the normaliser.
        before: the ratio in the baseline.
        after: the ratio now.
        change: after over before; above one is slower.
        regressed: whether it is slower beyond the noise band, and its 95 % interval does not hold one.
    """

    name: str
    over: str
    before: float
    after: float
    change: Interval
    regressed: bool


@dataclass(frozen=True)
class BenchComparison:
    """A bench against a baseline.

    Attributes:
        noise_band: share by which a ratio may rise.
        changes: a case each, of those that both have.
        notes: what differs between the two and is no reason to refuse, a line each.
        failures: why the check fails, a line each; empty where it passes.
    """

    noise_band: float
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    failures: tuple[str, ...]


def save_baseline(result: BenchResult, file: Path) -> None:
    """Writes a bench, whole, as the object of ``bench --json``: any such file is a baseline.

    Raises:
        CheckFailedError: the run is INVALID, or its mean ratios are hardly known: nothing could be compared with it.
    """
    problem = next(iter(result.problems), unsteady(result.cases))
    if problem is not None:
        raise CheckFailedError(
            f"an INVALID run is no baseline: {problem.what}; {problem.remedy}; {file} was not written"
        )
    write_whole(file, msgspec.json.format(msgspec.json.encode(result.as_json()), indent=1) + b"\n")


def load_baseline(file: Path) -> Baseline:
    """Reads a saved bench.

    Raises:
        UsageError: there is no such file.
        ArtefactError: it is no bench, one of another schema, an INVALID one, or one of ratios hardly known.
    """
    try:
        content = read_file(file, MAX_JSON)
    except OSError as error:
        raise UsageError(
            f"no baseline at {file} ({first_line(error)}), expected a file of bench --save-baseline; make one first"
        ) from error
    try:
        version = decode_json(content, _Head).schema_version
        if version != SCHEMA_VERSION:
            raise ArtefactError(
                f"{file} has schema version {version}, expected {SCHEMA_VERSION}; make it again with --save-baseline"
            )
        baseline = decode_json(content, Baseline)
    except MalformedError as error:
        raise ArtefactError(f"{file} is no saved bench ({error}); make one with bench --save-baseline") from error
    if not baseline.valid:
        raise ArtefactError(f"{file} is of an INVALID run, expected a VALID one; make it again with --save-baseline")
    for case in baseline.cases:
        if case.ratio is not None and case.ratio.uncertainty > MAX_UNCERTAINTY:
            raise ArtefactError(
                f"{file} knows the mean ratio of {case.name} only to ±{100 * case.ratio.uncertainty:.1f} %, expected"
                f" ±{100 * MAX_UNCERTAINTY:.0f} % or better; make it again with --save-baseline"
            )
    return baseline


@dataclass(frozen=True)
class Conditions:
    """What two benches must share so that their ratios can be compared; fields as in ``BenchResult``."""

    checkpoint: str
    architecture: str
    device: str
    machine: Machine
    threads: int | None
    batches: frozenset[int]
    data: str
    inputs: int
    seed: int
    budget: float | None


def conditions_before(
    bundle: Bundle,
    data: Dataset | ImageFolder | None,
    *,
    device: str,
    batch: int,
    threads: int | None,
    budget: float | None,
    seed: int,
) -> Conditions:
    """The conditions of a run that is yet to be made; the arguments are those of ``run_bench``.

    Raises:
        UsageError: no inputs.
    """
    inputs = draw_inputs(bundle, data, seed)
    return Conditions(
        checkpoint=bundle.manifest.source.sha256,
        architecture=bundle.architecture.name,
        device=device,
        machine=describe_machine(),
        threads=(threads or 1) if RUNTIME_OF[device] == "onnxruntime" else None,
        batches=frozenset([batch]),
        data=inputs.name,
        inputs=len(inputs.images) // batch * batch,
        seed=seed,
        budget=budget,
    )


def check_conditions(now: Conditions, baseline: Baseline) -> None:
    """Makes sure that a run measures, or is to measure, what the baseline did.

    Raises:
        ArtefactError: another network, machine, batch, number of threads, or inputs: their ratios may differ and no
            code would have changed.
    """
    pairs = {
        "checkpoint": (baseline.bundle.checkpoint, now.checkpoint),
        "architecture": (baseline.bundle.architecture, now.architecture),
        "device": (baseline.device, now.device),
        "CPU": (baseline.machine.cpu, now.machine.cpu),
        "cores": (baseline.machine.cores, now.machine.cores),
        "CPU quota": (baseline.machine.quota, now.machine.quota),
        "set of 8-bit instructions": (baseline.machine.int8, now.machine.int8),
        "system": (baseline.machine.system, now.machine.system),
        "threads": (baseline.threads, now.threads),
        "batch": (frozenset(case.batch for case in baseline.cases), now.batches),
        "data": (baseline.data, now.data),
        "inputs": (baseline.inputs, now.inputs),
        "seed": (baseline.seed, now.seed),
        "budget": (baseline.budget, now.budget),
    }
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise ArtefactError(
                f"the baseline is of another {name}: {_plain(name, theirs)}, this run has {_plain(name, ours)}; compare"
                " like with like, or make a new baseline with --save-baseline"
            )


def check_comparable(result: BenchResult, baseline: Baseline) -> tuple[str, ...]:
    """Makes sure that both measured the same thing.

    Returns:
        What differs and is told, a line each.

    Raises:
        ArtefactError: see :func:`check_conditions`.
    """
    bundle = result.bundle
    check_conditions(
        Conditions(
            checkpoint=bundle.checkpoint,
            architecture=bundle.architecture,
            device=result.device,
            machine=result.machine,
            threads=result.threads,
            batches=frozenset(case.batch for case in result.cases),
            data=result.data,
            inputs=result.inputs,
            seed=result.seed,
            budget=result.budget,
        ),
        baseline,
    )
    before, now = baseline.runtime, result.runtime
    again = ["the bundle was exported anew from the same checkpoint"] if baseline.bundle.digest != bundle.digest else []
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return (*again, *(one_line(f"{key}: {before.get(key)} in the baseline, {now.get(key)} now") for key in changed))


def compare_with_baseline(result: BenchResult, baseline: Baseline, noise_band: float = NOISE_BAND) -> BenchComparison:
    """Compares ratios over the normaliser, case by case.

    A case regressed where its ratio rose by more than the noise band and the 95 % interval of the rise does not hold
    zero. What slows the normaliser as well cancels, and is told by its absolute time alone.

    Args:
        result: now.
        baseline: earlier.
        noise_band: share by which a ratio may rise, 0 or more.

    Raises:
        UsageError: a negative noise band.
        ArtefactError: see :func:`check_comparable`; or both have no case in common.
    """
    if not noise_band >= 0.0:
        raise UsageError(f"noise band {noise_band}, expected 0 or more; 0.05 is 5 %")
    notes = list(check_comparable(result, baseline))
    before = {case.name: case for case in baseline.cases}
    changes, failures = [], []
    for case in result.cases:
        earlier = before.pop(case.name, None)
        if earlier is None:
            notes.append(f"{case.name} is not in the baseline")
            continue
        if case.top1 is not None and earlier.top1 is not None and case.top1 != earlier.top1:
            notes.append(
                f"top-1 of {case.name}: {100 * earlier.top1:.2f} % in the baseline, {100 * case.top1:.2f} % now"
            )
        if case.ratios is None or earlier.ratio is None or case.name == case.ratios.over:
            continue
        if case.ratios.over != earlier.ratio.over:
            raise ArtefactError(
                f"the baseline's ratios are over {earlier.ratio.over}, expected {case.ratios.over}; make a new baseline"
            )
        changes.append(_change(case.name, case.ratios.over, earlier.ratio.mean, case.ratios.mean, noise_band))
    notes += [f"{name} is in the baseline alone" for name in before]
    base = result.normaliser
    if base is not None and base.name in (earlier_names := {case.name: case for case in baseline.cases}):
        speed = base.timing.p50 / earlier_names[base.name].latency_ms.p50
        notes.append(f"{base.name} itself took {speed:.2f}x its time in the baseline, which is not judged")
    problem = next(iter(result.problems), unsteady(result.cases))
    if problem is not None:
        failures.append(f"this run is INVALID: {problem.what}; {problem.remedy}")
    elif not changes:
        raise ArtefactError("the baseline has no ratio in common with this run; make a new one with --save-baseline")
    failures += [
        f"{c.name} over {c.over} rose by {100 * (c.change.value - 1):.1f} % (from {c.before:.3f} to {c.after:.3f}),"
        f" beyond the noise band of {100 * noise_band:.1f} %"
        for c in changes
        if c.regressed
    ]
    return BenchComparison(noise_band, tuple(changes), tuple(notes), tuple(failures))


class _Head(msgspec.Struct):
    """What can be read of a saved bench of any version."""

    schema_version: int


def _change(name: str, over: str, before: _Interval, after: Interval, noise_band: float) -> Change:
    value = after.value / before.value
    # Errors of two runs are independent, so those of the logarithms add as squares.
    below = math.hypot(math.log(after.value / after.low), math.log(before.high / before.value))
    above = math.hypot(math.log(after.high / after.value), math.log(before.value / before.low))
    change = Interval(value, value * math.exp(-below), value * math.exp(above))
    regressed = value > 1.0 + noise_band and change.low > 1.0
    return Change(name, over, before.value, after.value, change, regressed)


def _plain(name: str, value: object) -> str:
    if name == "budget" and value is None:
        return "as trained"
    return ", ".join(map(str, sorted(value))) if isinstance(value, frozenset) else str(value)
