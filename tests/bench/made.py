"""Benches made of known times, as a run would find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.clock import CLOCK, case_result, paired_ratios
from dfs_deploy.bench.result import (
    SCHEMA_VERSION,
    BenchedBundle,
    BenchResult,
    Disturbance,
    Machine,
    MachineState,
    Ratios,
    Round,
)
from dfs_deploy.bench.verdict import Evidence
from dfs_deploy.paired import Interval
from dfs_deploy.thresholds import NOISY

FACTS = BenchedBundle("net", "d" * 64, "c" * 64, "ResNet-14", ("skip", "full"))
MACHINE = Machine("A CPU", 4, "Linux x86_64", "AVX-512 VNNI", False, 0.5)
STATE = MachineState((0, 1, 2, 5), "performance", 3000.0, True, False, 0.5)
RUNTIME = {
    "runtime": "onnxruntime",
    "version": "1.30",
    "provider": "CPU",
    "threads": 1,
    "gate": "native",
    "plan": "none",
}


def rounds_of(ms: float, rounds: int = 60, seed: int = 0, spread: float = 0.01) -> NDArray[np.int64]:
    """(rounds, 16) nanoseconds around a mean, as a case that is timed gives them."""
    random = np.random.default_rng(seed)
    return np.rint(1e6 * ms * (1.0 + spread * random.standard_normal((rounds, 16)))).astype(np.int64)


def exactly(value: float, width: float = 0.0) -> Interval:
    """An estimate known to a share of itself."""
    return Interval(value, value * (1 - width), value * (1 + width))


def ratios_of(over: str, p50: Interval, p95: Interval | None) -> Ratios:
    """Ratios whose mean is that of the median."""
    return Ratios(over, p50, p50, p95)


def made_bench(
    ms: Mapping[str, float] | None = None,
    *,
    top1: Mapping[str, float] | None = None,
    rounds: int = 60,
    noise: int = 0,
    spread: float = 0.01,
    inputs: int = 100,
    **changes: Any,
) -> BenchResult:
    """A bench whose cases take known times.

    Args:
        ms: by case, with ``dfs`` and the static cases from the most precise on.
        top1: by case, or ``None`` for no labels.
        rounds: of 16 calls.
        noise: seed of the spread.
        spread: of a call, as a share of its time.
        inputs: different images.
        changes: other fields of the result.
    """
    ms = ms or {"dfs": 1.0, "static-fp32": 2.0, "static-int8": 1.5}
    times = {name: rounds_of(each, rounds, 10 * noise + i, spread) for i, (name, each) in enumerate(ms.items())}
    base = next((name for name in ms if name.startswith("static")), None)
    cases = tuple(
        case_result(
            name,
            1,
            taken,
            top1=None if top1 is None else top1[name],
            ratio=None if base is None else paired_ratios(taken, times[base], base),
        )
        for name, taken in times.items()
    )
    over: Sequence[Ratios] = [
        found
        for name, taken in times.items()
        if name.startswith("static") and (found := paired_ratios(times["dfs"], taken, name)) is not None
    ]
    evidence = Evidence(cases, over, Round(16), inputs)
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "bundle": FACTS,
        "against": (),
        "device": "cpu",
        "threads": 1,
        "seed": 0,
        "budget": None,
        "data": "data",
        "inputs": inputs,
        "notes": (),
        "machine": MACHINE,
        "state": STATE,
        "disturbance": Disturbance(1.0, 0.0),
        "runtime": RUNTIME,
        "clock": CLOCK,
        "round": Round(16),
        "looks": 1,
        "valid": not evidence.problems,
        "noisy": tuple(case.name for case in cases if case.static and case.latency_ms.cov > NOISY),
        "energy": None,
        "no_energy": "not asked for",
        "jetson": None,
        "paths": (),
        "forced": (),
        "start_up": (),
        "cases": cases,
        "over_static": tuple(over),
        "option_share": ((0.25, 0.75), (1.0, 0.0)),
        "problems": evidence.problems,
        "verdict": evidence.verdict(),
        "rival": evidence.rival,
    }
    return BenchResult(**(fields | changes))
