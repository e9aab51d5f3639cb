"""How long paths take: those that the inputs took, and forced ones against the same path as one engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.candidates import forced_patterns
from dfs_deploy.bench.clock import Case, Rounds, median_alone, paired_ratios, summarize, time_interleaved
from dfs_deploy.bench.costs import chain_medians_us
from dfs_deploy.bench.result import STATIC, CaseResult, ForcedPath, PathKind, PathLatency, Round
from dfs_deploy.costs import LatencyTable
from dfs_deploy.options import Options, computation_percentage
from dfs_deploy.progress import Progress, silent
from dfs_deploy.runtimes import Runtime


def option_shares(paths: NDArray[np.uint8], options: int) -> tuple[tuple[float, ...], ...]:
    """Share of inputs that took each option, of each block after the first.

    Args:
        paths: (N, blocks) option indices.
        options: number of options.
    """
    return tuple(tuple(float(np.mean(column == option)) for option in range(options)) for column in paths.T)


def time_paths(
    runtime: Runtime,
    images: NDArray[np.float32],
    paths: NDArray[np.uint8],
    *,
    size: Round,
    min_s: float,
    min_iterations: int,
    progress: Progress = silent,
) -> tuple[PathLatency, ...]:
    """Times the fastest, the commonest and the slowest path, interleaved, at batch 1.

    Args:
        runtime: dynamic network.
        images: (N, C, H, W) float32, normalised.
        paths: (N, blocks) option indices that each of them took.
        size: calls of a path before the next one takes over.
        min_s: measured seconds per path, on average.
        min_iterations: calls of a path, at least.
        progress: progress of the timing.
    """
    unique, which, counts = np.unique(paths, axis=0, return_inverse=True, return_counts=True)
    calls = [runtime.engine_calls(row) for row in unique]
    engines = {id(call): call for each in calls for call in each}  # several paths share most of them
    alone_ms = {key: median_alone(call) for key, call in engines.items()}
    cost = [sum(alone_ms[id(call)] for call in each) for each in calls]
    chosen: dict[PathKind, int] = {
        "fastest": int(np.argmin(cost)),
        "commonest": int(np.argmax(counts)),
        "slowest": int(np.argmax(cost)),
    }
    rows = {i: np.flatnonzero(which.ravel() == i) for i in chosen.values()}
    times = time_interleaved(
        [Case(str(i), _calls(runtime, images, own)) for i, own in rows.items()],
        range(len(images)),
        warm_up_s=0.0,
        min_s=min_s * len(rows),
        min_iterations=min_iterations,
        burst=size.measured,
        unmeasured=size.unmeasured,
        progress=progress,
        stage="timing paths",
    )

    weights = runtime.bundle.architecture.weights(runtime.options)
    percentages = computation_percentage(unique, runtime.options.costs, weights)

    def timed(kind: PathKind, i: int) -> PathLatency:
        return PathLatency(
            kind=kind,
            path=tuple(runtime.options[int(k)].name for k in unique[i]),
            inputs=int(counts[i]),
            share=float(counts[i] / len(paths)),
            computation_percentage=float(percentages[i]),
            engine_ms=cost[i],
            iterations=len(times[str(i)]),
            latency_ms=summarize(times[str(i)]),
        )

    return tuple(timed(kind, i) for kind, i in chosen.items())


def predict_ms(costs: LatencyTable, runtime: Runtime, paths: NDArray[np.uint8]) -> float:
    """Latency that a latency table makes one expect of some inputs at batch 1, dispatch left out.

    The table holds the blocks that the gate decides about, and the gate; the first block, other blocks that always run
    and the head are timed here, as the table's engines were: in the order in which an image runs them.

    Args:
        costs: latency table of the runtime's bundle.
        runtime: dynamic network.
        paths: (N, blocks) option indices that the inputs took.

    Returns:
        Median over the inputs, in milliseconds.
    """
    bundle, options, row = runtime.bundle, runtime.options, paths[0]
    name = str(runtime.description["runtime"])
    decided = bundle.architecture.decided(options)
    runs = [
        block.index
        for block, taken in zip(bundle.manifest.runtimes[name].blocks, row, strict=True)
        if not options[int(taken)].skips or block.skip is not None
    ]
    medians = chain_medians_us(runtime.engine_calls(row))
    always = sum(us for block, us in zip([None, *runs, None], medians, strict=True) if block not in decided)
    return float(np.median(costs.predict_us(paths, options)) + always) / 1e3


def _calls(runtime: Runtime, images: NDArray[np.float32], rows: NDArray[np.intp]) -> Callable[[int], object]:
    """A call that goes through some of the images, whatever index it is given."""
    own: Sequence[NDArray[np.float32]] = [images[row : row + 1] for row in rows]
    return lambda index: runtime(own[index % len(own)])


def forced_paths(
    options: Options, cases: Sequence[CaseResult], rounds: Mapping[str, Rounds], decided: int, skippable: int
) -> tuple[ForcedPath, ...]:
    """Compares forced paths with their traces and with the static engine of their precision.

    The protocol is that of Cocktailer (Zhang et al., OSDI 2023): none to all of the blocks that may be skipped run,
    evenly spread. The cost of control flow is what the dispatched path takes beyond the same path as one engine.

    Args:
        options: options of the bundle.
        cases: cases of a bench with forced paths; without any, there is nothing to compare.
        rounds: times of each case.
        decided: number of blocks that the gate decides about.
        skippable: number of those that may be skipped.
    """
    by_name = {case.name: case for case in cases}
    found = []
    for pattern in forced_patterns(options):
        case, trace = by_name.get(pattern.dispatched), by_name.get(pattern.trace)
        if case is None or trace is None:
            continue
        p50, static = case.latency_ms.p50, by_name.get(f"{STATIC}{pattern.precision}")
        gate_us = dispatch_us = None
        if case.engine_ms is not None and case.gate_share is not None and decided:
            gates_ms = case.gate_share * p50
            gate_us = 1e3 * gates_ms / decided
            dispatch_us = 1e3 * (p50 - case.engine_ms - gates_ms) / decided
        found.append(
            ForcedPath(
                share=pattern.share,
                blocks=pattern.share * skippable // 100,
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
