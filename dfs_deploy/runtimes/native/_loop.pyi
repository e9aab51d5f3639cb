from collections.abc import Sequence

from dfs_deploy.runtimes.loop import Turn
from dfs_deploy.runtimes.native._gate import CompiledGate

class CompiledLoop:
    place: int
    block: int
    path: bytearray
    def __init__(self, gate: CompiledGate, turns: Sequence[Sequence[Turn]]) -> None: ...
    def run(self, choices: bytes | None) -> bytearray: ...
