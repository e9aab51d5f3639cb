"""A bundle's engines in TensorRT, shared by all clones of a runtime, and the contexts that execute them."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.bundle.engines import PlacedEngine
from dfs_deploy.errors import BundleError, EngineError, RuntimeClosedError
from dfs_deploy.runtimes.tensorrt.device import Device, Stream
from dfs_deploy.runtimes.tensorrt.engine_cache import EngineCache, input_name, network_engines, onnx_file
from dfs_deploy.runtimes.tensorrt.library import Log, libraries

if TYPE_CHECKING:
    import tensorrt as trt

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedEngine:
    """An engine in TensorRT.

    Attributes:
        placed: its record and its place in the network.
        engine: TensorRT's object.
    """

    placed: PlacedEngine
    engine: trt.ICudaEngine


class LoadedEngines:
    """Everything that the clones of a runtime share; the last of them to close frees it.

    Args:
        bundle: bundle with engines for TensorRT; one that is missing on this machine or does not fit is built now.
        cache: cache of the engines.

    Attributes:
        device: the GPU.
        version: version of TensorRT.
        settings: settings that the engines were built with.
        stem: engine of stem and first block.
        options: options that the gate chooses from.
        blocks: for each block after the first, the engine of each option; ``None`` for a skip that computes nothing,
            and for an option that the block may not run.
        head: engine of the head.
        scratch: bytes of device memory that an engine needs at most while it runs.
        log: errors of TensorRT.
        unkept: why engines that were built are held in memory only; empty if they are kept.

    Raises:
        BundleError: an engine takes or gives something else than the manifest says.
        EnvironmentLacksError: TensorRT, pycuda or a GPU is missing.
        EngineError: an engine could not be built or loaded.
    """

    def __init__(self, bundle: Bundle, cache: Cache) -> None:
        self.device = Device()
        self._users, self._lock = 1, threading.Lock()
        try:
            self._load(bundle, cache)
        except BaseException as error:
            clear_frames(error)
            self.release()
            raise

    def _load(self, bundle: Bundle, cache: Cache) -> None:
        with libraries():
            import tensorrt as trt

        kept = EngineCache(bundle, self.device.facts, cache=cache)
        self.settings, self.version = kept.settings, kept.version
        self.options, names = bundle.options, bundle.options.names
        blocks: list[list[LoadedEngine | None]] = [[None] * len(names) for _ in range(bundle.architecture.gated_blocks)]
        same: dict[str, trt.ICudaEngine] = {}
        self.scratch = 0
        with self.device.active():
            self.log = Log()
            self._runtime = runtime = trt.Runtime(self.log.logger)
            runtime.engine_host_code_allowed = False  # an engine that carries code is refused
            for placed in network_engines(bundle):
                digest = bundle.manifest.files[onnx_file(placed)].sha256
                if digest not in same:
                    engine = runtime.deserialize_cuda_engine(kept.obtain(placed)[0])
                    if engine is None:
                        raise EngineError(
                            f"TensorRT {self.version} cannot load the engine of {placed.label}: {self.log.take()}"
                        )
                    same[digest] = engine
                _check_interface(same[digest], placed, bundle)
                self.scratch = max(self.scratch, _scratch(same[digest]))
                loaded = LoadedEngine(placed, same[digest])
                if placed.part == "stem":
                    self.stem = loaded
                elif placed.block is None:
                    self.head = loaded
                else:
                    blocks[placed.block - 1][names.index(placed.option)] = loaded
        self.blocks: Sequence[Sequence[LoadedEngine | None]] = blocks
        self.unkept = kept.unkept
        _LOG.info("%s: %d engines loaded by TensorRT %s", bundle.path, len(same), self.version)

    def retain(self) -> LoadedEngines:
        """Counts one more user, and returns itself.

        Raises:
            RuntimeClosedError: the last user has freed them.
        """
        with self._lock:
            if not self._users:
                raise RuntimeClosedError("this Runtime was closed by another thread; make a new one")
            self._users += 1
        return self

    def release(self) -> None:
        """Counts one user less; the last one frees the engines and the context."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        try:
            self.device.free(self._drop)
        finally:
            self.device.close()

    def _drop(self) -> None:
        for name in ("stem", "head", "blocks", "_runtime", "log"):  # the runtime after the engines
            self.__dict__.pop(name, None)


class EngineContext:
    """An execution context of an engine, on one stream; freed with the stream.

    Args:
        loaded: the engine.
        engines: all engines of the bundle.
        stream: stream that it runs on.
        scratch: address of ``engines.scratch`` bytes, shared by all contexts of the stream: they run one after another.
        profile: index of the optimisation profile.
        pooled: address of the pooled features that it writes; ``None`` for the head, which has none.

    Raises:
        EngineError: TensorRT refuses.
    """

    def __init__(
        self,
        loaded: LoadedEngine,
        engines: LoadedEngines,
        stream: Stream,
        scratch: int,
        profile: int,
        pooled: int | None = None,
    ) -> None:
        import tensorrt as trt

        self.label = loaded.placed.label
        self._input, self._takes = input_name(loaded.placed), loaded.placed.takes
        self._log, self._stream = engines.log, stream.handle
        self._samples = self._source = self._target = 0
        if hasattr(trt, "ExecutionContextAllocationStrategy"):
            context = loaded.engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:
            context = loaded.engine.create_execution_context_without_device_memory()
        if context is None:
            raise EngineError(f"{self.label}: TensorRT makes no execution context: {self._log.take()}")
        self._context = context
        stream.on_close(lambda: self.__dict__.pop("_context", None))
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(scratch, engines.scratch)
        else:
            context.device_memory = scratch
        self._check(context.set_optimization_profile_async(profile, self._stream), "an optimisation profile")
        if pooled is not None:
            self._check(context.set_tensor_address("pooled", pooled), "the address of pooled")

    def enqueue(self, samples: int, source: int, target: int) -> None:
        """Enqueues the engine.

        Args:
            samples: size of the batch.
            source: address of its input.
            target: address of its output.

        Raises:
            EngineError: TensorRT refuses.
        """
        context = self._context
        if samples != self._samples:
            shape = (samples, *self._takes)
            self._check(context.set_input_shape(self._input, shape), f"an input of {shape}")
            self._samples = samples
        if source != self._source:
            self._check(context.set_tensor_address(self._input, source), f"the address of {self._input}")
            self._source = source
        if target != self._target:
            self._check(context.set_tensor_address("output", target), "the address of output")
            self._target = target
        self._check(context.execute_async_v3(self._stream), "to be enqueued")

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(f"{self.label} refused {what} in TensorRT: {self._log.take()}")


def clear_frames(error: BaseException) -> None:
    """Clears the variables of all frames that an error passed through, and of those that led to it.

    They may hold TensorRT's objects, which must be gone before the device is given back; the error outlives that.
    """
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        traceback.clear_frames(following.__traceback__)
        following = following.__cause__ or following.__context__


def _check_interface(engine: trt.ICudaEngine, placed: PlacedEngine, bundle: Bundle) -> None:
    """Raises BundleError if an engine takes or gives something else than the manifest says."""
    import tensorrt as trt

    found = {}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        size = tuple(engine.get_tensor_shape(name))[1:]
        reads = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        found[name] = (size, reads, engine.get_tensor_dtype(name) == trt.DataType.FLOAT)
    expected = {input_name(placed): (placed.takes, True, True), "output": (placed.gives, False, True)}
    if placed.part != "head":
        expected["pooled"] = (placed.gives[:1], False, True)
    if found != expected:
        raise BundleError(
            f"{bundle.path}: the engine of {placed.label} takes or gives something else than {input_name(placed)} of"
            f" {placed.takes} and {', '.join(list(expected)[1:])}, all float32; export it again"
        )


def _scratch(engine: trt.ICudaEngine) -> int:
    """Bytes of device memory that an engine needs while it runs."""
    return engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size
