"""Checkpoints of every format."""

from __future__ import annotations

import os
from pathlib import Path

from dfs_deploy.checkpoints import load_checkpoint
from tests.fuzz.corpus import Corpus
from tests.fuzz.mutators.checkpoints import mutate_safetensors, mutate_torch
from tests.fuzz.mutators.draw import Draw
from tests.fuzz.mutators.raw import odd_file
from tests.fuzz.reader import Fate, Reader, fingerprint, replace


class CheckpointReader(Reader):
    """What ``export`` begins with."""

    name = "checkpoint"

    def __init__(self, corpus: Corpus) -> None:
        self._files = corpus.checkpoints
        self.seeds = tuple(self._files)

    def place(self, seed: str, folder: Path) -> None:
        os.link(self._files[seed], folder / seed)

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        file = folder / seed
        if draw.chance(0.01):
            odd_file(draw, file, named=True)
            return "refused"
        change = mutate_safetensors if file.suffix == ".safetensors" else mutate_torch
        replace(file, change(draw, file.read_bytes()))
        return "any"

    def read(self, folder: Path) -> str:
        checkpoint = load_checkpoint(next(folder.iterdir()) if any(folder.iterdir()) else folder / "none.pt")
        state = checkpoint.network.state_dict()
        return fingerprint(
            checkpoint.network.architecture,
            checkpoint.network.options,
            checkpoint.input,
            *(value.numpy() for value in state.values()),
        )
