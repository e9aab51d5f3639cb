"""The features that reach each block, on the paths that the runtime took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.manifest import BlockEngines, Engine, Layout
from dfs_deploy.runtimes.base import Substitution, serving
from dfs_deploy.runtimes.onnxruntime.binding import open_session, run_once, session_options
from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN, PreparedEngines
from dfs_deploy.system.ort import onnxruntime as ort


class Sessions:
    """Engines of a bundle opened one by one; files with the same content share a session.

    Args:
        bundle: with engines for ONNX Runtime.
        threads: that one engine may use.
        prepared: engines to open instead of the bundle's, whose float32 features lie in another layout.
    """

    def __init__(self, bundle: Bundle, threads: int = 1, prepared: PreparedEngines = PLAIN) -> None:
        self._bundle = bundle
        self._prepared = prepared
        self._options = session_options(threads)
        self._sessions: dict[str, ort.InferenceSession] = {}

    def open(self, engine: Engine, layout: Layout) -> ort.InferenceSession:
        """The session of an engine for features of a layout."""
        file = engine.files[layout]
        digest = self._bundle.manifest.files[file].sha256
        if digest not in self._sessions:
            data = self._prepared.read(file) or self._bundle.read(file)
            self._sessions[digest] = open_session(data, f"{self._bundle.path}: {file}", self._options)
        return self._sessions[digest]

    def run(self, engine: Engine, layout: Layout, features: NDArray[Any]) -> NDArray[Any]:
        """Runs an engine on features of any batch size."""
        return run_once(self.open(engine, layout), engine.files[layout], features)


@dataclass(frozen=True, eq=False)
class Features:
    """The feature maps of some inputs, each in the layout in which its engine left it.

    Attributes:
        floats: (N, C, H, W) float32; valid where ``in_uint8`` is false.
        integers: (N, H, W, C) uint8; valid where it is true.
        in_uint8: (N,) bool.
    """

    floats: NDArray[np.float32]
    integers: NDArray[np.uint8]
    in_uint8: NDArray[np.bool_]

    @classmethod
    def empty(cls, count: int, size: tuple[int, int, int]) -> Features:
        """Room for ``count`` maps of (C, H, W)."""
        channels, height, width = size
        return cls(
            np.zeros((count, *size), np.float32),
            np.zeros((count, height, width, channels), np.uint8),
            np.zeros(count, np.bool_),
        )

    @property
    def commonest(self) -> Layout:
        """The layout that most are in."""
        return "uint8" if 2 * int(self.in_uint8.sum()) > len(self.in_uint8) else "float32"

    def split(self, rows: NDArray[np.intp]) -> Iterator[tuple[Layout, NDArray[np.intp], NDArray[Any]]]:
        """Some of the inputs by layout: the layout, their indices, their maps."""
        both: tuple[tuple[Layout, NDArray[Any]], ...] = (("float32", self.floats), ("uint8", self.integers))
        for layout, maps in both:
            own = rows[self.in_uint8[rows] == (layout == "uint8")]
            if len(own):
                yield layout, own, maps[own]

    def put(self, layout: Layout, rows: NDArray[np.intp], maps: NDArray[Any]) -> None:
        """Keeps what an engine gave."""
        (self.integers if layout == "uint8" else self.floats)[rows] = maps
        self.in_uint8[rows] = layout == "uint8"


def advance(
    bundle: Bundle,
    sessions: Sessions,
    substitutions: Sequence[Substitution],
    block: BlockEngines,
    features: Features,
    choice: NDArray[np.uint8],
) -> Features:
    """Runs a gated block on every input's features, each with the option chosen for it.

    Args:
        bundle: with engines for ONNX Runtime.
        sessions: of it.
        substitutions: that the runtime decided on, so that the same engines run.
        block: to run.
        features: that reach it; changed in place where the block keeps their size.
        choice: (N,) option indices.

    Returns:
        The features after it.
    """
    shape = bundle.architecture.blocks[block.index]
    after = features
    if shape.projects:  # every sample runs something there: a skip runs its projection
        after = Features.empty(len(choice), shape.out_shape)
    steps = [
        (engine.output, own, sessions.run(engine, layout, maps))
        for index, option in enumerate(bundle.options)
        if option.skips or option.name in block.options  # a static policy has engines for its own option alone
        if (engine := block.skip if option.skips else serving(block, option.name, substitutions)) is not None
        for layout, own, maps in features.split(np.flatnonzero(choice == index))
    ]
    for output, own, maps in steps:
        after.put(output, own, maps)
    return after


def walk(
    bundle: Bundle,
    sessions: Sessions,
    substitutions: Sequence[Substitution],
    images: NDArray[np.float32],
    paths: NDArray[np.uint8],
) -> Iterator[tuple[BlockEngines, Features]]:
    """Runs inputs along given paths, and stops before each gated block.

    Args:
        bundle: with engines for ONNX Runtime.
        sessions: of it.
        substitutions: that the runtime decided on, so that the same engines run.
        images: (N, C, H, W) float32, normalised.
        paths: (N, gated blocks) option indices.

    Yields:
        A gated block and the features that reach it, which are valid until the next is asked for.
    """
    engines = bundle.manifest.runtimes["onnxruntime"]
    features = Features.empty(len(images), bundle.architecture.blocks[0].out_shape)
    features.put("float32", np.arange(len(images)), sessions.run(engines.stem, "float32", images))
    for block, choice in zip(engines.blocks, paths.T, strict=True):
        yield block, features
        features = advance(bundle, sessions, substitutions, block, features, choice)
