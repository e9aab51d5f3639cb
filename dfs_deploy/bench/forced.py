"""Does skipped work become skipped time? Forced paths against their traces and the static engine of their precision.

The protocol is that of Cocktailer (Zhang et al., OSDI 2023): none to all of the gated blocks run, evenly spread. What
control flow costs is what the dispatched path takes beyond the same path as one engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.candidates import STATIC, forced_patterns
from dfs_deploy.bench.case_result import CaseResult
from dfs_deploy.bench.intervals import Ratios, paired_ratios
from dfs_deploy.options import Options


@dataclass(frozen=True)
class ForcedPath:
    """One share of the gated blocks at one precision; times are medians of a call.

    Attributes:
        share: percent of the gated blocks that are to run; the others are skipped.
        blocks: how many run: the share of them, rounded down.
        option: name of the option that they run.
        precision: of the option's engines.
        dispatch_ms: of the runtime, the gate stepping at every block.
        trace_ms: of the same path as one engine, without gates.
        static_ms: of the static engine of this precision; ``None`` where the bundle has none.
        over_static: dispatch over static; ``None`` without it, or where there are fewer than six turns.
        over_trace: dispatch over trace, in the same way.
        gate_us: a gated block, the gate's step alone, in microseconds; ``None`` with batches and without gated blocks.
        dispatch_us: per gated block, what is left of ``dispatch_ms`` without engines and gate steps. Below zero if
            engines are faster one after another than each by itself.
    """

    share: int
    blocks: int
    option: str
    precision: str
    dispatch_ms: float
    trace_ms: float
    static_ms: float | None
    over_static: Ratios | None
    over_trace: Ratios | None
    gate_us: float | None
    dispatch_us: float | None


def forced_paths(
    options: Options, cases: Sequence[CaseResult], turns: Mapping[str, NDArray[np.int64]], gated_blocks: int
) -> tuple[ForcedPath, ...]:
    """Compares forced cases with their traces.

    Args:
        options: of the bundle.
        cases: of a bench with forced paths; without any, there is nothing to compare.
        turns: by case, (turns, calls a turn) nanoseconds.
        gated_blocks: of the network.
    """
    by_name = {case.name: case for case in cases}
    found = []
    for pattern in forced_patterns(options):
        case, trace = by_name.get(pattern.dispatched), by_name.get(pattern.trace)
        if case is None or trace is None:
            continue
        static = by_name.get(f"{STATIC}{pattern.precision}")
        gate_us = dispatch_us = None
        if case.engine_ms is not None and case.gate_share is not None and gated_blocks:
            gates_ms = case.gate_share * case.timing.p50
            gate_us = 1e3 * gates_ms / gated_blocks
            dispatch_us = 1e3 * (case.timing.p50 - case.engine_ms - gates_ms) / gated_blocks
        found.append(
            ForcedPath(
                share=pattern.share,
                blocks=pattern.share * gated_blocks // 100,
                option=options[pattern.option].name,
                precision=pattern.precision,
                dispatch_ms=case.timing.p50,
                trace_ms=trace.timing.p50,
                static_ms=None if static is None else static.timing.p50,
                over_static=None
                if static is None
                else paired_ratios(turns[case.name], turns[static.name], static.name),
                over_trace=paired_ratios(turns[case.name], turns[trace.name], trace.name),
                gate_us=gate_us,
                dispatch_us=dispatch_us,
            )
        )
    return tuple(found)
