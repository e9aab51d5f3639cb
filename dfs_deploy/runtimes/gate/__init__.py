"""The gate: weights, interface, its two implementations, and which of them runs here."""

from __future__ import annotations

from dfs_deploy.errors import UsageError
from dfs_deploy.runtimes.gate.interface import BoundStep, Features, Gate
from dfs_deploy.runtimes.gate.native import NativeGate, native_available, native_variants
from dfs_deploy.runtimes.gate.numpy import NumpyGate
from dfs_deploy.runtimes.gate.weights import MASKED, Array, GateWeights, read_gate_weights

__all__ = [
    "GATES",
    "MASKED",
    "Array",
    "BoundStep",
    "Features",
    "Gate",
    "GateWeights",
    "NativeGate",
    "NumpyGate",
    "gate_for",
    "native_available",
    "native_variants",
    "read_gate_weights",
]

GATES = ("native", "numpy")
"""Kinds of gate, the fastest first."""


def gate_for(weights: GateWeights, kind: str | None = None, channel_block: int = 1) -> Gate:
    """Makes a gate with a state of its own.

    Args:
        weights: weights, which gates share.
        kind: one of ``GATES``; ``None`` for the native gate if it was compiled, else the NumPy gate.
        channel_block: channels of a float32 map that lie together in memory; see ``Gate``.

    Raises:
        EnvironmentLacksError: ``native`` was asked for and was not compiled here.
        UsageError: unknown kind.
    """
    if kind is None:
        kind = "native" if native_available() else "numpy"
    if kind == "native":
        return NativeGate(weights, channel_block=channel_block)
    if kind == "numpy":
        return NumpyGate(weights, channel_block)
    raise UsageError(f"no gate {kind!r}: expected {' or '.join(GATES)}")
