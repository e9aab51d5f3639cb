"""ONNX Runtime on a CPU, the default backend."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.errors import BundleError, RuntimeClosedError
from dfs_deploy.network import Architecture
from dfs_deploy.runtimes.backend import Backend, BackendOptions, Substitution
from dfs_deploy.runtimes.dispatch import Call
from dfs_deploy.runtimes.gate import GateWeights, gate_for, read_gate_weights
from dfs_deploy.runtimes.onnxruntime.batch import BatchDispatch
from dfs_deploy.runtimes.onnxruntime.engine_choice import decide_substitutions, load_choice
from dfs_deploy.runtimes.onnxruntime.loading import LoadedEngines, check_memory, describe, load_engines
from dfs_deploy.runtimes.onnxruntime.prepared import (
    PLAIN,
    DamagedError,
    PreparedEngines,
    obtain_prepared,
    prepare_engines,
)
from dfs_deploy.runtimes.onnxruntime.single import SingleDispatch
from dfs_deploy.runtimes.onnxruntime.static import PolicyBackend

__all__ = ["OnnxRuntimeBackend", "PolicyBackend"]

_LOG = logging.getLogger(__name__)

SMALL_BATCH = 16
"""Largest batch that runs image by image with one thread per engine: bound calls beat regrouping (docs/performance.md).

With more threads per engine, regrouping wins from two images on.
"""


@dataclass(frozen=True)
class _Loaded:
    """Everything that the clones of a backend share.

    Attributes:
        engines: engines, opened.
        weights: weights of the gate.
        architecture: network.
        substitutions: options that run on an engine of another precision.
        description: plain facts for reports.
    """

    engines: LoadedEngines
    weights: GateWeights
    architecture: Architecture
    substitutions: tuple[Substitution, ...]
    description: dict[str, Any]


class OnnxRuntimeBackend(Backend):
    """Runs the engines that a gate chooses in ONNX Runtime.

    Args:
        bundle: bundle with a gate; see :class:`PolicyBackend` for one with a static policy.
        options: choices of how it runs.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        self._setup(_load(bundle, options), options.gate, None)

    def _setup(self, loaded: _Loaded, kind: str | None, offset: NDArray[np.float32] | None) -> None:
        engines, network = loaded.engines, loaded.architecture
        self._gate = gate_for(loaded.weights, kind, engines.channel_block)
        self._offset = np.zeros(loaded.weights.options, np.float32)
        if offset is not None:
            self.set_score_offset(offset)
        self._small_batch = SMALL_BATCH if engines.threads == 1 else 1
        self._held: tuple[_Loaded, SingleDispatch, BatchDispatch] | None = (
            loaded,
            SingleDispatch(engines, self._gate, network),
            BatchDispatch(engines, self._gate, network),
        )

    def set_score_offset(self, offset: NDArray[np.float32]) -> None:
        self._gate.set_score_offset(offset)
        self._offset = offset.copy()

    def infer(
        self, images: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        _, single, batch = self._open()
        if len(images) == 1:
            return single.run(images, forced)
        if len(images) > self._small_batch:
            return batch.run(images, forced)
        results = [
            single.run(images[i : i + 1], None if forced is None else forced[i : i + 1]) for i in range(len(images))
        ]
        return np.concatenate([logits for logits, _ in results]), np.concatenate([path for _, path in results])

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Call, ...]:
        return self._open()[1].engine_calls(path)

    def gate_calls(self) -> tuple[Callable[[], int], ...]:
        return self._open()[1].gate_calls()

    def clone(self) -> OnnxRuntimeBackend:
        other = object.__new__(OnnxRuntimeBackend)
        other._setup(self._open()[0], self._gate.name, self._offset)
        return other

    def close(self) -> None:
        self._held = None

    @property
    def substitutions(self) -> tuple[Substitution, ...]:
        return self._open()[0].substitutions

    @property
    def description(self) -> dict[str, Any]:
        return {**self._open()[0].description, "gate": self._gate.name}

    def _open(self) -> tuple[_Loaded, SingleDispatch, BatchDispatch]:
        if self._held is None:
            raise RuntimeClosedError("this Runtime was closed by another thread; make a new one")
        return self._held


def _load(bundle: Bundle, options: BackendOptions) -> _Loaded:
    check_memory(bundle)
    weights = read_gate_weights(bundle, "onnxruntime")
    if weights is None:
        raise BundleError(f"{bundle.path} has a static policy, and no gate")
    cache = Cache(bundle, options.cache_dir)
    try:
        return _load_engines(
            bundle, options, cache, weights, obtain_prepared(bundle, cache) if options.prepared else PLAIN
        )
    except DamagedError as error:
        _LOG.warning("%s: the prepared engines are made again: %s", bundle.path, error)
        return _load_engines(bundle, options, cache, weights, prepare_engines(bundle, cache=cache))


def _load_engines(
    bundle: Bundle, options: BackendOptions, cache: Cache, weights: GateWeights, prepared: PreparedEngines
) -> _Loaded:
    threads = options.threads or 1
    choice = load_choice(bundle, threads, prepared.channel_block, cache) if options.plan else None
    substitutions = decide_substitutions(bundle, choice)
    for each in substitutions:
        _LOG.info(
            "%s: option %s runs as %s in %d blocks: %s",
            bundle.path,
            each.option,
            each.served_by,
            len(each.blocks),
            each.reason,
        )
    engines = load_engines(bundle, threads, substitutions, prepared)
    description = describe(engines.threads, engines.pools, "", choice is not None, prepared.description)
    return _Loaded(engines, weights, bundle.architecture, substitutions, description)
