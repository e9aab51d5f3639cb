"""What a network does on images that it was not trained on, each routed by its own choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from dfs_deploy.models import DFSNetwork
from dfs_deploy.suspicion import suspicions
from dfs_deploy.training.data import Images
from dfs_deploy.training.processes import Processes

_BATCH = 250

_Part = tuple[list[NDArray[np.int64]], dict[tuple[int, ...], int]]
"""Of one process: true and predicted class of each image, (2, n) a batch; and how many images took each path."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and computation on some images.

    Attributes:
        images: how many.
        top1: share classified correctly, 0 to 1.
        percentage: mean computation percentage (Section 4, Metrics).
        option_share: for each gated block, the share of images that took each option; empty for the backbone alone.
        paths: how many different sequences of options were taken.
        suspicions: what hints at a mistake rather than at a weak network, a line each.
    """

    images: int
    top1: float
    percentage: float
    option_share: tuple[tuple[float, ...], ...]
    paths: int
    suspicions: tuple[str, ...] = ()


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
    answers = []
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
            answers.append(torch.stack([labels, logits.argmax(1)]).cpu().numpy())
    finally:
        for module, mode in modes:
            module.training = mode
    rows = costs or [network.options.costs] * network.architecture.gated_blocks
    parts = processes.gather((answers, paths))
    labels, predictions = np.concatenate([batch for some, _ in parts for batch in some], axis=1)
    found = _summarize(rows, int((labels == predictions).sum()), len(images), parts, gated)
    classes = network.architecture.classes
    return replace(found, suspicions=suspicions(labels, predictions, classes, images.class_names))


def _summarize(
    costs: Sequence[Sequence[float]], right: int, images: int, parts: list[_Part], gated: bool
) -> Evaluation:
    counts = [[0] * len(row) for row in costs]
    distinct: set[tuple[int, ...]] = set()
    for _, paths in parts:
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
