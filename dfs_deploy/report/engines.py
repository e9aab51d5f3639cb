"""Each engine of each block: its time by itself, and its distance from full precision, without PyTorch.

The yardstick is the float32 engine of the same option, which computes with the same rounded weights and the same
saturation: what is measured is what the engine's own precision costs. Both get the features that reach the block, as
the engines before it left them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.manifest import BlockEngines, Engine, Layout
from dfs_deploy.report.results import EngineFigures
from dfs_deploy.report.walk import Features, Sessions, walk
from dfs_deploy.runtimes.base import Substitution, serving
from dfs_deploy.runtimes.onnxruntime.binding import aligned_buffer, bind, laid_out
from dfs_deploy.runtimes.onnxruntime.plan import median_us
from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN, obtain_prepared

MOST_SAMPLES = 128
"""Inputs whose features errors are measured on; more would change little and take memory."""

_TINY = float(np.finfo(np.float32).tiny)
_DTYPES: dict[Layout, np.dtype[Any]] = {"float32": np.dtype(np.float32), "uint8": np.dtype(np.uint8)}


def engine_figures(
    bundle: Bundle,
    substitutions: Sequence[Substitution],
    images: NDArray[np.float32],
    paths: NDArray[np.uint8],
    groups: Sequence[int],
    threads: int = 1,
    prepared: bool = True,
    progress: Callable[[float], None] | None = None,
) -> tuple[EngineFigures, ...]:
    """Measures every engine of every gated block.

    Args:
        bundle: with engines for ONNX Runtime.
        substitutions: that the runtime decided on.
        images: (N, C, H, W) float32, normalised; errors are measured on the first 128.
        paths: (N, gated blocks) option indices that they took.
        groups: group of each block, the first block included.
        threads: that one engine may use.
        prepared: whether engines prepared for this machine are timed.
        progress: called with how far it is, 0 to 1.
    """
    sessions, timed = (
        Sessions(bundle, threads),
        Sessions(bundle, threads, obtain_prepared(bundle) if prepared else PLAIN),
    )
    found: list[EngineFigures] = []
    measured = walk(bundle, sessions, substitutions, images[:MOST_SAMPLES], paths[:MOST_SAMPLES])
    for block, features in measured:
        column = paths[:, block.index - 1]
        for index, option in enumerate(bundle.options):
            share = float(np.mean(column == index))
            if option.skips:
                choices = [] if block.skip is None else [block.skip]
                serves = block.skip
            elif option.name in block.options:
                choices, serves = block.options[option.name], serving(block, option.name, substitutions)
            else:
                continue  # a static policy runs another option here
            times = _times(bundle, timed, block, choices, features.commonest)
            sent = np.flatnonzero(column[:MOST_SAMPLES] == index)
            rows = sent if len(sent) else np.arange(len(features.in_uint8))
            for engine, us in zip(choices, times, strict=True):
                error = _error(bundle, sessions, block, engine, choices, features, rows)
                where: Literal["routed", "reached"] = "routed" if len(sent) else "reached"
                found.append(
                    EngineFigures(
                        block=block.index,
                        group=groups[block.index],
                        option=option.name,
                        precision=engine.precision,
                        serves=engine is serves,
                        share=share,
                        layout=features.commonest,
                        median_us=us,
                        samples=0 if error is None else len(rows),
                        measured_on=None if error is None else where,
                        relative_rms_error=None if error is None else error.rms,
                        relative_max_error=None if error is None else error.greatest,
                        finite=error is None or error.rms is not None,
                    )
                )
        if progress is not None:
            progress(block.index / bundle.architecture.gated_blocks)
    return tuple(found)


def _times(
    bundle: Bundle, sessions: Sessions, block: BlockEngines, choices: Sequence[Engine], layout: Layout
) -> list[float]:
    """Median times of some engines of a block at batch 1, in microseconds, measured in turns."""
    shape = bundle.architecture.blocks[block.index]
    source = aligned_buffer((1, *laid_out(shape.in_shape, layout)), _DTYPES[layout])
    random = np.random.default_rng(block.index)
    source[...] = random.integers(0, 128, source.shape) if layout == "uint8" else random.random(source.shape)
    calls = []
    for engine in choices:
        target = laid_out(shape.out_shape, engine.output)
        calls.append(bind(sessions.open(engine, layout), source, aligned_buffer((1, *target), _DTYPES[engine.output])))
    return median_us(calls)


@dataclass(frozen=True)
class _Error:
    """Relative errors; ``None`` where a value is not finite."""

    rms: float | None
    greatest: float | None


def _error(
    bundle: Bundle,
    sessions: Sessions,
    block: BlockEngines,
    engine: Engine,
    choices: Sequence[Engine],
    features: Features,
    rows: NDArray[np.intp],
) -> _Error | None:
    """How far an engine is from the float32 engine among the same choices; ``None`` where that is itself."""
    exact = next((choice for choice in choices if choice.precision == "fp32"), None)
    if exact is None or exact is engine:
        return None
    scale = np.float32(bundle.manifest.runtimes["onnxruntime"].feature_scales[block.index])
    differences, outputs = [], []
    for wanted, got in _both(sessions, exact, engine, features, rows, scale):
        with np.errstate(invalid="ignore", over="ignore"):
            differences.append((got.astype(np.float64) - wanted).ravel())
        outputs.append(wanted.astype(np.float64).ravel())
    difference, output = np.concatenate(differences), np.concatenate(outputs)
    if not (np.isfinite(difference).all() and np.isfinite(output).all()):
        return _Error(None, None)
    rms = float(np.sqrt(np.mean(difference**2))) / max(float(np.sqrt(np.mean(output**2))), _TINY)
    return _Error(rms, float(np.abs(difference).max()) / max(float(np.abs(output).max()), _TINY))


def _both(
    sessions: Sessions,
    exact: Engine,
    engine: Engine,
    features: Features,
    rows: NDArray[np.intp],
    scale: np.float32,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """What the exact engine and another make of the same features, both as float32, channels first."""
    for layout, _, maps in features.split(rows):
        pair = []
        for one in (exact, engine):
            out = sessions.run(one, layout, maps)
            if one.output == "uint8":
                out = out.transpose(0, 3, 1, 2).astype(np.float32) * scale
            pair.append(out)
        yield pair[0], pair[1]
