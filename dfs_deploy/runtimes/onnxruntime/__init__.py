"""ONNX Runtime on a CPU, the default backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import RuntimeClosedError
from dfs_deploy.runtimes.backend import Backend, BackendOptions, Substitution
from dfs_deploy.runtimes.budgets import score_offset
from dfs_deploy.runtimes.dispatch import Call
from dfs_deploy.runtimes.gate import gate_for
from dfs_deploy.runtimes.onnxruntime.batch import BatchDispatch
from dfs_deploy.runtimes.onnxruntime.loading import LoadedEngines, load_engines
from dfs_deploy.runtimes.onnxruntime.single import SingleDispatch
from dfs_deploy.runtimes.onnxruntime.static import PolicyBackend

__all__ = ["OnnxRuntimeBackend", "PolicyBackend"]

SMALL_BATCH = 16
"""Largest batch that runs image by image with one thread per engine: bound calls beat regrouping (docs/performance.md).

With more threads per engine, regrouping wins from two images on.
"""


class OnnxRuntimeBackend(Backend):
    """Runs the engines that a gate chooses in ONNX Runtime.

    Args:
        bundle: bundle with a gate; see ``PolicyBackend`` for one with a static policy.
        options: choices of how it runs.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        self._setup(load_engines(bundle, options), options.gate)

    def _setup(self, engines: LoadedEngines, kind: str | None) -> None:
        self._gate = gate_for(engines.gate, kind, engines.channel_block)
        self.set_score_offset(score_offset(0.0, engines.architecture, engines.options))
        self._small_batch = SMALL_BATCH if engines.threads == 1 else 1
        self._held: tuple[LoadedEngines, SingleDispatch, BatchDispatch] | None = (
            engines,
            SingleDispatch(engines, self._gate),
            BatchDispatch(engines, self._gate),
        )

    def set_score_offset(self, offset: NDArray[np.float32]) -> None:
        self._gate.set_score_offset(offset)
        self._offset = offset.copy()

    def infer(
        self, images: NDArray[Any], forced: NDArray[np.uint8] | None, first: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        _, single, batch = self._open()
        if len(images) == 1:
            return single.run(images, forced, first)
        if len(images) > self._small_batch:
            return batch.run(images, forced, first)
        results = [
            single.run(images[i : i + 1], None if forced is None else forced[i : i + 1], first + i)
            for i in range(len(images))
        ]
        return np.concatenate([logits for logits, _ in results]), np.concatenate([path for _, path in results])

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Call, ...]:
        return self._open()[1].engine_calls(path)

    def gate_calls(self) -> tuple[Callable[[], int], ...]:
        return self._open()[1].gate_calls()

    def clone(self) -> OnnxRuntimeBackend:
        other = object.__new__(OnnxRuntimeBackend)
        other._setup(self._open()[0], self._gate.name)
        other.set_score_offset(self._offset)
        return other

    def close(self) -> None:
        self._held = None

    @property
    def substitutions(self) -> tuple[Substitution, ...]:
        return self._open()[0].substitutions

    @property
    def description(self) -> dict[str, Any]:
        return {**self._open()[0].description, "gate": self._gate.name}

    def _open(self) -> tuple[LoadedEngines, SingleDispatch, BatchDispatch]:
        if self._held is None:
            raise RuntimeClosedError("this Runtime was closed by another thread; make a new one")
        return self._held
