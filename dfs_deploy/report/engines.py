"""Each engine of each block: its time by itself, and its error against full precision, without PyTorch.

The yardstick is the float32 engine of the same option, which computes with the same rounded weights and the same
saturation, so the error is what the engine's own precision costs. Both get the features that reach the block, as the
engines before it left them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.engines import PlacedEngine, engines_of, feature_grids
from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.progress import Progress, silent
from dfs_deploy.report.data import EngineFigures
from dfs_deploy.runtimes import Substitution
from dfs_deploy.runtimes.backend import running_engines
from dfs_deploy.runtimes.onnxruntime.conversion import OTHER
from dfs_deploy.runtimes.onnxruntime.engine_choice import time_engines
from dfs_deploy.runtimes.onnxruntime.loading import EngineLoader
from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN, prepare_engines
from dfs_deploy.runtimes.onnxruntime.sessions import run_once

MOST_SAMPLES = 128
"""Number of inputs whose features errors are measured on; more would change little and take memory."""

_TINY = float(np.finfo(np.float32).tiny)

Features = list[NDArray[Any]]
"""Feature map of each input, as its engine left it: (C, H, W) float32 or (H, W, C) uint8."""


def run_engine(loader: EngineLoader, placed: PlacedEngine, features: Sequence[NDArray[Any]]) -> Features:
    """Runs an engine on the features of some inputs, those of one layout together, which are converted if need be."""
    engine, outputs = loader.load(placed), list(features)
    layouts: tuple[Layout, ...] = ("float32", "uint8")
    for layout in layouts:
        rows = [row for row, maps in enumerate(features) if maps.dtype == layout]
        if not rows:
            continue
        given, taken = np.stack([features[row] for row in rows]), layout
        if layout not in engine.sessions:
            taken = OTHER[layout]
            given = run_once(loader.converters.session(placed.before, placed.takes[0], taken), engine.label, given)
        for row, maps in zip(rows, run_once(engine.sessions[taken], engine.label, given), strict=True):
            outputs[row] = maps
    return outputs


def walk(
    bundle: Bundle,
    loader: EngineLoader,
    running: Sequence[PlacedEngine],
    images: NDArray[np.float32],
    paths: NDArray[np.uint8],
) -> Iterator[tuple[list[PlacedEngine], Features]]:
    """Runs inputs along given paths, and stops before each block and before the head.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        loader: loader of its engines.
        running: engines that run here if the gate chooses their option.
        images: (N, C, H, W) float32, normalised.
        paths: (N, blocks) option indices.

    Yields:
        The engines of a block, or the head, and the features that reach them.
    """
    features: Features = list(images)
    for index, group in itertools.groupby(engines_of(bundle, "onnxruntime"), key=lambda placed: placed.block):
        engines = list(group)
        if index == 0:
            features = run_engine(loader, engines[0], features)
            continue
        yield engines, features
        after = list(features)
        for placed in engines:
            if index is not None and placed in running:
                rows = np.flatnonzero(paths[:, index - 1] == bundle.options.names.index(placed.option))
                made = run_engine(loader, placed, [features[row] for row in rows])
                for row, maps in zip(rows, made, strict=True):
                    after[row] = maps
        features = after


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
    """Measures every engine of every block.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        substitutions: substitutions that the runtime decided on.
        images: (N, C, H, W) float32, normalised; errors are measured on the first 128.
        paths: (N, blocks) option indices that they took.
        groups: group of each block, the first block included.
        threads: number of threads that one engine may use.
        prepared: whether engines prepared for this machine are timed.
        progress: callback of the work.
    """
    loader = EngineLoader(bundle, threads, PLAIN)
    run = functools.partial(run_engine, loader)
    timed = prepare_engines(bundle) if prepared else PLAIN
    running = list(running_engines(bundle, "onnxruntime", substitutions))
    found: list[EngineFigures] = []
    for block, features in walk(bundle, loader, running, images[:MOST_SAMPLES], paths[:MOST_SAMPLES]):
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
            reference = None if exact is None else _floats(bundle, exact, run(exact, routed or features))
            times = time_engines(bundle, engines, threads, timed, layout)
            for placed, us in zip(engines, times, strict=True):
                compared = reference is not None and placed is not exact
                rms, greatest = None, None
                if reference is not None and compared:
                    output = _floats(bundle, placed, run(placed, routed or features))
                    rms, greatest = _errors(output, reference)
                found.append(
                    EngineFigures(
                        block=index,
                        group=groups[index],
                        option=name,
                        precision=placed.engine.precision,
                        serves=placed in running,
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


def _floats(bundle: Bundle, placed: PlacedEngine, maps: Features) -> NDArray[np.float64]:
    """Output of a block's engine as float64, channels first, whatever layout it left it in."""
    output = np.stack(maps).astype(np.float64)
    if placed.engine.output == "float32":
        return output
    grid = feature_grids(bundle, "onnxruntime")[placed.block or 0]
    return (output.transpose(0, 3, 1, 2) - grid.zero_point) * grid.scale


def _errors(output: NDArray[np.float64], exact: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """Relative errors of an engine's output, root-mean-square and greatest; ``None`` if a value is not finite."""
    if not (np.isfinite(output).all() and np.isfinite(exact).all()):
        return None, None
    difference = output - exact
    rms = float(np.sqrt(np.mean(difference**2))) / max(float(np.sqrt(np.mean(exact**2))), _TINY)
    return rms, float(np.abs(difference).max()) / max(float(np.abs(exact).max()), _TINY)
