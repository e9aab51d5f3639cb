"""The gate without a framework: pooling, LSTM step, projection, argmax.

A sample's decision must not depend on what else is in its batch, so every product below is one matrix-vector product a
sample, whatever the batch: a larger product may add in another order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Features = NDArray[np.float32] | NDArray[np.uint8]


@dataclass(frozen=True)
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

    @property
    def hidden(self) -> int:
        """Hidden units of the LSTM."""
        return int(self.recurrent_weight.shape[1])


class Gate(ABC):
    """Steps the LSTM through a network, block by block, for one sample or a batch."""

    name: str
    """How ``doctor`` and ``bench`` call it."""

    @abstractmethod
    def reset(self, samples: int) -> None:
        """Forgets: the next step is the first block's, for this many samples."""

    @abstractmethod
    def bind(self, block: int, features: Features, scale: float) -> Callable[[], int]:
        """A step for one sample whose features always lie in one buffer.

        Args:
            block: index of the block that makes the features; 0 is the first.
            features: (1, C, H, W) contiguous, float32, or uint8 worth ``scale`` a step. Read at each call.
            scale: what one step of uint8 is worth; ignored for float32.

        Returns:
            A call that steps the state once and gives the option index for the block after ``block``; of equal scores
            the lowest. It goes with ``reset(1)``.
        """

    @abstractmethod
    def step(
        self, block: int, floats: Array, integers: NDArray[np.uint8], in_uint8: NDArray[np.bool_], scale: float
    ) -> NDArray[np.int64]:
        """Steps a batch of which each sample's features are in one of two forms.

        Args:
            block: index of the block that made the features.
            floats: (N, C, H, W) float32, contiguous; valid where ``in_uint8`` is false.
            integers: (N, C, H, W) uint8, contiguous; valid where it is true.
            in_uint8: (N,) bool.
            scale: what one step of uint8 is worth.

        Returns:
            (N,) int64 option indices; of equal scores the lowest.
        """


class NumpyGate(Gate):
    """The gate in NumPy: what runs where nothing was compiled."""

    name = "numpy"

    def __init__(self, weights: GateWeights) -> None:
        self._weights = weights
        self.reset(1)

    def reset(self, samples: int) -> None:
        self._hidden = np.zeros((samples, self._weights.hidden), np.float32)
        self._cell = np.zeros_like(self._hidden)

    def bind(self, block: int, features: Features, scale: float) -> Callable[[], int]:
        def step() -> int:
            return int(self._decide(block, pool(features, scale))[0])

        return step

    def step(
        self, block: int, floats: Array, integers: NDArray[np.uint8], in_uint8: NDArray[np.bool_], scale: float
    ) -> NDArray[np.int64]:
        pooled = np.empty(floats.shape[:2], np.float32)
        pooled[~in_uint8] = pool(floats[~in_uint8], scale)
        pooled[in_uint8] = pool(integers[in_uint8], scale)
        return self._decide(block, pooled)

    def _decide(self, block: int, pooled: Array) -> NDArray[np.int64]:
        weights, size = self._weights, self._weights.hidden
        own = weights.input_weight[block, :, : pooled.shape[1]]
        gates = _each(own, pooled) + _each(weights.recurrent_weight, self._hidden) + weights.bias[block]
        candidate = np.tanh(gates[:, 2 * size : 3 * size])
        sigmoid = 1.0 / (1.0 + np.exp(-gates))
        self._cell = sigmoid[:, size : 2 * size] * self._cell + sigmoid[:, :size] * candidate
        self._hidden = sigmoid[:, 3 * size :] * np.tanh(self._cell)
        scores = _each(weights.projection_weight, self._hidden) + weights.projection_bias
        return np.asarray(scores.argmax(1), np.int64)


def pool(features: Features, scale: float) -> Array:
    """Averages each channel over the map: (N, C, H, W) to (N, C) float32."""
    n, c, h, w = features.shape
    flat = features.reshape(n * c, h * w)
    if features.dtype == np.uint8:
        return np.asarray(flat.sum(1, dtype=np.uint32) * np.float32(scale / (h * w)), np.float32).reshape(n, c)
    return np.asarray(flat.sum(1) / np.float32(h * w), np.float32).reshape(n, c)


def _each(weight: Array, x: Array) -> Array:
    """``weight @ x[i]`` for each sample: (out, in) and (N, in) to (N, out)."""
    return np.asarray(np.matmul(x[:, None, :], weight.T)[:, 0, :], np.float32)
