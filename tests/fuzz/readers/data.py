"""Images and labels: ``.npz``, folders, CIFAR archives, single images."""

from __future__ import annotations

import os
from pathlib import Path

from dfs_deploy.datasets import load_dataset
from tests.fuzz.corpus import Corpus
from tests.fuzz.mutators.archives import mutate_npz
from tests.fuzz.mutators.draw import Draw
from tests.fuzz.mutators.raw import odd_file
from tests.fuzz.reader import Fate, Reader, fingerprint, replace


class ArchiveReader(Reader):
    """An ``.npz`` of images and labels."""

    name = "npz"

    def __init__(self, corpus: Corpus) -> None:
        self._files = corpus.archives
        self.seeds = tuple(self._files)

    def place(self, seed: str, folder: Path) -> None:
        os.link(self._files[seed], folder / "data.npz")

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        file = folder / "data.npz"
        if draw.chance(0.01):
            odd_file(draw, file, named=True)
            return "refused"
        replace(file, mutate_npz(draw, file.read_bytes()))
        return "any"

    def read(self, folder: Path) -> str:
        data = load_dataset(folder / "data.npz")
        again = data.labelled_for(max(data.labels) + 1, ())
        return fingerprint(data.images, data.labels, data.class_names, again.labels)
