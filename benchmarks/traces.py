"""The straight-line trace of a path: what the same computation costs as one engine, without gates or dispatch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.exporters.quantized import BlockRanges
from dfs_deploy.exporters.split import Range, split_block, split_head, split_skip, split_stem
from dfs_deploy.exporters.static import FloatStep, Int8Step, SkipStep, Step, straight_line
from dfs_deploy.models import DFSNetwork
from dfs_deploy.runtimes.onnxruntime.binding import aligned_buffer, bind, open_session, session_options


def trace_path(
    bundle: Bundle, network: DFSNetwork, path: NDArray[np.uint8]
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Builds one engine for a path, and binds it at batch 1.

    Args:
        bundle: with the ranges of its INT8 engines.
        network: that the bundle was made from.
        path: (gated blocks,) option indices.

    Returns:
        A call from (1, C, H, W) float32 images to (1, classes) float32 logits.
    """
    calibration = bundle.manifest.calibration
    records = [] if calibration is None else calibration.ranges
    ranges = {(r.block, r.option, r.tensor): Range(r.low, r.high) for r in records}
    stem, first = split_stem(network)
    steps: list[Step] = [FloatStep(first)]
    for index, choice in enumerate(path, 1):
        option, block = bundle.options[int(choice)], network.blocks[index]
        if option.skips:
            steps.append(SkipStep(split_skip(block)))
        elif (index, option.name, "conv1") in ranges:
            tensors = ("conv1", "conv2", "conv2_out", "output", "projection", "projection_out")
            own = {t: ranges[index, option.name, t] for t in tensors if (index, option.name, t) in ranges}
            steps.append(Int8Step(split_block(block, option), BlockRanges(**own)))
        else:
            steps.append(FloatStep(split_block(block, option)))
    session = open_session(
        straight_line("trace", stem, steps, split_head(network)), "trace", session_options(threads=1)
    )
    images = aligned_buffer((1, *bundle.input.shape), np.dtype(np.float32))
    logits = aligned_buffer((1, bundle.architecture.classes), np.dtype(np.float32))
    call = bind(session, images, logits)

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        np.copyto(images, x)
        call()
        return logits.copy()

    return run
