"""The engines that a bundle needs, by the part of the network that each is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.manifest import Engine
from dfs_deploy.options import Precision

Size = tuple[int, ...]
"""A shape without the batch."""

STEM, HEAD = -1, -2


@dataclass(frozen=True)
class WantedEngine:
    """One engine of a bundle.

    Attributes:
        block: index of the gated block, or :data:`STEM` or :data:`HEAD`.
        option: name of the option; empty for stem and head.
        label: what messages call it, as in ``block 3, option 8 (int8)``.
        file: of its ONNX graph, in the bundle.
        precision: of its arithmetic.
        input: name of its input, float32.
        takes: size of it.
        outputs: size of each output by name, float32.
    """

    block: int
    option: str
    label: str
    file: str
    precision: Precision
    input: str
    takes: Size
    outputs: dict[str, Size]


def wanted_engines(bundle: Bundle) -> Iterator[WantedEngine]:
    """Yields the engines of a bundle in the order in which they run; with a static policy its own alone."""
    engines, architecture = bundle.manifest.runtimes["tensorrt"], bundle.architecture
    policy = bundle.manifest.policy
    maps = [block.out_shape for block in architecture.blocks]

    def emitting(features: Size) -> dict[str, Size]:
        return {"output": features, "pooled": features[:1]}

    def wanted(
        block: int, option: str, label: str, engine: Engine, source: str, takes: Size, outputs: dict[str, Size]
    ) -> WantedEngine:
        return WantedEngine(block, option, label, engine.files["float32"], engine.precision, source, takes, outputs)

    yield wanted(STEM, "", "the stem", engines.stem, "images", architecture.image_shape, emitting(maps[0]))
    for block in engines.blocks:
        takes, gives = maps[block.index - 1 : block.index + 1]
        for option in bundle.options:
            if policy is not None and policy[block.index - 1] != option.name:
                continue
            engine = block.skip if option.skips else block.options[option.name][0]
            if engine is not None:
                label = f"block {block.index}, option {option.name}"
                label += "" if option.skips else f" ({engine.precision})"
                yield wanted(block.index, option.name, label, engine, "features", takes, emitting(gives))
    yield wanted(HEAD, "", "the head", engines.head, "features", maps[-1], {"output": (architecture.classes,)})
