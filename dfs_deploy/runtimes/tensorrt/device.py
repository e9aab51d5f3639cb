"""The GPU, through pycuda: its context, and for each thread a stream with the memory and events that it uses."""

from __future__ import annotations

import contextlib
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
"""Bytes on whose multiples TensorRT wants every address (IExecutionContext.set_tensor_address)."""

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for the default stream, nor that for it."""


@dataclass(frozen=True)
class DeviceFacts:
    """What tells one kind of GPU from another.

    Attributes:
        name: its model.
        compute_capability: as in ``8.7``.
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
        with libraries():
            import pycuda.driver as cuda

        if self._context is None:
            raise InternalError("the GPU was used after it was given back")
        self._context.push()
        try:
            yield
        finally:
            cuda.Context.pop()

    def free(self, *steps: Callable[[], object]) -> None:
        """Takes each step, in order, with the device active where it can be made so; the last failure is raised.

        A step that fails keeps no other from being taken: what can be freed is freed.
        """
        with contextlib.ExitStack() as last_first:
            active = contextlib.ExitStack()
            last_first.callback(active.close)
            for step in reversed(steps):
                last_first.callback(step)
            last_first.callback(lambda: active.enter_context(self.active()))

    def close(self) -> None:
        """Gives the context back; not within :meth:`active`."""
        context, self._context = self._context, None
        if context is not None:
            context.detach()


def device_facts() -> DeviceFacts:
    """Facts of the GPU that a runtime would use; raises EnvironmentLacksError where there is none."""
    device = Device()
    device.close()
    return device.facts


class Lane:
    """A stream and all that a thread uses on it; made, used and closed while the device is active.

    Args:
        facts: of the device.
    """

    def __init__(self, facts: DeviceFacts) -> None:
        with libraries():
            import pycuda.driver as cuda

        self._cuda = cuda
        self._integrated = facts.integrated
        self._held = contextlib.ExitStack()
        self.stream = cuda.Stream(_NON_BLOCKING)

    def allocate(self, size: int) -> int:
        """Device memory of some bytes; the address lies on a multiple of :data:`ALIGNMENT`."""
        allocation = self._cuda.mem_alloc(max(size, 1))
        self._held.callback(allocation.free)
        return aligned(int(allocation))

    def pinned(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Host memory that the device reads and writes without a copy by the driver, float32, zeroed."""
        return self._host_memory(shape, 0)[0]

    def host_output(self, shape: tuple[int, ...]) -> HostOutput:
        """Memory for an output that the host reads."""
        if self._integrated:
            array, owner = self._host_memory(shape, self._cuda.host_alloc_flags.DEVICEMAP)
            return HostOutput(array, aligned(int(owner.get_device_pointer())), mapped=True)
        return HostOutput(self.pinned(shape), self.allocate(4 * int(np.prod(shape))), mapped=False)

    def mark(self) -> Mark:
        """A mark to set on the stream and wait for."""
        return Mark(self._cuda.Event(int(self._cuda.event_flags.DISABLE_TIMING)), self.stream)

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Enqueues a copy from the host; the array must be pinned, and stay as it is until the copy ran."""
        self._cuda.memcpy_htod_async(address, values, self.stream)

    def copy(self, target: int, source: int, size: int) -> None:
        """Enqueues a copy of some bytes on the device."""
        self._cuda.memcpy_dtod_async(target, source, size, self.stream)

    def fetch(self, output: HostOutput, count: int | None = None) -> None:
        """Enqueues what brings an output to the host, all of it or its first values; nothing where it is there."""
        if not output.mapped:
            array = output.array if count is None else output.array.reshape(-1)[:count]
            self._cuda.memcpy_dtoh_async(array, output.address, self.stream)

    def synchronize(self) -> None:
        """Waits until all that was enqueued is done."""
        self.stream.synchronize()

    def close(self) -> None:
        """Frees what was made here, when the stream is idle; whatever fails on the way, the last failure is raised."""
        self._held.callback(self.__dict__.pop, "stream", None)  # pycuda frees it while the device is active
        self._held.close()

    def _host_memory(self, shape: tuple[int, ...], flags: int) -> tuple[NDArray[np.float32], Any]:
        array = self._cuda.pagelocked_empty(shape, np.float32, mem_flags=flags)
        owner: cuda.PagelockedHostAllocation = array.base  # type: ignore[assignment]  # numpy says it is an array
        self._held.callback(owner.free)
        array.fill(0.0)
        return array, owner


class Mark:
    """A place in a stream that the host can wait for: a CUDA event that measures no time, which is the cheap kind."""

    def __init__(self, event: cuda.Event, stream: cuda.Stream) -> None:
        self._event, self._stream = event, stream

    def set(self) -> None:
        """Sets the mark behind all that was enqueued so far, and forgets where it stood."""
        self._event.record(self._stream)

    def wait(self) -> None:
        """Waits until the stream has passed the mark."""
        self._event.synchronize()


@dataclass(frozen=True, eq=False)
class HostOutput:
    """What an engine writes and the host reads.

    Attributes:
        array: on the host, valid when the stream has passed a mark set after :meth:`Lane.fetch`.
        address: where the engine writes.
        mapped: whether both are the same memory, as on a Jetson: then nothing is copied.
    """

    array: NDArray[np.float32]
    address: int
    mapped: bool


def aligned(address: int) -> int:
    """The address, checked."""
    if address % ALIGNMENT:
        raise InternalError(f"CUDA gave the address {address:#x}, which is no multiple of {ALIGNMENT}")
    return address
