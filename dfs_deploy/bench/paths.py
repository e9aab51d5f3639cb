"""Which paths the inputs took, and what the fastest, the commonest and the slowest of them cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.alone import EngineTimes
from dfs_deploy.bench.clock import Case, Timing, Turn, summarize, time_interleaved
from dfs_deploy.options import Options, computation_percentage
from dfs_deploy.runtimes import Runtime


@dataclass(frozen=True)
class PathLatency:
    """One path, as the gate chose it.

    Attributes:
        kind: ``fastest``, ``commonest`` or ``slowest``; by the time of its engines alone, and by count.
        path: option name a gated block.
        inputs: how many of the inputs took it.
        share: of the inputs, 0 to 1.
        computation_percentage: of the path.
        engine_ms: sum of the standalone medians of its engines.
        timing: latency of a call at batch 1, measured on the inputs that took it.
    """

    kind: str
    path: tuple[str, ...]
    inputs: int
    share: float
    computation_percentage: float
    engine_ms: float
    timing: Timing

    def as_json(self) -> dict[str, Any]:
        """The path under the keys of ``bench --json``."""
        latency = asdict(self.timing)
        return {
            "kind": self.kind,
            "path": list(self.path),
            "inputs": self.inputs,
            "share": self.share,
            "computation_percentage": self.computation_percentage,
            "engine_ms": self.engine_ms,
            "iterations": latency.pop("iterations"),
            "latency_ms": latency,
        }


def option_shares(paths: NDArray[np.uint8], options: int) -> tuple[tuple[float, ...], ...]:
    """For each gated block, the share of inputs that took each option.

    Args:
        paths: (N, gated blocks) option indices.
        options: how many there are.
    """
    return tuple(tuple(float(np.mean(column == option)) for option in range(options)) for column in paths.T)


def time_paths(
    runtime: Runtime,
    images: NDArray[np.float32],
    paths: NDArray[np.uint8],
    engines: EngineTimes,
    *,
    turn: Turn,
    min_s: float,
    min_iterations: int,
    progress: Callable[[float], None] | None = None,
) -> tuple[PathLatency, ...]:
    """Times the fastest, the commonest and the slowest path, interleaved, at batch 1.

    Args:
        runtime: the network.
        images: (N, C, H, W) float32, normalised.
        paths: (N, gated blocks) what each of them took.
        engines: which tell the fastest and the slowest path.
        turn: calls of a path before the next one's.
        min_s: measured seconds a path, on average.
        min_iterations: calls a path, at least.
        progress: called with how far it is, 0 to 1.
    """
    unique, which, counts = np.unique(paths, axis=0, return_inverse=True, return_counts=True)
    cost = [engines.path_ms(row) for row in unique]
    chosen = {"fastest": int(np.argmin(cost)), "commonest": int(np.argmax(counts)), "slowest": int(np.argmax(cost))}
    rows = {i: np.flatnonzero(which.ravel() == i) for i in chosen.values()}
    times = time_interleaved(
        [Case(str(i), _calls(runtime, images, own)) for i, own in rows.items()],
        range(len(images)),
        warm_up_s=0.0,
        min_s=min_s * len(rows),
        min_iterations=min_iterations,
        burst=turn.measured,
        unmeasured=turn.unmeasured,
        progress=progress,
    )
    return tuple(
        PathLatency(
            kind=kind,
            path=_names(unique[i], runtime.options),
            inputs=int(counts[i]),
            share=float(counts[i] / len(paths)),
            computation_percentage=float(computation_percentage(unique[i : i + 1], runtime.options.costs)[0]),
            engine_ms=cost[i],
            timing=summarize(times[str(i)]),
        )
        for kind, i in chosen.items()
    )


def _calls(runtime: Runtime, images: NDArray[np.float32], rows: NDArray[np.intp]) -> Callable[[int], object]:
    """A call that goes through some of the images, whatever index it is given."""
    own: Sequence[NDArray[np.float32]] = [images[row : row + 1] for row in rows]
    return lambda index: runtime(own[index % len(own)])


def _names(row: NDArray[np.uint8], options: Options) -> tuple[str, ...]:
    return tuple(options[int(k)].name for k in row)
