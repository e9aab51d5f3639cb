"""ONNX Runtime on a CPU, the default backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.errors import RuntimeClosedError
from dfs_deploy.network import Architecture
from dfs_deploy.runtimes.base import Backend, Substitution
from dfs_deploy.runtimes.gate_choice import gate_for
from dfs_deploy.runtimes.onnxruntime.batch import BatchDispatch
from dfs_deploy.runtimes.onnxruntime.binding import Call
from dfs_deploy.runtimes.onnxruntime.plan import load_plan
from dfs_deploy.runtimes.onnxruntime.policy import PolicyBackend
from dfs_deploy.runtimes.onnxruntime.prepared import (
    PLAIN,
    DamagedError,
    PreparedEngines,
    obtain_prepared,
    prepare_engines,
)
from dfs_deploy.runtimes.onnxruntime.sessions import LoadedEngines, check_memory, described, load_engines
from dfs_deploy.runtimes.onnxruntime.single import SingleDispatch

__all__ = ["OnnxRuntimeBackend", "PolicyBackend"]

SMALL_BATCH = 8
"""Batches up to this run image by image: bound calls beat regrouping there (benchmarks/serving.py)."""


class OnnxRuntimeBackend(Backend):
    """Runs the engines that a gate chooses in ONNX Runtime.

    Args:
        bundle: with a gate; see :class:`PolicyBackend` for one with a static policy.
        threads: that one engine may use; ``None`` for one.
        gate: ``native`` or ``numpy``; ``None`` for the first where it was compiled.
        plan: whether a plan that was measured here decides which engine serves an option.
        prepared: whether engines prepared for this machine run, made now where there are none; else the bundle's own.
        cache: where those and plans are kept; ``None`` for the bundle's usual cache.
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        gate: str | None = None,
        plan: bool = True,
        prepared: bool = True,
        cache: Cache | None = None,
    ) -> None:
        check_memory(bundle)
        kept = cache or Cache(bundle)

        def load(engines: PreparedEngines) -> tuple[LoadedEngines, bool]:
            """The engines, and whether a plan that was measured in their layout decided which."""
            measured = load_plan(bundle, threads or 1, engines.together, kept) if plan else None
            return load_engines(bundle, threads or 1, measured, engines), measured is not None

        try:
            engines, self._planned = load(obtain_prepared(bundle, kept) if prepared else PLAIN)
        except DamagedError:
            engines, self._planned = load(prepare_engines(bundle, None, kept))
        self._setup(engines, bundle.architecture, gate)

    def _setup(self, engines: LoadedEngines, architecture: Architecture, kind: str | None) -> None:
        self._engines: LoadedEngines | None = engines
        self._architecture = architecture
        gate = gate_for(engines.gate, kind, engines.prepared.together)
        self._gate = gate
        self._offset = np.zeros(engines.gate.options, np.float32)
        self._single: SingleDispatch | None = SingleDispatch(engines, gate, architecture)
        maps = [block.out_shape for block in architecture.blocks]
        self._batch: BatchDispatch | None = BatchDispatch(engines, gate, maps, architecture.classes)

    def set_score_offset(self, offset: NDArray[np.float32]) -> None:
        self._gate.set_score_offset(offset)
        self._offset = offset.copy()

    def infer(
        self, images: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        single, batch = self._single, self._batch
        if single is None or batch is None:
            raise _closed()
        if len(images) == 1:
            return single.run(images, forced)
        if len(images) > SMALL_BATCH:
            return batch.run(images, forced)
        results = [
            single.run(images[i : i + 1], None if forced is None else forced[i : i + 1]) for i in range(len(images))
        ]
        return np.concatenate([logits for logits, _ in results]), np.concatenate([path for _, path in results])

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Call, ...]:
        if self._single is None:
            raise _closed()
        return self._single.engine_calls(path)

    def gate_calls(self) -> tuple[Callable[[], int], ...]:
        if self._single is None:
            raise _closed()
        return self._single.gate_calls()

    def clone(self) -> OnnxRuntimeBackend:
        other = object.__new__(OnnxRuntimeBackend)
        other._setup(self._loaded(), self._architecture, self._gate.name)
        other.set_score_offset(self._offset)
        other._planned = self._planned
        return other

    def close(self) -> None:
        self._engines = self._single = self._batch = None

    @property
    def substitutions(self) -> tuple[Substitution, ...]:
        return self._loaded().substitutions

    @property
    def description(self) -> dict[str, Any]:
        engines = self._loaded()
        return described(engines.threads, engines.pools, self._gate.name, self._planned, engines.prepared.description)

    def _loaded(self) -> LoadedEngines:
        if self._engines is None:
            raise _closed()
        return self._engines


def _closed() -> RuntimeClosedError:
    return RuntimeClosedError("this Runtime was closed by another thread; make a new one")
