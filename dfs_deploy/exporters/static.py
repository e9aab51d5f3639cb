"""Straight-line graphs: the whole network along one fixed path, as one engine.

The static baselines are such graphs, with every block in one precision, and so is the trace of any path, which tells
what control flow costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfs_deploy.exporters.engines import (
    BATCH,
    ONNXRUNTIME,
    TENSORRT,
    Dialect,
    Grid,
    cast,
    classify,
    convolve,
    residual,
)
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.exporters.quantized import BlockRanges, OnnxRuntimeWriter, output_grid, uint8_grid
from dfs_deploy.exporters.quantized_tensorrt import TensorRTWriter
from dfs_deploy.exporters.split import BlockPart, ConvPart, HeadPart, Range


@dataclass(frozen=True)
class SkipStep:
    """A skipped block: nothing, or its projection in FP32."""

    projection: ConvPart | None


@dataclass(frozen=True)
class FloatStep:
    """A block in float arithmetic."""

    block: BlockPart


@dataclass(frozen=True)
class Int8Step:
    """A block in INT8, ending on the grid of ``ranges.output``."""

    block: BlockPart
    ranges: BlockRanges


Step = SkipStep | FloatStep | Int8Step


@dataclass(frozen=True)
class StemRanges:
    """Calibrated intervals of the first convolution: its input and its output after the relu."""

    images: Range
    output: Range


def straight_line(
    name: str,
    stem: ConvPart,
    steps: Sequence[Step],
    head: HeadPart,
    *,
    dtype: type[np.floating] = np.float32,
    stem_ranges: StemRanges | None = None,
    weight_bits: int = 8,
    dialect: Dialect = ONNXRUNTIME,
) -> bytes:
    """The network along one path.

    Args:
        name: name of the graph.
        stem: the first convolution.
        steps: every block, the first included.
        head: the classifier.
        dtype: type of the float parts; images and logits are float32 in any case.
        stem_ranges: for a first convolution in INT8, or ``None`` for one in float arithmetic.
        weight_bits: bits of INT8 weights for ONNX Runtime.
        dialect: dialect of the runtime.

    Returns:
        A model from ``images`` (N, C, H, W) float32 to ``output`` (N, classes) float32.
    """
    graph = GraphBuilder(name, dialect.opset)
    first = next(step.block.shape for step in steps if not isinstance(step, SkipStep))
    x = graph.input("images", np.float32, (BATCH, stem.weight.shape[1], *first.in_shape[1:]))
    grid: Grid | None = None
    if stem_ranges is not None and dialect == TENSORRT:
        rounding = TensorRTWriter(graph, "stem_")
        x = graph.node("Relu", rounding.conv("conv", rounding.quantize("images", x, stem_ranges.images), stem))
    elif stem_ranges is not None:
        writer = OnnxRuntimeWriter(graph, weight_bits, "stem_")
        images, grid = uint8_grid(stem_ranges.images), uint8_grid(Range(0.0, stem_ranges.output.high))
        x = writer.conv("conv", writer.quantize("images", x, images), images, stem, grid)
    else:
        x = cast(graph, x, dtype) if dtype is not np.float32 else x
        x = graph.node("Relu", convolve(graph, "stem", x, stem, dtype))
    for index, step in enumerate(steps):
        prefix = f"block_{index}_"
        if isinstance(step, Int8Step):
            if grid is None and dtype is not np.float32:
                x = cast(graph, x, np.float32)
            if dialect == TENSORRT:
                x = TensorRTWriter(graph, prefix).block(x, step.block, step.ranges)
                continue
            x = OnnxRuntimeWriter(graph, weight_bits, prefix).block(x, grid, step.block, step.ranges)
            grid = output_grid(step.ranges)
        elif isinstance(step, FloatStep) or step.projection is not None:
            x, grid = _floats(graph, f"{prefix}input", x, grid, dtype), None
            if isinstance(step, FloatStep):
                x = residual(graph, x, step.block, dtype, prefix)
            elif step.projection is not None:
                x = convolve(graph, f"{prefix}projection", x, step.projection, dtype)
    logits = classify(graph, _floats(graph, "head_input", x, grid, dtype), head, dtype)
    if dtype is not np.float32:
        logits = cast(graph, logits, np.float32)
    graph.output(logits, "output", np.float32, (BATCH, head.weight.shape[0]))
    return graph.build()


def _floats(graph: GraphBuilder, name: str, x: str, grid: Grid | None, dtype: type[np.floating]) -> str:
    if grid is None:
        return x
    x = OnnxRuntimeWriter(graph, 8).dequantize(name, x, grid)
    return x if dtype is np.float32 else cast(graph, x, dtype)
