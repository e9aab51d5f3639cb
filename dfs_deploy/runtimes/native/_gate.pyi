from collections.abc import Sequence

from numpy import bool_, float32, int64, intp, uint8
from numpy.typing import NDArray

from dfs_deploy.runtimes.dispatch import BlockStep

LANES: int

def variants() -> tuple[str, ...]: ...

class BoundStep:
    def __call__(self) -> int: ...
    def advance(self) -> int: ...

class CompiledGate:
    variant: str
    samples: int
    def __init__(
        self,
        input: NDArray[float32],
        bias: NDArray[float32],
        recurrent: NDArray[float32] | None,
        projection: NDArray[float32],
        projection_bias: NDArray[float32],
        hidden: int,
        options: int,
        variant: str | None = None,
        channel_block: int = 1,
    ) -> None: ...
    def reset(self, samples: int) -> None: ...
    def bind(
        self, block: int, features: NDArray[float32] | NDArray[uint8], factor: float, zero_point: int = 0
    ) -> BoundStep: ...
    def step(
        self,
        block: int,
        buffers: Sequence[NDArray[float32] | NDArray[uint8]],
        where: NDArray[intp],
        factor: float,
        decisions: NDArray[int64],
        changed: NDArray[bool_] | None = None,
        zero_point: int = 0,
    ) -> None: ...
    def copy_state(self, hidden: NDArray[float32], cell: NDArray[float32], out: bool) -> None: ...

class CompiledLoop:
    slot: int
    block: int
    path: bytearray
    def __init__(self, gate: CompiledGate, steps: Sequence[Sequence[BlockStep]], start: int = 0) -> None: ...
    def run(self, forced: bytes | None) -> bytearray: ...
