"""Forced paths against the same path as one engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dfs_deploy.bench.candidates import forced_patterns
from dfs_deploy.bench.clock import Rounds, paired_ratios
from dfs_deploy.bench.result import STATIC, CaseResult, ForcedPath
from dfs_deploy.options import Options


def forced_paths(
    options: Options, cases: Sequence[CaseResult], rounds: Mapping[str, Rounds], gated_blocks: int
) -> tuple[ForcedPath, ...]:
    """Compares forced paths with their traces and with the static engine of their precision.

    The protocol is that of Cocktailer (Zhang et al., OSDI 2023): none to all of the gated blocks run, evenly spread.
    The cost of control flow is what the dispatched path takes beyond the same path as one engine.

    Args:
        options: options of the bundle.
        cases: cases of a bench with forced paths; without any, there is nothing to compare.
        rounds: times of each case.
        gated_blocks: number of the network's gated blocks.
    """
    by_name = {case.name: case for case in cases}
    found = []
    for pattern in forced_patterns(options):
        case, trace = by_name.get(pattern.dispatched), by_name.get(pattern.trace)
        if case is None or trace is None:
            continue
        p50, static = case.latency_ms.p50, by_name.get(f"{STATIC}{pattern.precision}")
        gate_us = dispatch_us = None
        if case.engine_ms is not None and case.gate_share is not None and gated_blocks:
            gates_ms = case.gate_share * p50
            gate_us = 1e3 * gates_ms / gated_blocks
            dispatch_us = 1e3 * (p50 - case.engine_ms - gates_ms) / gated_blocks
        found.append(
            ForcedPath(
                share=pattern.share,
                blocks=pattern.share * gated_blocks // 100,
                option=options[pattern.option].name,
                precision=pattern.precision,
                dispatch_ms=p50,
                trace_ms=trace.latency_ms.p50,
                static_ms=None if static is None else static.latency_ms.p50,
                over_static=None
                if static is None
                else paired_ratios(rounds[case.name], rounds[static.name], static.name),
                over_trace=paired_ratios(rounds[case.name], rounds[trace.name], trace.name),
                gate_us=gate_us,
                dispatch_us=dispatch_us,
            )
        )
    return tuple(found)
