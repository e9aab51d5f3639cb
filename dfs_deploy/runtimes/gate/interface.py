"""The interface of every gate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.runtimes.gate.weights import Array, GateWeights

Features = NDArray[np.float32] | NDArray[np.uint8]
"""Feature maps: (N, C, H, W) float32 or (N, H, W, C) uint8."""


class BoundStep(Protocol):
    """Step of the gate after one block for one sample, bound to the buffer that holds its features.

    It belongs to a gate that was reset for one sample. Of equal scores the lowest option wins.
    """

    def __call__(self) -> int:
        """Pools the features, advances the state and returns the option index for the next block."""

    def advance(self) -> int:
        """Advances the state by the features pooled last: enough by itself if they did not change since."""


class Gate(ABC):
    """Gate that steps through a network, block by block, for one sample or a batch.

    It steps after the blocks that a decided block follows; an LSTM keeps its state across the others.

    Args:
        weights: weights, shared by gates.
        channel_block: channels of a float32 map that lie together in memory: 1 for plain maps (N, C, H, W); with 8, the
            memory of a map of that shape holds (N, C / 8, H, W, 8), the blocked layout of ONNX Runtime's convolutions.
    """

    name: str
    """Name in the output of ``doctor`` and ``bench``."""

    def __init__(self, weights: GateWeights, channel_block: int = 1) -> None:
        self._weights = weights
        self.channel_block = channel_block

    @abstractmethod
    def reset(self, samples: int) -> None:
        """Forgets all states: the next step is the one after the first block, for this many samples."""

    @abstractmethod
    def set_score_offset(self, offset: Array) -> None:
        """Adds to the score of every option, from the next step on and in bound steps too; replaces the last offset.

        Args:
            offset: (gates, options) float32, finite; zeros for the weights' own scores. Where it is ``MASKED``, the
                option is never chosen.
        """

    @abstractmethod
    def bind(self, block: int, features: Features, scale: float, zero_point: int = 0) -> BoundStep:
        """Makes a step for one sample whose features always lie in one buffer.

        Args:
            block: index of the block that makes the features; 0 is the first.
            features: contiguous: (1, C, H, W) float32, or (1, H, W, C) uint8. Read at each call.
            scale: value of one unit of uint8; ignored for float32.
            zero_point: what means 0 in uint8; ignored for float32.

        Returns:
            The step, which gives the option for the block after ``block``.
        """

    @abstractmethod
    def step(
        self,
        block: int,
        buffers: Sequence[Features],
        where: NDArray[np.intp],
        scale: float,
        changed: NDArray[np.bool_] | None = None,
        zero_point: int = 0,
    ) -> NDArray[np.int64]:
        """Steps a batch whose features lie in several buffers, each in one of two layouts.

        Args:
            block: index of the block that made the features.
            buffers: contiguous maps of one C, H and W: (n, C, H, W) float32 or (n, H, W, C) uint8, each of any n.
            where: (N, 2) intp, buffer of each sample and row in it.
            scale: value of one unit of uint8.
            changed: (N,) bool, false if the features of a sample did not change since the last step, nor their layout
                and grid: their pooled mean is used again. ``None`` if all may have changed.
            zero_point: what means 0 in uint8.

        Returns:
            (N,) int64 option indices; of equal scores the lowest.
        """

    def bind_pooled(self, block: int, pooled: Array) -> BoundStep:
        """Makes a step for one sample whose features arrive averaged over the map, (1, C) float32; see ``bind``."""
        return self.bind(block, pooled[:, :, None, None], 1.0)

    def step_pooled(self, block: int, pooled: Array) -> NDArray[np.int64]:
        """Steps a batch whose features arrive averaged over the map, (N, C) float32; see ``step``."""
        rows = np.arange(len(pooled))
        return self.step(block, [pooled[:, :, None, None]], np.stack([np.zeros_like(rows), rows], 1), 1.0)


def channels_of(features: Features) -> int:
    """Channels of a feature map: a uint8 map lies in memory channels last."""
    return int(features.shape[3 if features.dtype == np.uint8 else 1])


def uint8_factor(scale: float, area: int) -> np.float64:
    """Factor from the sum of a channel in uint8 to its mean: a float32 value, in double precision."""
    return np.float64(np.float32(scale / area))
