"""The gate in NumPy: pooling, LSTM step, projection, argmax.

A sample's decision must not depend on what else is in its batch, so every product below is one matrix-vector product a
sample, whatever the batch: a larger product may add in another order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import UsageError
from dfs_deploy.runtimes.gate import Array, BoundStep, Features, Gate, GateWeights, channels_of, uint8_factor
from dfs_deploy.runtimes.gate_checks import biased_projection, check_batch, check_bound, check_pooled, check_samples


class NumpyGate(Gate):
    """The gate in NumPy: what runs where nothing was compiled."""

    name = "numpy"

    def __init__(self, weights: GateWeights, together: int = 1) -> None:
        super().__init__(weights, together)
        self._score_weights = weights.prepared(_Matrices.of).scores.copy()
        self._one = _States(weights, self._score_weights, 1)
        self._states = self._one

    def reset(self, samples: int) -> None:
        check_samples(samples)
        if samples == 1:
            self._states = self._one
        elif samples != self._states.samples:
            self._states = _States(self._weights, self._score_weights, samples)
        self._states.clear()

    def set_score_offset(self, offset: Array) -> None:
        self._score_weights[:, 0] = biased_projection(self._weights, offset)

    def bind(self, block: int, features: Features, scale: float) -> BoundStep:
        check_bound(self._weights, block, features, self.together)
        step = _Step(self._one, block, channels_of(features))
        return _Bound(self, step, _pooling(_flat(features, self.together)[0], step.pooled[0], scale))

    def bind_pooled(self, block: int, pooled: Array) -> BoundStep:
        check_pooled(self._weights, block, 1, pooled)
        step = _Step(self._one, block, pooled.shape[1])
        return _Bound(self, step, functools.partial(np.copyto, step.pooled, pooled))

    def step(
        self,
        block: int,
        chunks: Sequence[Features],
        where: NDArray[np.intp],
        scale: float,
        changed: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.int64]:
        channels = check_batch(self._weights, block, self._states.samples, chunks, where, self.together, changed)
        step = _Step(self._states, block, channels)
        for i, chunk in enumerate(chunks):
            lies = where[:, 0] == i
            rows = np.flatnonzero(lies if changed is None else lies & changed)
            if len(rows):
                pooled = np.empty((len(rows), channels), np.float32)
                _pooling(_flat(chunk, self.together)[where[rows, 1]], pooled, scale)()
                step.pooled[rows] = pooled
        return np.asarray(step.run().argmax(1), np.int64)

    def step_pooled(self, block: int, pooled: Array) -> NDArray[np.int64]:
        check_pooled(self._weights, block, self._states.samples, pooled)
        step = _Step(self._states, block, pooled.shape[1])
        np.copyto(step.pooled, pooled)
        return np.asarray(step.run().argmax(1), np.int64)

    def check_single(self) -> None:
        """Raises UsageError where the state is that of a batch, which bound steps do not step."""
        if self._states is not self._one:
            raise UsageError(
                f"the gate holds the states of {self._states.samples} samples: a bound step goes with reset(1)"
            )

    @property
    def state(self) -> tuple[Array, Array]:
        """A copy of the hidden state and the cell, each (samples, hidden); can be set."""
        return self._states.hidden.copy(), self._states.cell.copy()

    @state.setter
    def state(self, value: tuple[Array, Array]) -> None:
        self._states.hidden[:], self._states.cell[:] = value


class _Bound:
    """See :class:`BoundStep`."""

    def __init__(self, gate: NumpyGate, step: _Step, pool: Callable[[], object]) -> None:
        self._gate = gate
        self._step = step
        self._pool = pool

    def __call__(self) -> int:
        self.pool()
        return self.advance()

    def pool(self) -> None:
        self._pool()

    def advance(self) -> int:
        self._gate.check_single()
        return int(self._step.run().argmax())


@dataclass(frozen=True, eq=False)
class _Matrices:
    """Weights as the steps below use them.

    A sample's inputs are one vector: one, the hidden state, the pooled features. So bias and both products of the LSTM
    are one matrix. A sigmoid is half a hyperbolic tangent of half its argument, plus a half; the matrix holds the
    halves (which is exact), so that one call of ``tanh`` serves all four of the LSTM's gates.

    Attributes:
        inputs: by block (4 * hidden, 1 + hidden + widest).
        scores: (options, 1 + hidden).
        factor: (4 * hidden,), what ``tanh`` is multiplied by.
        offset: (4 * hidden,), what is added then.
    """

    inputs: tuple[Array, ...]
    scores: Array
    factor: Array
    offset: Array

    @classmethod
    def of(cls, weights: GateWeights) -> _Matrices:
        size = weights.hidden
        factor = np.full(4 * size, 0.5, np.float32)
        factor[2 * size : 3 * size] = 1.0
        inputs = [
            factor[:, None] * np.concatenate([bias[:, None], weights.recurrent_weight, weight], 1)
            for bias, weight in zip(weights.bias, weights.input_weight, strict=True)
        ]
        scores = np.concatenate([weights.projection_bias[:, None], weights.projection_weight], 1)
        return cls(tuple(inputs), scores, factor, 1.0 - factor)


class _States:
    """The states of some samples, and where their steps leave what they compute.

    Args:
        weights: of the gate.
        score_weights: (options, 1 + hidden), the gate's own; read at each step.
        samples: how many.
    """

    def __init__(self, weights: GateWeights, score_weights: Array, samples: int) -> None:
        size = weights.hidden
        self.matrices = weights.prepared(_Matrices.of)
        self.score_weights = score_weights
        self.samples = samples
        self.inputs = np.zeros((samples, 1 + size + weights.widest), np.float32)
        self.inputs[:, 0] = 1.0
        self.hidden = self.inputs[:, 1 : 1 + size]
        self.cell = np.zeros((samples, size), np.float32)
        self.gates = np.zeros((samples, 4 * size), np.float32)
        self.written = np.zeros_like(self.cell)
        self.scores = np.zeros((samples, weights.options), np.float32)

    def clear(self) -> None:
        self.hidden.fill(0.0)
        self.cell.fill(0.0)


class _Step:
    """One block's step, each array that it takes made once.

    Attributes:
        pooled: (samples, channels), to be written before each run.
    """

    def __init__(self, states: _States, block: int, channels: int) -> None:
        matrices, score_weights, size = states.matrices, states.score_weights, states.hidden.shape[1]
        self.pooled = states.inputs[:, 1 + size : 1 + size + channels]
        # Matrix times vector, one a sample: what has an axis of one at the end is multiplied so, whatever the batch.
        inputs, gates = states.inputs[:, : 1 + size + channels, None], states.gates
        matrix = np.ascontiguousarray(matrices.inputs[block][:, : 1 + size + channels])
        known, scores = states.inputs[:, : 1 + size, None], states.scores
        gates_column, scores_column = gates[:, :, None], scores[:, :, None]
        write, forget, candidate, show = (gates[:, i * size : (i + 1) * size] for i in range(4))
        hidden, cell, written = states.hidden, states.cell, states.written

        def run() -> Array:
            np.matmul(matrix, inputs, gates_column)
            np.tanh(gates, gates)
            np.multiply(gates, matrices.factor, gates)
            np.add(gates, matrices.offset, gates)
            np.multiply(forget, cell, cell)
            np.multiply(write, candidate, written)
            np.add(cell, written, cell)
            np.tanh(cell, hidden)
            np.multiply(hidden, show, hidden)
            np.matmul(score_weights, known, scores_column)
            return scores

        self.run: Callable[[], Array] = run
        """Steps the states and returns the scores, (samples, options), valid until the next run."""


def _flat(features: Features, together: int = 1) -> Features:
    """Height and width as one axis.

    Returns:
        (N, C, H * W) float32, (N, C / together, H * W, together) float32 where channels lie together, or
        (N, H * W, C) uint8.
    """
    n, channels = len(features), channels_of(features)
    if features.dtype == np.uint8:
        return features.reshape(n, features.shape[1] * features.shape[2], channels)
    area = features.shape[2] * features.shape[3]
    if together == 1:
        return features.reshape(n, channels, area)
    return features.reshape(n, channels // together, area, together)


def _pooling(features: Features, pooled: Array, scale: float) -> Callable[[], object]:
    """A call that averages what :func:`_flat` gives, of all samples or of one, into (..., C); read at each call."""
    blocked = features.ndim == pooled.ndim + 2
    axis = features.ndim - (2 if blocked or features.dtype == np.uint8 else 1)
    area = features.shape[axis]
    if features.dtype == np.uint8:
        factor = np.full(pooled.shape, uint8_factor(scale, area))  # a number would be made an array at each call
        # A product with ones is the fastest sum here; in float32 it is exact while no partial sum can reach 2 ** 24.
        dtype = np.float32 if 255 * area < 1 << 24 else np.float64
        values, sums = np.empty(features.shape, dtype), np.empty(pooled.shape, dtype)
        ones = np.ones(area, dtype)
        add_up = functools.partial(np.matmul, ones, values, sums)
        if pooled.size == features.shape[-1]:  # of one map, `dot` does the same for less
            add_up = functools.partial(np.dot, ones, values.reshape(area, -1), sums.reshape(-1))

        def pool_integers() -> None:
            np.copyto(values, features)
            add_up()
            np.multiply(sums, factor, pooled, casting="same_kind")

        return pool_integers
    divisor = np.float32(area)
    totals = np.empty(np.delete(features.shape, axis), np.float32)

    def pool_floats() -> None:
        np.add.reduce(features, axis, out=totals)
        np.divide(totals.reshape(pooled.shape), divisor, pooled)

    return pool_floats
