"""The compiled gate; see :mod:`dfs_deploy.runtimes.native`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import EnvironmentLacksError, UsageError
from dfs_deploy.runtimes import native
from dfs_deploy.runtimes.gate import (
    Array,
    BoundStep,
    Features,
    Gate,
    GateWeights,
    channels_of,
    uint8_factor,
)
from dfs_deploy.runtimes.gate_checks import (
    biased_projection,
    check_batch,
    check_bound,
    check_channels,
    check_pooled,
    check_samples,
)
from dfs_deploy.runtimes.loop import DispatchLoop, Turn

_ALIGNMENT = 64


def native_available() -> bool:
    """Whether the gate was compiled when this package was installed, and can be loaded."""
    return native.lacks is None


def native_variants() -> tuple[str, ...]:
    """The instruction sets that the compiled gate may use here, the fastest first; none where it is missing."""
    if not native_available():
        return ()
    from dfs_deploy.runtimes.native._gate import variants

    return variants()


class NativeGate(Gate):
    """The gate in C.

    A bound step keeps the GIL, which costs more to regain than the step takes; the step of a batch releases it.

    Args:
        weights: of the gate; packed once for all gates that share them.
        variant: one of :func:`native_variants`, ``None`` for the first. They differ in speed alone.
        together: channels of a float32 map that lie together; see :class:`~dfs_deploy.runtimes.gate.Gate`.

    Raises:
        EnvironmentLacksError: it was not compiled here, or this variant does not run here.
    """

    name = "native"

    def __init__(self, weights: GateWeights, variant: str | None = None, together: int = 1) -> None:
        super().__init__(weights, together)
        if native.lacks is not None:
            from dfs_deploy.system.libraries import install_line

            raise EnvironmentLacksError(
                f"the native gate is missing here ({native.lacks}); install a C compiler, then build it:"
                f" {install_line()} --force-reinstall --no-deps; or use the gate numpy"
            )
        if variant is not None and variant not in native_variants():
            raise EnvironmentLacksError(
                f"the native gate has no variant {variant!r} on this CPU, only {', '.join(native_variants())}"
            )
        from dfs_deploy.runtimes.native._gate import CompiledGate

        packed = weights.prepared(_Packed.of)
        self._projection_bias = _padded(weights.projection_bias)  # the compiled gate reads it at each step
        self._compiled = CompiledGate(
            packed.input,
            packed.bias,
            packed.recurrent,
            packed.projection,
            self._projection_bias,
            weights.hidden,
            weights.options,
            variant,
            together,
        )
        self._compiled.reset(1)

    @property
    def variant(self) -> str:
        """The instruction set in use."""
        return self._compiled.variant

    def reset(self, samples: int) -> None:
        check_samples(samples)
        self._compiled.reset(samples)

    def set_score_offset(self, offset: Array) -> None:
        self._projection_bias[: self._weights.options] = biased_projection(self._weights, offset)

    def bind(self, block: int, features: Features, scale: float) -> BoundStep:
        check_bound(self._weights, block, features, self.together)
        return self._compiled.bind(block, features, float(uint8_factor(scale, features.size // channels_of(features))))

    def bind_pooled(self, block: int, pooled: Array) -> BoundStep:
        check_pooled(self._weights, block, 1, pooled)
        return self._compiled.bind_pooled(block, pooled)

    def step(
        self,
        block: int,
        chunks: Sequence[Features],
        where: NDArray[np.intp],
        scale: float,
        changed: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.int64]:
        try:
            if {type(array) for array in (where, changed, *chunks)} - {np.ndarray, type(None)}:
                check_batch(self._weights, block, self._compiled.samples, chunks, where, self.together, changed)
            channels = channels_of(chunks[0])
            check_channels(self._weights, block, "features", channels)
            decisions = np.empty(len(where), np.int64)
            factor = float(uint8_factor(scale, math.prod(chunks[0].shape[1:]) // channels or 1))
            self._compiled.step(block, chunks, where, factor, decisions, changed)
        except (ArithmeticError, AttributeError, BufferError, LookupError, TypeError, ValueError):
            # The compiled gate refuses what it cannot read; what every gate refuses is said in the same words. To look
            # for it before each step would cost as much as the step.
            check_batch(self._weights, block, self._compiled.samples, chunks, where, self.together, changed)
            raise
        return decisions

    def step_pooled(self, block: int, pooled: Array) -> NDArray[np.int64]:
        check_pooled(self._weights, block, self._compiled.samples, pooled)
        decisions = np.empty(len(pooled), np.int64)
        self._compiled.step_pooled(block, pooled, decisions)
        return decisions

    def loop(self, turns: Sequence[Sequence[Turn]]) -> DispatchLoop:
        """The compiled dispatch loop over steps of this gate; see :mod:`dfs_deploy.runtimes.loop`."""
        from dfs_deploy.runtimes.native._loop import CompiledLoop

        return CompiledLoop(self._compiled, turns)

    @property
    def state(self) -> tuple[Array, Array]:
        """A copy of the hidden state and the cell, each (samples, hidden); can be set."""
        hidden = np.empty((self._compiled.samples, self._weights.hidden), np.float32)
        cell = np.empty_like(hidden)
        self._compiled.read_state(hidden, cell)
        return hidden, cell

    @state.setter
    def state(self, value: tuple[Array, Array]) -> None:
        shape = (self._compiled.samples, self._weights.hidden)
        hidden, cell = (np.ascontiguousarray(part, np.float32) for part in value)
        if hidden.shape != shape or cell.shape != shape:
            raise UsageError(f"a state of shapes {hidden.shape} and {cell.shape}, expected {shape} of each")
        self._compiled.write_state(hidden, cell)


@dataclass(frozen=True, eq=False)
class _Packed:
    """Weights as kernel.h describes them: an input's weights next to each other, hidden units and options padded."""

    input: Array
    bias: Array
    recurrent: Array
    projection: Array

    @classmethod
    def of(cls, weights: GateWeights) -> _Packed:
        gates, size, widest = weights.gates, weights.hidden, weights.widest
        return cls(
            input=_padded(weights.input_weight.reshape(gates, 4, size, widest).transpose(0, 3, 1, 2)),
            bias=_padded(weights.bias.reshape(gates, 4, size)),
            recurrent=_padded(weights.recurrent_weight.reshape(4, size, size).transpose(2, 0, 1)),
            projection=_padded(weights.projection_weight.T),
        )


def _padded(values: Array) -> Array:
    """A copy on a cache line, with zeros up to a multiple of the kernel's lanes on the last axis."""
    from dfs_deploy.runtimes.native._gate import LANES

    shape = (*values.shape[:-1], -(-values.shape[-1] // LANES) * LANES)
    size = int(np.prod(shape)) * 4
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    copy: Array = raw[start : start + size].view(np.float32).reshape(shape)
    copy[..., : values.shape[-1]] = values
    return copy
