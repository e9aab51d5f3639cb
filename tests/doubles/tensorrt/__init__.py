"""A double of TensorRT that runs an engine's graph in ONNX Runtime; test_conformance.py holds it to NVIDIA's bindings.

``DOUBLE_TENSORRT`` in the environment chooses the version, and with it which names there are. ``DOUBLE_BUILD_FAULT`` is
``KIND:NAME``: building the graph of that name fails in that way.
"""

from __future__ import annotations

import enum
import functools
import json
import os
import signal
import struct
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from double_gpu import ALIGNMENT, GPU, POISON, Operation, session_of

__version__ = os.environ.get("DOUBLE_TENSORRT", "10.13.3.9")

_NUMBERS = tuple(int(part) for part in __version__.split(".")[:3])
_MAGIC = 0x74727466
_HEADER = struct.Struct("<II16x4BI")
_SCRATCH = 4096


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        raise NotImplementedError

    def _error(self, text: str) -> None:
        assert self._made, "ILogger.__init__ was not called"
        self.log(ILogger.Severity.WARNING, "a warning")
        self.log(ILogger.Severity.ERROR, text)


class BuilderFlag(enum.Enum):
    TF32 = 7
    if _NUMBERS < (11,):
        FP16 = 0
        INT8 = 1


class NetworkDefinitionCreationFlag(enum.Enum):
    if _NUMBERS < (11,):
        EXPLICIT_BATCH = 0
    if _NUMBERS >= (10,):
        STRONGLY_TYPED = 1

    def __int__(self) -> int:
        return self.value


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class PreviewFeature(enum.Enum):
    ALIASED_PLUGIN_IO_10_03 = 1
    if _NUMBERS < (11,):
        PROFILE_SHARING_0806 = 0


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT64 = 8


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class IHostMemory(bytes):
    pass


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._data)


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        self._shapes[input] = [list(min), list(opt), list(max)]


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self._strong = _NUMBERS >= (11,) or bool(flags & 2)
        self._model: bytes | None = None
        self._name = ""


class IBuilderConfig:
    def __init__(self) -> None:
        self._flags = {BuilderFlag.TF32}
        self._preview: set[PreviewFeature] = set()
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None
        self._workspace: int | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def set_preview_feature(self, feature: PreviewFeature, enable: bool) -> None:
        if enable:
            self._preview.add(feature)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._workspace = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: Any) -> ITimingCache:
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        fits = not cache._data or cache._data.startswith(f"timing {__version__}".encode())
        if fits or ignore_mismatch:
            self._cache = cache
        return fits or ignore_mismatch

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        if _NUMBERS < (10,) and not flags & 1:
            raise RuntimeError("implicit batch is not supported by the ONNX parser")
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        kind = _fault_of(network._name)
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "refused" or (kind == "strong" and network._strong):
            self._logger._error(f"could not find any implementation for {network._name}")
            return None
        if kind == "raises":
            raise RuntimeError("the builder broke")
        allowed = {flag.name for flag in config._flags}
        if network._strong and allowed & {"FP16", "INT8"}:
            self._logger._error("precision flags in a strongly typed network")
            return None
        if not config._profiles or network._model is None:
            self._logger._error("dynamic inputs without an optimization profile")
            return None
        print("a library prints this")
        if config._cache is not None:
            times = config._cache._data or f"timing {__version__}:".encode()
            config._cache._data = times + f" {network._name}".encode()
        facts = {
            "name": network._name,
            "profiles": [profile._shapes for profile in config._profiles],
            "flags": sorted(allowed),
            "strong": network._strong,
            "workspace": config._workspace,
            "sharing": _NUMBERS >= (10,) or any(f.name == "PROFILE_SHARING_0806" for f in config._preview),
        }
        written = (0, 0, 0) if kind == "header" else _NUMBERS
        head = json.dumps(facts).encode()
        return IHostMemory(_HEADER.pack(_MAGIC, 0, *written, 0, len(head)) + head + network._model)


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def parse(self, model: Any, path: str | None = None) -> bool:
        import onnx

        try:
            proto = onnx.load_from_string(bytes(model))
        except Exception as error:
            self._errors.append(ParserError(f"ModelProto cannot be parsed: {error}"))
            return False
        if _fault_of(proto.graph.name) == "parse":
            self._errors.append(ParserError("No importer registered for op: Strange"))
            return False
        self._network._model, self._network._name = bytes(model), proto.graph.name
        return True

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


def _fault_of(name: str) -> str:
    kind, _, where = os.environ.get("DOUBLE_BUILD_FAULT", "").partition(":")
    return kind if where == name else ""


class _Counted:
    """A part of TensorRT that must be gone before the context is given back."""

    _kind = ""

    def __init__(self) -> None:
        GPU.current(f"a {self._kind} was made")
        GPU.live[self._kind] += 1

    def __del__(self) -> None:
        GPU.live[self._kind] -= 1
        if not GPU.retained:
            GPU.violations.append(f"a {self._kind} was freed after the device was given back")


class Runtime(_Counted):
    _kind = "runtime"
    engine_host_code_allowed = False

    def __init__(self, logger: ILogger) -> None:
        super().__init__()
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        given = bytes(serialized_engine)
        magic, zero, *version, length = _HEADER.unpack_from(given)
        if (magic, zero) != (_MAGIC, 0) or tuple(version[:3]) != _NUMBERS:
            GPU.violate("TensorRT was given an engine of another version, or none")
        if GPU.fault("deserialize_cuda_engine"):
            self._logger._error("the engine cannot be read")
            return None
        facts = json.loads(given[_HEADER.size : _HEADER.size + length])
        return ICudaEngine(facts, session_of(given[_HEADER.size + length :]), self)


_TYPES = {
    "tensor(float)": DataType.FLOAT,
    "tensor(float16)": DataType.HALF,
    "tensor(int8)": DataType.INT8,
    "tensor(int64)": DataType.INT64,
}


class ICudaEngine(_Counted):
    _kind = "engine"

    def __init__(self, facts: dict[str, Any], session: Any, runtime: Runtime) -> None:
        super().__init__()
        self._facts, self._session, self._runtime = facts, session, runtime
        self._inputs = {value.name: value for value in session.get_inputs()}
        self._outputs = {value.name: value for value in session.get_outputs()}
        self._tensors = {**self._inputs, **self._outputs}
        self._weights = GPU.allocate(1024, "weights")

    def __del__(self) -> None:
        if hasattr(self, "_weights"):
            GPU.free(self._weights)
        super().__del__()

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._facts["profiles"])

    @property
    def device_memory_size(self) -> int:
        return _SCRATCH + len(self._facts["name"])

    @property
    def device_memory_size_v2(self) -> int:
        return _SCRATCH + len(self._facts["name"])

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _TYPES[self._tensors[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._tensors[name].shape)

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        if strategy != ExecutionContextAllocationStrategy.USER_MANAGED:
            GPU.violate("a context with scratch memory of its own")
        return self._context()

    def create_execution_context_without_device_memory(self) -> IExecutionContext | None:
        return self._context()

    def _context(self) -> IExecutionContext | None:
        if GPU.fault("create_execution_context"):
            self._runtime._logger._error("out of memory")
            return None
        return IExecutionContext(self)


class IExecutionContext(_Counted):
    _kind = "execution context"

    def __init__(self, engine: ICudaEngine) -> None:
        super().__init__()
        self._engine, self._log = engine, engine._runtime._logger
        self._scratch: tuple[int, int] | None = None
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] | None = None
        self._profile: int | None = None
        self._running = threading.Lock()

    def _set_scratch(self, memory: int, size: int) -> None:
        needed = self._engine.device_memory_size_v2 if _NUMBERS >= (10,) else self._engine.device_memory_size
        if memory % ALIGNMENT or size < needed:
            GPU.violate("scratch memory that is not aligned, or too small")
        GPU.find(memory, size, "scratch memory")
        self._scratch = (memory, size)

    def set_device_memory(self, memory: int, size: int) -> None:
        self._set_scratch(memory, size)

    @property
    def device_memory(self) -> int:
        return self._scratch[0] if self._scratch else 0

    @device_memory.setter
    def device_memory(self, value: int) -> None:
        self._set_scratch(value, self._engine.device_memory_size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        GPU.stream(stream_handle, "an optimization profile was set")
        if GPU.fault("set_optimization_profile_async") or profile_index >= self._engine.num_optimization_profiles:
            self._log._error(f"profile {profile_index} cannot be set")
            return False
        if not self._engine._facts["sharing"]:
            GPU.violate("two contexts share an optimization profile that was not built for it")
        self._profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if GPU.fault("set_input_shape"):
            return False
        if self._profile is None or name not in self._engine._inputs:
            return False
        least, _, most = self._engine._facts["profiles"][self._profile][name]
        if len(shape) != len(least) or not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            self._log._error(f"shape {shape} is not within the profile")
            return False
        self._shape = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % ALIGNMENT:
            GPU.violate(f"the address of {name} is not a multiple of {ALIGNMENT}")
        if GPU.fault("set_tensor_address") or name not in self._engine._tensors:
            return False
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self._engine
        GPU.current("an engine was enqueued")
        stream = GPU.stream(stream_handle, "an engine was enqueued")
        if not self._running.acquire(blocking=False):
            GPU.violate("two threads use one execution context")
        try:
            if set(self._addresses) != set(engine._tensors) or self._shape is None or self._scratch is None:
                GPU.violate("an engine was enqueued with tensors, a shape or scratch memory unset")
            if GPU.fault("execute_async_v3"):
                self._log._error("cuda error: an illegal memory access was encountered")
                return False
            assert self._scratch is not None and self._shape is not None
            GPU.check_scratch(stream, *self._scratch)
            stream.add(Operation(functools.partial(self._run, dict(self._addresses), self._shape), self._scratch))
            (source,) = engine._inputs
            first, last = self._addresses[source], self._addresses[source] + self._sizes(source, self._shape)
            for name in engine._outputs:
                size = self._sizes(name, self._shape)
                if self._addresses[name] < last and first < self._addresses[name] + size:
                    GPU.violate(f"{engine._facts['name']} writes {name} over its own input")
                place = GPU.find(self._addresses[name], size, f"{engine._facts['name']}: {name}")
                block = GPU.block(self._addresses[name])
                if block is not None and block.kind == "host memory":
                    place.view(np.float32)[:] = POISON  # mapped: the host sees it when the engine ran, not before
            return True
        finally:
            self._running.release()

    def _sizes(self, name: str, shape: tuple[int, ...]) -> int:
        return 4 * shape[0] * int(np.prod(self._engine._tensors[name].shape[1:]))

    def _run(self, addresses: dict[str, int], shape: tuple[int, ...]) -> None:
        engine = self._engine
        name = engine._facts["name"]
        GPU.kernels.append(name)
        assert self._scratch is not None
        GPU.find(*self._scratch, f"{name}: scratch memory")
        (source,) = engine._inputs
        given = GPU.find(addresses[source], 4 * int(np.prod(shape)), f"{name}: {source}").view(np.float32)
        results = engine._session.run(list(engine._outputs), {source: given.reshape(shape).copy()})
        for output, values in zip(engine._outputs, results, strict=True):
            target = GPU.find(addresses[output], values.nbytes, f"{name}: {output}")
            target[:] = np.ascontiguousarray(values).view(np.uint8).reshape(-1)


if _NUMBERS < (10,):  # what 8.6 has not
    del ExecutionContextAllocationStrategy
    del ICudaEngine.create_execution_context, ICudaEngine.device_memory_size_v2, IExecutionContext.set_device_memory
if _NUMBERS >= (11,):  # what 11 has no more
    del ICudaEngine.create_execution_context_without_device_memory, ICudaEngine.device_memory_size
