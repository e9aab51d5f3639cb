"""The gate without a framework: pooling, LSTM step, projection, argmax.

A sample's decision must not depend on what else is in its batch, so every product below is one matrix-vector product a
sample, whatever the batch: a larger product may add in another order.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import InputError, UsageError

Array = NDArray[np.float32]
Features = NDArray[np.float32] | NDArray[np.uint8]

_T = TypeVar("_T")


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
        """Steps a batch whose features lie in chunks, each in one of two forms.

        Args:
            block: index of the block that made the features.
            chunks: contiguous: (n, C, H, W) float32, or (n, H, W, C) uint8; each of any n, all of one C, H and W.
            where: (N, 2) intp, the chunk of each sample and its row in it.
            scale: what one step of uint8 is worth.
            changed: (N,) bool, false where a sample's features, their form and their scale are those of the step
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


@dataclass(frozen=True)
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


def biased_projection(weights: GateWeights, offset: Array) -> Array:
    """The projection's bias with an offset added, (options,) float32; see :meth:`Gate.set_score_offset`."""
    if not isinstance(offset, np.ndarray) or offset.dtype != np.float32 or offset.shape != (weights.options,):
        seen = f"{_kind(offset)} of shape {np.shape(offset)}"
        raise InputError(f"the offset of the scores is {seen}, expected float32 of shape {(weights.options,)}")
    biased: Array = weights.projection_bias + offset
    if not np.isfinite(offset).all() or not np.isfinite(biased).all():
        raise InputError("the offset of the scores is not finite, or too large to be added; pass finite numbers")
    return biased


def channels_of(features: Features) -> int:
    """Channels of a feature map: uint8 ones lie in memory channels last."""
    return int(features.shape[3 if features.dtype == np.uint8 else 1])


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
        factor = uint8_factor(scale, area)
        # A product with ones is the fastest sum here; in float32 it is exact while no partial sum can reach 2 ** 24.
        dtype = np.float32 if 255 * area < 1 << 24 else np.float64
        values, sums = np.empty(features.shape, dtype), np.empty(pooled.shape, dtype)
        ones = np.ones(area, dtype)

        def pool_integers() -> None:
            np.copyto(values, features)
            np.matmul(ones, values, sums)
            np.multiply(sums, factor, pooled, casting="same_kind")

        return pool_integers
    divisor = np.float32(area)
    totals = np.empty(np.delete(features.shape, axis), np.float32)

    def pool_floats() -> None:
        np.add.reduce(features, axis, out=totals)
        np.divide(totals.reshape(pooled.shape), divisor, pooled)

    return pool_floats


def uint8_factor(scale: float, area: int) -> np.float64:
    """What the sum of a channel in uint8 is multiplied by for its mean: a float32, in double precision."""
    return np.float64(np.float32(scale / area))


def check_samples(samples: int) -> None:
    """Raises UsageError where this cannot be a number of samples."""
    if samples < 0:
        raise UsageError(f"{samples} samples: expected none or more")


def check_bound(weights: GateWeights, block: int, features: Features, together: int) -> None:
    """Raises where a step cannot be bound to these features.

    Raises:
        UsageError: there is no such block.
        InputError: the features have another type, shape or layout.
    """
    if not isinstance(features, np.ndarray) or features.dtype not in (np.float32, np.uint8):
        raise InputError(f"features are {_kind(features)}, expected an array of float32 or uint8")
    _check_features(weights, block, "features", features, together)
    if len(features) != 1:
        raise InputError(f"features are of {len(features)} samples, expected one")


def check_batch(
    weights: GateWeights,
    block: int,
    samples: int,
    chunks: Sequence[Features],
    where: NDArray[np.intp],
    together: int,
    changed: NDArray[np.bool_] | None,
) -> int:
    """Raises where a batch cannot be stepped; see :func:`check_bound`. Returns its channels."""
    if not isinstance(where, np.ndarray) or where.dtype != np.intp or where.ndim != 2 or where.shape[1] != 2:
        raise InputError(f"where is {_kind(where)}, expected an array of intp of shape (N, 2)")
    if not where.flags.c_contiguous:
        raise InputError("where is not contiguous; pass numpy.ascontiguousarray of it")
    if not chunks:
        raise InputError("no chunks of features, expected at least one")
    sizes = set()
    for chunk in chunks:
        if not isinstance(chunk, np.ndarray) or chunk.dtype not in (np.float32, np.uint8):
            raise InputError(f"a chunk of features is {_kind(chunk)}, expected an array of float32 or uint8")
        _check_features(weights, block, "features", chunk, together)
        height, width = chunk.shape[1:3] if chunk.dtype == np.uint8 else chunk.shape[2:]
        sizes.add((channels_of(chunk), height, width))
    if len(sizes) > 1:
        raise InputError(f"chunks of features have channels, height and width {sorted(sizes)}, expected the same")
    lengths = np.array([len(chunk) for chunk in chunks])
    if len(where) and (
        where.min() < 0 or where[:, 0].max() >= len(chunks) or (where[:, 1] >= lengths[where[:, 0]]).any()
    ):
        raise InputError(f"where points beyond the {len(chunks)} chunks of {lengths.tolist()} samples")
    if changed is not None and (
        not isinstance(changed, np.ndarray) or changed.dtype != np.bool_ or changed.shape != (len(where),)
    ):
        raise InputError(f"changed is {_kind(changed)}, expected an array of bool of shape ({len(where)},)")
    _check_samples_held(len(where), samples)
    return sizes.pop()[0]


def check_pooled(weights: GateWeights, block: int, samples: int, pooled: Array) -> None:
    """Raises where features that came pooled cannot be stepped; see :func:`check_bound`."""
    _check_block(weights, block)
    if not isinstance(pooled, np.ndarray) or pooled.dtype != np.float32 or pooled.ndim != 2:
        raise InputError(f"pooled features are {_kind(pooled)}, expected an array of float32 of shape (N, C)")
    if not pooled.flags.c_contiguous:
        raise InputError("pooled features are not contiguous; pass numpy.ascontiguousarray of them")
    _check_channels(weights, block, "pooled features", pooled.shape[1])
    _check_samples_held(len(pooled), samples)


def _check_samples_held(given: int, held: int) -> None:
    if given != held:
        raise UsageError(f"{given} samples, but the gate was reset for {held}")


def _check_block(weights: GateWeights, block: int) -> None:
    if not 0 <= block < weights.gates:
        raise UsageError(f"no gate follows block {block}: there are {weights.gates}, from 0")


def _check_features(weights: GateWeights, block: int, name: str, features: NDArray[Any], together: int) -> None:
    _check_block(weights, block)
    if features.ndim != 4 or min(features.shape[1:]) < 1:
        wanted = "(N, H, W, C)" if features.dtype == np.uint8 else "(N, C, H, W)"
        raise InputError(f"{name} have shape {features.shape}, expected {wanted}, none of C, H and W zero")
    if not features.flags.c_contiguous:
        raise InputError(f"{name} are not contiguous; pass numpy.ascontiguousarray({name})")
    channels = channels_of(features)
    _check_channels(weights, block, name, channels)
    if channels % together:
        raise InputError(f"{name} have {channels} channels, expected a multiple of the {together} that lie together")


def _check_channels(weights: GateWeights, block: int, name: str, channels: int) -> None:
    least = weights.prepared(_own_channels)[block]
    if not least <= channels <= weights.widest:
        bounds = f"{least}" if least == weights.widest else f"{least} to {weights.widest}"
        raise InputError(f"{name} have {channels} channels, expected {bounds} after block {block}")


def _own_channels(weights: GateWeights) -> tuple[int, ...]:
    """By block, the least number of channels that has every weight other than zero."""
    used = (weights.input_weight != 0).any(1)
    return tuple(int(np.flatnonzero(row)[-1]) + 1 if row.any() else 1 for row in used)


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__
