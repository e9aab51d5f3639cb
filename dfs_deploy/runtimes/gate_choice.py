"""Which gate runs here, and with which loop."""

from __future__ import annotations

from collections.abc import Sequence

from dfs_deploy.errors import UsageError
from dfs_deploy.runtimes.gate import Gate, GateWeights
from dfs_deploy.runtimes.loop import DispatchLoop, PythonLoop, Turn
from dfs_deploy.runtimes.native_gate import NativeGate, native_available
from dfs_deploy.runtimes.numpy_gate import NumpyGate

__all__ = ["GATES", "gate_for", "loop_for", "native_available"]

GATES = ("native", "numpy")
"""The kinds of gate, the fastest first."""


def gate_for(weights: GateWeights, kind: str | None = None, together: int = 1) -> Gate:
    """Makes a gate, with a state of its own; gates of the same weights share what is made of them.

    Args:
        weights: what it multiplies by.
        kind: one of :data:`GATES`; ``None`` for the native gate where it was compiled, the NumPy gate elsewhere.
        together: channels of a float32 map that lie together; see :class:`~dfs_deploy.runtimes.gate.Gate`.

    Raises:
        EnvironmentLacksError: ``native`` was asked for and was not compiled here.
        UsageError: no such kind.
    """
    if kind is None:
        kind = "native" if native_available() else "numpy"
    if kind == "native":
        return NativeGate(weights, together=together)
    if kind == "numpy":
        return NumpyGate(weights, together)
    raise UsageError(f"no gate {kind!r}: expected {' or '.join(GATES)}")


def loop_for(gate: Gate, turns: Sequence[Sequence[Turn]]) -> DispatchLoop:
    """Makes the loop that goes with a gate: compiled where the gate is.

    Args:
        gate: whose steps the turns hold.
        turns: for each gated block one turn a place.
    """
    return gate.loop(turns) if isinstance(gate, NativeGate) else PythonLoop(turns)
