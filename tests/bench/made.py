"""Benches made of known times, as a run would find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.case_result import CaseResult
from dfs_deploy.bench.clock import Turn, summarize
from dfs_deploy.bench.intervals import Interval, Ratios, paired_ratios
from dfs_deploy.bench.machine import Machine
from dfs_deploy.bench.results import BenchResult, BundleFacts
from dfs_deploy.bench.state import Disturbance, MachineState
from dfs_deploy.bench.validity import find_problems, rival_ratios
from dfs_deploy.bench.verdict import decide

FACTS = BundleFacts("net", "d" * 64, "c" * 64, "ResNet-14", ("skip", "full"))
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


def turns_of(ms: float, turns: int = 60, seed: int = 0, spread: float = 0.01) -> NDArray[np.int64]:
    """(turns, 16) nanoseconds around a mean, as a case that is timed gives them."""
    random = np.random.default_rng(seed)
    return np.rint(1e6 * ms * (1.0 + spread * random.standard_normal((turns, 16)))).astype(np.int64)


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
    turns: int = 60,
    noise: int = 0,
    spread: float = 0.01,
    inputs: int = 100,
    **changes: Any,
) -> BenchResult:
    """A bench whose cases take known times.

    Args:
        ms: by case, with ``dfs`` and the static cases from the most precise on.
        top1: by case, or ``None`` for no labels.
        turns: of 16 calls.
        noise: seed of the spread.
        spread: of a call, as a share of its time.
        inputs: different images.
        changes: other fields of the result.
    """
    ms = ms or {"dfs": 1.0, "static-fp32": 2.0, "static-int8": 1.5}
    times = {name: turns_of(each, turns, 10 * noise + i, spread) for i, (name, each) in enumerate(ms.items())}
    base = next((name for name in ms if name.startswith("static")), None)
    cases = tuple(
        CaseResult(
            name,
            1,
            summarize(taken.ravel()),
            top1=None if top1 is None else top1[name],
            ratios=None if base is None else paired_ratios(taken, times[base], base),
        )
        for name, taken in times.items()
    )
    over: Sequence[Ratios] = [
        found
        for name, taken in times.items()
        if name.startswith("static") and (found := paired_ratios(times["dfs"], taken, name)) is not None
    ]
    problems = find_problems(cases, over, Turn(16), inputs)
    fields: dict[str, Any] = {
        "bundle": FACTS,
        "device": "cpu",
        "threads": 1,
        "seed": 0,
        "budget": None,
        "data": "data",
        "inputs": inputs,
        "machine": MACHINE,
        "state": STATE,
        "disturbance": Disturbance(1.0, 0.0),
        "turn": Turn(16),
        "runtime": RUNTIME,
        "cases": cases,
        "over_static": tuple(over),
        "option_share": ((0.25, 0.75), (1.0, 0.0)),
        "problems": problems,
        "verdict": decide(cases, over, problems),
        "rival": rival_ratios(cases, over),
    }
    return BenchResult(**(fields | changes))
