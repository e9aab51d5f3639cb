"""The GPU, through pycuda: its context, and one stream per thread with the memory that is used on it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import EnvironmentLacksError, InternalError
from dfs_deploy.runtimes.tensorrt.library import libraries

if TYPE_CHECKING:
    import pycuda.driver as cuda

ALIGNMENT = 256
"""Bytes; every address must be a multiple of them (IExecutionContext.set_tensor_address)."""

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: this stream and the default stream do not wait for each other."""


@dataclass(frozen=True)
class DeviceFacts:
    """Properties of a GPU that its engines depend on.

    Attributes:
        name: its model.
        compute_capability: compute capability, as in ``8.7``.
        integrated: whether it shares its memory with the CPU, as on a Jetson.
    """

    name: str
    compute_capability: str
    integrated: bool


class Device:
    """The first GPU that CUDA shows (CUDA_VISIBLE_DEVICES chooses), and its primary context, which TensorRT uses too.

    Raises:
        EnvironmentLacksError: pycuda or the driver is missing, or there is no GPU.
    """

    def __init__(self) -> None:
        with libraries():
            import pycuda.driver as cuda

        try:
            cuda.init()
            device = cuda.Device(0)
            self.facts = DeviceFacts(
                name=device.name(),
                compute_capability=".".join(map(str, device.compute_capability())),
                integrated=bool(device.get_attribute(cuda.device_attribute.INTEGRATED)),
            )
            self._context: cuda.Context | None = device.retain_primary_context()
        except cuda.Error as error:
            raise EnvironmentLacksError(
                f"no CUDA device can be used ({error}); the runtime tensorrt needs an NVIDIA GPU and its driver"
            ) from error

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes the context current in this thread; everything on the device happens within."""
        import pycuda.driver as cuda

        if self._context is None:
            raise InternalError("the GPU was used after it was given back")
        self._context.push()
        try:
            yield
        finally:
            cuda.Context.pop()

    def free(self, *steps: Callable[[], object]) -> None:
        """Runs each step, in order, with the device active if it can be made so; raises the last failure.

        A step that fails does not stop the others: what can be freed is freed.
        """
        with contextlib.ExitStack() as last_first:
            active = contextlib.ExitStack()
            last_first.callback(active.close)
            for step in reversed(steps):
                last_first.callback(step)
            last_first.callback(lambda: active.enter_context(self.active()))

    def close(self) -> None:
        """Gives the context back; not within ``active``."""
        context, self._context = self._context, None
        if context is not None:
            context.detach()


def device_facts() -> DeviceFacts:
    """Facts of the GPU that a runtime would use; raises EnvironmentLacksError if there is none."""
    device = Device()
    device.close()
    return device.facts


@dataclass(frozen=True, eq=False)
class HostOutput:
    """Memory of an output that the host reads.

    Attributes:
        array: its values on the host, float32, valid once the stream was waited for after ``Stream.fetch``.
        address: its address on the device.
        mapped: whether both are the same memory, as on a Jetson: then nothing is copied.
    """

    array: NDArray[np.float32]
    address: int
    mapped: bool

    def rows(self, samples: int, width: int) -> NDArray[np.float32]:
        """The first rows, (samples, width): an engine writes them without gaps, however wide the memory is."""
        return self.array.reshape(-1)[: samples * width].reshape(samples, width)


class Stream:
    """A CUDA stream and the memory that is used on it; made, used and closed while the device is active.

    Args:
        device: facts of the GPU.
    """

    def __init__(self, device: DeviceFacts) -> None:
        import pycuda.driver as cuda

        self._cuda = cuda
        self._integrated = device.integrated
        self._held = contextlib.ExitStack()
        self._stream = cuda.Stream(_NON_BLOCKING)
        self._held.callback(self.__dict__.pop, "_stream", None)  # pycuda frees it while the device is active

    @property
    def handle(self) -> int:
        """CUDA's handle, for TensorRT."""
        return self._stream.handle

    def allocate(self, size: int) -> int:
        """Address of some bytes of device memory."""
        allocation = self._cuda.mem_alloc(max(size, 1))
        self._held.callback(allocation.free)
        return _aligned(int(allocation))

    def pinned(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Host memory that the device reads and writes without a copy by the driver, float32, zeroed."""
        return self._host_memory(shape, 0)[0]

    def host_output(self, shape: tuple[int, ...]) -> HostOutput:
        """Memory for an output that the host reads."""
        if self._integrated:
            array, owner = self._host_memory(shape, self._cuda.host_alloc_flags.DEVICEMAP)
            return HostOutput(array, _aligned(int(owner.get_device_pointer())), mapped=True)
        return HostOutput(self.pinned(shape), self.allocate(4 * math.prod(shape)), mapped=False)

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Enqueues a copy from the host; the array must be pinned, and stay as it is until the copy ran."""
        self._cuda.memcpy_htod_async(address, values, self._stream)

    def copy(self, target: int, source: int, size: int) -> None:
        """Enqueues a copy of some bytes on the device."""
        self._cuda.memcpy_dtod_async(target, source, size, self._stream)

    def fetch(self, output: HostOutput, count: int) -> None:
        """Enqueues the copy of an output's first values to the host, unless they are there anyway."""
        if not output.mapped:
            self._cuda.memcpy_dtoh_async(output.array.reshape(-1)[:count], output.address, self._stream)

    def synchronize(self) -> None:
        """Waits until everything that was enqueued is done."""
        self._stream.synchronize()

    def on_close(self, step: Callable[[], object]) -> None:
        """Registers a step for ``close``, before what was made earlier is freed."""
        self._held.callback(step)

    def close(self) -> None:
        """Frees all that was made here, when the stream is idle, and raises the last failure after that."""
        self._held.close()

    def _host_memory(self, shape: tuple[int, ...], flags: int) -> tuple[NDArray[np.float32], Any]:
        array = self._cuda.pagelocked_empty(shape, np.float32, mem_flags=flags)
        owner: cuda.PagelockedHostAllocation = array.base  # type: ignore[assignment]  # numpy says it is an array
        self._held.callback(owner.free)
        array.fill(0.0)
        return array, owner


def _aligned(address: int) -> int:
    if address % ALIGNMENT:
        raise InternalError(f"CUDA gave the address {address:#x}, expected a multiple of {ALIGNMENT}; report it")
    return address
