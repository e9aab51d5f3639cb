"""Dispatch for a batch: at each block the samples are regrouped by decision, so that skipped work is really skipped.

The samples of a group run together and leave their features in one buffer; each sample knows its buffer and its row in
it. A skipped sample stays where it is. A group is copied into one buffer before it runs, unless its rows lie next to
each other already, and nothing is scattered back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.runtimes.buffers import Buffer, BufferPool
from dfs_deploy.runtimes.gate import Gate
from dfs_deploy.runtimes.onnxruntime.conversion import OTHER
from dfs_deploy.runtimes.onnxruntime.loading import LoadedEngine, LoadedEngines
from dfs_deploy.runtimes.onnxruntime.sessions import Rebinding
from dfs_deploy.system.ort import onnxruntime as ort

Indices = NDArray[np.intp]


class BatchDispatch:
    """Runs any number of images at a time.

    Args:
        engines: loaded engines, shared with clones.
        gate: gate of this dispatch.
    """

    def __init__(self, engines: LoadedEngines, gate: Gate) -> None:
        architecture = engines.architecture
        self._engines = engines
        self._gate = gate
        self._sizes = [block.out_shape for block in architecture.blocks]
        self._classes = architecture.classes
        self._pool = BufferPool()
        self._calls: dict[ort.InferenceSession, Rebinding] = {}
        self._runs = [np.array([engine is not None for engine in block]) for block in engines.blocks]
        choices = [np.flatnonzero(row) for row in architecture.allowed(engines.options)]
        self._always = [int(row[0]) if len(row) == 1 else None for row in choices]
        grids = engines.grids
        self._same_grid = [i > 0 and grids[i] == grids[i - 1] for i in range(len(engines.blocks))]

    def run(
        self, images: NDArray[Any], forced: NDArray[np.uint8] | None, first: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Runs a batch; see ``Backend.infer``."""
        try:
            return self._run(self._engines.entry.admit(images, first), forced, first)
        except BaseException:
            self._pool = BufferPool()  # lent buffers may be in use still
            raise

    def _run(
        self, images: NDArray[Any], forced: NDArray[np.uint8] | None, first: int
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        engines, gate, samples = self._engines, self._gate, len(images)
        gate.reset(samples)
        path = np.empty((len(engines.blocks), samples), np.uint8)
        if forced is not None:
            path[...] = forced.T
        features = BatchFeatures(samples, self._pool)
        target = self._pool.take(samples, self._sizes[0], engines.stem.output)
        self._enter(images, target, first)
        features.put(np.arange(samples), target)
        changed = None
        for i, block in enumerate(engines.blocks):
            choice, runs, always = path[i], self._runs[i], self._always[i]
            if always is None:
                scale, zero_point = engines.grids[i]
                kept = changed if self._same_grid[i] else None
                decisions = gate.step(i, features.maps, features.where, scale, kept, zero_point)
                if forced is None:
                    choice[...] = decisions
                changed = runs[choice]
            else:
                choice[...] = always
                changed = None
            self._run_block(block, i, features, choice, runs)
        logits = np.empty((samples, self._classes), np.float32)
        for group in features.groups(np.zeros(samples, np.uint8), np.ones(1, np.bool_)):
            part = np.empty((len(group.samples), self._classes), np.float32)
            self._call(engines.head, len(engines.blocks), group.layout, group.maps, part)
            logits[group.samples] = part
            features.done(group)
        features.release()
        return logits, np.ascontiguousarray(path.T)

    def _enter(self, images: NDArray[Any], target: Buffer, first: int) -> None:
        """Runs the stem; ``first`` is the index of the first image, for messages."""
        stem, entry = self._engines.stem, self._engines.entry
        if entry.grid is None:
            self._call(stem, 0, entry.layout, images, target.maps)
            return
        pixels = self._pool.take(len(images), entry.size, entry.layout)
        entry.fill(images, pixels.maps, first)
        self._call(stem, 0, entry.layout, pixels.maps, target.maps)
        self._pool.give_back(pixels)

    def _run_block(
        self,
        block: tuple[LoadedEngine | None, ...],
        before: int,
        features: BatchFeatures,
        choice: NDArray[np.uint8],
        runs: NDArray[np.bool_],
    ) -> None:
        """Runs the samples whose option has an engine, on the features of block ``before``."""
        results = []
        for group in features.groups(choice, runs):
            engine = block[group.option]
            if engine is not None:
                target = self._pool.take(len(group.samples), self._sizes[before + 1], engine.output)
                self._call(engine, before, group.layout, group.maps, target.maps)
                results.append((group.samples, target))
            features.done(group)
        for samples, target in results:
            features.put(samples, target)
        if results:
            features.drop_unused()

    def _call(
        self, engine: LoadedEngine, before: int, layout: Layout, source: NDArray[Any], target: NDArray[Any]
    ) -> None:
        """Runs an engine on the features of block ``before``, converted first if it does not take their layout."""
        if layout in engine.sessions:
            self._run_session(engine.sessions[layout], engine.label, source, target)
            return
        other, size = OTHER[layout], self._sizes[before]
        converted = self._pool.take(len(source), size, other)
        self._run_session(
            self._engines.converters.session(before, size[0], other), engine.label, source, converted.maps
        )
        self._run_session(engine.sessions[other], engine.label, converted.maps, target)
        self._pool.give_back(converted)

    def _run_session(
        self, session: ort.InferenceSession, label: str, source: NDArray[Any], target: NDArray[Any]
    ) -> None:
        call = self._calls.get(session)
        if call is None:
            call = self._calls[session] = Rebinding(session)
        call(label, source, target)


class Group(NamedTuple):
    """Samples that run together.

    Attributes:
        option: index of the option that they run.
        layout: layout of their features.
        samples: (n,) indices of the samples in the batch, in the order in which their features lie.
        maps: (n, C, H, W) float32 or (n, H, W, C) uint8, in that order.
        copy: buffer of ``maps`` if they were copied together.
    """

    option: int
    layout: Layout
    samples: Indices
    maps: NDArray[Any]
    copy: Buffer | None


class BatchFeatures:
    """Features of a batch, in buffers of a pool.

    Args:
        samples: number of samples.
        pool: pool of the buffers.

    Attributes:
        where: (N, 2) intp, buffer of each sample and row in it.
    """

    def __init__(self, samples: int, pool: BufferPool) -> None:
        self._pool = pool
        self._buffers: list[Buffer] = []
        self.where = np.zeros((samples, 2), np.intp)

    @property
    def maps(self) -> list[NDArray[Any]]:
        """Feature maps in each buffer: (n, C, H, W) float32 or (n, H, W, C) uint8."""
        return [buffer.maps for buffer in self._buffers]

    def put(self, samples: Indices, buffer: Buffer) -> None:
        """Notes that samples have their features in a new buffer now, in their order."""
        self.where[samples, 0] = len(self._buffers)
        self.where[samples, 1] = np.arange(len(samples))
        self._buffers.append(buffer)

    def groups(self, choice: NDArray[np.uint8], runs: NDArray[np.bool_]) -> Iterator[Group]:
        """Groups samples by option and by the layout of their features.

        Args:
            choice: (N,) uint8, option of each sample.
            runs: (options,) bool; samples with other options are left out.

        Yields:
            Each group, by option and then layout; give it back with ``done``.
        """
        samples = np.flatnonzero(runs[choice])
        if not len(samples):
            return
        in_uint8 = np.array([buffer.layout == "uint8" for buffer in self._buffers])
        buffer, row = self.where[samples].T
        kind = 2 * choice[samples].astype(np.intp) + in_uint8[buffer]
        order = np.lexsort((row, buffer, kind))
        samples, kind = samples[order], kind[order]
        for group in np.split(samples, np.flatnonzero(np.diff(kind)) + 1):
            first = self._buffers[self.where[group[0], 0]]
            yield Group(int(choice[group[0]]), first.layout, group, *self._gathered(group, first))

    def _gathered(self, samples: Indices, first: Buffer) -> tuple[NDArray[Any], Buffer | None]:
        """Features of the samples of a group as one array, and its buffer if it is a copy.

        Args:
            samples: samples in the order in which their features lie.
            first: buffer of the first of them.
        """
        buffer, row = self.where[samples].T
        if buffer[0] == buffer[-1] and row[-1] - row[0] == len(samples) - 1:
            return first.maps[row[0] : row[-1] + 1], None
        copy = self._pool.take(len(samples), first.size, first.layout)
        bounds = [0, *(np.flatnonzero(np.diff(buffer)) + 1).tolist(), len(samples)]
        for start, end in itertools.pairwise(bounds):
            maps = self._buffers[buffer[start]].maps
            np.take(maps, row[start:end], 0, copy.maps[start:end], "clip")  # "clip" writes without a temporary copy
        return copy.maps, copy

    def done(self, group: Group) -> None:
        """Gives back the copy that was made for a group."""
        if group.copy is not None:
            self._pool.give_back(group.copy)

    def drop_unused(self) -> None:
        """Gives back the buffers in which no sample lies any more."""
        used = np.bincount(self.where[:, 0], minlength=len(self._buffers)) > 0
        if used.all():
            return
        for i in np.flatnonzero(~used):
            self._pool.give_back(self._buffers[i])
        self._buffers = [self._buffers[i] for i in np.flatnonzero(used)]
        self.where[:, 0] = (np.cumsum(used) - 1)[self.where[:, 0]]

    def release(self) -> None:
        """Gives back every buffer."""
        for buffer in self._buffers:
            self._pool.give_back(buffer)
        self._buffers = []
