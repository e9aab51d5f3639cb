"""Dispatch for a batch: at each block the samples are regrouped by decision, so skipped work is really skipped.

A skip moves nothing. A group that runs is gathered once, unless it lies in a row already, and its engine writes its
features in place: nothing is scattered back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.runtimes.gate import Gate
from dfs_deploy.runtimes.onnxruntime.binding import Rebinding
from dfs_deploy.runtimes.onnxruntime.chunks import Buffers, Chunks
from dfs_deploy.runtimes.onnxruntime.sessions import LoadedBlock, LoadedEngine, LoadedEngines
from dfs_deploy.runtimes.rows import rows_kernels
from dfs_deploy.system.ort import onnxruntime as ort


class BatchDispatch:
    """Runs any number of images at a time.

    Args:
        engines: shared with clones.
        gate: this dispatch's own.
        maps: (channels, height, width) of each block's output.
        classes: of the logits.
    """

    def __init__(self, engines: LoadedEngines, gate: Gate, maps: list[tuple[int, int, int]], classes: int) -> None:
        self._engines = engines
        self._gate = gate
        self._maps = maps
        self._classes = classes
        self._buffers = Buffers()
        self._kernels = rows_kernels()
        self._calls: dict[ort.InferenceSession, Rebinding] = {}
        self._runs = [np.array([engine is not None for engine in block.options]) for block in engines.blocks]
        scales = engines.feature_scales
        self._keeps = [i > 0 and scales[i] == scales[i - 1] for i in range(len(engines.blocks))]

    def run(
        self, images: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Runs a batch, (N, C, H, W) float32; see :meth:`dfs_deploy.runtimes.base.Backend.infer`."""
        try:
            return self._run_all(images, forced)
        except BaseException:
            self._buffers = Buffers()  # what was lent is not known to be free
            raise

    def _run_all(
        self, images: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        engines, gate, samples = self._engines, self._gate, len(images)
        gate.reset(samples)
        path = np.empty((len(engines.blocks), samples), np.uint8)
        if forced is not None:
            path[...] = forced.T
        features = Chunks(samples, self._buffers, self._kernels)
        target = self._buffers.take(samples, self._maps[0], engines.stem.output)
        self._call(engines.stem, "float32", images, target)
        features.place(np.arange(samples), target)
        changed = None
        for index, (block, choice) in enumerate(zip(engines.blocks, path, strict=True)):
            same = changed if self._keeps[index] else None
            decision = gate.step(index, features.arrays, features.where, engines.feature_scales[index], same)
            if forced is None:
                choice[...] = decision
            runs = self._runs[index]
            changed = runs[choice]
            self._run_block(block, features, choice, runs, self._maps[index + 1])
        logits = np.empty((samples, self._classes), np.float32)
        for group in features.groups(np.zeros(samples, np.uint8), np.ones(1, np.bool_)):
            part = np.empty((len(group.rows), self._classes), np.float32)
            self._call(engines.head, group.layout, group.features, part)
            logits[group.rows] = part
            features.done(group)
        features.release()
        return logits, np.ascontiguousarray(path.T)

    def _run_block(
        self,
        block: LoadedBlock,
        features: Chunks,
        choice: NDArray[np.uint8],
        runs: NDArray[np.bool_],
        size: tuple[int, int, int],
    ) -> None:
        """Runs the samples whose option has an engine."""
        results = []
        for group in features.groups(choice, runs):
            engine = block.options[group.option]
            assert engine is not None  # noqa: S101 (only those that run were grouped)
            target = self._buffers.take(len(group.rows), size, engine.output)
            self._call(engine, group.layout, group.features, target)
            features.done(group)
            results.append((group.rows, target))
        for rows, target in results:
            features.place(rows, target)
        if results:
            features.drop_unused()

    def _call(self, engine: LoadedEngine, layout: Layout, source: NDArray[Any], target: NDArray[Any]) -> None:
        session = engine.sessions[layout]
        call = self._calls.get(session)
        if call is None:
            call = self._calls[session] = Rebinding(session)
        call(engine.label, source, target)
