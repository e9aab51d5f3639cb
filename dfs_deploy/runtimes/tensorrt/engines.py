"""Loading a bundle's plans: the engines that all clones of a runtime share."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.errors import BundleError, EngineError, RuntimeClosedError
from dfs_deploy.runtimes.gate import GateWeights
from dfs_deploy.runtimes.tensorrt.building import Plans
from dfs_deploy.runtimes.tensorrt.device import Device
from dfs_deploy.runtimes.tensorrt.library import Log, libraries
from dfs_deploy.runtimes.tensorrt.wanted import HEAD, STEM, Size, WantedEngine, wanted_engines

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class LoadedEngine:
    """An engine ready to run.

    Attributes:
        label: what messages call it, as in ``block 3, option 8 (int8)``.
        engine: TensorRT's.
        input: name of its input.
        takes: size of it, without the batch.
        outputs: size of each output by name.
        scratch: bytes of device memory that it needs while it runs.
    """

    label: str
    engine: trt.ICudaEngine
    input: str
    takes: Size
    outputs: dict[str, Size]
    scratch: int


class LoadedEngines:
    """All that the clones of a runtime share; the last of them to close frees it.

    Args:
        bundle: the bundle; a plan that is missing or does not fit is built now.
        gate: the gate's weights; ``None`` with a static policy.
        cache: where plans are kept.

    Attributes:
        unkept: why plans that were built are held in memory alone; empty if they are kept.

    Raises:
        BundleError: a plan takes or gives something else than the manifest says.
        EnvironmentLacksError: TensorRT, pycuda or a GPU is missing.
        EngineError: a plan could not be built or loaded.
    """

    def __init__(self, bundle: Bundle, gate: GateWeights | None, cache: Cache) -> None:
        self.gate = gate
        self.device = Device()
        self._users, self._lock = 1, threading.Lock()
        try:
            self._load(bundle, cache)
        except BaseException as error:
            forget_frames(error)
            self.release()
            raise

    def _load(self, bundle: Bundle, cache: Cache) -> None:
        with libraries():
            import tensorrt as trt

        plans = Plans(bundle, self.device.facts, cache=cache)
        self.batch, self.version = plans.settings.batch, plans.version
        names = bundle.options.names
        blocks: list[list[LoadedEngine | None]] = [[None] * len(names) for _ in range(bundle.architecture.gated_blocks)]
        same: dict[str, trt.ICudaEngine] = {}
        with self.device.active():
            self.log = Log()
            runtime = trt.Runtime(self.log.logger)
            runtime.engine_host_code_allowed = False  # a plan that carries code is refused
            for wanted in wanted_engines(bundle):
                digest = bundle.manifest.files[wanted.file].sha256
                if digest not in same:
                    same[digest] = self._deserialize(runtime, plans.read(wanted), wanted.label)
                loaded = _checked(same[digest], wanted, bundle)
                if wanted.block == STEM:
                    self.stem = loaded
                elif wanted.block == HEAD:
                    self.head = loaded
                else:
                    blocks[wanted.block - 1][names.index(wanted.option)] = loaded
        self.blocks: Sequence[Sequence[LoadedEngine | None]] = blocks
        every = [self.stem, self.head, *(engine for block in blocks for engine in block if engine is not None)]
        self.scratch = max(engine.scratch for engine in every)
        self._runtime = runtime
        self.unkept = plans.unkept

    def _deserialize(self, runtime: trt.Runtime, plan: bytes, label: str) -> trt.ICudaEngine:
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"TensorRT {self.version} cannot load the plan of {label}: {self.log.take()}")
        return engine

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


def forget_frames(error: BaseException) -> None:
    """Clears the variables of all frames that an error passed through, and of those that led to it.

    They may hold TensorRT's objects, which must be gone before the device is given back; the error outlives that.
    """
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        traceback.clear_frames(following.__traceback__)
        following = following.__cause__ or following.__context__


def _checked(engine: trt.ICudaEngine, wanted: WantedEngine, bundle: Bundle) -> LoadedEngine:
    with libraries():
        import tensorrt as trt

    found = {}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        size = tuple(engine.get_tensor_shape(name))[1:]
        reads = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        found[name] = (size, reads, engine.get_tensor_dtype(name) == trt.DataType.FLOAT)
    expected = {wanted.input: (wanted.takes, True, True)}
    expected.update({name: (size, False, True) for name, size in wanted.outputs.items()})
    if found != expected:
        raise BundleError(
            f"{bundle.path}: the engine of {wanted.label} takes or gives something else than {wanted.input} of"
            f" {wanted.takes} and {', '.join(wanted.outputs)}, all float32; export it again"
        )
    scratch = engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size
    return LoadedEngine(wanted.label, engine, wanted.input, wanted.takes, wanted.outputs, scratch)
