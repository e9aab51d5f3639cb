"""Dispatch for a batch: at each block the samples are regrouped by decision, so skipped work is really skipped.

A group's feature maps are gathered on the device, run as one call, and put back; the maps of skipped samples stay where
they are. The host waits once a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.network import Architecture
from dfs_deploy.runtimes.gate import Gate
from dfs_deploy.runtimes.tensorrt.contexts import BATCH, Binder, BoundEngine
from dfs_deploy.runtimes.tensorrt.device import HostOutput, Lane
from dfs_deploy.runtimes.tensorrt.engines import LoadedEngines

STATIC = "an engine of the static policy"
"""What failed where the host waited for all of them at once."""

_FLOAT = 4
"""Bytes of a float32."""


class BatchDispatch:
    """Runs up to as many images at a time as the plans were built for.

    Args:
        engines: shared with clones.
        gate: this dispatch's own; ``None`` with a static policy, whose path is always given.
        architecture: for the sizes of the buffers.
        lane: this thread's stream and memory.
        binder: of the lane.
    """

    def __init__(
        self, engines: LoadedEngines, gate: Gate | None, architecture: Architecture, lane: Lane, binder: Binder
    ) -> None:
        self._gate, self._lane, self._most = gate, lane, engines.batch
        maps = [block.out_shape for block in architecture.blocks]
        self._map_bytes = [_FLOAT * int(np.prod(size)) for size in maps]
        by_size = {size: lane.allocate(self._most * _FLOAT * int(np.prod(size))) for size in dict.fromkeys(maps)}
        self._features = [by_size[size] for size in maps]
        largest = self._most * max(self._map_bytes)
        self._gathered, self._results = lane.allocate(largest), lane.allocate(largest)
        self._images = lane.pinned((self._most, *architecture.image_shape))
        self._source = lane.allocate(self._images.nbytes)
        widest = max(size[0] for size in maps)
        # One for each option: all groups of a block are under way when the host waits.
        options = len(engines.blocks[0]) if engines.blocks else 0
        self._pooled = [lane.host_output((self._most, widest)) for _ in range(max(options, 1))]
        self._stem = binder.bind(
            engines.stem, BATCH, self._source, {"output": self._features[0], "pooled": self._pooled[0].address}
        )
        # Loops, no closures: an error's traceback keeps closures, and with them contexts, past what frees the device.
        self._blocks: list[list[BoundEngine | None]] = []
        for block in engines.blocks:
            self._blocks.append([])
            for engine, pooled in zip(block, self._pooled, strict=True):
                targets = {"output": self._results, "pooled": pooled.address}
                bound = None if engine is None else binder.bind(engine, BATCH, self._gathered, targets)
                self._blocks[-1].append(bound)
        self._logits = lane.host_output((self._most, architecture.classes))
        self._head = binder.bind(engines.head, BATCH, self._features[-1], {"output": self._logits.address})
        self._done = lane.mark()
        self._channels = [size[0] for size in maps]
        self.at = "the stem"
        """What was being enqueued or waited for: after a failure, what failed."""

    def run(
        self, images: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Runs a batch, (N, C, H, W) float32; see :meth:`dfs_deploy.runtimes.base.Backend.infer`."""
        lane, samples = self._lane, len(images)
        self.at = "the stem"
        gate = self._gate
        if gate is not None:
            gate.reset(samples)
        np.copyto(self._images[:samples], images)
        lane.upload(self._source, self._images[:samples])
        self._run(self._stem, samples, self._pooled[0], self._channels[0])
        self._wait()
        pooled = self._rows(self._pooled[0], samples, self._channels[0]).copy()
        path = np.empty((samples, len(self._blocks)), np.uint8) if forced is None else forced.copy()
        for i, options in enumerate(self._blocks):
            if gate is not None:
                decision = gate.step_pooled(i, pooled)
                path[:, i] = decision if forced is None else forced[:, i]
            groups = [
                (bound, output, np.flatnonzero(path[:, i] == option))
                for option, (bound, output) in enumerate(zip(options, self._pooled, strict=True))
                if bound is not None
            ]
            groups = [group for group in groups if len(group[2])]
            if not groups:
                continue
            for bound, output, rows in groups:
                self.at = bound.label
                self._run_group(i, bound, output, rows)
            if gate is None:
                continue  # the path is known: the host waits once, at the end
            self.at = " or ".join(bound.label for bound, _, _ in groups)
            self._wait()
            channels = self._channels[i + 1]
            if pooled.shape[1] != channels:  # then every sample ran something: a skip runs its projection
                pooled = np.empty((samples, channels), np.float32)
            for _, output, rows in groups:
                pooled[rows] = self._rows(output, len(rows), channels)
        self.at = "the head"
        self._run(self._head, samples, self._logits, self._logits.array.shape[1])
        self.at = "the head" if gate is not None else STATIC
        self._wait()
        return self._logits.array[:samples].copy(), path

    def _run_group(self, i: int, bound: BoundEngine, output: HostOutput, rows: NDArray[np.intp]) -> None:
        """Gathers the rows that block ``i + 1`` runs, runs them, and puts them back."""
        lane, before, after = self._lane, self._map_bytes[i], self._map_bytes[i + 1]
        for first, row, count in runs(rows):
            lane.copy(self._gathered + first * before, self._features[i] + row * before, count * before)
        self._run(bound, len(rows), output, self._channels[i + 1])
        for first, row, count in runs(rows):
            lane.copy(self._features[i + 1] + row * after, self._results + first * after, count * after)

    def _run(self, bound: BoundEngine, samples: int, output: HostOutput, width: int) -> None:
        bound.reshape(samples)
        bound.enqueue()
        self._lane.fetch(output, samples * width)

    def _rows(self, output: HostOutput, samples: int, width: int) -> NDArray[np.float32]:
        """The first rows of an output: an engine writes them without gaps, whatever the memory was made for."""
        return output.array.reshape(-1)[: samples * width].reshape(samples, width)

    def _wait(self) -> None:
        self._done.set()
        self._done.wait()


def runs(rows: Sequence[int] | NDArray[np.intp]) -> Iterator[tuple[int, int, int]]:
    """Splits rising row numbers into runs: yields the position of a run's first row, the row, and how many follow."""
    rows = np.asarray(rows)
    starts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    for start, end in itertools.pairwise(starts):
        if end > start:
            yield start, int(rows[start]), end - start
