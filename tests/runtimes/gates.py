"""What the tests of the gates share: weights, features, and the decisions that two of them must agree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dfs_deploy.runtimes import native
from dfs_deploy.runtimes.gate import Array, GateWeights, NativeGate, NumpyGate

needs_native = pytest.mark.skipif(native.why_missing is not None, reason=f"no native gate: {native.why_missing}")

KINDS = [pytest.param(NumpyGate, id="numpy"), pytest.param(NativeGate, id="native", marks=needs_native)]

SHAPES = [(16, 32, 32), (32, 16, 16), (64, 8, 8), (24, 7, 7), (3, 5, 3), (5, 1, 1), (2, 33, 31), (1, 1, 40)]

AnyGate = NumpyGate | NativeGate
MakeGate = Callable[[GateWeights], AnyGate]


def random_weights(
    channels: tuple[int, ...] = (16,),
    hidden: int = 10,
    options: int = 4,
    seed: int = 0,
    widest: int | None = None,
    kind: str = "lstm",
) -> GateWeights:
    """Weights of one gate for each number of channels."""
    rng = np.random.default_rng(seed)
    gates, rows = len(channels), 4 * hidden if kind == "lstm" else hidden

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    inputs = np.zeros((gates, rows, widest or max(channels)), np.float32)
    for i, count in enumerate(channels):
        inputs[i, :, :count] = normal(rows, count)
    if kind == "lstm":
        return GateWeights(
            inputs, normal(gates, rows), normal(rows, hidden), normal(options, hidden), normal(gates, options)
        )
    return GateWeights(inputs, normal(gates, rows), None, normal(gates, options, hidden), normal(gates, options))


def random_features(samples: int, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """(samples, C, H, W), each sample and each channel of another mean."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((samples, shape[0], 1, 1))
    return (means + rng.standard_normal((samples, *shape))).astype(np.float32)


def random_integers(samples: int, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    """(samples, H, W, C) for a shape of (C, H, W), each sample and each channel of another mean."""
    rng = np.random.default_rng(seed)
    channels, height, width = shape
    most = rng.integers(1, 256, (samples, 1, 1, channels))
    return (rng.random((samples, height, width, channels)) * most).astype(np.uint8)


def random_state(samples: int, hidden: int = 10, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return (
        np.tanh(rng.standard_normal((samples, hidden))).astype(np.float32),
        rng.standard_normal((samples, hidden)).astype(np.float32),
    )


def step_floats(gate: AnyGate, block: int, features: NDArray[np.float32]) -> NDArray[np.int64]:
    """Steps a batch of float32 features."""
    return gate.step(block, [features], rows_of(np.zeros(len(features), np.intp)), 1.0)


def rows_of(chunk: NDArray[Any]) -> NDArray[np.intp]:
    """Where samples lie whose row in a chunk is their own index, given each one's chunk."""
    return np.stack([chunk, np.arange(len(chunk))], 1).astype(np.intp)


def step_forms(
    gate: AnyGate,
    block: int,
    floats: NDArray[np.float32],
    integers: NDArray[np.uint8],
    in_uint8: NDArray[np.bool_],
    scale: float,
    changed: NDArray[np.bool_] | None = None,
    zero_point: int = 0,
) -> NDArray[np.int64]:
    """Steps a batch of which each sample's features are in one of two layouts: two chunks of all samples."""
    return gate.step(block, [floats, integers], rows_of(in_uint8), scale, changed, zero_point)


def assert_same_bits(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))
