"""Execution contexts whose tensors lie at fixed addresses: bound once, enqueued many times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dfs_deploy.errors import EngineError
from dfs_deploy.runtimes.tensorrt.device import Lane, aligned
from dfs_deploy.runtimes.tensorrt.engines import LoadedEngine, LoadedEngines
from dfs_deploy.runtimes.tensorrt.library import Log, libraries

if TYPE_CHECKING:
    import tensorrt as trt

ONE_IMAGE, BATCH = 0, 1
"""Optimisation profiles of every plan; see :attr:`dfs_deploy.runtimes.tensorrt.plan.Settings.profiles`."""


class Binder:
    """Makes bound engines on a lane; they run one after another, and share one scratch buffer.

    Args:
        engines: shared with clones.
        lane: this thread's stream and memory.
    """

    def __init__(self, engines: LoadedEngines, lane: Lane) -> None:
        self._log = engines.log
        self._lane = lane
        self._size = engines.scratch
        self._scratch = lane.allocate(engines.scratch)

    def bind(self, loaded: LoadedEngine, profile: int, source: int, targets: Mapping[str, int]) -> BoundEngine:
        """Binds an engine.

        Args:
            loaded: the engine.
            profile: :data:`ONE_IMAGE`, whose shape is set for good, or :data:`BATCH`.
            source: address of the input.
            targets: address of each output by name.

        Raises:
            EngineError: TensorRT refuses.
        """
        context = self._context(loaded)
        bound = BoundEngine(loaded, context, self._lane, self._log)
        handle = self._lane.stream.handle
        bound.check(context.set_optimization_profile_async(profile, handle), "an optimisation profile")
        for name, address in {loaded.input: source, **targets}.items():
            bound.check(context.set_tensor_address(name, aligned(address)), f"the address of {name}")
        if profile == ONE_IMAGE:
            bound.reshape(1)
        return bound

    def _context(self, loaded: LoadedEngine) -> trt.IExecutionContext:
        with libraries():
            import tensorrt as trt

        if hasattr(trt, "ExecutionContextAllocationStrategy"):
            context = loaded.engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:
            context = loaded.engine.create_execution_context_without_device_memory()
        if context is None:
            raise EngineError(f"{loaded.label}: TensorRT makes no execution context: {self._log.take()}")
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(self._scratch, self._size)
        else:
            context.device_memory = self._scratch
        return context


class BoundEngine:
    """An engine with a context of its own, made by :meth:`Binder.bind`."""

    def __init__(self, loaded: LoadedEngine, context: trt.IExecutionContext, lane: Lane, log: Log) -> None:
        self.label = loaded.label
        self._loaded, self._context, self._log = loaded, context, log
        self._handle = lane.stream.handle
        self._samples = 0

    def reshape(self, samples: int) -> None:
        """Sets how many samples the next calls take."""
        if samples != self._samples:
            shape = (samples, *self._loaded.takes)
            self.check(self._context.set_input_shape(self._loaded.input, shape), f"an input of {shape}")
            self._samples = samples

    def enqueue(self) -> None:
        """Enqueues the engine; raises EngineError where TensorRT does not."""
        if not self._context.execute_async_v3(self._handle):
            self.check(False, "to be enqueued")

    def check(self, done: bool, what: str) -> None:
        """Raises EngineError where TensorRT says that something was not done."""
        if not done:
            raise EngineError(f"{self.label} refused {what} in TensorRT: {self._log.take() or 'no reason given'}")
