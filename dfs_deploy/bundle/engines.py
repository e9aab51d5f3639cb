"""The one walk over the engines of a bundle: which there are, their place in the network, input and output sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from dfs_deploy.bundle.manifest import Engine, Layout, Manifest, RuntimeEngines
from dfs_deploy.errors import BundleError
from dfs_deploy.network import Architecture
from dfs_deploy.options import Options

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
        takes: size of its input, channels first, whatever the layout of the input.
        gives: size of its output, channels first.
        before: index of the block whose output it takes; -1 for the stem, which takes images.
    """

    part: Literal["stem", "skip", "block", "head"]
    block: int | None
    option: str
    rank: int
    engine: Engine
    takes: Size
    gives: Size
    before: int

    @property
    def label(self) -> str:
        """Name of the engine in messages, as in ``block 3, option 8 (int8)``."""
        if self.part in ("stem", "head"):
            return f"the {self.part}"
        words = f"block {self.block}, option {self.option}"
        return words if self.part == "skip" else f"{words} ({self.engine.precision})"


def laid_out(size: Size, layout: Layout) -> Size:
    """Shape of a map of (channels, height, width) in a layout: uint8 lies channels last. Other sizes stay."""
    if layout == "float32" or len(size) != 3:
        return size
    channels, height, width = size
    return height, width, channels


class FeatureGrid(NamedTuple):
    """Grid of uint8 features: the value v means ``scale * (v - zero_point)``."""

    scale: float
    zero_point: int


class HasEngines(Protocol):
    """What the walk needs of an opened bundle."""

    @property
    def path(self) -> Path:
        """The bundle's directory."""

    @property
    def manifest(self) -> Manifest:
        """Description of the bundle's files."""

    @property
    def options(self) -> Options:
        """Options that the gate chooses from."""


def feature_grids(bundle: HasEngines, runtime: str) -> tuple[FeatureGrid, ...]:
    """Grid of the output of each block for a runtime that the bundle has engines for, the first block included."""
    engines = bundle.manifest.runtimes[runtime]
    return tuple(map(FeatureGrid, engines.feature_scales, engines.feature_zero_points))


def engines_of(bundle: HasEngines, runtime: str) -> Iterator[PlacedEngine]:
    """Yields every engine of a bundle for one runtime, in the order in which they run; per block, option by option.

    An engine that serves several options is yielded once per option. Under a static policy only the policy's options
    are yielded, because the bundle holds no others.

    Raises:
        BundleError: the bundle has no engines for this runtime.
    """
    if runtime not in bundle.manifest.runtimes:
        raise BundleError(f"{bundle.path} has no engines for {runtime}; export with --runtime {runtime}")
    return walk(bundle.manifest.runtimes[runtime], bundle.manifest.architecture, bundle.options)


def walk(engines: RuntimeEngines, network: Architecture, options: Options) -> Iterator[PlacedEngine]:
    """Yields the engines of one runtime; see ``engines_of``."""
    maps = [block.out_shape for block in network.blocks]
    yield PlacedEngine("stem", 0, "", 0, engines.stem, network.image_shape, maps[0], -1)
    for block in engines.blocks:
        takes, gives = maps[block.index - 1 : block.index + 1]
        for option in options:
            if option.skips and block.skip is not None:
                yield PlacedEngine("skip", block.index, option.name, 0, block.skip, takes, gives, block.index - 1)
            for rank, engine in enumerate(block.options.get(option.name, ())):
                yield PlacedEngine("block", block.index, option.name, rank, engine, takes, gives, block.index - 1)
    yield PlacedEngine("head", None, "", 0, engines.head, maps[-1], (network.classes,), len(maps) - 1)
