"""Dispatch on the GPU: at each block the samples are regrouped by decision, so that skipped work is really skipped.

The host reads only the features averaged over the map, and steps the gate on them; it waits once per decided block, and
for no others. A feature map lies in one of two buffers of its size, its *slot*. If all samples take the same option, as
one image always does, the engine reads one slot and writes the other, and a skip enqueues nothing. Else the rows of
each group are gathered in the spare slot, run as one call, and put back; those of skipped samples stay where they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.network import Architecture
from dfs_deploy.runtimes.gate import BoundStep, Gate
from dfs_deploy.runtimes.tensorrt.device import HostOutput, Stream
from dfs_deploy.runtimes.tensorrt.engines import EngineContext, LoadedEngines

_FLOAT = 4
"""Bytes of a float32."""


class Call(NamedTuple):
    """A call of an engine.

    Attributes:
        context: context of the engine.
        source: address of its input.
        target: address of its output.
        read: output that the host reads; ``None`` if it reads none.
        width: values per sample of that output.
    """

    context: EngineContext
    source: int
    target: int
    read: HostOutput | None
    width: int


class _Group(NamedTuple):
    """Samples of a batch that take the same option at a block.

    Attributes:
        context: context of the option's engine.
        pooled: its averaged features.
        rows: positions in the batch, rising.
    """

    context: EngineContext
    pooled: HostOutput
    rows: NDArray[np.intp]


class Dispatch:
    """Runs batches on one stream.

    Args:
        engines: engines shared with clones.
        gate: this dispatch's own gate; ``None`` with a static policy, whose path is always given.
        network: sizes of the feature maps.
        stream: this thread's stream.
        scratch: address of ``engines.scratch`` bytes on the stream.
        profile: index of the optimisation profile.
        most: the largest batch of the profile.

    Attributes:
        at: name of what is being enqueued or waited for; after a failure, of what failed.
    """

    def __init__(
        self,
        engines: LoadedEngines,
        gate: Gate | None,
        network: Architecture,
        stream: Stream,
        scratch: int,
        profile: int,
        most: int,
    ) -> None:
        self._gate, self._stream = gate, stream
        self.at = "loading"
        maps = [block.out_shape for block in network.blocks]
        self._channels = [size[0] for size in maps]
        self._bytes = [_FLOAT * math.prod(size) for size in maps]
        slots = {
            size: [stream.allocate(most * _FLOAT * math.prod(size)) for _ in range(2)] for size in dict.fromkeys(maps)
        }
        self._slots = [slots[size] for size in maps]
        self._results = stream.allocate(most * max(self._bytes))
        self._images = stream.pinned((most, *network.image_shape))
        self._source = stream.allocate(self._images.nbytes)
        # One output per option: all groups of a block are under way when the host waits.
        options = len(engines.blocks[0]) if engines.blocks else 1
        self._pooled = [stream.host_output((most, max(self._channels))) for _ in range(options)]
        self._logits = stream.host_output((most, network.classes))
        # Steps of the gate for one image, bound to one array per width: much cheaper than steps of a batch.
        self._seen = {channels: np.zeros((1, channels), np.float32) for channels in self._channels}
        self._steps: list[BoundStep] = []
        if gate is not None and most == 1:
            self._steps = [gate.bind_pooled(i, self._seen[self._channels[i]]) for i in range(network.gated_blocks)]
        choices = [np.flatnonzero(row) for row in network.allowed(engines.options)]
        self._always = [int(row[0]) if len(row) == 1 else None for row in choices]
        self._reads = self._find_reads(engines)
        # Loops, no closures: an error's traceback keeps closures, and with them contexts, past what frees the device.
        self._stem = EngineContext(engines.stem, engines, stream, scratch, profile, self._pooled[0].address)
        self._blocks: list[list[EngineContext | None]] = []
        for block in engines.blocks:
            self._blocks.append([])
            for loaded, pooled in zip(block, self._pooled, strict=True):
                context = None
                if loaded is not None:
                    context = EngineContext(loaded, engines, stream, scratch, profile, pooled.address)
                self._blocks[-1].append(context)
        self._head = EngineContext(engines.head, engines, stream, scratch, profile)

    def run(
        self, images: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Runs a batch, (N, C, H, W) float32; see ``Backend.infer``."""
        samples, gate, stream, slot = len(images), self._gate, self._stream, 0
        self.at = "the stem"
        np.copyto(self._images[:samples], images)
        stream.upload(self._source, self._images[:samples])
        self.launch(self._stem_call(), samples)
        path = np.empty((samples, len(self._blocks)), np.uint8) if forced is None else forced.copy()
        pooled = self._array_of_pooled(samples, 0)
        if gate is not None:
            gate.reset(samples)
        if self._reads[0]:
            stream.synchronize()
            np.copyto(pooled, self._pooled[0].rows(*pooled.shape))
        for i, always in enumerate(self._always):
            if gate is not None:
                if always is not None:
                    path[:, i] = always
                else:
                    decision = self._steps[i]() if self._steps else gate.step_pooled(i, pooled)
                    if forced is None:
                        path[:, i] = decision
            groups = self._groups(i, path[:, i])
            if not groups:
                continue
            slot = self._launch_block(i, slot, groups, samples)
            if self._reads[i + 1]:
                self.at = " or ".join(group.context.label for group in groups)
                stream.synchronize()
                pooled = self._pooled_after(i, groups, pooled)
        self.launch(self._head_call(slot), samples)
        if gate is None:
            self.at = "an engine of the static policy"
        stream.synchronize()
        return self._logits.array[:samples].copy(), path

    def launch(self, call: Call, samples: int = 1) -> None:
        """Enqueues an engine, then the copy of what the host reads."""
        self.at = call.context.label
        call.context.enqueue(samples, call.source, call.target)
        if call.read is not None:
            self._stream.fetch(call.read, samples * call.width)

    def engine_calls(self, path: Sequence[int] | NDArray[np.uint8]) -> tuple[Call, ...]:
        """The calls that a path makes, in order, if all samples take it."""
        calls, slot = [self._stem_call()], 0
        for i, option in enumerate(path):
            context = self._blocks[i][option]
            if context is not None:
                call, slot = self._block_call(i, context, self._pooled[option], slot)
                calls.append(call)
        return (*calls, self._head_call(slot))

    def gate_calls(self) -> tuple[Callable[[], object], ...]:
        """The gate's step of one image before each decided block; none with a static policy."""
        if self._gate is not None:
            self._gate.reset(1)
        return tuple(step for step, always in zip(self._steps, self._always, strict=False) if always is None)

    def _find_reads(self, engines: LoadedEngines) -> list[bool]:
        """Whether the host reads the averaged features of each block, the first included: if a gate steps on them."""
        reads = [False] * (len(self._always) + 1)
        if self._gate is not None:
            for i, always in reversed(list(enumerate(self._always))):
                reads[i] = always is None or (reads[i + 1] and engines.blocks[i][always] is None)
        return reads

    def _groups(self, i: int, choice: NDArray[np.uint8]) -> list[_Group]:
        """Samples at block ``i + 1`` by option, without those that compute nothing."""
        first = int(choice[0])
        if len(choice) == 1 or bool((choice == first).all()):
            found = [(first, np.arange(len(choice)))]
        else:
            found = [(int(option), np.flatnonzero(choice == option)) for option in np.unique(choice)]
        contexts, pooled = self._blocks[i], self._pooled
        return [_Group(c, pooled[option], rows) for option, rows in found if (c := contexts[option]) is not None]

    def _launch_block(self, i: int, slot: int, groups: Sequence[_Group], samples: int) -> int:
        """Launches a block's groups, and returns the slot in which the features lie then."""
        if len(groups[0].rows) == samples:
            call, slot = self._block_call(i, groups[0].context, groups[0].pooled, slot)
            self.launch(call, samples)
            return slot
        copy, before, after = self._stream.copy, self._bytes[i], self._bytes[i + 1]
        source, spare = self._slots[i][slot], self._slots[i][1 - slot]
        slot = slot if self._slots[i] is self._slots[i + 1] else 0
        target = self._slots[i + 1][slot]
        for context, pooled, rows in groups:
            self.at = context.label
            for first, row, count in runs(rows):
                copy(spare + first * before, source + row * before, count * before)
            self.launch(self._call(i + 1, context, spare, self._results, pooled), len(rows))
            for first, row, count in runs(rows):
                copy(target + row * after, self._results + first * after, count * after)
        return slot

    def _block_call(self, i: int, context: EngineContext, pooled: HostOutput, slot: int) -> tuple[Call, int]:
        """The call that takes all samples through block ``i + 1``, and the slot of the features then."""
        after = 1 - slot if self._slots[i] is self._slots[i + 1] else 0
        return self._call(i + 1, context, self._slots[i][slot], self._slots[i + 1][after], pooled), after

    def _call(self, i: int, context: EngineContext, source: int, target: int, pooled: HostOutput) -> Call:
        return Call(context, source, target, pooled if self._reads[i] else None, self._channels[i])

    def _stem_call(self) -> Call:
        return self._call(0, self._stem, self._source, self._slots[0][0], self._pooled[0])

    def _head_call(self, slot: int) -> Call:
        return Call(self._head, self._slots[-1][slot], self._logits.address, self._logits, self._logits.array.shape[1])

    def _array_of_pooled(self, samples: int, i: int) -> NDArray[np.float32]:
        channels = self._channels[i]
        return self._seen[channels] if self._steps else np.empty((samples, channels), np.float32)

    def _pooled_after(self, i: int, groups: Sequence[_Group], pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        """The averaged features of all samples after block ``i + 1``; ``pooled`` holds those before it."""
        channels = self._channels[i + 1]
        if pooled.shape[1] != channels:  # then every sample ran something: a skip runs its projection
            pooled = self._array_of_pooled(len(pooled), i + 1)
        for _, output, rows in groups:
            pooled[rows] = output.rows(len(rows), channels)
        return pooled


def runs(rows: NDArray[np.intp]) -> Iterator[tuple[int, int, int]]:
    """Splits rising row numbers into runs: yields the position of a run's first row, the row, and the run's length."""
    starts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    for start, end in itertools.pairwise(starts):
        if end > start:
            yield start, int(rows[start]), end - start
