"""TensorRT on an NVIDIA GPU, through pycuda.

Never run on a device so far: proved on a double of both that is held to NVIDIA's own bindings (docs/tensorrt.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.errors import DfsDeployError, EngineError, RuntimeClosedError
from dfs_deploy.io.text import first_line
from dfs_deploy.network import Architecture
from dfs_deploy.runtimes.backend import Backend, Substitution
from dfs_deploy.runtimes.budgets import score_offset
from dfs_deploy.runtimes.gate import GateWeights, gate_for, read_gate_weights
from dfs_deploy.runtimes.tensorrt.device import Stream
from dfs_deploy.runtimes.tensorrt.dispatch import Call, Dispatch
from dfs_deploy.runtimes.tensorrt.engines import LoadedEngines, clear_frames

__all__ = ["TensorRTBackend"]


class TensorRTBackend(Backend):
    """Runs a bundle's engines in TensorRT.

    A failure on the device closes the backend: CUDA's state is not known after it.

    Args:
        bundle: the bundle; engines that are missing or do not fit this machine are built first.
        gate: ``native`` or ``numpy``; ``None`` for the first if it was compiled.
        cache: cache of the engines; ``None`` for the bundle's usual cache.
    """

    name = "tensorrt"

    def __init__(self, bundle: Bundle, gate: str | None = None, cache: Cache | None = None) -> None:
        weights = read_gate_weights(bundle, "tensorrt")
        with _device_errors("loading"):
            engines = LoadedEngines(bundle, cache or Cache(bundle))
        self._contract = bundle.input
        self._setup(engines, bundle.architecture, weights, gate)

    def _setup(
        self, engines: LoadedEngines, network: Architecture, weights: GateWeights | None, kind: str | None
    ) -> None:
        """Takes over one use of the engines; releases it if anything fails."""
        self._engines: LoadedEngines | None = engines
        self._network, self._weights = network, weights
        self.batch = engines.settings.batch
        self._stream: Stream | None = None
        self._dispatches: list[Dispatch] = []  # for one image, and for batches if the engines take them
        self._timed: dict[Call, Callable[[], None]] = {}
        with self._closed_on_failure(lambda: "loading"), engines.device.active():
            self._gate = None if weights is None else gate_for(weights, kind)
            self._offset = score_offset(0.0, network, engines.options)
            if self._gate is not None:
                self._gate.set_score_offset(self._offset)
            stream = self._stream = Stream(engines.device.facts)
            scratch = stream.allocate(engines.scratch)
            for profile, (_, _, most) in enumerate(engines.settings.profiles):
                self._dispatches.append(Dispatch(engines, self._gate, network, stream, scratch, profile, most))
            stream.synchronize()

    def infer(
        self, images: NDArray[Any], forced: NDArray[np.uint8] | None, first: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        engines, _, dispatches = self._open()
        images = self._contract.prepare(images, first)
        running, results = dispatches[0], []
        with self._closed_on_failure(lambda: running.at), engines.device.active():
            for start in range(0, len(images), self.batch):
                part = slice(start, start + self.batch)
                running = dispatches[0 if len(images[part]) == 1 else -1]
                results.append(running.run(images[part], None if forced is None else forced[part]))
        if len(results) == 1:
            return results[0]
        return np.concatenate([logits for logits, _ in results]), np.concatenate([path for _, path in results])

    def set_score_offset(self, offset: NDArray[np.float32]) -> None:
        self._open()
        if self._gate is not None:
            self._gate.set_score_offset(offset)
        self._offset = offset.copy()

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Callable[[], None], ...]:
        engines, stream, dispatches = self._open()

        def run(call: Call) -> None:
            with engines.device.active():
                dispatches[0].launch(call)
                stream.synchronize()

        calls = dispatches[0].engine_calls(path)
        return tuple(self._timed.setdefault(call, partial(run, call)) for call in calls)

    def gate_calls(self) -> tuple[Callable[[], object], ...]:
        return self._open()[2][0].gate_calls()

    def clone(self) -> TensorRTBackend:
        engines = self._open()[0].retain()
        other = object.__new__(TensorRTBackend)
        other._contract = self._contract
        other._setup(engines, self._network, self._weights, None if self._gate is None else self._gate.name)
        other.set_score_offset(self._offset)
        return other

    def close(self) -> None:
        engines, stream = self._engines, self._stream
        self._engines = self._stream = None
        if engines is None:
            return
        steps = [] if stream is None else [stream.synchronize, stream.close]
        self._dispatches, self._timed = [], {}
        with _device_errors("closing"):
            try:
                engines.device.free(*steps)
            except BaseException as error:
                clear_frames(error)  # they hold the stream, which must be gone before the device is
                raise
            finally:
                engines.release()

    @property
    def substitutions(self) -> tuple[Substitution, ...]:
        return ()  # every option runs the engine of its own precision

    @property
    def description(self) -> dict[str, Any]:
        engines = self._open()[0]
        return {
            "runtime": self.name,
            "provider": "TensorRT",
            "version": engines.version,
            "device": engines.device.facts.name,
            "batch": self.batch,
            "engines": f"not kept: {engines.unkept}" if engines.unkept else "kept",
            "gate": "none: a static policy" if self._gate is None else self._gate.name,
        }

    def _open(self) -> tuple[LoadedEngines, Stream, list[Dispatch]]:
        if self._engines is None or self._stream is None:
            raise RuntimeClosedError(
                "this Runtime was closed, by close() or by a failure on the device; make a new one"
            )
        return self._engines, self._stream, self._dispatches

    @contextlib.contextmanager
    def _closed_on_failure(self, at: Callable[[], str]) -> Iterator[None]:
        """Closes the backend if anything fails, and names what did."""
        try:
            yield
        except BaseException as error:
            where = at()
            clear_frames(error)
            more = ""
            try:
                self.close()
            except Exception as freeing:  # reported with the first failure, which is the one that counts
                more = f"; and freeing its memory failed: {first_line(freeing)}"
            if not isinstance(error, Exception) or (isinstance(error, DfsDeployError) and not more):
                raise
            failed = first_line(error) if isinstance(error, DfsDeployError) else _failed(where, error)
            raise EngineError(f"{failed}{more}; the Runtime is closed, make a new one") from error


@contextlib.contextmanager
def _device_errors(where: str) -> Iterator[None]:
    """Turns errors of the device into ours, when there is no backend to close."""
    try:
        yield
    except DfsDeployError:
        raise
    except Exception as error:
        clear_frames(error)
        raise EngineError(_failed(where, error)) from error


def _failed(where: str, error: Exception) -> str:
    return f"{where} failed on the device: {first_line(error)}"
