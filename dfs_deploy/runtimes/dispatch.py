"""The dispatch loop for one sample: gate, engine call, next block, with nothing looked up or made in between.

A feature map lies in one of a few buffers, its *slots*; which one is all that the loop carries from block to block.
The compiled gate has a compiled loop (``native/_gate.pyx``); ``PythonLoop`` runs with any gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfs_deploy.runtimes.gate import BoundStep, Gate, NativeGate

if TYPE_CHECKING:
    from dfs_deploy.runtimes.native._gate import CompiledLoop

Call = Callable[[], None]


@dataclass(frozen=True)
class BlockStep:
    """Dispatch of a gated block for features in one slot.

    Attributes:
        gate: step of the gate on the features there.
        reuses: whether the same slot of the block before has the same buffer and scale: after a skip, the gate has
            pooled the features already.
        options: for each option, the call to make (``None`` for nothing) and the slot of the features after it.
    """

    gate: BoundStep
    reuses: bool
    options: tuple[tuple[Call | None, int], ...]


class PythonLoop:
    """Loop over the gated blocks of one sample.

    Args:
        steps: for each gated block, one step per slot.

    Attributes:
        slot: slot of the features after the last block.
        block: gated block that runs, from 0; for messages if a call failed.
        path: option indices taken, zero beyond ``block``.
    """

    def __init__(self, steps: Sequence[Sequence[BlockStep]]) -> None:
        self._steps = tuple(
            tuple((step.gate, step.gate.advance, step.reuses, step.options) for step in slots) for slots in steps
        )
        self.slot = self.block = 0
        self.path = bytearray()

    def run(self, forced: bytes | None) -> bytearray:
        """Runs every block, from slot 0; the gate must have been reset for one sample.

        Args:
            forced: option indices to run instead of the gate's choices; the gate still steps. ``None`` for its choices.

        Returns:
            Option index of each block, one byte per block; owned by the caller.
        """
        self.path = path = bytearray(len(self._steps))
        slot, pooled = 0, False
        for block, slots in enumerate(self._steps):
            self.block = block
            gate, advance, reuses, options = slots[slot]
            option = advance() if pooled and reuses else gate()
            if forced is not None:
                option = forced[block]
            path[block] = option
            call, slot = options[option]
            pooled = call is None
            if call is not None:
                call()
        self.slot = slot
        return path


def loop_for(gate: Gate, steps: Sequence[Sequence[BlockStep]]) -> PythonLoop | CompiledLoop:
    """Makes the loop for a gate: the compiled one for the compiled gate.

    Args:
        gate: gate that the steps belong to.
        steps: for each gated block, one step per slot.
    """
    if isinstance(gate, NativeGate):
        from dfs_deploy.runtimes.native._gate import CompiledLoop

        return CompiledLoop(gate.compiled, steps)
    return PythonLoop(steps)
