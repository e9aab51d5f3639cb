"""The interface of every backend: it runs a bundle's engines for one thread."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.engines import PlacedEngine, engines_of
from dfs_deploy.bundle.manifest import BlockEngines, Engine


@dataclass(frozen=True)
class Substitution:
    """An option that runs on an engine of another precision than its own.

    Attributes:
        option: name of the option.
        wanted: precision of its own engine.
        served_by: precision of the engine that runs instead.
        reason: reason, in a few words.
        blocks: indices of the blocks that this applies to.
    """

    option: str
    wanted: str
    served_by: str
    reason: str
    blocks: tuple[int, ...]


def running_engine(block: BlockEngines, option: str, substitutions: Sequence[Substitution]) -> Engine:
    """Finds the engine that runs if the gate chooses an option of a block."""
    own = block.options[option][0]
    instead = (s.served_by for s in substitutions if s.option == option and block.index in s.blocks)
    precision = next(instead, own.precision)
    return next((engine for engine in block.options[option] if engine.precision == precision), own)


def running_engines(bundle: Bundle, runtime: str, substitutions: Sequence[Substitution] = ()) -> Iterator[PlacedEngine]:
    """Yields the engines of ``engines_of`` that the gate can make run here: one for each option of a block."""
    blocks = bundle.manifest.runtimes[runtime].blocks
    for placed in engines_of(bundle, runtime):
        block = blocks[placed.block - 1] if placed.part == "block" and placed.block else None
        if block is None or placed.engine is running_engine(block, placed.option, substitutions):
            yield placed


@dataclass(frozen=True)
class BackendOptions:
    """Choices of how a bundle is run; see ``Runtime``.

    Attributes:
        threads: threads that one engine may use; ``None`` for one.
        gate: kind of gate; ``None`` for the fastest.
        plan: whether a measured choice of engines is followed if there is one.
        prepared: whether engines prepared for this machine run.
        cache_dir: absolute folder of the cache; ``None`` for the usual place.
    """

    threads: int | None = None
    gate: str | None = None
    plan: bool = True
    prepared: bool = True
    cache_dir: str | None = None


class Backend(ABC):
    """Runs a bundle's engines for one thread."""

    name: str

    batch = 1
    """Number of images that its engines take at once, if they were made for one."""

    @abstractmethod
    def infer(
        self, images: NDArray[Any], forced: NDArray[np.uint8] | None, first: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Runs a batch.

        Args:
            images: (N, C, H, W) float32 or (N, H, W, C) uint8 of the network's size, as ``InputContract.arrange``
                gives them: their values are unchecked.
            forced: (N, blocks) uint8, options to run instead of the gate's choices; the gate still steps.
            first: index in the whole batch of the first image, for messages.

        Returns:
            Logits (N, classes) float32 and path (N, blocks) uint8, both owned by the caller.

        Raises:
            InputError: NaN or infinity.
        """

    @abstractmethod
    def set_score_offset(self, offset: NDArray[np.float32]) -> None:
        """Adds to the gate's scores, (gates, options) float32, from the next batch on; clones made later start with it.

        It masks what it held at load, too: see ``budgets.score_offset``.
        """

    @abstractmethod
    def clone(self) -> Backend:
        """Makes a backend for another thread, with the same engines and buffers of its own."""

    @abstractmethod
    def close(self) -> None:
        """Frees what only this backend holds, and the engines when no clone is left."""

    @abstractmethod
    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Callable[[], None], ...]:
        """See ``Runtime.engine_calls``."""

    @abstractmethod
    def gate_calls(self) -> tuple[Callable[[], object], ...]:
        """See ``Runtime.gate_calls``."""

    @property
    @abstractmethod
    def substitutions(self) -> tuple[Substitution, ...]:
        """Substitutions decided at load."""

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Plain facts for reports: provider and version, threads, gate."""
