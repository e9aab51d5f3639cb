"""Float graphs: stem, blocks in FP32 and FP16, projection skips, classifier and gate.

An engine takes its features in one of two layouts: float32, or uint8 on a grid that the graph knows. Block engines end
in float32 here; those that end in uint8 are in :mod:`dfs_deploy.exporters.quantized`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dfs_deploy.exporters.graph import OPSET, GraphBuilder
from dfs_deploy.exporters.split import BlockPart, ConvPart, GatePart, HeadPart
from dfs_deploy.network import Block

BATCH = "N"


@dataclass(frozen=True)
class Dialect:
    """What a runtime wants of a graph.

    Attributes:
        opset: version of the ONNX operators.
        pooled: whether a feature map comes with its mean over the map, ``pooled`` (N, C) float32: on a GPU that is all
            of it that the host has to read to step the gate.
    """

    opset: int
    pooled: bool


ONNXRUNTIME = Dialect(OPSET, pooled=False)
TENSORRT = Dialect(19, pooled=True)
"""Opset 19 brought float16 scales to QuantizeLinear; the parser of TensorRT 10.3, that of JetPack 6, reads up to 20."""


@dataclass(frozen=True)
class Grid:
    """The uint8 values of a feature map: ``value = scale * (q - zero_point)``."""

    scale: float
    zero_point: int = 0


def feature_input(graph: GraphBuilder, channels: int, size: tuple[int, int], grid: Grid | None) -> str:
    """Declares the input ``features`` and returns it as float32: read from the grid where there is one."""
    if grid is None:
        return graph.input("features", np.float32, (BATCH, channels, *size))
    return graph.node("DequantizeLinear", uint8_input(graph, channels, size), *grid_constants(graph, "features", grid))


def uint8_input(graph: GraphBuilder, channels: int, size: tuple[int, int]) -> str:
    """Declares uint8 ``features``, which lie in memory channels last, and returns them channels first.

    ONNX Runtime's integer convolutions work channels last: between two of them the transpositions cancel.
    """
    features = graph.input("features", np.uint8, (BATCH, *size, channels))
    return graph.node("Transpose", features, perm=[0, 3, 1, 2])


def grid_constants(graph: GraphBuilder, name: str, grid: Grid) -> tuple[str, str]:
    """Scale and zero point of a uint8 tensor, as constants."""
    return (
        graph.constant(f"{name}_scale", np.float32(grid.scale)),
        graph.constant(f"{name}_zero_point", np.uint8(grid.zero_point)),
    )


def stem_engine(stem: ConvPart, block: BlockPart, dialect: Dialect = ONNXRUNTIME) -> bytes:
    """Images (N, C, H, W) float32, normalised, to the first block's output, float32."""
    shape = block.shape
    graph = GraphBuilder("stem", dialect.opset)
    images = graph.input("images", np.float32, (BATCH, stem.weight.shape[1], *shape.in_shape[1:]))
    features = graph.node("Relu", convolve(graph, "stem", images, stem, np.float32))
    return finish(graph, residual(graph, features, block, np.float32), block.shape, dialect)


def block_engine(
    name: str, block: BlockPart, dtype: type[np.floating], grid: Grid | None, dialect: Dialect = ONNXRUNTIME
) -> bytes:
    """A block in float arithmetic: features to features, float32 at the end.

    Args:
        name: name of the graph.
        block: the block as its option computes it.
        dtype: ``np.float32``, or ``np.float16`` for a graph whose weights and arithmetic are float16.
        grid: grid of a uint8 input, or ``None`` for float32.
        dialect: dialect of the runtime.
    """
    graph = GraphBuilder(name, dialect.opset)
    features = feature_input(graph, block.shape.in_channels, block.shape.in_shape[1:], grid)
    if dtype is np.float16:
        features = cast(graph, features, np.float16)
    output = residual(graph, features, block, dtype)
    if dtype is np.float16:
        output = cast(graph, output, np.float32)
    return finish(graph, output, block.shape, dialect)


def skip_engine(
    name: str, block: BlockPart, projection: ConvPart, grid: Grid | None, dialect: Dialect = ONNXRUNTIME
) -> bytes:
    """What a skipped block with a projection passes on, in FP32."""
    graph = GraphBuilder(name, dialect.opset)
    features = feature_input(graph, block.shape.in_channels, block.shape.in_shape[1:], grid)
    output = convolve(graph, "projection", features, projection, np.float32)
    return finish(graph, output, block.shape, dialect)


def head_engine(head: HeadPart, size: tuple[int, int], grid: Grid | None, dialect: Dialect = ONNXRUNTIME) -> bytes:
    """The last features to logits (N, classes) float32."""
    graph = GraphBuilder("head", dialect.opset)
    features = feature_input(graph, head.weight.shape[1], size, grid)
    graph.output(classify(graph, features, head, np.float32), "output", np.float32, (BATCH, head.weight.shape[0]))
    return graph.build()


def gate_engine(gate: GatePart) -> bytes:
    """One step of the gate after any block.

    Inputs: ``pooled`` (N, channels) float32, the block's output averaged over the map; ``block`` () int64, its index;
    ``hidden`` and ``cell`` (N, hidden) float32. Outputs: ``scores`` (N, options), ``decision`` (N,) int64, and the new
    ``hidden_out`` and ``cell_out``. The weights are outputs as well, so that a runtime without an ONNX reader can ask
    an ONNX runtime for them: ``input_weight`` (gates, 4 * hidden, widest), zero beyond a gate's own channels, ``bias``
    (gates, 4 * hidden), ``recurrent_weight``, ``projection_weight`` and ``projection_bias``.
    """
    hidden_size = gate.recurrent_weight.shape[1]
    widest = max((weight.shape[1] for weight in gate.input_weight), default=1)
    stacked = np.zeros((len(gate.input_weight), 4 * hidden_size, widest), np.float32)
    for i, weight in enumerate(gate.input_weight):
        stacked[i, :, : weight.shape[1]] = weight

    graph = GraphBuilder("gate")
    pooled = graph.input("pooled", np.float32, (BATCH, "channels"))
    block = graph.input("block", np.int64, ())
    hidden = graph.input("hidden", np.float32, (BATCH, hidden_size))
    cell = graph.input("cell", np.float32, (BATCH, hidden_size))
    weights = {
        "input_weight": stacked,
        "bias": gate.bias,
        "recurrent_weight": gate.recurrent_weight,
        "projection_weight": gate.projection_weight,
        "projection_bias": gate.projection_bias,
    }
    constant = {name: graph.constant(f"{name}_value", value) for name, value in weights.items()}

    own = graph.node("Gather", constant["input_weight"], block, axis=0)
    channels = graph.node("Shape", pooled, start=1, end=2)
    zero, one = graph.constant("zero", np.array([0], np.int64)), graph.constant("one", np.array([1], np.int64))
    own = graph.node("Slice", own, zero, channels, one)
    bias = graph.node("Gather", constant["bias"], block, axis=0)
    step = graph.node("Gemm", pooled, own, bias, transB=1)
    step = graph.node("Gemm", hidden, constant["recurrent_weight"], step, transB=1)
    parts = []
    for i, activation in enumerate(("Sigmoid", "Sigmoid", "Tanh", "Sigmoid")):
        bounds = (np.array([i * hidden_size], np.int64), np.array([(i + 1) * hidden_size], np.int64))
        start, end = (graph.constant(f"bound_{b[0]}", b) for b in bounds)
        parts.append(graph.node(activation, graph.node("Slice", step, start, end, one)))
    input_gate, forget_gate, candidate, output_gate = parts
    new_cell = graph.node(
        "Add", graph.node("Mul", forget_gate, cell), graph.node("Mul", input_gate, candidate), name="new_cell"
    )
    new_hidden = graph.node("Mul", output_gate, graph.node("Tanh", new_cell), name="new_hidden")
    scores = graph.node("Gemm", new_hidden, constant["projection_weight"], constant["projection_bias"], transB=1)
    decision = graph.node("ArgMax", scores, axis=1, keepdims=0, select_last_index=0)

    options = gate.projection_weight.shape[0]
    graph.output(scores, "scores", np.float32, (BATCH, options))
    graph.output(decision, "decision", np.int64, (BATCH,))
    graph.output(new_hidden, "hidden_out", np.float32, (BATCH, hidden_size))
    graph.output(new_cell, "cell_out", np.float32, (BATCH, hidden_size))
    for name, value in weights.items():
        graph.output(constant[name], name, np.float32, value.shape)
    return graph.build()


def finish(graph: GraphBuilder, features: str, shape: Block, dialect: Dialect) -> bytes:
    """Makes float32 features the output of a graph, with their mean where the dialect wants it; returns the model."""
    graph.output(features, "output", np.float32, (BATCH, *shape.out_shape))
    if dialect.pooled:
        graph.output(mean_over_map(graph, "output"), "pooled", np.float32, (BATCH, shape.out_channels))
    return graph.build()


def residual(graph: GraphBuilder, features: str, block: BlockPart, dtype: type[np.floating], prefix: str = "") -> str:
    """The block's nodes in float arithmetic, constants named from ``prefix``; returns the output's name."""
    shortcut = features
    if block.projection is not None:
        shortcut = convolve(graph, f"{prefix}projection", features, block.projection, dtype)
    y = graph.node("Relu", convolve(graph, f"{prefix}conv1", features, block.conv1, dtype))
    y = convolve(graph, f"{prefix}conv2", y, block.conv2, dtype)
    return graph.node("Relu", graph.node("Add", y, shortcut))


def convolve(graph: GraphBuilder, name: str, x: str, part: ConvPart, dtype: type[np.floating]) -> str:
    """A convolution in float arithmetic, its input clamped first where its option saturates."""
    if part.saturates is not None:
        bounds = (part.saturates.low, part.saturates.high)
        low, high = (
            graph.constant(f"{name}_{end}", np.array(v, dtype)) for end, v in zip(("low", "high"), bounds, strict=True)
        )
        x = graph.node("Clip", x, low, high)
    with np.errstate(over="ignore"):  # what float16 cannot hold is found when the engine is validated
        weight = graph.constant(f"{name}_weight", part.weight.astype(dtype))
        bias = graph.constant(f"{name}_bias", part.bias.astype(dtype))
    return graph.node("Conv", x, weight, bias, **conv_attributes(part))


def classify(graph: GraphBuilder, features: str, head: HeadPart, dtype: type[np.floating]) -> str:
    """The classifier's nodes; returns the logits' name."""
    pooled = mean_over_map(graph, features)
    weight = graph.constant("head_weight", head.weight.astype(dtype))
    return graph.node("Gemm", pooled, weight, graph.constant("head_bias", head.bias.astype(dtype)), transB=1)


def mean_over_map(graph: GraphBuilder, features: str) -> str:
    """Features (N, C, H, W) averaged over the map, (N, C)."""
    return graph.node("Flatten", graph.node("GlobalAveragePool", features))


def conv_attributes(part: ConvPart) -> dict[str, Any]:
    """Attributes of a Conv node, spelled out."""
    kernel = part.weight.shape[2]
    return {"kernel_shape": [kernel] * 2, "strides": [part.stride] * 2, "pads": [part.padding] * 4}


def cast(graph: GraphBuilder, value: str, dtype: type[np.floating]) -> str:
    """Casts a value."""
    from onnx import helper

    return graph.node("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
