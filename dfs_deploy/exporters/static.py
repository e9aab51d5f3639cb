"""The static baselines: the whole backbone as one engine, every block in one precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dfs_deploy.exporters.engines import (
    BATCH,
    ONNXRUNTIME,
    TENSORRT,
    Dialect,
    cast,
    classify,
    convolve,
    residual,
)
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.exporters.int8 import Grid, Int8Block, Int8Conv
from dfs_deploy.exporters.int8_graphs import (
    dequantize,
    onnxruntime_block,
    onnxruntime_conv,
    quantize,
    quantized,
    tensorrt_block,
    tensorrt_conv,
)
from dfs_deploy.exporters.split import BlockPart, ConvPart, HeadPart


def static_engine(
    name: str,
    stem: ConvPart | Int8Conv,
    blocks: Sequence[BlockPart | Int8Block],
    head: HeadPart,
    *,
    dtype: type[np.floating] = np.float32,
    dialect: Dialect = ONNXRUNTIME,
) -> bytes:
    """The backbone with every block run.

    Args:
        name: name of the graph.
        stem: the first convolution, in float arithmetic or in INT8.
        blocks: every block, the first included; an INT8 block takes its features as the part before it gives them, and
            no block in float arithmetic comes after one in INT8.
        head: the classifier.
        dtype: type of the float parts; images and logits are float32 in any case.
        dialect: dialect of the runtime.

    Returns:
        A model from ``images`` (N, C, H, W) float32 to ``output`` (N, classes) float32.
    """
    graph = GraphBuilder(name, dialect.opset)
    images = graph.input("images", np.float32, (BATCH, stem.weight.shape[1], *blocks[0].shape.in_shape[1:]))
    grid: Grid | None = None
    if isinstance(stem, ConvPart):
        x = cast(graph, images, dtype) if dtype is not np.float32 else images
        x = graph.node("Relu", convolve(graph, "stem", x, stem, dtype))
    elif dialect == TENSORRT:
        x = quantized(graph, "stem_images", images, stem.takes)
        x = graph.node("Relu", tensorrt_conv(graph, "stem_conv", x, stem))
    else:
        x = onnxruntime_conv(graph, "stem_conv", quantize(graph, "stem_images", images, stem.takes), stem)
        grid = stem.gives
    for index, block in enumerate(blocks):
        prefix = f"block_{index}_"
        if isinstance(block, BlockPart):
            x = residual(graph, x, block, dtype, prefix)
        elif dialect == TENSORRT:
            x = tensorrt_block(graph, x, block, prefix)
        else:
            x, grid = onnxruntime_block(graph, x, block, prefix), block.output
    logits = classify(graph, dequantize(graph, "head_input", x, grid), head, dtype)
    if dtype is not np.float32:
        logits = cast(graph, logits, np.float32)
    graph.output(logits, "output", np.float32, (BATCH, head.weight.shape[0]))
    return graph.build()
