"""What a network does on images that it was not trained on, each routed by its own choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dfs_deploy.models import DFSNetwork
from dfs_deploy.training.data import Images
from dfs_deploy.training.processes import Processes

_BATCH = 250

_Part = tuple[int, dict[tuple[int, ...], int]]
"""Of one process: images classified correctly, and how many took each path."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and computation on some images.

    Attributes:
        images: how many.
        top1: share classified correctly, 0 to 1.
        percentage: mean computation percentage (Section 4, Metrics).
        option_share: for each gated block, the share of images that took each option; empty for the backbone alone.
        paths: how many different sequences of options were taken.
    """

    images: int
    top1: float
    percentage: float
    option_share: tuple[tuple[float, ...], ...]
    paths: int


@torch.no_grad()
def evaluate(
    network: DFSNetwork,
    images: Images,
    processes: Processes | None = None,
    gated: bool = True,
    costs: Sequence[Sequence[float]] | None = None,
) -> Evaluation:
    """Evaluates a network, in evaluation mode; every process takes a share and gets the whole result.

    Args:
        network: its mode is restored afterwards, also after an error.
        images: to classify.
        processes: that share the work.
        gated: whether the gate or policy chooses; otherwise every block runs in full precision.
        costs: of each option at each gated block; ``None`` for ``(bits / 32) ** 2`` (Section 4, Metrics).
    """
    processes = processes or Processes()
    modes = [(module, module.training) for module in network.modules()]
    share = processes.share(len(images))
    right = 0
    paths: dict[tuple[int, ...], int] = {}
    try:
        network.eval()
        for start in range(share.start, share.stop, _BATCH):
            pixels, labels = images.take(slice(start, min(start + _BATCH, share.stop)))
            x = images.normalize(pixels)
            if gated:
                output = network.route(x)
                logits = output.logits
                for path in map(tuple, output.path.tolist()):
                    paths[path] = paths.get(path, 0) + 1
            else:
                logits = network.backbone(x)
            right += int((logits.argmax(1) == labels).sum())
    finally:
        for module, mode in modes:
            module.training = mode
    rows = costs or [network.options.costs] * network.architecture.gated_blocks
    return _summarize(rows, len(images), processes.gather((right, paths)), gated)


def _summarize(costs: Sequence[Sequence[float]], images: int, parts: list[_Part], gated: bool) -> Evaluation:
    counts = [[0] * len(row) for row in costs]
    right = 0
    distinct: set[tuple[int, ...]] = set()
    for some, paths in parts:
        right += some
        distinct.update(paths)
        for path, count in paths.items():
            for block, option in enumerate(path):
                counts[block][option] += count
    spent = sum(
        count * cost for row, prices in zip(counts, costs, strict=True) for count, cost in zip(row, prices, strict=True)
    )
    return Evaluation(
        images=images,
        top1=right / images,
        percentage=100.0 * spent / (images * len(counts)) if gated and counts else 100.0,
        option_share=tuple(tuple(count / images for count in row) for row in counts) if gated else (),
        paths=len(distinct) if gated else 1,
    )
