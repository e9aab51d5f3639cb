"""Dispatch for one image: everything is bound once; nothing is allocated, copied or looked up per block.

A feature map lies in one of four buffers of its size, its slots: two for float32 and two for uint8, since an engine
cannot write where it reads. A skipped block leaves its features in their slot. What is converted into a layout lies for
a moment in a slot of that layout.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle.engines import laid_out
from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.errors import DfsDeployError, InternalError
from dfs_deploy.network import Architecture
from dfs_deploy.runtimes.buffers import aligned_buffer
from dfs_deploy.runtimes.dispatch import BlockStep, Call, loop_for
from dfs_deploy.runtimes.gate import Gate
from dfs_deploy.runtimes.onnxruntime.conversion import OTHER
from dfs_deploy.runtimes.onnxruntime.loading import LoadedEngine, LoadedEngines
from dfs_deploy.runtimes.onnxruntime.sessions import bind, engine_failed

_SLOTS: tuple[tuple[Layout, int], ...] = (("float32", 0), ("float32", 1), ("uint8", 0), ("uint8", 1))
_FLOAT32 = np.dtype(np.float32)


class SingleDispatch:
    """Runs one image at a time.

    Args:
        engines: loaded engines, shared with clones.
        gate: gate of this dispatch.
    """

    def __init__(self, engines: LoadedEngines, gate: Gate) -> None:
        architecture = engines.architecture
        self._engines = engines
        self._gate = gate
        entry = engines.entry
        self._images = aligned_buffer((1, *laid_out(entry.size, entry.layout)), np.dtype(entry.layout))
        self._logits = aligned_buffer((1, architecture.classes), _FLOAT32)
        buffers = _buffers(architecture)
        start = _SLOTS.index((engines.stem.output, 0))
        self._stem = bind(engines.stem.sessions[entry.layout], self._images, buffers[0][start])
        allowed = architecture.allowed(engines.options)
        layouts = {engines.stem.output}
        steps = []
        for i, block in enumerate(engines.blocks):
            choices = np.flatnonzero(allowed[i])
            steps.append(
                tuple(
                    BlockStep(
                        gate=None if len(choices) == 1 else gate.bind(i, buffers[i][slot], *engines.grids[i]),
                        reuses=i > 0 and buffers[i - 1] is buffers[i] and engines.grids[i - 1] == engines.grids[i],
                        options=tuple(
                            self._bind_option(engine, i, slot, buffers)
                            if allowed[i, k] and layout in layouts
                            else (_unreachable, 0)
                            for k, engine in enumerate(block)
                        ),
                        always=int(choices[0]),
                    )
                    for slot, (layout, _) in enumerate(_SLOTS)
                )
            )
            ran = [block[k] for k in choices]
            layouts = {engine.output for engine in ran if engine is not None} | (layouts if None in ran else set())
        self._steps = tuple(steps)
        self._start = start
        self._head = tuple(
            self._bind(engines.head, len(engines.blocks), slot, 0, buffers[-1], self._logits)
            if layout in layouts
            else _unreachable
            for slot, (layout, _) in enumerate(_SLOTS)
        )
        self._loop = loop_for(gate, self._steps, start)

    def _bind_option(
        self, engine: LoadedEngine | None, before: int, slot: int, buffers: Sequence[list[NDArray[Any]]]
    ) -> tuple[Call | None, int]:
        """Call of an option for the features of block ``before`` in a slot, and their slot after it."""
        if engine is None:
            return None, slot
        layout, copy = _SLOTS[slot]
        # Sources and targets may be the same buffers, so an engine that keeps the layout writes to its other slot.
        if layout in engine.sessions:
            after, spare = 1 - copy if engine.output == layout else 0, 0
        else:
            after, spare = 0, 1
        target = _SLOTS.index((engine.output, after))
        return self._bind(engine, before, slot, spare, buffers[before], buffers[before + 1][target]), target

    def _bind(
        self,
        engine: LoadedEngine,
        before: int,
        slot: int,
        spare: int,
        sources: list[NDArray[Any]],
        target: NDArray[Any],
    ) -> Call:
        """Call of an engine on the features of block ``before``, which converts them first if it has to.

        Args:
            engine: the engine.
            before: index of the block that made the features.
            slot: slot in which they lie.
            spare: which slot of the other layout is free for them.
            sources: the slots.
            target: output.
        """
        layout, source = _SLOTS[slot][0], sources[slot]
        if layout in engine.sessions:
            return bind(engine.sessions[layout], source, target)
        other = OTHER[layout]
        converted = sources[_SLOTS.index((other, spare))]
        channels = self._engines.architecture.blocks[before].out_channels
        convert = bind(self._engines.converters.session(before, channels, other), source, converted)
        return _in_turn(convert, bind(engine.sessions[other], converted, target))

    def run(
        self, image: NDArray[Any], forced: NDArray[np.uint8] | None, first: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Runs one image; see ``Backend.infer``."""
        entry = self._engines.entry
        entry.fill(entry.admit(image, first), self._images, first)
        self._gate.reset(1)
        loop, label = self._loop, self._engines.stem.label
        try:
            self._stem()
            label = ""
            path = loop.run(None if forced is None else forced[0].tobytes())
            label = self._engines.head.label
            self._head[loop.slot]()
        except DfsDeployError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            raise engine_failed(label or self._label_at(loop.block, loop.path), error) from error
        return self._logits.copy(), np.frombuffer(path, np.uint8)[None]

    @functools.cached_property
    def _whole_stem(self) -> Call:
        return self._engines.entry.ahead_of(self._stem, self._images)

    def _label_at(self, block: int, path: bytearray) -> str:
        engine = self._engines.blocks[block][path[block]]
        return "the gate" if engine is None else engine.label

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Call, ...]:
        """Engine calls of a path, (blocks,) option indices, in order."""
        calls, slot = [self._whole_stem], self._start
        for slots, option in zip(self._steps, path, strict=True):
            call, slot = slots[slot].options[int(option)]
            if call is not None:
                calls.append(call)
        return (*calls, self._head[slot])

    def gate_calls(self) -> tuple[Callable[[], int], ...]:
        """Step of the gate before each decided block, on float32 features."""
        self._gate.reset(1)
        return tuple(slots[0].gate for slots in self._steps if slots[0].gate is not None)


def _buffers(architecture: Architecture) -> list[list[NDArray[Any]]]:
    """Output buffers of each block, one per slot; blocks with outputs of the same size share them.

    All sizes share the memory of a slot, because the features of one block at a time are needed.
    """
    shapes = [block.out_shape for block in architecture.blocks]
    largest = max(map(math.prod, shapes))
    memory = [(layout, aligned_buffer((largest,), np.dtype(layout))) for layout, _ in _SLOTS]
    by_size = {
        shape: [slot[: math.prod(shape)].reshape(1, *laid_out(shape, layout)) for layout, slot in memory]
        for shape in shapes
    }
    return [by_size[shape] for shape in shapes]


def _in_turn(first: Call, then: Call) -> Call:
    def both() -> None:
        first()
        then()

    return both


def _unreachable() -> None:
    """Call for a layout that no engine of the bundle leaves features in, and for an option that a block may not run."""
    raise InternalError("a block was to run an option, or to take a layout, that it never can")
