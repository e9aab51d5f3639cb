"""Each engine of each block: its time by itself, and its error against full precision, without PyTorch.

The yardstick is the float32 engine of the same option, which computes with the same rounded weights and the same
saturation, so the error is what the engine's own precision costs. Both get the features that reach the block, as the
engines before it left them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.engines import PlacedEngine, engines_of
from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.progress import Progress, silent
from dfs_deploy.report.data import EngineFigures
from dfs_deploy.runtimes import Substitution, running_engine
from dfs_deploy.runtimes.buffers import aligned_buffer, laid_out
from dfs_deploy.runtimes.onnxruntime.engine_choice import median_us
from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN, PreparedEngines, obtain_prepared
from dfs_deploy.runtimes.onnxruntime.sessions import (
    bind,
    open_session,
    run_once,
    session_options,
)
from dfs_deploy.system.ort import onnxruntime as ort

MOST_SAMPLES = 128
"""Number of inputs whose features errors are measured on; more would change little and take memory."""

_TINY = float(np.finfo(np.float32).tiny)

Features = list[NDArray[Any]]
"""Feature map of each input, as its engine left it: (C, H, W) float32 or (H, W, C) uint8."""


class Sessions:
    """Engines of a bundle opened one by one; files with the same content share a session.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        threads: number of threads that one engine may use.
        prepared: engines to open instead of the bundle's, whose float32 features lie in another layout.
    """

    def __init__(self, bundle: Bundle, threads: int = 1, prepared: PreparedEngines = PLAIN) -> None:
        self._bundle = bundle
        self._prepared = prepared
        self._options = session_options(threads)
        self._sessions: dict[str, ort.InferenceSession] = {}

    def open(self, placed: PlacedEngine, layout: Layout) -> ort.InferenceSession:
        """The session of an engine for features of a layout."""
        file = placed.engine.files[layout]
        digest = self._bundle.manifest.files[file].sha256
        if digest not in self._sessions:
            data = self._prepared.read(file) or self._bundle.read(file)
            self._sessions[digest] = open_session(data, f"{self._bundle.path}: {file}", self._options)
        return self._sessions[digest]

    def run(self, placed: PlacedEngine, features: Sequence[NDArray[Any]]) -> Features:
        """Runs an engine on the features of some inputs, those of one layout together."""
        outputs = list(features)
        for layout in placed.engine.files:
            rows = [row for row, maps in enumerate(features) if maps.dtype == layout]
            if rows:
                batch = np.stack([features[row] for row in rows])
                made = run_once(self.open(placed, layout), placed.label, batch)
                for row, maps in zip(rows, made, strict=True):
                    outputs[row] = maps
        return outputs


def walk(
    bundle: Bundle,
    sessions: Sessions,
    substitutions: Sequence[Substitution],
    images: NDArray[np.float32],
    paths: NDArray[np.uint8],
) -> Iterator[tuple[list[PlacedEngine], Features]]:
    """Runs inputs along given paths, and stops before each gated block and before the head.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        sessions: sessions of its engines.
        substitutions: substitutions that the runtime decided on, so that the same engines run.
        images: (N, C, H, W) float32, normalised.
        paths: (N, gated blocks) option indices.

    Yields:
        The engines of a gated block, or the head, and the features that reach them.
    """
    features: Features = list(images)
    for index, group in itertools.groupby(engines_of(bundle, "onnxruntime"), key=lambda placed: placed.block):
        engines = list(group)
        if index == 0:
            features = sessions.run(engines[0], features)
            continue
        yield engines, features
        after = list(features)
        for placed in engines:
            if index is not None and serves(bundle, placed, substitutions):
                rows = np.flatnonzero(paths[:, index - 1] == bundle.options.names.index(placed.option))
                for row, maps in zip(rows, sessions.run(placed, [features[row] for row in rows]), strict=True):
                    after[row] = maps
        features = after


def serves(bundle: Bundle, placed: PlacedEngine, substitutions: Sequence[Substitution]) -> bool:
    """Whether an engine of a gated block runs if the gate chooses its option there."""
    if placed.part == "skip":
        return True
    block = bundle.manifest.runtimes["onnxruntime"].blocks[(placed.block or 0) - 1]
    return placed.engine is running_engine(block, placed.option, substitutions)


def engine_figures(
    bundle: Bundle,
    substitutions: Sequence[Substitution],
    images: NDArray[np.float32],
    paths: NDArray[np.uint8],
    groups: Sequence[int],
    threads: int = 1,
    prepared: bool = True,
    progress: Progress = silent,
) -> tuple[EngineFigures, ...]:
    """Measures every engine of every gated block.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        substitutions: substitutions that the runtime decided on.
        images: (N, C, H, W) float32, normalised; errors are measured on the first 128.
        paths: (N, gated blocks) option indices that they took.
        groups: group of each block, the first block included.
        threads: number of threads that one engine may use.
        prepared: whether engines prepared for this machine are timed.
        progress: callback of the work.
    """
    sessions = Sessions(bundle, threads)
    timed = Sessions(bundle, threads, obtain_prepared(bundle)) if prepared else sessions
    found: list[EngineFigures] = []
    for block, features in walk(bundle, sessions, substitutions, images[:MOST_SAMPLES], paths[:MOST_SAMPLES]):
        index = block[0].block
        if index is None:
            break
        progress("measuring engines", (index - 1) / paths.shape[1])
        uint8 = sum(maps.dtype == np.uint8 for maps in features)
        layout: Layout = "uint8" if 2 * uint8 > len(features) else "float32"
        for name, group in itertools.groupby(block, key=lambda placed: placed.option):
            engines, chose = list(group), paths[:, index - 1] == bundle.options.names.index(name)
            exact = next((placed for placed in engines if placed.engine.precision == "fp32"), None)
            routed = [maps for maps, here in zip(features, chose, strict=False) if here]
            reference = None if exact is None else _floats(bundle, exact, sessions.run(exact, routed or features))
            for placed, us in zip(engines, _times(timed, engines, layout), strict=True):
                compared = reference is not None and placed is not exact
                rms, greatest = None, None
                if reference is not None and compared:
                    output = _floats(bundle, placed, sessions.run(placed, routed or features))
                    rms, greatest = _errors(output, reference)
                found.append(
                    EngineFigures(
                        block=index,
                        group=groups[index],
                        option=name,
                        precision=placed.engine.precision,
                        serves=serves(bundle, placed, substitutions),
                        share=float(np.mean(chose)),
                        layout=layout,
                        median_us=us,
                        samples=len(routed or features) if compared else 0,
                        measured_on=None if not compared else "routed" if routed else "reached",
                        relative_rms_error=rms,
                        relative_max_error=greatest,
                        finite=not compared or rms is not None,
                    )
                )
    return tuple(found)


def _times(sessions: Sessions, engines: Sequence[PlacedEngine], layout: Layout) -> list[float]:
    """Median times of some engines of a block at batch 1, in microseconds, measured in turns."""
    source = aligned_buffer((1, *laid_out(engines[0].takes, layout)), np.dtype(layout))
    random = np.random.default_rng(engines[0].block)
    source[...] = random.integers(0, 128, source.shape) if layout == "uint8" else random.random(source.shape)
    calls: list[Callable[[], None]] = []
    for placed in engines:
        output = placed.engine.output
        target = aligned_buffer((1, *laid_out(placed.gives, output)), np.dtype(output))
        calls.append(bind(sessions.open(placed, layout), source, target))
    return median_us(calls)


def _floats(bundle: Bundle, placed: PlacedEngine, maps: Features) -> NDArray[np.float64]:
    """Output of a block's engine as float64, channels first, whatever layout it left it in."""
    output = np.stack(maps).astype(np.float64)
    if placed.engine.output == "float32":
        return output
    scale = bundle.manifest.runtimes["onnxruntime"].feature_scales[placed.block or 0]
    return output.transpose(0, 3, 1, 2) * scale


def _errors(output: NDArray[np.float64], exact: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """Relative errors of an engine's output, root-mean-square and greatest; ``None`` if a value is not finite."""
    if not (np.isfinite(output).all() and np.isfinite(exact).all()):
        return None, None
    difference = output - exact
    rms = float(np.sqrt(np.mean(difference**2))) / max(float(np.sqrt(np.mean(exact**2))), _TINY)
    return rms, float(np.abs(difference).max()) / max(float(np.abs(exact).max()), _TINY)
