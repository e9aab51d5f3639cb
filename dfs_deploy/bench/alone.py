"""Engines and gate steps by themselves: what a path costs before anything is dispatched."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.clock import median_alone
from dfs_deploy.runtimes import Runtime


class EnginesAlone:
    """Runs the engines of an input's path one after another, without gates and dispatch, at batch 1.

    Args:
        runtime: runtime whose engines they are.
        paths: (N, gated blocks) option indices.
    """

    def __init__(self, runtime: Runtime, paths: NDArray[np.uint8]) -> None:
        calls = {row.tobytes(): runtime.engine_calls(row) for row in np.unique(paths, axis=0)}
        self._by_input = [calls[row.tobytes()] for row in np.ascontiguousarray(paths)]

    def __call__(self, index: int) -> None:
        """Runs those of an input, by its index."""
        for call in self._by_input[index]:
            call()

    def forget(self) -> None:
        """Lets go of the engines, which must not outlive their runtime on a device."""
        self._by_input.clear()


class GatesAlone:
    """Makes every gate step of one image, at batch 1.

    Args:
        runtime: runtime whose gate it is.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._steps = list(runtime.gate_calls())

    def __bool__(self) -> bool:
        return bool(self._steps)

    def __call__(self, index: int) -> None:
        """Makes the steps; they do not depend on the input."""
        for step in self._steps:
            step()

    def forget(self) -> None:
        """Lets go of the gate."""
        self._steps.clear()


class EngineTimes:
    """Standalone medians at batch 1; each engine is timed once, when a path first runs it.

    Args:
        runtime: whose engines they are.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._medians: dict[int, float] = {}
        self._paths: dict[bytes, float] = {}

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
