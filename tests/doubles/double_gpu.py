"""The GPU behind the doubles of TensorRT and pycuda: host memory, lazy streams, rules and faults.

Everything enqueued runs as late as CUDA allows, when the host waits for it: who does not wait reads poison. What breaks
a rule of CUDA or TensorRT is kept in ``Gpu.violations``, and raised where it happens.
"""

from __future__ import annotations

import bisect
import functools
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

ALIGNMENT = 256
POISON = np.float32(np.nan)


class Violation(AssertionError):
    """A rule was broken."""


class Block:
    """Some memory: a real address on a multiple of 256, so that pointers are what they are on a device."""

    def __init__(self, size: int, kind: str) -> None:
        raw = np.zeros(size + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        self.bytes = raw[start : start + size]
        self.address, self.size, self.kind = int(self.bytes.ctypes.data), size, kind
        whole = size // 4 * 4
        self.bytes[:whole].view(np.float32)[:] = POISON


class Stream:
    """Work in order, none of it done before somebody waits."""

    def __init__(self) -> None:
        self.queue: list[Operation] = []

    def add(self, operation: Operation) -> None:
        self.queue.append(operation)

    def run(self) -> None:
        while self.queue:
            self.queue.pop(0).run()


class Operation:
    """One thing on a stream; ``scratch`` is the memory that it uses for itself, as (address, size)."""

    def __init__(self, run: Callable[[], None], scratch: tuple[int, int] | None = None) -> None:
        self.run, self.scratch = run, scratch


class Gpu:
    """The one device of a process.

    Attributes:
        violations: rules that were broken.
        calls: calls made so far; ``fail_at`` is the one that fails.
        live: objects by kind that were made and not freed.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.violations: list[str] = []
        self.calls, self.fail_at, self.failed = 0, -1, ""
        self.live: Counter[str] = Counter()
        self.memory: dict[int, Block] = {}
        self.bases: list[int] = []
        self.streams: dict[int, Stream] = {}
        self.retained = 0
        self.local = threading.local()
        self.lock = threading.RLock()
        self.integrated = bool(os.environ.get("DOUBLE_INTEGRATED"))
        self.kernels: list[str] = []

    def fault(self, name: str) -> bool:
        """Counts a call, and says whether it is the one to fail."""
        with self.lock:
            self.calls += 1
            if self.calls == self.fail_at:
                self.failed = name
                return True
            return False

    def violate(self, what: str) -> None:
        self.violations.append(what)
        raise Violation(what)

    @property
    def stack(self) -> list[Any]:
        """Contexts that are current in this thread, the last one on top."""
        if not hasattr(self.local, "stack"):
            self.local.stack = []
        return self.local.stack  # type: ignore[no-any-return]

    def current(self, what: str) -> None:
        if not self.stack and self.failed == "cuCtxPushCurrent":
            raise RuntimeError(f"{what}: invalid device context")
        if not self.stack:
            self.violate(f"{what} in a thread where no context is current")
        if not self.retained:
            self.violate(f"{what} after the context was given back")

    def allocate(self, size: int, kind: str) -> Block:
        if size <= 0:
            self.violate(f"an allocation of {size} bytes")
        block = Block(size, kind)
        with self.lock:
            self.memory[block.address] = block
            bisect.insort(self.bases, block.address)
            self.live[kind] += 1
        return block

    def free(self, block: Block) -> None:
        with self.lock:
            if self.memory.pop(block.address, None) is not block:
                self.violate("memory was freed twice")
            self.bases.remove(block.address)
            self.live[block.kind] -= 1

    def block(self, address: int) -> Block | None:
        """The living allocation that begins at or next before an address."""
        with self.lock:
            place = bisect.bisect_right(self.bases, address) - 1
            return self.memory[self.bases[place]] if place >= 0 else None

    def find(self, address: int, size: int, what: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes at an address; a violation where they are not wholly within one living allocation."""
        block = self.block(address)
        if block is None or address + size > block.address + block.size:
            self.violate(f"{what}: {size} bytes at {address:#x} are not within allocated memory")
            raise AssertionError
        start = address - block.address
        return block.bytes[start : start + size]

    def stream(self, handle: int, what: str) -> Stream:
        if handle not in self.streams:
            self.violate(f"{what} on the default stream, or on none")
        return self.streams[handle]

    def check_scratch(self, stream: Stream, address: int, size: int) -> None:
        """A violation where another stream has work under way in the same scratch memory."""
        with self.lock:
            for other in self.streams.values():
                for operation in other.queue if other is not stream else ():
                    if operation.scratch is None:
                        continue
                    begin, length = operation.scratch
                    if address < begin + length and begin < address + size:
                        self.violate("two streams use the same scratch memory at once")


GPU = Gpu()


@functools.cache
def session_of(model: bytes) -> Any:
    """What runs a graph; made once for all versions of the doubles."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums on x86 CPUs without VNNI too
    return onnxruntime.InferenceSession(
        model,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],  # what the graph leaves in float stays in float
    )
