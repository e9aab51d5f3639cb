"""Dispatch for one image: everything is bound once; nothing is allocated, copied or looked up per block.

A feature map lies in one of four buffers of its size, its slots: two for float32 and two for uint8, since an engine
cannot write where it reads. A skipped block leaves its features in their slot.
"""

from __future__ import annotations

from collections.abc import Callable
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
        self._images = aligned_buffer((1, *architecture.image_shape), _FLOAT32)
        self._logits = aligned_buffer((1, architecture.classes), _FLOAT32)
        buffers = _buffers(architecture)
        self._stem = bind(engines.stem.sessions["float32"], self._images, buffers[0][0])
        self._head = tuple(
            _bind(engines.head, layout, source, self._logits)
            for (layout, _), source in zip(_SLOTS, buffers[-1], strict=True)
        )
        scales = engines.feature_scales
        self._steps = tuple(
            tuple(
                BlockStep(
                    gate=gate.bind(i, buffers[i][slot], scales[i]),
                    reuses=i > 0 and buffers[i - 1] is buffers[i] and scales[i - 1] == scales[i],
                    options=tuple(_bind_option(engine, slot, buffers[i], buffers[i + 1]) for engine in block),
                )
                for slot in range(len(_SLOTS))
            )
            for i, block in enumerate(engines.blocks)
        )
        self._loop = loop_for(gate, self._steps)

    def run(
        self, image: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Runs one image, (1, C, H, W) float32; see ``Backend.infer``."""
        np.copyto(self._images, image)
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

    def _label_at(self, block: int, path: bytearray) -> str:
        engine = self._engines.blocks[block][path[block]]
        return "the gate" if engine is None else engine.label

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Call, ...]:
        """Engine calls of a path, (gated blocks,) option indices, in order."""
        calls, slot = [self._stem], 0
        for slots, option in zip(self._steps, path, strict=True):
            call, slot = slots[slot].options[int(option)]
            if call is not None:
                calls.append(call)
        return (*calls, self._head[slot])

    def gate_calls(self) -> tuple[Callable[[], int], ...]:
        """Step of the gate at each gated block, on float32 features."""
        self._gate.reset(1)
        return tuple(slots[0].gate for slots in self._steps)


def _buffers(architecture: Architecture) -> list[list[NDArray[Any]]]:
    """Output buffers of each block, one per slot; blocks with outputs of the same size share them."""
    by_size: dict[tuple[int, ...], list[NDArray[Any]]] = {}
    for shape in architecture.blocks:
        if shape.out_shape not in by_size:
            by_size[shape.out_shape] = [
                aligned_buffer((1, *laid_out(shape.out_shape, layout)), np.dtype(layout)) for layout, _ in _SLOTS
            ]
    return [by_size[shape.out_shape] for shape in architecture.blocks]


def _bind_option(
    engine: LoadedEngine | None, slot: int, sources: list[NDArray[Any]], targets: list[NDArray[Any]]
) -> tuple[Call | None, int]:
    """Call of an option for features in a slot, and their slot after it."""
    if engine is None:
        return None, slot
    layout, copy = _SLOTS[slot]
    # An engine that keeps the layout writes to the other slot of it, since sources and targets may be the same buffers.
    target = _SLOTS.index((engine.output, 1 - copy if engine.output == layout else 0))
    return _bind(engine, layout, sources[slot], targets[target]), target


def _bind(engine: LoadedEngine, layout: Layout, source: NDArray[Any], target: NDArray[Any]) -> Call:
    session = engine.sessions.get(layout)
    return _unreachable if session is None else bind(session, source, target)


def _unreachable() -> None:
    """Call for a layout that no engine of the bundle leaves features in."""
    raise InternalError("features were left in a layout that no engine takes")
