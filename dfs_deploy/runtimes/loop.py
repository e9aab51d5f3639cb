"""The dispatch loop for one sample: gate, call, next block, with nothing to look up and nothing to make between.

The compiled gate has a loop of its own (``native/_loop.pyx``); this one runs with any gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dfs_deploy.runtimes.gate import BoundStep

Call = Callable[[], object]


@dataclass(frozen=True)
class Turn:
    """What happens at a gated block, for features that lie in one place.

    Attributes:
        step: of the gate, on the features there.
        follows: whether these are the buffer and the scale of the same place one block before: after a skip the gate
            has pooled them already.
        options: for each option what to call, ``None`` for nothing, and the place where features lie then.
    """

    step: BoundStep
    follows: bool
    options: tuple[tuple[Call | None, int], ...]


class DispatchLoop(Protocol):
    """Runs the gated blocks of one sample.

    Attributes:
        place: where features lay after the last block.
        block: the gated block that it is at, from 0; for messages, where a call failed.
        path: option indices taken, zero beyond ``block``.
    """

    @property
    def place(self) -> int: ...

    @property
    def block(self) -> int: ...

    @property
    def path(self) -> bytearray: ...

    def run(self, choices: bytes | None) -> bytearray:
        """Runs every block, from place 0, its gate reset.

        Args:
            choices: option indices to run instead of the gate's, which steps all the same; ``None`` for the gate's.

        Returns:
            The option index that each block ran, one byte a block; the caller's own.
        """


class PythonLoop:
    """See :class:`DispatchLoop`.

    Args:
        turns: for each gated block one turn a place.
    """

    def __init__(self, turns: Sequence[Sequence[Turn]]) -> None:
        self._turns = tuple(
            tuple((turn.step, turn.step.advance, turn.follows, turn.options) for turn in places) for places in turns
        )
        self.place = self.block = 0
        self.path = bytearray()

    def run(self, choices: bytes | None) -> bytearray:
        self.path = path = bytearray(len(self._turns))
        place, pooled = 0, False
        for block, places in enumerate(self._turns):
            self.block = block
            step, advance, follows, options = places[place]
            option = advance() if pooled and follows else step()
            if choices is not None:
                option = choices[block]
            path[block] = option
            call, place = options[option]
            pooled = call is None
            if call is not None:
                call()
        self.place = place
        return path
