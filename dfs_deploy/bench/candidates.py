"""What a bench compares: the dynamic network, the same on forced paths, and static engines of the same backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.options import PRECISIONS, Options, engine_precision
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine

FORCED_SHARES = (0, 25, 50, 75, 100)
"""Percent of the gated blocks that run, after the protocol of Cocktailer (Zhang et al., OSDI 2023)."""

DYNAMIC = "dfs"
STATIC = "static-"


@dataclass(frozen=True, eq=False)
class Candidate:
    """Something that classifies.

    Attributes:
        name: ``dfs``, ``static-int8``, ``dfs-forced-25-int8`` and the like.
        logits: maps (N, C, H, W) float32, normalised, to (N, classes) float32.
        forced: (gated blocks,) uint8 option indices of a forced path, else ``None``.
    """

    name: str
    logits: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    forced: NDArray[np.uint8] | None = None

    @property
    def static(self) -> bool:
        """Whether it does the same work for every input."""
        return self.name.startswith(STATIC)


def open_candidates(
    bundle: Bundle, runtime: Runtime, *, batch: int, threads: int, forced: bool, closing: ExitStack
) -> list[Candidate]:
    """Loads everything that a bench compares.

    Args:
        bundle: with engines for ONNX Runtime.
        runtime: the dynamic network, opened.
        batch: images a call.
        threads: that one engine may use.
        forced: whether to force paths as well, with a quarter to all of the gated blocks run.
        closing: closes the static engines.

    Returns:
        The dynamic network, the static engines from the most precise on, the forced paths.
    """
    return [
        Candidate(DYNAMIC, lambda images: runtime(images).logits),
        *_static(bundle, threads, closing),
        *(_forced(runtime, batch) if forced else ()),
    ]


def _static(bundle: Bundle, threads: int, closing: ExitStack) -> Iterator[Candidate]:
    for precision in sorted(bundle.manifest.runtimes["onnxruntime"].static, key=PRECISIONS.index, reverse=True):
        yield Candidate(f"{STATIC}{precision}", closing.enter_context(StaticEngine(bundle, precision, threads)))


def _forced(runtime: Runtime, batch: int) -> Iterator[Candidate]:
    blocks = runtime.bundle.architecture.gated_blocks
    for name, (share, option) in forced_patterns(runtime.options).items():
        row = spread_path(share, option, blocks, runtime.options)
        whole = np.repeat(row[None], batch, 0)

        def logits(images: NDArray[np.float32], path: NDArray[np.uint8] = whole) -> NDArray[np.float32]:
            return runtime(images, path=path).logits

        yield Candidate(name, logits, row)


def forced_patterns(options: Options) -> dict[str, tuple[int, int]]:
    """The forced cases: by name, the percent of gated blocks that run and the index of the option that they run.

    One series for the least and one for the most precise option that computes, named by the precision of their engines,
    and one alone where that is the same; an option list without skip has none.
    """
    if not any(option.skips for option in options):
        return {}
    computing = sorted((i for i, option in enumerate(options) if not option.skips), key=lambda i: options[i].bits)
    ends = {engine_precision(options[i], PRECISIONS): i for i in (computing[0], computing[-1])}
    return {f"dfs-forced-{share}-{precision}": (share, i) for precision, i in ends.items() for share in FORCED_SHARES}


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
