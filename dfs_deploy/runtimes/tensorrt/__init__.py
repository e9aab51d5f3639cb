"""TensorRT on an NVIDIA GPU, through pycuda.

Never run on a device so far: proved on a double of both that is held to NVIDIA's own bindings (docs/tensorrt.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.errors import DfsDeployError, EngineError, RuntimeClosedError
from dfs_deploy.network import Architecture
from dfs_deploy.runtimes.backend import Backend, Substitution
from dfs_deploy.runtimes.gate import gate_for, read_gate_weights
from dfs_deploy.runtimes.tensorrt.batch import BatchDispatch
from dfs_deploy.runtimes.tensorrt.contexts import Binder
from dfs_deploy.runtimes.tensorrt.device import Lane
from dfs_deploy.runtimes.tensorrt.engines import LoadedEngines, forget_frames
from dfs_deploy.runtimes.tensorrt.graphs import Launch, Launcher
from dfs_deploy.runtimes.tensorrt.single import SingleDispatch

__all__ = ["TensorRTBackend"]


class TensorRTBackend(Backend):
    """Runs a bundle's engines in TensorRT.

    A failure on the device closes the backend: CUDA's state is not known after it.

    Args:
        bundle: the bundle; plans that are missing or do not fit this machine are built first.
        gate: ``native`` or ``numpy``; ``None`` for the first where it was compiled.
        speculate: whether single images run ahead of the gate.
        cache: where plans are kept; ``None`` for the bundle's usual cache.
    """

    name = "tensorrt"

    def __init__(
        self, bundle: Bundle, gate: str | None = None, speculate: bool = False, cache: Cache | None = None
    ) -> None:
        self._timed_calls: dict[Launch, Callable[[], None]] = {}
        with _named("loading"):
            engines = LoadedEngines(bundle, read_gate_weights(bundle, "tensorrt"), cache or Cache(bundle))
        self._setup(engines, bundle.architecture, gate, speculate and engines.gate is not None)

    def _setup(self, engines: LoadedEngines, architecture: Architecture, kind: str | None, speculate: bool) -> None:
        """Takes over one use of the engines, and gives it back where anything fails."""
        self._engines: LoadedEngines | None = engines
        self._architecture, self._speculate = architecture, speculate
        self.batch = engines.batch
        self._facts = {
            "version": engines.version,
            "device": engines.device.facts.name,
            "batch": engines.batch,
            "plans": f"not kept: {engines.unkept}" if engines.unkept else "kept",
        }
        self._lane: Lane | None = None
        self._launcher: Launcher | None = None
        self._single: SingleDispatch | None = None
        self._batch: BatchDispatch | None = None
        self._gate = None if engines.gate is None else gate_for(engines.gate, kind)
        self._offset = np.zeros(0 if engines.gate is None else engines.gate.options, np.float32)
        with self._closed_on_failure(lambda: "loading"), engines.device.active():
            lane = self._lane = Lane(engines.device.facts)
            launcher = self._launcher = Launcher(lane)
            binder = Binder(engines, lane)
            self._single = SingleDispatch(engines, self._gate, architecture, lane, binder, launcher, speculate)
            if engines.batch > 1:
                self._batch = BatchDispatch(engines, self._gate, architecture, lane, binder)
            lane.synchronize()

    def infer(
        self, images: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        engines, _, single = self._open()
        size = 1 if self._batch is None else engines.batch
        running: SingleDispatch | BatchDispatch = single
        results = []
        with self._closed_on_failure(lambda: running.at), engines.device.active():
            for start in range(0, len(images), size):
                part = images[start : start + size]
                running = single if len(part) == 1 or self._batch is None else self._batch
                results.append(running.run(part, None if forced is None else forced[start : start + size]))
        if len(results) == 1:
            return results[0]
        return np.concatenate([logits for logits, _ in results]), np.concatenate([path for _, path in results])

    def set_score_offset(self, offset: NDArray[np.float32]) -> None:
        self._open()
        if self._gate is not None:
            self._gate.set_score_offset(offset)
        self._offset = offset.copy()

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Callable[[], None], ...]:
        engines, lane, single = self._open()
        return tuple(self._timed(engines, lane, launch) for launch in single.engine_calls(path))

    def gate_calls(self) -> tuple[Callable[[], object], ...]:
        return self._open()[2].gate_calls()

    def clone(self) -> TensorRTBackend:
        engines = self._open()[0].retain()
        other = object.__new__(TensorRTBackend)
        other._timed_calls = {}
        other._setup(engines, self._architecture, None if self._gate is None else self._gate.name, self._speculate)
        other.set_score_offset(self._offset)
        return other

    def close(self) -> None:
        engines, lane, launcher = self._engines, self._lane, self._launcher
        self._engines = self._lane = self._launcher = None
        if engines is None:
            return
        steps: list[Callable[[], object]] = [] if lane is None else [lane.synchronize]
        steps += [] if launcher is None else [launcher.close]
        steps += [self._forget]
        steps += [] if lane is None else [lane.close]
        with _named("closing"):
            try:
                engines.device.free(*steps)
            except BaseException as error:
                forget_frames(error)  # they hold the stream, which must be gone before the device is
                raise
            finally:
                engines.release()

    @property
    def substitutions(self) -> tuple[Substitution, ...]:
        return ()  # every option runs the engine of its own precision

    @property
    def description(self) -> dict[str, Any]:
        _, _, single = self._open()
        counts = single.counts
        speculation = None if counts is None else {"guesses": counts.guesses, "hits": counts.hits}
        return {
            "runtime": self.name,
            "provider": "TensorRT",
            **self._facts,
            "gate": "none: a static policy" if self._gate is None else self._gate.name,
            "cuda_graphs": self._launcher is not None and self._launcher.captures,
            "speculation": speculation,
        }

    def _open(self) -> tuple[LoadedEngines, Lane, SingleDispatch]:
        if self._engines is None or self._lane is None or self._single is None:
            raise RuntimeClosedError(
                "this Runtime was closed, by close() or by a failure on the device; make a new one"
            )
        return self._engines, self._lane, self._single

    def _forget(self) -> None:
        """Drops what holds contexts, graphs and events, while the device is active."""
        for dispatch in (self._single, self._batch):
            if dispatch is not None:
                vars(dispatch).clear()  # a frame of the traceback that leads here may hold the dispatch itself
        self._single = self._batch = None
        self._timed_calls.clear()

    @contextlib.contextmanager
    def _closed_on_failure(self, at: Callable[[], str]) -> Iterator[None]:
        """Closes the backend where anything fails, and names what did."""
        try:
            yield
        except BaseException as error:
            where = at()
            forget_frames(error)
            try:
                self.close()
            except Exception as freeing:  # the first failure is the one to tell; this one is told with it
                raise _failed(where, error, f"; and freeing its memory failed: {_first_line(freeing)}") from error
            if isinstance(error, DfsDeployError) or not isinstance(error, Exception):
                raise
            raise _failed(where, error) from error

    def _timed(self, engines: LoadedEngines, lane: Lane, launch: Launch) -> Callable[[], None]:
        """A call that launches an engine and waits for it; the same launch is the same call each time."""
        if launch not in self._timed_calls:

            def call() -> None:
                with engines.device.active():
                    launch()
                    lane.synchronize()

            self._timed_calls[launch] = call
        return self._timed_calls[launch]


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Makes errors of the device ours; outside of it, there is no backend to close."""
    try:
        yield
    except DfsDeployError:
        raise
    except Exception as error:
        forget_frames(error)
        raise EngineError(f"{where} failed on the device: {_first_line(error)}") from error


def _failed(where: str, error: BaseException, more: str = "") -> EngineError:
    what = (
        _first_line(error)
        if isinstance(error, DfsDeployError)
        else f"{where} failed on the device: {_first_line(error)}"
    )
    return EngineError(f"{what}{more}; the Runtime is closed, make a new one")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
