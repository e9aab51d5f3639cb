"""Memory for feature maps: aligned arrays, and a pool of them for batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle.engines import laid_out
from dfs_deploy.bundle.manifest import Layout

_ALIGNMENT = 64


def aligned_buffer(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Array of zeros that starts on a cache line, which an engine can use without a copy."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


class BufferPool:
    """Pool of buffers, used again from block to block and call to call: fresh pages cost more than copies."""

    def __init__(self) -> None:
        self._free: dict[tuple[tuple[int, ...], Layout, int], list[NDArray[Any]]] = {}
        self._largest = 0

    def take(self, rows: int, size: tuple[int, ...], layout: Layout) -> Buffer:
        """Lends a buffer for this many maps of (channels, height, width); its contents mean nothing."""
        least = capacity = 1 << (rows - 1).bit_length()
        while capacity <= self._largest:
            if free := self._free.get((size, layout, capacity)):
                memory = free.pop()
                break
            capacity *= 2
        else:
            self._largest = max(self._largest, least)
            memory = aligned_buffer((least, *laid_out(size, layout)), np.dtype(layout))
        return Buffer(memory, memory[:rows], size, layout)

    def give_back(self, buffer: Buffer) -> None:
        """Takes a buffer back, whose features are of no use any more."""
        memory = buffer.memory
        self._free.setdefault((buffer.size, buffer.layout, len(memory)), []).append(memory)


@dataclass(frozen=True, eq=False)
class Buffer:
    """Feature maps in memory of a pool.

    Attributes:
        memory: array as large as the pool keeps it.
        maps: (rows, C, H, W) float32 or (rows, H, W, C) uint8, the beginning of ``memory``.
        size: channels, height and width.
        layout: layout of the maps.
    """

    memory: NDArray[Any]
    maps: NDArray[Any]
    size: tuple[int, ...]
    layout: Layout
