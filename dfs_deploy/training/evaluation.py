"""Evaluation of a network on images that it was not trained on, each routed by its own choices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dfs_deploy.models import DFSNetwork
from dfs_deploy.suspicion import suspicions
from dfs_deploy.training.data import Images
from dfs_deploy.training.metrics import Evaluation
from dfs_deploy.training.processes import Processes

_BATCH = 250


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
        network: the network; its mode is restored afterwards, also after an error.
        images: images to classify.
        processes: processes that share the work.
        gated: whether the gate or policy chooses; otherwise every block runs in full precision.
        costs: cost of each option at each gated block; ``None`` for ``(bits / 32) ** 2`` (Section 4, Metrics).
    """
    processes = processes or Processes()
    modes = [(module, module.training) for module in network.modules()]
    share = processes.share(len(images))
    blocks = network.architecture.gated_blocks
    answers = [np.zeros((0, 2 + blocks), np.int64)]
    try:
        network.eval()
        for start in range(share.start, share.stop, _BATCH):
            pixels, labels = images.take(slice(start, min(start + _BATCH, share.stop)))
            x = images.normalize(pixels)
            if gated:
                output = network.route(x)
                logits, path = output.logits, output.path
            else:
                logits, path = network.backbone(x), labels.new_zeros(len(labels), blocks)
            answers.append(torch.column_stack([labels, logits.argmax(1), path]).cpu().numpy())
    finally:
        for module, mode in modes:
            module.training = mode
    every = np.concatenate(processes.gather(np.concatenate(answers)))
    truth, predicted, path_of = every[:, 0], every[:, 1], every[:, 2:]
    rows = np.asarray(costs or [network.options.costs] * blocks)
    counts = np.array([np.bincount(column, minlength=len(network.options)) for column in path_of.T])
    return Evaluation(
        images=len(images),
        top1=float((truth == predicted).mean()),
        percentage=100.0 * float((counts * rows).sum()) / (len(images) * blocks) if gated and blocks else 100.0,
        option_share=(counts / len(images)).tolist() if gated else [],
        paths=len(np.unique(path_of, axis=0)) if gated and blocks else 1,
        suspicions=list(suspicions(truth, predicted, network.architecture.classes, images.class_names)),
    )
