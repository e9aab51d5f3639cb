"""The walk over a bundle's engines: which there are, where each stands, what it takes and gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dfs_deploy.bundle.artefact import Bundle
from dfs_deploy.bundle.manifest import Engine
from dfs_deploy.errors import BundleError

Size = tuple[int, ...]
"""Shape without the batch: (channels, height, width) of images and features, (classes,) of logits."""


@dataclass(frozen=True)
class PlacedEngine:
    """An engine and its place in the network.

    Attributes:
        part: which part of the network it computes; ``skip`` is the projection of a skipped block.
        block: index of the block; 0 for the stem, which holds the first block, and ``None`` for the head.
        option: name of the option that it serves; empty for stem and head.
        rank: 0 for the engine of the option's own precision, 1 and up for its fallbacks, the least precise first.
        engine: its record in the manifest.
        takes: size of its input, channels first, in whichever layout that comes.
        gives: size of its output, channels first.
    """

    part: Literal["stem", "skip", "block", "head"]
    block: int | None
    option: str
    rank: int
    engine: Engine
    takes: Size
    gives: Size

    @property
    def label(self) -> str:
        """Name of the engine in messages, as in ``block 3, option 8 (int8)``."""
        if self.part in ("stem", "head"):
            return f"the {self.part}"
        words = f"block {self.block}, option {self.option}"
        return words if self.part == "skip" else f"{words} ({self.engine.precision})"


def engines_of(bundle: Bundle, runtime: str) -> Iterator[PlacedEngine]:
    """Yields every engine of a bundle for one runtime, in the order in which they run, a block's by option.

    An engine that serves several options is yielded for each. Under a static policy those are the policy's options
    alone, since the bundle holds no others.

    Args:
        bundle: opened.
        runtime: name of the runtime, such as ``onnxruntime``.

    Raises:
        BundleError: the bundle has no engines for this runtime.
    """
    if runtime not in bundle.manifest.runtimes:
        raise BundleError(f"{bundle.path} has no engines for {runtime}; export with --runtime {runtime}")
    engines, network = bundle.manifest.runtimes[runtime], bundle.architecture
    maps = [block.out_shape for block in network.blocks]
    yield PlacedEngine("stem", 0, "", 0, engines.stem, network.image_shape, maps[0])
    for block in engines.blocks:
        takes, gives = maps[block.index - 1 : block.index + 1]
        for option in bundle.options:
            if option.skips and block.skip is not None:
                yield PlacedEngine("skip", block.index, option.name, 0, block.skip, takes, gives)
            for rank, engine in enumerate(block.options.get(option.name, ())):
                yield PlacedEngine("block", block.index, option.name, rank, engine, takes, gives)
    yield PlacedEngine("head", None, "", 0, engines.head, maps[-1], (network.classes,))
