"""Small networks whose ranges and gates are known, and images that tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfs_deploy.models import DFSNetwork, run_option
from dfs_deploy.preprocessing import InputContract
from tests.builders import small_network

CONTRACT = InputContract((3, 8, 8), (0.5,) * 3, (0.25,) * 3, tuple("abcdefghij"))
"""Of every network here."""


def pixels(count: int, seed: int = 0, size: tuple[int, int] = (8, 8)) -> NDArray[np.uint8]:
    """(count, H, W, 3) uint8, each image of another brightness and contrast."""
    random = np.random.default_rng(seed)
    level, contrast = random.uniform(40, 215, (count, 1, 1, 1)), random.uniform(5, 70, (count, 1, 1, 1))
    return np.clip(random.normal(level, contrast, (count, *size, 3)), 0, 255).astype(np.uint8)


def normal_images(count: int, seed: int = 0) -> Tensor:
    """The same, (count, 3, H, W) float32, normalised."""
    return torch.from_numpy(CONTRACT.normalize(pixels(count, seed)))


def settled_network(
    options: str = "skip,8,16,full",
    blocks: int = 2,
    widths: tuple[int, ...] = (4, 8),
    seed: int = 0,
    classes: int = 10,
) -> DFSNetwork:
    """A random network whose input ranges fit its data, as training leaves them: each the mean of the images' own."""
    network = small_network(options, blocks, classes, seed=seed, widths=widths)
    images = normal_images(64, seed=99)
    readers = [
        (block, node.inputs[0], node.name)
        for block, graph in enumerate([network.graphs.stem, *(block.whole for block in network.graphs.blocks)])
        for node in graph.nodes
        if node.quantizable
    ]
    for _ in range(2):
        seen: dict[str, list[tuple[float, float]]] = {}

        def note(block: int, value: str, x: Tensor, seen: dict[Any, list[Any]] = seen) -> None:
            flat = x.flatten(1)
            for name in [name for *place, name in readers if place == [block, value]]:
                seen.setdefault(name, []).append((float(flat.amin(1).mean()), float(flat.amax(1).mean())))

        with network.observed(note), torch.no_grad():
            network(images)
        for name, ends in seen.items():
            low, high = network.ranges.of(name)
            low.fill_(min(least for least, _ in ends))
            high.fill_(max(0.1, *(greatest for _, greatest in ends)))
    return network


@dataclass(frozen=True)
class Split:
    """A gate that sends the half of the images with the greater values in some channel one way, the rest the other."""

    below: int
    above: int


def rig_gate(network: DFSNetwork, plan: Sequence[int | Split], images: Tensor) -> Tensor:
    """Makes the gate choose by plan, an option index or a split for each gated block.

    Returns:
        (N, gated blocks) int64: what each of ``images`` takes, computed without the gate.
    """
    gate, options = network.gate, len(network.options)
    size = gate.lstm.hidden_size
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.zero_()
        # No memory: the state is a squashed copy of the embedding, and each score one unit of it.
        gate.lstm.bias_ih[:size] = 20.0
        gate.lstm.bias_ih[size : 2 * size] = -20.0
        gate.lstm.bias_ih[3 * size :] = 20.0
        gate.lstm.weight_ih[2 * size : 3 * size] = torch.eye(size, gate.lstm.input_size)
        gate.projection.weight.copy_(torch.eye(options, size))
        features = network.stem(images)
        path = []
        for index, rule in enumerate(plan):
            embedding = gate.embeddings[index]
            assert isinstance(embedding, nn.Linear)
            embedding.bias.fill_(-3.0)
            if isinstance(rule, int):
                embedding.bias[rule] = 3.0
                choice = torch.full((len(images),), rule)
            else:
                channel, middle, gap, above = _halving(features.mean((2, 3)), path)
                embedding.weight[rule.above, channel] = 2.0 / gap
                embedding.weight[rule.below, channel] = -2.0 / gap
                embedding.bias[rule.above] = -2.0 * middle / gap
                embedding.bias[rule.below] = 2.0 * middle / gap
                choice = torch.where(above, rule.above, rule.below)
            path.append(choice)
            block = network.block(index + 1)
            rows = [run_option(block, x[None], network.options[int(k)]) for x, k in zip(features, choice, strict=True)]
            features = torch.cat(rows)
    return torch.stack(path, 1)


def _halving(pooled: Tensor, path: list[Tensor]) -> tuple[int, float, float, Tensor]:
    """The channel whose median splits images most evenly within the paths so far: index, median, gap there, above."""
    found = []
    for channel, values in enumerate(pooled.T):
        low, high = values.sort().values[len(values) // 2 - 1 : len(values) // 2 + 1].tolist()
        above = values > (low + high) / 2
        _, sizes = torch.stack([*path, above.long()], 1).unique(dim=0, return_counts=True)
        evenness = float(torch.special.entr(sizes / len(values)).sum())
        if high - low > 1e-4:
            found.append((evenness, channel, (low + high) / 2, high - low, above))
    return max(found, key=lambda split: split[0])[1:]
