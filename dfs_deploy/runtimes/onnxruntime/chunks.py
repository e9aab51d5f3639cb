"""Where the features of a batch lie: samples that ran together leave one *chunk*, and each knows its row in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.runtimes.gate import Features
from dfs_deploy.runtimes.onnxruntime.binding import aligned_buffer, laid_out
from dfs_deploy.runtimes.rows import Rows, RowsKernels

_Key = tuple[tuple[int, ...], Layout, int]


class Buffers:
    """Memory for chunks, used again from block to block and call to call: fresh pages cost more than the copies."""

    def __init__(self) -> None:
        self._free: dict[_Key, list[NDArray[Any]]] = {}
        self._largest = 0
        self._lent: dict[int, tuple[_Key, NDArray[Any]]] = {}

    def take(self, rows: int, size: tuple[int, ...], layout: Layout) -> NDArray[Any]:
        """An array for this many maps of (channels, height, width), its contents of no meaning."""
        least = capacity = 1 << (rows - 1).bit_length()
        while capacity <= self._largest:
            if free := self._free.get((size, layout, capacity)):
                memory = free.pop()
                break
            capacity *= 2
        else:
            capacity = least
            memory = aligned_buffer((capacity, *laid_out(size, layout)), np.dtype(layout))
            self._largest = max(self._largest, capacity)
        array = memory[:rows]
        self._lent[id(array)] = ((size, layout, capacity), memory)
        return array

    def give(self, array: NDArray[Any]) -> None:
        """Takes an array back."""
        key, memory = self._lent.pop(id(array))
        self._free.setdefault(key, []).append(memory)


class Group(NamedTuple):
    """Samples that run together.

    Attributes:
        option: index of the option that they run.
        layout: of their features.
        rows: (n,) indices of the samples in the batch, in the order in which they lie.
        features: (n, C, H, W) float32 or (n, H, W, C) uint8, in the order of ``rows``.
        staged: whether ``features`` is a copy.
    """

    option: int
    layout: Layout
    rows: NDArray[np.intp]
    features: Features
    staged: bool


class Chunks:
    """Where the features of each sample of a batch lie.

    Args:
        samples: of the batch.
        buffers: that chunks are lent from.
        kernels: that regroup.

    Attributes:
        arrays: the chunks, (n, C, H, W) float32 or (n, H, W, C) uint8 each.
        where: (N, 2) intp, the chunk of a sample and its row in it.
    """

    def __init__(self, samples: int, buffers: Buffers, kernels: RowsKernels) -> None:
        self._buffers = buffers
        self._kernels = kernels
        self.arrays: list[Features] = []
        self.where = np.zeros((samples, 2), np.intp)

    def place(self, rows: NDArray[np.intp], chunk: Features) -> None:
        """Lets samples lie in a new chunk, in their order."""
        self._kernels.place(self.where, rows, len(self.arrays))
        self.arrays.append(chunk)

    def groups(self, choice: NDArray[np.uint8], runs: NDArray[np.bool_]) -> Iterator[Group]:
        """Groups samples by option, and by the layout that they are in.

        Args:
            choice: (N,) uint8, the option of each sample.
            runs: (options,) bool; samples of other options are left out.

        Yields:
            Each group, its features to be given back by :meth:`done`.
        """
        in_uint8 = [array.dtype == np.uint8 for array in self.arrays]
        for option, rounded, rows in self._kernels.group(self.where, choice, runs, in_uint8):
            layout: Layout = "uint8" if rounded else "float32"
            yield Group(option, layout, rows, *self._gather(rows, layout))

    def _gather(self, rows: Rows, layout: Layout) -> tuple[Features, bool]:
        """Features of samples of one group as one array, and whether that is a copy."""
        (chunk, first), (last_chunk, last) = self.where[rows[0]].tolist(), self.where[rows[-1]].tolist()
        array = self.arrays[chunk]
        if chunk == last_chunk and last - first == len(rows) - 1:
            return array[first : last + 1], False
        height, width, channels = array.shape[1:] if layout == "uint8" else (*array.shape[2:], array.shape[1])
        staged: Features = self._buffers.take(len(rows), (channels, height, width), layout)
        self._kernels.gather(self.arrays, self.where, rows, staged)
        return staged, True

    def done(self, group: Group) -> None:
        """Takes back a copy that was made for a group."""
        if group.staged:
            self._buffers.give(group.features)

    def drop_unused(self) -> None:
        """Gives back chunks in which no sample lies any more."""
        used = np.bincount(self.where[:, 0], minlength=len(self.arrays)).tolist()
        if all(used):
            return
        moved: list[int] = []
        kept: list[Features] = []
        for array, count in zip(self.arrays, used, strict=True):
            moved.append(len(kept))
            if count:
                kept.append(array)
            else:
                self._buffers.give(array)
        self.where[:, 0] = np.array(moved)[self.where[:, 0]]
        self.arrays = kept

    def release(self) -> None:
        """Gives back every chunk."""
        for chunk in self.arrays:
            self._buffers.give(chunk)
        self.arrays = []
