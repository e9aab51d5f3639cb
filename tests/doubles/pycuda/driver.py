"""A double of pycuda.driver on host memory; test_conformance.py holds it to pycuda's source."""

from __future__ import annotations

import enum
import itertools
import threading
from typing import Any

import numpy as np
from double_gpu import GPU, POISON, Block, Operation
from double_gpu import Stream as Queue

_handles = itertools.count(0x5000, 0x10)


class Error(Exception):
    pass


class LogicError(Error):
    pass


class MemoryError(Error):
    pass


def _fault(name: str) -> None:
    if GPU.fault(name):
        raise LogicError(f"{name} failed: an illegal memory access was encountered")


class device_attribute(enum.Enum):
    INTEGRATED = 18


class host_alloc_flags:
    DEVICEMAP = 2


def init(flags: int = 0) -> None:
    _fault("cuInit")


class Context:
    def __init__(self) -> None:
        self.retained = True
        self.thread = threading.get_ident()

    def push(self) -> None:
        _fault("cuCtxPushCurrent")
        if not self.retained:
            GPU.violate("pushed a context that was given back")
        GPU.stack.append(self)

    @staticmethod
    def pop() -> None:
        if not GPU.stack:
            GPU.violate("popped a context that is not current")
        GPU.stack.pop()
        _fault("cuCtxPopCurrent")

    def detach(self) -> None:
        if not self.retained:
            GPU.violate("gave a context back twice")
        self.retained = False
        GPU.retained -= 1
        _fault("cuDevicePrimaryCtxRelease")


class Device:
    def __init__(self, number: int, /) -> None:
        _fault("cuDeviceGet")

    def name(self) -> str:
        return "Double"

    def pci_bus_id(self) -> str:
        return "0000:3B:00.0"

    def compute_capability(self) -> tuple[int, int]:
        return (8, 7)

    def get_attribute(self, attribute: device_attribute, /) -> int:
        return int(GPU.integrated)

    def retain_primary_context(self) -> Context:
        _fault("cuDevicePrimaryCtxRetain")
        GPU.retained += 1
        return Context()


class _Dependent:
    """What belongs to a context: freed while that is current, or by the thread that made it."""

    _kind = ""

    def __init__(self) -> None:
        GPU.current(f"{type(self).__name__} made")
        self.thread = threading.get_ident()
        GPU.live[self._kind] += 1

    def __del__(self) -> None:
        if hasattr(self, "thread"):
            GPU.live[self._kind] -= 1
            if not GPU.retained:
                GPU.violations.append(f"{self._kind} freed after the context was given back")


class Stream(_Dependent):
    _kind = "stream"
    handle = 0

    def __init__(self, flags: int = 0) -> None:
        _fault("cuStreamCreate")
        if flags != 1:
            GPU.violate("a stream that waits for the default stream")
        super().__init__()
        self.handle = next(_handles)
        self.queue = GPU.streams[self.handle] = Queue()

    def synchronize(self) -> None:
        GPU.current("a stream was waited for")
        _fault("cuStreamSynchronize")
        self.queue.run()

    def __del__(self) -> None:
        if hasattr(self, "queue"):
            if self.queue.queue:
                GPU.violations.append("a stream was freed with work under way")
            GPU.streams.pop(self.handle, None)
        super().__del__()


class _Memory:
    def __init__(self, block: Block) -> None:
        self.block: Block | None = block
        self.thread = threading.get_ident()

    def free(self) -> None:
        if not GPU.stack and threading.get_ident() != self.thread:
            GPU.violate("memory freed out of its thread, with no context current")
        if self.block is None:
            GPU.violate("memory was freed twice")
            raise AssertionError
        block, self.block = self.block, None
        GPU.free(block)
        _fault("cuMemFree")


class DeviceAllocation(_Memory):
    def __int__(self) -> int:
        if self.block is None:
            GPU.violate("the address of freed memory")
            raise AssertionError
        return self.block.address


class PagelockedHostAllocation(_Memory):
    """What a page-locked array has as its base; the array interface makes NumPy keep it as that."""

    def __init__(self, block: Block, shape: tuple[int, ...], dtype: Any, mapped: bool) -> None:
        super().__init__(block)
        self.mapped = mapped
        self.__array_interface__ = {
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (block.address, False),
            "version": 3,
        }

    def get_device_pointer(self) -> int:
        if not self.mapped or self.block is None:
            GPU.violate("the device's address of host memory that is not mapped")
            raise AssertionError
        return self.block.address


def mem_alloc(size: int, /) -> DeviceAllocation:
    GPU.current("memory was allocated")
    if GPU.fault("cuMemAlloc"):
        raise MemoryError("cuMemAlloc failed: out of memory")
    return DeviceAllocation(GPU.allocate(size, "device memory"))


def pagelocked_empty(shape: tuple[int, ...], dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
    GPU.current("host memory was allocated")
    if GPU.fault("cuMemHostAlloc"):
        raise MemoryError("cuMemHostAlloc failed: out of memory")
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    block = GPU.allocate(size, "host memory")
    return np.asarray(PagelockedHostAllocation(block, shape, dtype, bool(mem_flags & host_alloc_flags.DEVICEMAP)))


def _enqueue(stream: Stream | None, what: str, run: Any) -> None:
    GPU.current(what)
    _fault(what)
    if stream is None:
        GPU.violate(f"{what} on the default stream")
        raise AssertionError
    stream.queue.add(Operation(run))


def _pinned(array: Any, what: str) -> Any:
    """The bytes of a page-locked array; a violation where it is any other."""
    if not array.flags.c_contiguous:
        GPU.violate(f"{what}: the array is not contiguous")
    return GPU.find(int(array.ctypes.data), array.nbytes, f"{what}: the host's array")


def memcpy_htod_async(dest: int, src: Any, stream: Stream | None = None) -> None:
    source = _pinned(src, "cuMemcpyHtoDAsync")

    def run() -> None:
        GPU.find(int(dest), len(source), "cuMemcpyHtoDAsync")[:] = source

    _enqueue(stream, "cuMemcpyHtoDAsync", run)


def memcpy_dtoh_async(dest: Any, src: int, stream: Stream | None = None) -> None:
    target = _pinned(dest, "cuMemcpyDtoHAsync")
    target.view(np.float32)[:] = POISON  # until the copy ran

    def run() -> None:
        target[:] = GPU.find(int(src), len(target), "cuMemcpyDtoHAsync")

    _enqueue(stream, "cuMemcpyDtoHAsync", run)


def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream | None = None) -> None:
    def run() -> None:
        GPU.find(int(dest), size, "cuMemcpyDtoDAsync")[:] = GPU.find(int(src), size, "cuMemcpyDtoDAsync")

    _enqueue(stream, "cuMemcpyDtoDAsync", run)
