"""A bundle against its PyTorch reference on a data set: accuracy, routing, computation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfs_deploy.bundle import Bundle
from dfs_deploy.data import AnyImages
from dfs_deploy.exporters.reference import images_at_once
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import Precision, computation_percentage
from dfs_deploy.progress import Progress, silent
from dfs_deploy.runtimes import Runtime
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
    data: AnyImages,
    progress: Progress = silent,
) -> Comparison:
    """Runs a bundle and its reference, in evaluation mode, on labelled images of the network's size.

    If the runtime holds a budget, the reference holds it by the same bias.
    """
    ours, theirs, errors, done = [], [], [], 0
    for batch, _ in data.batches(images_at_once(runtime.input.shape, BATCH)):
        got = runtime(batch, finite=False)  # logits that are not finite fail the check
        with _charged(network, runtime.score_offset):
            expected = network.route(torch.from_numpy(runtime.input.normalize(batch)))
        logits = expected.logits.numpy()
        # Of a thousand logits per image, only what is counted is kept.
        ours.append(Answers(got.classes, got.path))
        theirs.append(Answers(logits.argmax(1), expected.path.numpy().astype(np.uint8)))
        errors.append(np.abs(got.logits - logits).max())
        done += len(batch)
        progress("comparing", done / len(data))
    answers, reference = (Answers(*map(np.concatenate, zip(*side, strict=True))) for side in (ours, theirs))
    architecture, options, names = runtime.bundle.architecture, runtime.options, runtime.input.class_names
    error, classes, weights = float(np.max(errors)), architecture.classes, architecture.weights(options)
    return summarize(answers, reference, error, data.labels, options.costs, classes, names, weights)


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


class Answers(NamedTuple):
    """Answers of a network: (N,) int64 classes and (N, gated blocks) uint8 path."""

    classes: NDArray[np.int64]
    path: NDArray[np.uint8]


def summarize(
    ours: Answers,
    reference: Answers,
    max_abs_logit_error: float,
    labels: NDArray[np.int64] | None,
    costs: tuple[float, ...],
    classes: int,
    class_names: Sequence[str] = (),
    weights: Sequence[float] | None = None,
) -> Comparison:
    """The figures of a comparison of a bundle's answers with its reference's.

    ``classes`` is their number; ``weights`` are those of the blocks in the computation, ``None`` for equal ones.
    """
    path = ours.path
    agreement = path == reference.path

    def computation(taken: NDArray[np.uint8]) -> float:
        return float(computation_percentage(taken, costs, weights).mean(dtype=np.float64))

    def top1(answers: Answers) -> float | None:
        return None if labels is None else float(np.mean(answers.classes == labels))

    return Comparison(
        samples=len(path),
        top1_reference=top1(reference),
        top1_bundle=top1(ours),
        route_agreement=float(agreement.mean()) if agreement.size else 1.0,
        computation_percentage_reference=computation(reference.path),
        computation_percentage_bundle=computation(path),
        max_abs_logit_error=max_abs_logit_error,
        option_share=tuple(
            tuple(float(np.mean(path[:, block] == option)) for option in range(len(costs)))
            for block in range(path.shape[1])
        ),
        block_agreement=tuple(float(share) for share in agreement.mean(0)),
        suspicions=suspicions(labels, ours.classes, classes, class_names),
    )


def static_top1(bundle: Bundle, data: AnyImages, threads: int | None = None) -> dict[Precision, float]:
    """Share of right answers, 0 to 1, of each static baseline for ONNX Runtime."""
    shares: dict[Precision, float] = {}
    for precision in bundle.manifest.runtimes["onnxruntime"].static:
        with StaticEngine(bundle, precision, threads) as engine:
            right = sum(
                int(np.sum(engine(bundle.input.normalize(images)).argmax(1) == labels))
                for images, labels in data.batches(images_at_once(bundle.input.shape, BATCH))
            )
        shares[precision] = right / len(data)
    return shares
