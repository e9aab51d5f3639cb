"""What every gate is: its weights, and how it steps. ``numpy_gate.py`` and ``native_gate.py`` are the two there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import InputError

Array = NDArray[np.float32]
Features = NDArray[np.float32] | NDArray[np.uint8]

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class GateWeights:
    """What the gate multiplies by; see the outputs of the bundle's ``gate.onnx``.

    Attributes:
        input_weight: (gates, 4 * hidden, widest) float32, zero beyond a gate's own channels; LSTM gates in the order
            input, forget, cell, output.
        bias: (gates, 4 * hidden) float32.
        recurrent_weight: (4 * hidden, hidden) float32.
        projection_weight: (options, hidden) float32.
        projection_bias: (options,) float32.
    """

    input_weight: Array
    bias: Array
    recurrent_weight: Array
    projection_weight: Array
    projection_bias: Array
    _prepared: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        gates, widest = self.input_weight.shape[0], self.input_weight.shape[-1]
        hidden, options = self.recurrent_weight.shape[-1], len(self.projection_bias)
        shapes = ((gates, 4 * hidden, widest), (gates, 4 * hidden), (4 * hidden, hidden), (options, hidden), (options,))
        for (name, array), shape in zip(arrays.items(), shapes, strict=True):
            if array.dtype != np.float32 or array.shape != shape:
                raise InputError(
                    f"the gate's {name} is {array.dtype} of shape {array.shape}, expected float32 of shape {shape}"
                )

    @property
    def gates(self) -> int:
        """Blocks that a gate follows."""
        return int(self.input_weight.shape[0])

    @property
    def widest(self) -> int:
        """Channels of the widest of them."""
        return int(self.input_weight.shape[2])

    @property
    def hidden(self) -> int:
        """Hidden units of the LSTM."""
        return int(self.recurrent_weight.shape[1])

    @property
    def options(self) -> int:
        """Options that the gate chooses from."""
        return int(self.projection_bias.shape[0])

    def prepared(self, make: Callable[[GateWeights], _T]) -> _T:
        """What ``make`` gives for these weights: made once, and shared by all gates that step with them."""
        if make not in self._prepared:
            self._prepared[make] = make(self)
        return cast(_T, self._prepared[make])


class BoundStep(Protocol):
    """One block's step for one sample, bound to where its features lie; it goes with ``reset(1)``.

    Calling it pools the features, steps the state once and gives the option index for the next block; of equal scores
    the lowest. Where the features are those of the step before, :meth:`advance` alone does the same.
    """

    def __call__(self) -> int:
        """Pools and advances."""

    def pool(self) -> None:
        """Averages the features over the map."""

    def advance(self) -> int:
        """Steps the state by what was pooled last."""


class Gate(ABC):
    """Steps the LSTM through a network, block by block, for one sample or a batch.

    Args:
        weights: of the gate.
        together: channels of a float32 map that lie together: 1 where maps are plain (N, C, H, W); with 8, the memory
            of a map of that shape holds (N, C / 8, H, W, 8), the blocked layout of ONNX Runtime's convolutions.
    """

    name: str
    """How ``doctor`` and ``bench`` call it."""

    def __init__(self, weights: GateWeights, together: int = 1) -> None:
        self._weights = weights
        self.together = together

    @abstractmethod
    def reset(self, samples: int) -> None:
        """Forgets: the next step is the first block's, for this many samples."""

    @abstractmethod
    def set_score_offset(self, offset: Array) -> None:
        """Adds to every option's score from the next step on, bound steps included, instead of what was added before.

        It is as if the projection had another bias; other gates of the same weights keep theirs.

        Args:
            offset: (options,) float32, finite; zeros for the weights' own scores.

        Raises:
            InputError: another shape or type, NaN or infinity.
        """

    @abstractmethod
    def bind(self, block: int, features: Features, scale: float) -> BoundStep:
        """A step for one sample whose features always lie in one buffer.

        Args:
            block: index of the block that makes the features; 0 is the first.
            features: contiguous: (1, C, H, W) float32, or (1, H, W, C) uint8 worth ``scale`` a step. Read at each call.
            scale: what one step of uint8 is worth; ignored for float32.

        Returns:
            A step to the option for the block after ``block``.
        """

    @abstractmethod
    def bind_pooled(self, block: int, pooled: Array) -> BoundStep:
        """A step for one sample whose features come averaged over the map.

        Args:
            block: index of the block that makes the features; 0 is the first.
            pooled: (1, C) float32, contiguous. Read at each call.
        """

    @abstractmethod
    def step(
        self,
        block: int,
        chunks: Sequence[Features],
        where: NDArray[np.intp],
        scale: float,
        changed: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.int64]:
        """Steps a batch whose features lie in chunks, each in one of two layouts.

        Args:
            block: index of the block that made the features.
            chunks: contiguous: (n, C, H, W) float32, or (n, H, W, C) uint8; each of any n, all of one C, H and W.
            where: (N, 2) intp, the chunk of each sample and its row in it.
            scale: what one step of uint8 is worth.
            changed: (N,) bool, false where a sample's features, their layout and their scale are those of the step
                before: such a sample is not pooled again. ``None`` where all may have changed.

        Returns:
            (N,) int64 option indices; of equal scores the lowest.
        """

    @abstractmethod
    def step_pooled(self, block: int, pooled: Array) -> NDArray[np.int64]:
        """Steps a batch whose features come averaged over the map.

        Args:
            block: index of the block that made the features.
            pooled: (N, C) float32, contiguous.

        Returns:
            (N,) int64 option indices; of equal scores the lowest.
        """


def channels_of(features: Features) -> int:
    """Channels of a feature map: uint8 ones lie in memory channels last."""
    return int(features.shape[3 if features.dtype == np.uint8 else 1])


def uint8_factor(scale: float, area: int) -> np.float64:
    """What the sum of a channel in uint8 is multiplied by for its mean: a float32, in double precision."""
    return np.float64(np.float32(scale / area))
