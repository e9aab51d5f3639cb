"""Dispatch for a batch of one: everything bound once, nothing allocated, copied or looked up per block.

A feature map lives in one of four buffers of its resolution: two float32, two uint8. Which one, a *place*, is all that
the loop carries from block to block. A skipped block leaves the place as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.errors import DfsDeployError, InternalError
from dfs_deploy.network import Architecture
from dfs_deploy.runtimes.gate import BoundStep, Gate
from dfs_deploy.runtimes.gate_choice import loop_for
from dfs_deploy.runtimes.loop import DispatchLoop, Turn
from dfs_deploy.runtimes.onnxruntime.binding import Call, aligned_buffer, bind, engine_failed, laid_out
from dfs_deploy.runtimes.onnxruntime.sessions import LoadedEngine, LoadedEngines

_LAYOUTS: tuple[Layout, Layout] = ("float32", "uint8")
_PLACES = tuple((layout, slot) for layout in _LAYOUTS for slot in (0, 1))


class SingleDispatch:
    """Runs one image at a time.

    Args:
        engines: shared with clones.
        gate: this dispatch's own.
        architecture: for the sizes of the buffers.
    """

    def __init__(self, engines: LoadedEngines, gate: Gate, architecture: Architecture) -> None:
        self._engines = engines
        self._gate = gate
        shapes = architecture.blocks
        images = aligned_buffer((1, *architecture.image_shape), np.dtype(np.float32))
        logits = aligned_buffer((1, architecture.classes), np.dtype(np.float32))
        self._images, self._logits = images, logits
        by_size: dict[tuple[int, ...], list[NDArray[Any]]] = {}
        buffers = []
        for shape in shapes:
            size = shape.out_shape
            if size not in by_size:
                by_size[size] = [
                    aligned_buffer((1, *laid_out(size, layout)), np.dtype(layout)) for layout, _ in _PLACES
                ]
            buffers.append(by_size[size])
        stem = engines.stem
        self._stem = bind(stem.sessions["float32"], images, buffers[0][0])
        self._head = tuple(
            bind(engines.head.sessions[layout], buffers[-1][i], logits) if layout in engines.head.sessions else _never
            for i, (layout, _) in enumerate(_PLACES)
        )
        scales = engines.feature_scales
        self._options = tuple(
            tuple(
                tuple(_bind_option(engine, place, buffers[i], buffers[i + 1]) for engine in block.options)
                for place in range(len(_PLACES))
            )
            for i, block in enumerate(engines.blocks)
        )
        turns = [
            [
                Turn(
                    step=gate.bind(i, buffer, scales[i]),
                    follows=i > 0 and buffers[i - 1] is buffers[i] and scales[i - 1] == scales[i],
                    options=self._options[i][place],
                )
                for place, buffer in enumerate(buffers[i])
            ]
            for i in range(len(engines.blocks))
        ]
        self._loop: DispatchLoop = loop_for(gate, turns)
        self._steps: tuple[BoundStep, ...] = tuple(places[0].step for places in turns)

    def run(
        self, image: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Runs one image, (1, C, H, W) float32; see :meth:`dfs_deploy.runtimes.base.Backend.infer`."""
        np.copyto(self._images, image)
        self._gate.reset(1)
        loop, label = self._loop, "the stem"
        try:
            self._stem()
            label = ""
            path = loop.run(None if forced is None else forced[0].tobytes())
            label = "the head"
            self._head[loop.place]()
        except DfsDeployError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise engine_failed(label or self._label_at(loop.block, loop.path), error) from error
        return self._logits.copy(), np.frombuffer(path, np.uint8)[None]

    def _label_at(self, block: int, path: bytearray) -> str:
        engine = self._engines.blocks[block].options[path[block]]
        return "the gate" if engine is None else engine.label

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Call, ...]:
        """The calls that a path makes, in order, the gates' left out."""
        calls, place = [self._stem], 0
        for places, option in zip(self._options, path, strict=True):
            call, place = places[place][int(option)]
            if call is not None:
                calls.append(call)
        return (*calls, self._head[place])

    def gate_calls(self) -> tuple[Callable[[], int], ...]:
        """The gate's step at each gated block, on float32 features."""
        self._gate.reset(1)
        return self._steps


def _never() -> None:
    """The call at a place that no engine of the bundle leaves features in."""
    raise InternalError("features were left in a layout that no engine takes")


def _bind_option(
    engine: LoadedEngine | None, place: int, sources: list[NDArray[Any]], targets: list[NDArray[Any]]
) -> tuple[Call | None, int]:
    """What an option calls for features at a place, and where they are then."""
    if engine is None:
        return None, place
    layout, slot = _PLACES[place]
    # The other slot of the engine's layout where source and target may share buffers, any slot of it otherwise.
    target = _PLACES.index((engine.output, 1 - slot if engine.output == layout else 0))
    session = engine.sessions.get(layout)  # a bundle without INT8 has float32 features only
    return (_never if session is None else bind(session, sources[place], targets[target])), target
