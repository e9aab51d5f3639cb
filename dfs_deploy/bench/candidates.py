"""What a bench compares: the dynamic network, static engines of its backbone, forced paths and the traces of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.traces import open_trace
from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import UsageError
from dfs_deploy.options import PRECISIONS, Options, Precision, engine_precision
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine

FORCED_SHARES = (0, 25, 50, 75, 100)
"""Percent of the gated blocks that run, after the protocol of Cocktailer (Zhang et al., OSDI 2023)."""

DYNAMIC = "dfs"
STATIC = "static-"
_FORCED = f"{DYNAMIC}-forced-"
_TRACE = "trace-"


@dataclass(frozen=True)
class ForcedPattern:
    """A path that does not depend on the input.

    Attributes:
        share: percent of the gated blocks that run, evenly spread; the others are skipped.
        option: index of the option that they run.
        precision: that names the series: of the option's engines.
    """

    share: int
    option: int
    precision: Precision

    @property
    def dispatched(self) -> str:
        """Name of the case in which the runtime takes this path, gates stepping."""
        return f"{_FORCED}{self.share}-{self.precision}"

    @property
    def trace(self) -> str:
        """Name of the case in which one engine holds this path."""
        return f"{_TRACE}{self.share}-{self.precision}"


@dataclass(frozen=True, eq=False)
class Candidate:
    """Something that classifies.

    Attributes:
        name: ``dfs``, ``static-int8``, ``dfs-forced-25-int8``, ``trace-25-int8`` and the like.
        logits: maps (N, C, H, W) float32, normalised, to (N, classes) float32.
        forced: (gated blocks,) uint8 option indices of a forced path, else ``None``.
    """

    name: str
    logits: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    forced: NDArray[np.uint8] | None = None

    @property
    def static(self) -> bool:
        """Whether it is a static baseline."""
        return self.name.startswith(STATIC)

    @property
    def dispatched(self) -> bool:
        """Whether the runtime dispatches it block by block."""
        return self.name.startswith(DYNAMIC)


def open_candidates(
    bundle: Bundle, runtime: Runtime, *, batch: int, threads: int, forced: bool, closing: ExitStack
) -> list[Candidate]:
    """Loads everything that a bench compares.

    Args:
        bundle: with engines for the runtime. Static engines and traces run in ONNX Runtime alone, and none is compared
            with a dynamic network that runs elsewhere.
        runtime: the dynamic network, opened.
        batch: images a call.
        threads: that one engine may use.
        forced: whether to force paths as well, with none to all of the gated blocks run.
        closing: closes what is opened.

    Returns:
        The dynamic network, the static engines from the most precise on, forced paths, each before its trace, if any.

    Raises:
        UsageError: paths cannot be forced, or none skips.
        MissingExtraError: a trace is asked for, and onnx is not installed.
    """
    here = runtime.description["runtime"] == "onnxruntime"
    return [
        Candidate(DYNAMIC, lambda images: runtime(images).logits),
        *(_static(bundle, threads, closing) if here else ()),
        *(_forced(bundle, runtime, batch, threads if here else None, closing) if forced else ()),
    ]


def _static(bundle: Bundle, threads: int, closing: ExitStack) -> Iterator[Candidate]:
    for precision in sorted(bundle.manifest.runtimes["onnxruntime"].static, key=PRECISIONS.index, reverse=True):
        yield Candidate(f"{STATIC}{precision}", closing.enter_context(StaticEngine(bundle, precision, threads)))


def _forced(
    bundle: Bundle, runtime: Runtime, batch: int, trace_threads: int | None, closing: ExitStack
) -> Iterator[Candidate]:
    """Forced paths, and their traces where threads are given for them."""
    patterns = forced_patterns(bundle.options)
    if bundle.policy is not None or not patterns:
        why = f"options {bundle.options}, none of which skips" if bundle.policy is None else "a static policy"
        raise UsageError(f"{bundle.path} has {why}, expected a gate that may skip; leave --forced out")
    for pattern in patterns:
        row = spread_path(pattern.share, pattern.option, bundle.architecture.gated_blocks, bundle.options)
        whole = np.repeat(row[None], batch, 0)

        def logits(images: NDArray[np.float32], path: NDArray[np.uint8] = whole) -> NDArray[np.float32]:
            return runtime(images, path=path).logits

        yield Candidate(pattern.dispatched, logits, row)
        if trace_threads is not None:
            trace = open_trace(bundle, row, runtime.substitutions, trace_threads)
            yield Candidate(pattern.trace, closing.enter_context(trace), row)


def forced_patterns(options: Options) -> tuple[ForcedPattern, ...]:
    """What paths are forced.

    One series for the least and one for the most precise option that computes, named by the precision of their engines,
    and one alone where that is the same; an option list without skip has none.
    """
    if not any(option.skips for option in options):
        return ()
    computing = sorted((i for i, option in enumerate(options) if not option.skips), key=lambda i: options[i].bits)
    ends = {
        precision: i for i in (computing[0], computing[-1]) if (precision := engine_precision(options[i], PRECISIONS))
    }
    return tuple(ForcedPattern(share, i, precision) for precision, i in ends.items() for share in FORCED_SHARES)


def spread_path(share: int, option: int, blocks: int, options: Options) -> NDArray[np.uint8]:
    """A path that runs a share of the gated blocks, evenly spread, and skips the rest.

    Args:
        share: percent of the blocks to run.
        option: index of the option that they run.
        blocks: gated blocks.
        options: of the bundle, with one that skips.

    Returns:
        (blocks,) uint8 option indices.
    """
    skip = next(i for i, candidate in enumerate(options) if candidate.skips)
    reached = np.floor(np.arange(1, blocks + 1) * share / 100 + 1e-9)
    runs = np.diff(reached, prepend=0.0) > 0
    return np.where(runs, option, skip).astype(np.uint8)
