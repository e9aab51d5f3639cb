"""What is kept beside a bundle: engines prepared for this machine, measured plans, TensorRT's engines."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

from dfs_deploy import Runtime
from dfs_deploy.bundle import Bundle
from dfs_deploy.io.files import sha256
from dfs_deploy.runtimes.onnxruntime.engine_choice import measure_choice, save_choice
from tests.fuzz.corpus import Corpus
from tests.fuzz.mutators.draw import Draw
from tests.fuzz.mutators.jsons import mutate_json
from tests.fuzz.mutators.models import mutate_model
from tests.fuzz.mutators.raw import mutate_bytes, odd_file
from tests.fuzz.reader import Fate, Reader, fingerprint, link_tree, replace
from tests.fuzz.readers.bundles import BUNDLE, run
from tests.runtimes.tensorrt.machine import building_here, machine
from tests.settled import pixels

CACHE = f"{BUNDLE}.cache"


class CacheReader(Reader):
    """Common to readers of a cache: a damaged one is made anew or passed over, and never changes a result."""

    def __init__(self, corpus: Corpus) -> None:
        self._folder = corpus.mktemp(self.name)
        for seed in self.seeds:
            (self._folder / seed).mkdir()
            bundle = self._folder / seed / BUNDLE
            shutil.copytree(corpus.bundle(seed).path, bundle)
            self.fill(bundle)

    def fill(self, bundle: Path) -> None:
        """Has the cache made."""
        raise NotImplementedError

    def place(self, seed: str, folder: Path) -> None:
        for name in (BUNDLE, CACHE):
            link_tree(self._folder / seed / name, folder / name)

    damaged: Fate = "works"
    """What a damaged cache may lead to."""

    def sound(self, file: Path) -> bytes:
        """What stood in a file of the cache before anything was changed."""
        return (self._folder / self.seeds[0] / CACHE / file.parent.name / file.name).read_bytes()

    def files(self, folder: Path) -> Iterator[Path]:
        """What the cache holds."""
        yield from sorted(path for path in (folder / CACHE).rglob("*") if path.is_file())

    def change(self, draw: Draw, file: Path) -> Fate:
        """Changes one file."""
        content = file.read_bytes()
        changed = mutate_json(draw, content) if file.suffix == ".json" else mutate_bytes(draw, content)
        replace(file, changed)
        return self.damaged

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        cache = folder / CACHE
        if draw.chance(0.03):
            kind = draw.choice(("link", "file", "empty", "gone", "loop"))
            draw.note(f"cache {kind}")
            target = draw.choice((cache, *sorted(path for path in cache.iterdir() if path.is_dir())))
            shutil.rmtree(target)
            if kind == "link":
                target.symlink_to(draw.outside)
            elif kind == "loop":
                target.symlink_to(target.name)
            elif kind == "file":
                target.write_bytes(b"x")
            elif kind == "empty":
                target.mkdir()
            return self.damaged
        fate: Fate = self.damaged
        files = list(self.files(folder))
        for file in draw.sample(files, min(len(files), draw.choice((1, 1, 2)))):
            draw.note(file.name)
            if draw.chance(0.08):
                odd_file(draw, file)
            elif self.change(draw, file) == "any":
                fate = "any"
        return fate


class PreparedReader(CacheReader):
    """Engines prepared for this machine."""

    name = "prepared"
    seeds = ("short",)

    def fill(self, bundle: Path) -> None:
        with Runtime(bundle):
            pass

    def change(self, draw: Draw, file: Path) -> Fate:
        if not draw.chance(0.4):
            return super().change(draw, file)
        values = msgspec.msgpack.decode(file.read_bytes()[64:])
        if draw.chance(0.3):
            changed = mutate_bytes(draw, msgspec.msgpack.encode(values))
        else:
            name = draw.choice(sorted(values["models"]))
            values["models"][name], _ = mutate_model(draw, values["models"][name])
            changed = msgspec.msgpack.encode(values)
        replace(file, sha256(changed).encode() + changed)
        return "any"

    def read(self, folder: Path) -> str:
        return fingerprint(*run(folder / BUNDLE))


class PlanReader(CacheReader):
    """A plan measured on this machine."""

    name = "plan"
    seeds = ("mixed",)
    damaged = "runs"  # it may choose other engines of the bundle

    def fill(self, bundle: Path) -> None:
        with Runtime(bundle):
            pass
        opened = Bundle(bundle)
        save_choice(opened, measure_choice(opened, 1))

    def read(self, folder: Path) -> str:
        return fingerprint(*run(folder / BUNDLE))


class TensorRTReader(CacheReader):
    """TensorRT's engines and settings, on the tests' double of it."""

    name = "tensorrt"
    seeds = ("static",)
    damaged = "same"

    def __init__(self, corpus: Corpus) -> None:
        self._folder = corpus.mktemp(self.name)
        (self._folder / self.seeds[0]).mkdir()
        bundle = self._folder / self.seeds[0] / BUNDLE
        shutil.copytree(corpus.bundle("static").path, bundle)
        self._machine: ExitStack | None = None
        with contextlib.redirect_stderr(io.StringIO()), machine(), building_here():
            self._run(bundle)

    def change(self, draw: Draw, file: Path) -> Fate:
        if file.suffix == ".plan" and draw.chance(0.3):
            record = file.with_suffix(".json")
            content = mutate_bytes(draw, file.read_bytes())
            values = json.loads(self.sound(record))
            replace(file, content)
            replace(record, json.dumps({**values, "sha256": sha256(content)}).encode())
            return "any"
        return super().change(draw, file)

    def _run(self, bundle: Path) -> str:
        with Runtime(bundle, "tensorrt") as net:
            result = net(pixels(1))
            return fingerprint(result.logits, result.path)

    def read(self, folder: Path) -> str:
        if self._machine is None:  # once in each child, which keeps it
            self._machine = ExitStack()
            self._machine.enter_context(machine(clean=False))
            self._machine.enter_context(building_here())
        return self._run(folder / BUNDLE)
