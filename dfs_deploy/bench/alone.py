"""Engines and gate steps timed by themselves: what a path costs before anything is dispatched."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.clock import median_alone
from dfs_deploy.runtimes import Runtime


class EngineTimes:
    """Standalone medians at batch 1; each engine is timed once, when a path first runs it.

    Args:
        runtime: whose engines they are.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._medians: dict[int, float] = {}
        self._paths: dict[bytes, float] = {}
        self._gates = [median_alone(call) for call in runtime.gate_calls()]

    def path_ms(self, path: NDArray[np.uint8]) -> float:
        """Sum of the medians of the engines that a path runs, in milliseconds.

        Args:
            path: (gated blocks,) option indices.
        """
        key = path.tobytes()
        if key not in self._paths:
            calls = self._runtime.engine_calls(path)
            for call in calls:
                if id(call) not in self._medians:
                    self._medians[id(call)] = median_alone(call)
            self._paths[key] = sum(self._medians[id(call)] for call in calls)
        return self._paths[key]

    def mean_ms(self, paths: NDArray[np.uint8]) -> float:
        """Mean over inputs of :meth:`path_ms`.

        Args:
            paths: (N, gated blocks) option indices.
        """
        return float(np.mean([self.path_ms(row) for row in paths]))

    @property
    def gate_us(self) -> float:
        """Median over the gated blocks of a gate step, in microseconds; 0 where there is none."""
        return 1e3 * float(np.median(self._gates)) if self._gates else 0.0

    @property
    def gates_ms(self) -> float:
        """Sum of the gate steps of one image, in milliseconds."""
        return float(sum(self._gates))
