"""Dispatch for a batch: at each block the samples are regrouped by decision, so skipped work is really skipped.

A group of samples that ran together leaves one *chunk* of features, and a sample knows its chunk and its row in it. A
skip moves nothing. A group that runs is gathered once, unless it lies in a row already, and its engine writes the next
chunk in place: nothing is scattered back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.manifest import Form
from dfs_deploy.runtimes.gate import Features, Gate
from dfs_deploy.runtimes.onnxruntime.binding import aligned_buffer, laid_out, run_into
from dfs_deploy.runtimes.onnxruntime.sessions import LoadedEngine, LoadedEngines


class BatchDispatch:
    """Runs any number of images at a time.

    Args:
        engines: shared with clones.
        gate: this dispatch's own; ``None`` for a network with a static policy, whose path is always given.
        maps: (channels, height, width) of each block's output.
        classes: of the logits.
    """

    def __init__(
        self, engines: LoadedEngines, gate: Gate | None, maps: list[tuple[int, int, int]], classes: int
    ) -> None:
        self._engines = engines
        self._gate = gate
        self._maps = maps
        self._classes = classes
        self._buffers = _Buffers()

    def run(
        self, images: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Runs a batch, (N, C, H, W) float32; see :meth:`dfs_deploy.runtimes.base.Backend.infer`."""
        try:
            return self._run_all(images, forced)
        except BaseException:
            self._buffers = _Buffers()  # what was lent is not known to be free
            raise

    def _run_all(
        self, images: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        engines, samples = self._engines, len(images)
        gate = self._gate
        if gate is not None:
            gate.reset(samples)
        path = np.empty((samples, len(engines.blocks)), np.uint8)
        features = _Batch(self._buffers, samples)
        everyone = np.arange(samples)
        stem = engines.stem
        target = self._buffers.take(samples, self._maps[0], stem.output)
        run_into(stem.sessions["float32"], stem.label, images, target)
        features.place(everyone, target)
        changed = None
        for index, block in enumerate(engines.blocks):
            if gate is None:
                assert forced is not None  # noqa: S101 (a static policy is always given)
                choice = forced[:, index]
            else:
                decision = gate.step(index, features.chunks, features.where, engines.feature_scales[index], changed)
                choice = decision.astype(np.uint8) if forced is None else forced[:, index]
            path[:, index] = choice
            changed = self._run_block(block.options, features, choice, self._maps[index + 1])
            if index + 1 < len(engines.blocks) and engines.feature_scales[index + 1] != engines.feature_scales[index]:
                changed = None
        logits = np.empty((samples, self._classes), np.float32)
        for rows, form in features.groups(everyone):
            part = np.empty((len(rows), self._classes), np.float32)
            self._run(engines.head, features, rows, form, part)
            logits[rows] = part
        features.release()
        return logits, path

    def _run_block(
        self,
        options: tuple[LoadedEngine | None, ...],
        features: _Batch,
        choice: NDArray[np.uint8],
        size: tuple[int, int, int],
    ) -> NDArray[np.bool_]:
        """Runs each sample's option; returns which samples' features are new."""
        changed = np.zeros(len(choice), np.bool_)
        results = []
        for option, engine in enumerate(options):
            rows = np.flatnonzero(choice == option)
            if engine is None or not len(rows):
                continue
            changed[rows] = True
            for group, form in features.groups(rows):
                target = self._buffers.take(len(group), size, engine.output)
                self._run(engine, features, group, form, target)
                results.append((group, target))
        for group, target in results:
            features.place(group, target)
        features.drop_unused()
        return changed

    def _run(
        self, engine: LoadedEngine, features: _Batch, rows: NDArray[np.intp], form: Form, target: NDArray[Any]
    ) -> None:
        source, staged = features.gather(rows)
        run_into(engine.sessions[form], engine.label, source, target)
        if staged:
            self._buffers.give(source)


@dataclass(frozen=True)
class _Buffer:
    memory: NDArray[Any]
    rows: int


class _Buffers:
    """Memory for chunks, used again from block to block and call to call: fresh pages cost more than the copies."""

    def __init__(self) -> None:
        self._free: dict[tuple[tuple[int, ...], Form], list[_Buffer]] = {}
        self._lent: dict[int, tuple[tuple[tuple[int, ...], Form], _Buffer]] = {}

    def take(self, rows: int, size: tuple[int, ...], form: Form) -> NDArray[Any]:
        """An array for this many maps of (channels, height, width), its contents of no meaning."""
        key = (size, form)
        free = self._free.setdefault(key, [])
        fitting = [i for i, buffer in enumerate(free) if buffer.rows >= rows]
        if fitting:
            buffer = free.pop(min(fitting, key=lambda i: free[i].rows))
        else:
            capacity = 1 << (rows - 1).bit_length()
            buffer = _Buffer(aligned_buffer((capacity, *laid_out(size, form)), np.dtype(form)), capacity)
        array = buffer.memory[:rows]
        self._lent[id(array)] = (key, buffer)
        return array

    def give(self, array: NDArray[Any]) -> None:
        """Takes an array back."""
        key, buffer = self._lent.pop(id(array))
        self._free[key].append(buffer)


class _Batch:
    """Where the features of each sample of a batch lie.

    Attributes:
        chunks: (n, C, H, W) float32 or (n, H, W, C) uint8 each.
        where: (N, 2) intp, the chunk of a sample and its row in it.
    """

    def __init__(self, buffers: _Buffers, samples: int) -> None:
        self._buffers = buffers
        self.chunks: list[Features] = []
        self.where = np.zeros((samples, 2), np.intp)

    def place(self, rows: NDArray[np.intp], chunk: Features) -> None:
        """Lets samples lie in a new chunk, in their order."""
        self.where[rows, 0] = len(self.chunks)
        self.where[rows, 1] = np.arange(len(rows))
        self.chunks.append(chunk)

    def groups(self, rows: NDArray[np.intp]) -> list[tuple[NDArray[np.intp], Form]]:
        """Splits samples by the form that they are in, each group in the order in which its samples lie."""
        in_uint8 = np.array([chunk.dtype == np.uint8 for chunk in self.chunks])[self.where[rows, 0]]
        groups: list[tuple[NDArray[np.intp], Form]] = []
        forms: tuple[tuple[Form, NDArray[np.intp]], ...] = (("float32", rows[~in_uint8]), ("uint8", rows[in_uint8]))
        for form, members in forms:
            if len(members):
                lying = np.lexsort((self.where[members, 1], self.where[members, 0]))
                groups.append((members[lying], form))
        return groups

    def gather(self, rows: NDArray[np.intp]) -> tuple[Features, bool]:
        """The features of samples of one group as one array, and whether that is a copy to give back."""
        chunk, row = self.where[rows].T
        first = self.chunks[chunk[0]]
        if chunk[0] == chunk[-1] and row[-1] - row[0] == len(rows) - 1:
            return first[row[0] : row[-1] + 1], False
        form: Form = "uint8" if first.dtype == np.uint8 else "float32"
        height, width, channels = first.shape[1:] if form == "uint8" else (*first.shape[2:], first.shape[1])
        staged: Features = self._buffers.take(len(rows), (channels, height, width), form)
        ends = [*(np.flatnonzero(chunk[1:] != chunk[:-1]) + 1).tolist(), len(rows)]
        for start, end in zip([0, *ends], ends, strict=False):
            np.take(self.chunks[chunk[start]], row[start:end], 0, staged[start:end], "clip")  # checks bounds in C
        return staged, True

    def drop_unused(self) -> None:
        """Gives back chunks in which no sample lies any more."""
        used = np.unique(self.where[:, 0])
        kept = [self.chunks[i] for i in used]
        for i in set(range(len(self.chunks))) - set(used.tolist()):
            self._buffers.give(self.chunks[i])
        self.where[:, 0] = np.searchsorted(used, self.where[:, 0])
        self.chunks = kept

    def release(self) -> None:
        """Gives back every chunk."""
        for chunk in self.chunks:
            self._buffers.give(chunk)
        self.chunks = []
