"""A bench against an earlier one: ratios within each run, so that the machine's speed on the day cancels.

A baseline is the object of ``bench --json``: any saved one will do that is VALID and whose mean ratios are known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from dfs_deploy.bench.result import FORMAT, BenchResult, Change, Comparison, Problem, Setup, load_bench
from dfs_deploy.bench.verdict import unsteady
from dfs_deploy.errors import ArtefactError, CheckFailedError, SavedResultError, UsageError
from dfs_deploy.io.text import one_line
from dfs_deploy.paired import Interval
from dfs_deploy.thresholds import NOISE_BAND


def save_baseline(result: BenchResult, file: Path) -> None:
    """Writes a bench, whole.

    Raises:
        CheckFailedError: the run is INVALID, or its mean ratios are hardly known: nothing could be compared with it.
    """
    problem = _unusable(result)
    if problem is not None:
        raise CheckFailedError(
            f"an INVALID run is no baseline: {problem.what}; {problem.remedy}; {file} was not written"
        )
    FORMAT.write(file, result)


def load_baseline(file: Path) -> BenchResult:
    """Reads a bench that later ones can be compared with.

    Raises:
        UsageError: there is no such file.
        SavedResultError: it is no bench, or one of another version, of an INVALID run, or of ratios hardly known.
    """
    baseline = load_bench(file)
    check_baseline(baseline, str(file))
    return baseline


def check_baseline(baseline: BenchResult, name: str = "the earlier bench") -> None:
    """Makes sure that later benches can be compared with one.

    Raises:
        SavedResultError: it is of an INVALID run, or of ratios hardly known.
    """
    if not baseline.valid:
        raise SavedResultError(f"{name} is of an INVALID run, expected a VALID one; make it again with --save-baseline")
    problem = unsteady(baseline.cases)
    if problem is not None:
        raise SavedResultError(f"{name} is no baseline: {problem.what}; make it again with --save-baseline")


def check_conditions(baseline: BenchResult, now: Setup, batch: int) -> None:
    """Makes sure that a run measures, or is to measure, what the baseline did.

    Args:
        baseline: earlier run.
        now: setup of this run.
        batch: images per call of this run.

    Raises:
        ArtefactError: another network, machine, batch, number of threads, or inputs: their ratios may differ though no
            code has changed.
    """
    before = _conditions(baseline, baseline.dynamic.batch)
    for name, value in _conditions(now, batch).items():
        if before[name] != value:
            raise ArtefactError(
                f"the baseline is of another {name}: {before[name]}, this run has {value}; compare like with like, or"
                " make a new baseline with --save-baseline"
            )


def _conditions(setup: Setup, batch: int) -> dict[str, object]:
    """What two runs must share, by name."""
    machine = setup.machine
    return {
        "checkpoint": setup.bundle.checkpoint,
        "architecture": setup.bundle.architecture,
        "device": setup.device,
        "CPU": machine.cpu,
        "cores": machine.cores,
        "CPU quota": machine.quota,
        "set of 8-bit instructions": machine.int8,
        "system": machine.system,
        "threads": setup.threads,
        "batch": batch,
        "data": setup.data,
        "inputs": setup.inputs,
        "seed": setup.seed,
        "budget": "the bundle's own" if setup.budget is None else setup.budget,
    }


def compare_with_baseline(result: BenchResult, baseline: BenchResult, noise_band: float = NOISE_BAND) -> Comparison:
    """Compares ratios over the normaliser, case by case.

    A case regressed if its ratio rose by more than the noise band and the 95 % interval of the rise does not hold zero.
    What slows the normaliser as well cancels, and only shows in its absolute time.

    Args:
        result: bench made now.
        baseline: bench made earlier.
        noise_band: share by which a ratio may rise, 0 to 1.

    Raises:
        UsageError: a noise band that is no share.
        ArtefactError: see ``check_conditions``; or both have no case in common.
    """
    if not 0.0 <= noise_band <= 1.0:
        raise UsageError(f"noise band {noise_band}, expected a share, 0 to 1; 0.05 is 5 %")
    check_conditions(baseline, result, result.dynamic.batch)
    changes = tuple(_changes(result, baseline, noise_band))
    failures = []
    problem = _unusable(result)
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
    return Comparison(noise_band, changes, tuple(_notes(result, baseline)), tuple(failures))


def _changes(result: BenchResult, baseline: BenchResult, noise_band: float) -> list[Change]:
    changes = []
    for case in result.cases:
        earlier = baseline.case(case.name)
        if earlier is None or case.ratio is None or earlier.ratio is None or case.name == case.ratio.over:
            continue
        if case.ratio.over != earlier.ratio.over:
            raise ArtefactError(
                f"the baseline's ratios are over {earlier.ratio.over}, expected {case.ratio.over}; make a new baseline"
            )
        before, after = earlier.ratio.mean, case.ratio.mean
        value = after.value / before.value
        # Errors of two runs are independent, so those of the logarithms add as squares.
        below = math.hypot(math.log(after.value / after.low), math.log(before.high / before.value))
        above = math.hypot(math.log(after.high / after.value), math.log(before.value / before.low))
        change = Interval(value, value * math.exp(-below), value * math.exp(above))
        regressed = value > 1.0 + noise_band and change.low > 1.0
        changes.append(Change(case.name, case.ratio.over, before.value, after.value, change, regressed))
    return changes


def _notes(result: BenchResult, baseline: BenchResult) -> Sequence[str]:
    """Differences that are no reason to refuse, one line each."""
    before, now = baseline.runtime, result.runtime
    notes = []
    if baseline.bundle.digest != result.bundle.digest:
        notes.append("the bundle was exported anew from the same checkpoint")
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    notes += [one_line(f"{key}: {before.get(key)} in the baseline, {now.get(key)} now") for key in changed]
    for case in result.cases:
        earlier = baseline.case(case.name)
        if earlier is None:
            notes.append(f"{case.name} is not in the baseline")
        elif None not in (case.top1, earlier.top1) and case.top1 != earlier.top1:
            notes.append(
                f"top-1 of {case.name}: {100 * (earlier.top1 or 0):.2f} % in the baseline,"
                f" {100 * (case.top1 or 0):.2f} % now"
            )
    notes += [f"{case.name} is only in the baseline" for case in baseline.cases if result.case(case.name) is None]
    base = result.normaliser
    earlier = None if base is None else baseline.case(base.name)
    if base is not None and earlier is not None:
        speed = base.latency_ms.p50 / earlier.latency_ms.p50
        notes.append(f"{base.name} itself took {speed:.2f}x its time in the baseline, which is not judged")
    return notes


def _unusable(result: BenchResult) -> Problem | None:
    """Reason why a run can neither be a baseline nor be compared with one."""
    return next(iter(result.problems), unsteady(result.cases))
