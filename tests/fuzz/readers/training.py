"""A training run that goes on."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.training import resume, run_job
from dfs_deploy.training.state import load_state
from tests.fuzz.corpus import Corpus
from tests.fuzz.mutators.checkpoints import mutate_torch
from tests.fuzz.mutators.draw import Draw
from tests.fuzz.mutators.jsons import mutate_lines
from tests.fuzz.mutators.raw import odd_file
from tests.fuzz.reader import Fate, Reader, fingerprint, link_tree, replace
from tests.training.small import RECIPE, small_job


class StopError(Exception):
    """Ends a run in the middle."""


class StateReader(Reader):
    """The state that a stopped run left: it is read, and the few steps that are left are taken."""

    name = "state"
    seeds = ("joint", "done")

    def __init__(self, corpus: Corpus) -> None:
        import dataclasses

        self._folder = corpus.mktemp(self.name)
        recipe = dataclasses.replace(
            RECIPE, backbone_steps=3, gate_steps=3, gate_patience=1, joint_steps=4, settle_share=0.0
        )
        job = small_job(self._folder, recipe, save_every=2, until="joint")
        run_job(job, self._folder / "done")

        def stop(text: str, share: float) -> None:
            if text.startswith("joint step 4/"):
                raise StopError

        with contextlib.suppress(StopError):
            run_job(job, self._folder / "joint", stop)
        (self._folder / "patches.npz").rename(self._folder / "images.npz")
        self._data = self._folder / "images.npz"

    def place(self, seed: str, folder: Path) -> None:
        link_tree(self._folder / seed, folder / "run")
        replace(folder / "run" / "metrics.jsonl", (self._folder / seed / "metrics.jsonl").read_bytes())
        job = folder / "run" / "job.json"
        os.link(self._data, folder / "patches.npz")
        replace(
            job,
            job.read_bytes().replace(str(self._folder / "patches.npz").encode(), str(folder / "patches.npz").encode()),
        )

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        if draw.chance(0.15):
            log = folder / "run" / "metrics.jsonl"
            draw.note(log.name)
            if draw.chance(0.2):
                odd_file(draw, log)
            else:
                replace(log, mutate_lines(draw, log.read_bytes()))
            return "any"
        file = folder / "run" / "state.pt"
        if draw.chance(0.02):
            return "refused" if odd_file(draw, file) not in ("missing", "link outside", "dangling link") else "any"
        replace(file, mutate_torch(draw, file.read_bytes()))
        return "any"

    def read(self, folder: Path) -> str:
        load_state(folder / "run")
        trained = resume(folder / "run")
        network = load_checkpoint(trained.checkpoint).network
        return fingerprint(*(value.numpy() for value in network.state_dict().values()))
