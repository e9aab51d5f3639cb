"""A bundle against its PyTorch reference on a data set: accuracy, routing, computation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfs_deploy.bundle import Bundle
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import Precision, computation_percentage
from dfs_deploy.progress import Progress, silent
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.budgets import score_offset
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine
from dfs_deploy.suspicion import suspicions

BATCH = 128


@dataclass(frozen=True)
class Comparison:
    """Figures of a bundle and its reference on the same images; shares are 0 to 1, percentages 0 to 100.

    Attributes:
        samples: number of images compared.
        top1_reference: share of right answers of the reference; ``None`` without labels.
        top1_bundle: share of right answers of the bundle.
        route_agreement: share of block decisions equal to the reference's.
        computation_percentage_reference: mean over the samples, in the reference.
        computation_percentage_bundle: mean over the samples, in the bundle.
        max_abs_logit_error: greatest difference of a logit.
        option_share: (gated blocks, options) share of the samples that took each option, in the bundle.
        block_agreement: (gated blocks,) route agreement at each block.
        suspicions: hints at a mistake rather than at a weak network, one line each.
    """

    samples: int
    top1_reference: float | None
    top1_bundle: float | None
    route_agreement: float
    computation_percentage_reference: float
    computation_percentage_bundle: float
    max_abs_logit_error: float
    option_share: tuple[tuple[float, ...], ...]
    block_agreement: tuple[float, ...]
    suspicions: tuple[str, ...] = ()


def compare(
    runtime: Runtime,
    network: DFSNetwork,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    progress: Progress = silent,
) -> Comparison:
    """Runs a bundle and its reference, in evaluation mode, on images (N, H, W, C) uint8.

    If the runtime holds a budget, the reference holds it by the same bias.
    """
    parts = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        ours = runtime(batch, finite=False)  # logits that are not finite fail the check
        with _charged(network, score_offset(runtime.cost_bias, runtime.bundle.architecture, runtime.options)):
            theirs = network.route(torch.from_numpy(runtime.input.normalize(batch)))
        parts.append((ours.logits, ours.path, theirs.logits.numpy(), theirs.path.numpy().astype(np.uint8)))
        progress("comparing", (start + len(batch)) / len(images))
    logits, path, reference_logits, reference_path = (np.concatenate(part) for part in zip(*parts, strict=True))
    costs, class_names = runtime.options.costs, runtime.input.class_names
    weights = runtime.bundle.architecture.weights(runtime.options)
    return summarize(logits, path, reference_logits, reference_path, labels, costs, class_names, weights)


@contextmanager
def _charged(network: DFSNetwork, offset: NDArray[np.float32]) -> Iterator[None]:
    """Adds an offset (gates, options) to the scores of the reference's gate for a while."""
    if network.gate is None:
        yield
        return
    rows = torch.from_numpy(offset)

    def charge(gate: nn.Module, inputs: tuple[Any, ...], output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        scores, state = output
        return scores + rows[inputs[0]], state

    hook = network.gate.register_forward_hook(charge)
    try:
        yield
    finally:
        hook.remove()


def summarize(
    logits: NDArray[np.float32],
    path: NDArray[np.uint8],
    reference_logits: NDArray[np.float32],
    reference_path: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    costs: tuple[float, ...],
    class_names: Sequence[str] = (),
    weights: Sequence[float] | None = None,
) -> Comparison:
    """The figures of a comparison, from both sides' logits (N, classes) and paths (N, blocks).

    ``weights`` are those of the blocks in the computation; ``None`` for equal ones.
    """
    agreement = path == reference_path

    def computation(taken: NDArray[np.uint8]) -> float:
        return float(computation_percentage(taken, costs, weights).mean(dtype=np.float64))

    def top1(values: NDArray[np.float32]) -> float | None:
        return None if labels is None else float(np.mean(values.argmax(1) == labels))

    return Comparison(
        samples=len(logits),
        top1_reference=top1(reference_logits),
        top1_bundle=top1(logits),
        route_agreement=float(agreement.mean()) if agreement.size else 1.0,
        computation_percentage_reference=computation(reference_path),
        computation_percentage_bundle=computation(path),
        max_abs_logit_error=float(np.abs(logits - reference_logits).max()),
        option_share=tuple(
            tuple(float(np.mean(path[:, block] == option)) for option in range(len(costs)))
            for block in range(path.shape[1])
        ),
        block_agreement=tuple(float(share) for share in agreement.mean(0)),
        suspicions=suspicions(labels, logits.argmax(1), logits.shape[1], class_names),
    )


def static_top1(
    bundle: Bundle, images: NDArray[np.uint8], labels: NDArray[np.int64], threads: int | None = None
) -> dict[Precision, float]:
    """Share of right answers, 0 to 1, of each static baseline for ONNX Runtime, on images (N, H, W, C) uint8."""
    shares: dict[Precision, float] = {}
    for precision in bundle.manifest.runtimes["onnxruntime"].static:
        with StaticEngine(bundle, precision, threads) as engine:
            right = sum(
                int(np.sum(engine(bundle.input.normalize(images[s : s + BATCH])).argmax(1) == labels[s : s + BATCH]))
                for s in range(0, len(images), BATCH)
            )
        shares[precision] = right / len(images)
    return shares
