"""What a bundle holds: its manifest, its samples, its engines."""

from __future__ import annotations

import json
from pathlib import Path

from dfs_deploy import Runtime
from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.weights import WEIGHTS
from dfs_deploy.io.files import sha256
from tests.fuzz.corpus import Corpus
from tests.fuzz.mutators.archives import mutate_npz
from tests.fuzz.mutators.draw import Draw
from tests.fuzz.mutators.jsons import mutate_json
from tests.fuzz.mutators.models import mutate_model
from tests.fuzz.mutators.raw import mutate_bytes, odd_file
from tests.fuzz.reader import Fate, Reader, command_line, fingerprint, link_tree, replace
from tests.settled import pixels

BUNDLE = "net.dfs"


class BundleReader(Reader):
    """Common to readers of something in a bundle."""

    seeds = ("mixed", "floats", "static")

    def __init__(self, corpus: Corpus) -> None:
        self._made = {seed: corpus.bundle(seed) for seed in self.seeds}

    def place(self, seed: str, folder: Path) -> None:
        link_tree(self._made[seed].path, folder / BUNDLE)


def run(path: Path, **choices: object) -> tuple[object, ...]:
    """What a network makes of a single image and of a batch."""
    with Runtime(path, **choices) as net:  # type: ignore[arg-type]
        _, height, width = net.input.shape
        images = pixels(9, size=(height, width)) if height * width < 1 << 20 else pixels(1, size=(height, width))
        results = [net(images[:1]), net(images)]
    return tuple(value for result in results for value in (result.logits, result.path))


class ManifestReader(BundleReader):
    """``manifest.json``: opens the bundle, and runs it if that goes well."""

    name = "manifest"

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        file = folder / BUNDLE / "manifest.json"
        if draw.chance(0.02):
            return "refused" if odd_file(draw, file) else "any"
        if draw.chance(0.03):
            other = draw.choice(sorted(path for path in (folder / BUNDLE).rglob("*") if path.is_file()))
            odd_file(draw, other)
            return "refused"
        replace(file, mutate_json(draw, file.read_bytes()))
        return "any"

    def read(self, folder: Path) -> str:
        bundle = Bundle(folder / BUNDLE)
        samples = bundle.samples()
        carried = () if samples is None else (samples.images, samples.labels, samples.logits, samples.path)
        return fingerprint(*carried, *run(bundle.path, prepared=False))


class SamplesReader(BundleReader):
    """``samples.npz``, with a digest that fits."""

    name = "samples"

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        file = folder / BUNDLE / "samples.npz"
        replace(file, mutate_npz(draw, file.read_bytes()))
        record_again(folder / BUNDLE, "samples.npz")
        return "any"

    def read(self, folder: Path) -> str:
        samples = Bundle(folder / BUNDLE).samples()
        assert samples is not None
        return fingerprint(samples.images, samples.labels, samples.logits, samples.path)


def record_again(bundle: Path, *names: str) -> None:
    """Writes the digests of changed files into the manifest, as their author would."""
    values = json.loads((bundle / "manifest.json").read_bytes())
    for name in names:
        data = (bundle / name).read_bytes()
        values["files"][name] = {"sha256": sha256(data), "size": len(data)}
    replace(bundle / "manifest.json", json.dumps(values).encode())


class EngineReader(BundleReader):
    """An engine's ONNX graph, with a digest that fits; whether it runs, and alike for one image and for several."""

    name = "engine"

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        names = engine_files(folder / BUNDLE)
        statics = draw.chance(0.05)
        return change_models(
            draw, folder / BUNDLE, [n for n in names if "gate" not in n and ("static" in n) == statics]
        )

    def read(self, folder: Path) -> str:
        return fingerprint(*run(folder / BUNDLE, prepared=False))


class WeightsReader(BundleReader):
    """The weights that engines share, with a digest that fits."""

    name = "weights"

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        file = folder / BUNDLE / WEIGHTS
        if draw.chance(0.1):
            odd_file(draw, file)
            return "refused"
        replace(file, mutate_bytes(draw, file.read_bytes()))
        record_again(folder / BUNDLE, WEIGHTS)
        return "any"

    def read(self, folder: Path) -> str:
        return fingerprint(*run(folder / BUNDLE, prepared=False))


class GateReader(BundleReader):
    """The gate's graph, whose weights are read, with a digest that fits."""

    name = "gate"
    seeds = ("mixed", "floats")

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        gates = [name for name in engine_files(folder / BUNDLE) if "gate" in name]
        return change_models(draw, folder / BUNDLE, gates)

    def read(self, folder: Path) -> str:
        return fingerprint(*run(folder / BUNDLE, prepared=False))


class PrepareReader(BundleReader):
    """An engine's graph as ``prepare`` reads it, to lay it out anew for this machine."""

    name = "prepare"
    seeds = ("short",)

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        names = engine_files(folder / BUNDLE)
        change_models(draw, folder / BUNDLE, [n for n in names if "gate" not in n and "static" not in n])
        return "any"

    def read(self, folder: Path) -> str:
        return fingerprint(*run(folder / BUNDLE))


class InspectReader(BundleReader):
    """``dfs-deploy inspect`` of a hostile manifest: what reaches the terminal."""

    name = "inspect"

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        file = folder / BUNDLE / "manifest.json"
        replace(file, mutate_json(draw, file.read_bytes()))
        return "any"

    def read(self, folder: Path) -> str:
        return command_line("inspect", folder / BUNDLE)


def engine_files(bundle: Path) -> list[str]:
    """Paths in a bundle of ONNX Runtime's graphs."""
    names = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*.onnx"))
    return [name for name in names if not name.startswith("tensorrt/")]


def change_models(draw: Draw, bundle: Path, names: list[str]) -> Fate:
    """Changes one graph, seldom more, and records its digest anew."""
    forbidden = False
    chosen = draw.sample(names, min(len(names), draw.choice((1, 1, 1, 2))))
    for name in chosen:
        draw.note(name)
        opened = Bundle(bundle)
        # With its weights inside, as in older bundles, or with references.
        content = opened.model(name) if draw.chance(0.6) else opened.read(name)
        content, must_refuse = mutate_model(draw, content)
        replace(bundle / name, content)
        record_again(bundle, name)
        # Others are loaded where the CPU, a plan or a bench asks for them; and uint8 never reaches the first block, or
        # the head of the static policy here.
        forbidden |= (
            must_refuse
            and any(word in name for word in ("stem", "head", "gate", "8-int8", "full-fp32"))
            and not ("uint8" in name and ("block-01" in name or opened.policy is not None))
        )
    return "refused" if forbidden else "any"
