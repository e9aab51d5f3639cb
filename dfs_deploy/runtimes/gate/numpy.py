"""The gate in NumPy: pooling, the step of an LSTM or of a stateless gate, projection, argmax.

The decision for a sample must not depend on what else is in its batch. Therefore every product below is one
matrix-vector product per sample, whatever the batch: a larger product may add in another order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import UsageError
from dfs_deploy.runtimes.gate.interface import BoundStep, Features, Gate, channels_of, uint8_factor
from dfs_deploy.runtimes.gate.weights import MASKED, Array, GateWeights


class NumpyGate(Gate):
    """The gate in NumPy, which runs where nothing was compiled."""

    name = "numpy"

    def __init__(self, weights: GateWeights, channel_block: int = 1) -> None:
        super().__init__(weights, channel_block)
        projection = np.broadcast_to(weights.projection_weight, (weights.gates, weights.options, weights.hidden))
        self._score_weights = np.concatenate([weights.projection_bias[..., None], projection], 2)
        self._one = self._states = _States(weights, self._score_weights, 1)
        self._note_masks()

    def reset(self, samples: int) -> None:
        if samples == 1:
            self._states = self._one
        elif samples != self._states.samples:
            self._states = _States(self._weights, self._score_weights, samples)
        self._states.hidden.fill(0.0)
        self._states.cell.fill(0.0)

    def set_score_offset(self, offset: Array) -> None:
        self._score_weights[..., 0] = self._weights.offset_bias(offset)
        self._note_masks()

    def _note_masks(self) -> None:
        """Notes the options that each gate may choose; ``None`` for all."""
        may = self._score_weights[..., 0] != MASKED
        self._allowed = [None if row.all() or not row.any() else np.flatnonzero(row) for row in may]

    def choose(self, block: int, scores: Array) -> NDArray[np.intp]:
        """(samples,) options of the greatest scores, (samples, options), after a block."""
        allowed = self._allowed[block]
        greatest: NDArray[np.intp] = (scores if allowed is None else scores[:, allowed]).argmax(1)
        return greatest if allowed is None else allowed[greatest]

    def bind(self, block: int, features: Features, scale: float, zero_point: int = 0) -> BoundStep:
        step = _Step(self._one, block, channels_of(features))
        pool = _pooling(_flat(features, self.channel_block)[0], step.pooled[0], scale, zero_point)
        return _Bound(self, block, step, pool)

    def step(
        self,
        block: int,
        buffers: Sequence[Features],
        where: NDArray[np.intp],
        scale: float,
        changed: NDArray[np.bool_] | None = None,
        zero_point: int = 0,
    ) -> NDArray[np.int64]:
        step = _Step(self._states, block, channels_of(buffers[0]))
        for i, buffer in enumerate(buffers):
            inside = where[:, 0] == i
            samples = np.flatnonzero(inside if changed is None else inside & changed)
            if len(samples):
                pooled = np.empty((len(samples), step.pooled.shape[1]), np.float32)
                _pooling(_flat(buffer, self.channel_block)[where[samples, 1]], pooled, scale, zero_point)()
                step.pooled[samples] = pooled
        return np.asarray(self.choose(block, step.run()), np.int64)

    def check_single(self) -> None:
        """Raises UsageError if the gate holds the states of a batch, which bound steps do not step."""
        if self._states is not self._one:
            raise UsageError(
                f"the gate holds the states of {self._states.samples} samples: a bound step goes with reset(1)"
            )

    @property
    def state(self) -> tuple[Array, Array]:
        """Copy of the hidden state and the cell, each (samples, hidden); can be set."""
        return self._states.hidden.copy(), self._states.cell.copy()

    @state.setter
    def state(self, value: tuple[Array, Array]) -> None:
        self._states.hidden[:], self._states.cell[:] = value


class _Bound:
    """See ``BoundStep``."""

    def __init__(self, gate: NumpyGate, block: int, step: _Step, pool: Callable[[], object]) -> None:
        self._gate, self._block, self._step, self._pool = gate, block, step, pool

    def __call__(self) -> int:
        self._pool()
        return self.advance()

    def advance(self) -> int:
        self._gate.check_single()
        return int(self._gate.choose(self._block, self._step.run())[0])


def _factor(hidden: int) -> Array:
    """(4 * hidden,) factors before and after ``tanh``; one minus them is added after it.

    With sigmoid(x) = tanh(x / 2) / 2 + 1 / 2, one call of ``tanh`` serves all four gates of the LSTM.
    """
    factor = np.full(4 * hidden, 0.5, np.float32)
    factor[2 * hidden : 3 * hidden] = 1.0
    return factor


def _matrices(weights: GateWeights) -> list[Array]:
    """Matrix of each block, (parts * hidden, 1 + hidden + widest): bias and all products of a step in one.

    The inputs of a sample are one vector: a one, the hidden state, the pooled features. A stateless gate has no state,
    and zeros in its place.
    """
    size, recurrent = weights.hidden, weights.recurrent_weight
    factor = np.ones(size, np.float32) if recurrent is None else _factor(size)
    known = np.zeros((size, size), np.float32) if recurrent is None else recurrent
    return [
        factor[:, None] * np.concatenate([bias[:, None], known, weight], 1)
        for bias, weight in zip(weights.bias, weights.input_weight, strict=True)
    ]


class _States:
    """States of some samples, and the memory for what their steps compute.

    Args:
        weights: weights of the gate.
        score_weights: (gates, options, 1 + hidden), the gate's own; read at each step.
        samples: number of samples.
    """

    def __init__(self, weights: GateWeights, score_weights: Array, samples: int) -> None:
        size = weights.hidden
        self.matrices, self.score_weights, self.samples = weights.derived(_matrices), score_weights, samples
        self.factor = _factor(size)
        self.offset = 1.0 - self.factor
        self.inputs = np.zeros((samples, 1 + size + weights.widest), np.float32)
        self.inputs[:, 0] = 1.0
        self.hidden = self.inputs[:, 1 : 1 + size]
        self.cell = np.zeros((samples, size), np.float32)
        self.gates = np.zeros((samples, weights.parts * size), np.float32)
        self.stateless = weights.recurrent_weight is None
        self.written = np.zeros_like(self.cell)
        self.scores = np.zeros((samples, weights.options), np.float32)


class _Step:
    """Step after one block, with every view of the arrays made once.

    Attributes:
        pooled: (samples, channels), to be written before each run.
    """

    def __init__(self, states: _States, block: int, channels: int) -> None:
        size = states.hidden.shape[1]
        end = 1 + size + channels
        self._states = states
        self.pooled = states.inputs[:, 1 + size : end]
        # Arrays with a last axis of one are multiplied matrix by vector, one sample at a time, whatever the batch.
        self._matrix, self._inputs = states.matrices[block][:, :end], states.inputs[:, :end, None]
        self._score_weights, self._known = states.score_weights[block], states.inputs[:, : 1 + size, None]
        self._gates_column, self._scores_column = states.gates[:, :, None], states.scores[:, :, None]
        self._lstm_gates = tuple(states.gates[:, i * size : (i + 1) * size] for i in range(4))

    def run(self) -> Array:
        """Steps the states and returns the scores, (samples, options), valid until the next run."""
        states = self._states
        if states.stateless:
            states.hidden.fill(0.0)
            np.matmul(self._matrix, self._inputs, self._gates_column)
            np.maximum(states.gates, 0.0, out=states.hidden)
        else:
            self._step_lstm()
        np.matmul(self._score_weights, self._known, self._scores_column)
        return states.scores

    def _step_lstm(self) -> None:
        states = self._states
        write, forget, candidate, output = self._lstm_gates
        np.matmul(self._matrix, self._inputs, self._gates_column)
        np.tanh(states.gates, states.gates)
        np.multiply(states.gates, states.factor, states.gates)
        np.add(states.gates, states.offset, states.gates)
        np.multiply(forget, states.cell, states.cell)
        np.multiply(write, candidate, states.written)
        np.add(states.cell, states.written, states.cell)
        np.tanh(states.cell, states.hidden)
        np.multiply(states.hidden, output, states.hidden)


def _flat(features: Features, channel_block: int) -> Features:
    """Feature maps with height and width as one axis.

    Returns:
        (N, C, H * W) float32, (N, C / channel_block, H * W, channel_block) float32 in the blocked layout, or
        (N, H * W, C) uint8.
    """
    n, channels = len(features), channels_of(features)
    if features.dtype == np.uint8:
        return features.reshape(n, features.shape[1] * features.shape[2], channels)
    area = features.shape[2] * features.shape[3]
    return features.reshape(
        (n, channels, area) if channel_block == 1 else (n, channels // channel_block, area, channel_block)
    )


def _pooling(features: Features, pooled: Array, scale: float, zero_point: int) -> Callable[[], object]:
    """Makes a call that averages flat features, of all samples or of one, into ``pooled``.

    Args:
        features: result of ``_flat``, or one sample of it; read at each call.
        pooled: (N, C) float32, or (C,) for one sample; written at each call.
        scale: value of one unit of uint8.
        zero_point: what means 0 in uint8.
    """
    if features.dtype == np.uint8:
        area, channels = features.shape[-2:]
        factor = np.full(pooled.shape, uint8_factor(scale, area))  # a number would become an array at each call
        # A product with ones is the fastest sum here; in float32 it is exact while no partial sum can reach 2 ** 24.
        dtype = np.float32 if 255 * area < 1 << 24 else np.float64
        values, sums = np.empty(features.shape, dtype), np.empty(pooled.shape, dtype)
        ones, zero_sum = np.ones(area, dtype), dtype(zero_point * area)
        add_up = functools.partial(np.matmul, ones, values, sums)
        if pooled.size == channels:  # for one map, `dot` does the same in less time
            add_up = functools.partial(np.dot, ones, values.reshape(area, -1), sums.reshape(-1))

        def pool_integers() -> None:
            np.copyto(values, features)
            add_up()
            if zero_sum:
                np.subtract(sums, zero_sum, sums)  # exact, like the sums
            np.multiply(sums, factor, pooled, casting="same_kind")

        return pool_integers
    is_blocked = features.ndim == pooled.ndim + 2
    axis = features.ndim - (2 if is_blocked else 1)
    divisor = np.float32(features.shape[axis])
    sums_of_floats = np.empty(np.delete(features.shape, axis), np.float32)

    def pool_floats() -> None:
        np.add.reduce(features, axis, out=sums_of_floats)
        np.divide(sums_of_floats.reshape(pooled.shape), divisor, pooled)

    return pool_floats
