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
    """Dispatch of a block for features in one slot.

    Attributes:
        gate: step of the gate on the features there; ``None`` for a fixed block.
        reuses: whether the same slot of the block before has the same buffer and grid: after a skip, the gate has
            pooled the features already.
        options: for each option, the call to make (``None`` for nothing) and the slot of the features after it.
        always: index of the option of a fixed block.
    """

    gate: BoundStep | None
    reuses: bool
    options: tuple[tuple[Call | None, int], ...]
    always: int = 0


class PythonLoop:
    """Loop over the blocks of one sample.

    Args:
        steps: for each block after the first, one step per slot.
        start: slot of the features after the stem.

    Attributes:
        slot: slot of the features after the last block.
        block: block that runs, from 0 for the first after the stem; for messages if a call failed.
        path: option indices taken, zero beyond ``block``.
    """

    def __init__(self, steps: Sequence[Sequence[BlockStep]], start: int = 0) -> None:
        self._steps = tuple(
            tuple(
                (step.gate, None if step.gate is None else step.gate.advance, step.reuses, step.options, step.always)
                for step in slots
            )
            for slots in steps
        )
        self._start = start
        self.slot = self.block = 0
        self.path = bytearray()

    def run(self, forced: bytes | None) -> bytearray:
        """Runs every block; the gate must have been reset for one sample.

        Args:
            forced: option indices to run instead of the gate's choices; the gate still steps, and fixed blocks run
                their one option. ``None`` for its choices.

        Returns:
            Option index of each block, one byte per block; owned by the caller.
        """
        self.path = path = bytearray(len(self._steps))
        slot, pooled = self._start, False
        for block, slots in enumerate(self._steps):
            self.block = block
            gate, advance, reuses, options, option = slots[slot]
            if gate is not None and advance is not None:
                option = advance() if pooled and reuses else gate()
                if forced is not None:
                    option = forced[block]
            path[block] = option
            call, slot = options[option]
            # Before a fixed block nothing is pooled, so what was pooled last may be of another place.
            pooled = call is None and gate is not None
            if call is not None:
                call()
        self.slot = slot
        return path


def loop_for(gate: Gate, steps: Sequence[Sequence[BlockStep]], start: int = 0) -> PythonLoop | CompiledLoop:
    """Makes the loop for a gate: the compiled one for the compiled gate.

    Args:
        gate: gate that the steps belong to.
        steps: for each block after the first, one step per slot.
        start: slot of the features after the stem.
    """
    if isinstance(gate, NativeGate):
        from dfs_deploy.runtimes.native._gate import CompiledLoop

        return CompiledLoop(gate.compiled, steps, start)
    return PythonLoop(steps, start)
