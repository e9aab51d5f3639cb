"""The gate in C; ``dfs_deploy.runtimes.native`` is the compiled part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import EnvironmentLacksError
from dfs_deploy.runtimes import native
from dfs_deploy.runtimes.buffers import aligned_buffer
from dfs_deploy.runtimes.gate.interface import BoundStep, Features, Gate, channels_of, uint8_factor
from dfs_deploy.runtimes.gate.weights import Array, GateWeights
from dfs_deploy.system.libraries import install_line


def native_available() -> bool:
    """Whether the gate was compiled when this package was installed, and can be loaded."""
    return native.why_missing is None


def native_variants() -> tuple[str, ...]:
    """Instruction sets that the compiled gate may use here, the fastest first; none if it is missing."""
    if not native_available():
        return ()
    from dfs_deploy.runtimes.native._gate import variants

    return variants()


class NativeGate(Gate):
    """The gate in C.

    A bound step keeps the GIL, since waiting for it again would take longer than the step. A batch releases it.

    Args:
        weights: weights, packed once for all gates that share them.
        variant: one of ``native_variants``; ``None`` for the first. They differ only in speed.
        channel_block: channels of a float32 map that lie together in memory; see ``Gate``.

    Raises:
        EnvironmentLacksError: it was not compiled here, or this variant does not run here.
    """

    name = "native"

    def __init__(self, weights: GateWeights, variant: str | None = None, channel_block: int = 1) -> None:
        super().__init__(weights, channel_block)
        if native.why_missing is not None:
            raise EnvironmentLacksError(
                f"the native gate is missing here ({native.why_missing}); install a C compiler, then build it:"
                f" {install_line()}, with --force-reinstall --no-deps; or use the gate numpy"
            )
        if variant is not None and variant not in native_variants():
            raise EnvironmentLacksError(
                f"the native gate has no variant {variant!r} on this CPU, only {', '.join(native_variants())}"
            )
        from dfs_deploy.runtimes.native._gate import CompiledGate

        packed = weights.derived(_Packed.of)
        self._projection_bias = _padded(weights.projection_bias)  # read by the compiled gate at each step
        self.compiled = CompiledGate(
            packed.input,
            packed.bias,
            packed.recurrent,
            packed.projection,
            self._projection_bias,
            weights.hidden,
            weights.options,
            variant,
            channel_block,
        )
        self.compiled.reset(1)

    @property
    def variant(self) -> str:
        """Instruction set in use."""
        return self.compiled.variant

    def reset(self, samples: int) -> None:
        self.compiled.reset(samples)

    def set_score_offset(self, offset: Array) -> None:
        self._projection_bias[:, : self._weights.options] = self._weights.offset_bias(offset)

    def bind(self, block: int, features: Features, scale: float, zero_point: int = 0) -> BoundStep:
        return self.compiled.bind(block, features, _factor(features, scale), zero_point)

    def step(
        self,
        block: int,
        buffers: Sequence[Features],
        where: NDArray[np.intp],
        scale: float,
        changed: NDArray[np.bool_] | None = None,
        zero_point: int = 0,
    ) -> NDArray[np.int64]:
        decisions = np.empty(len(where), np.int64)
        self.compiled.step(block, buffers, where, _factor(buffers[0], scale), decisions, changed, zero_point)
        return decisions

    @property
    def state(self) -> tuple[Array, Array]:
        """Copy of the hidden state and the cell, each (samples, hidden); can be set."""
        hidden = np.empty((self.compiled.samples, self._weights.hidden), np.float32)
        cell = np.empty_like(hidden)
        self.compiled.copy_state(hidden, cell, True)
        return hidden, cell

    @state.setter
    def state(self, value: tuple[Array, Array]) -> None:
        self.compiled.copy_state(*value, False)


def _factor(features: Features, scale: float) -> float:
    return float(uint8_factor(scale, math.prod(features.shape[1:]) // channels_of(features)))


@dataclass(frozen=True, eq=False)
class _Packed:
    """Weights as kernel.h describes them: one input's weights next to each other, hidden units and options padded."""

    input: Array
    bias: Array
    recurrent: Array | None
    projection: Array

    @classmethod
    def of(cls, weights: GateWeights) -> _Packed:
        gates, size, widest, parts = weights.gates, weights.hidden, weights.widest, weights.parts
        recurrent = weights.recurrent_weight
        return cls(
            input=_padded(weights.input_weight.reshape(gates, parts, size, widest).transpose(0, 3, 1, 2)),
            bias=_padded(weights.bias.reshape(gates, parts, size)),
            recurrent=None if recurrent is None else _padded(recurrent.reshape(4, size, size).transpose(2, 0, 1)),
            projection=_padded(np.swapaxes(weights.projection_weight, -2, -1)),
        )


def _padded(values: Array) -> Array:
    """Copy on a cache line, with zeros up to a multiple of the kernel's lanes on the last axis."""
    from dfs_deploy.runtimes.native._gate import LANES

    shape = (*values.shape[:-1], -(-values.shape[-1] // LANES) * LANES)
    copy: Array = aligned_buffer(shape, np.dtype(np.float32))
    copy[..., : values.shape[-1]] = values
    return copy
