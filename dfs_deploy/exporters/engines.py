"""Float graphs: stem, blocks in FP32 and FP16, projection skips, classifier and gate.

An engine takes its features in one of two layouts: float32, or uint8 on a grid that the graph knows. Block engines end
in float32 here; those that end in uint8 are in ``dfs_deploy.exporters.int8_graphs``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from dfs_deploy.exporters.graph import OPSET, GraphBuilder
from dfs_deploy.exporters.int8 import Grid
from dfs_deploy.exporters.split import BlockPart, ConvPart, GatePart, HeadPart, Window

BATCH = "N"


@dataclass(frozen=True)
class Dialect:
    """Form of the graphs for a runtime.

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


def stem_engine(stem: ConvPart, block: BlockPart, dialect: Dialect = ONNXRUNTIME) -> bytes:
    """The first convolution and the first block: images (N, C, H, W) float32, normalised, to float32 features."""
    graph = GraphBuilder("stem", dialect.opset)
    images = graph.input("images", np.float32, (BATCH, stem.weight.shape[1], *block.shape.in_shape[1:]))
    features = graph.node("Relu", convolve(graph, "stem", images, stem, np.float32))
    return finish(graph, residual(graph, features, block, np.float32), block.shape.out_shape, dialect)


def block_engine(
    name: str, block: BlockPart, dtype: type[np.floating], grid: Grid | None, dialect: Dialect = ONNXRUNTIME
) -> bytes:
    """A block computed in float32 or float16: features in float32, or uint8 on a grid, to float32."""
    graph = GraphBuilder(name, dialect.opset)
    features = feature_input(graph, block.shape.in_shape, grid)
    if dtype is np.float16:
        features = cast(graph, features, np.float16)
    output = residual(graph, features, block, dtype)
    if dtype is np.float16:
        output = cast(graph, output, np.float32)
    return finish(graph, output, block.shape.out_shape, dialect)


def skip_engine(
    name: str, block: BlockPart, projection: ConvPart, grid: Grid | None, dialect: Dialect = ONNXRUNTIME
) -> bytes:
    """The projection of a skipped block, in FP32; arguments as in ``block_engine``."""
    graph = GraphBuilder(name, dialect.opset)
    features = feature_input(graph, block.shape.in_shape, grid)
    output = convolve(graph, "projection", features, projection, np.float32)
    return finish(graph, output, block.shape.out_shape, dialect)


def head_engine(
    head: HeadPart, shape: tuple[int, int, int], grid: Grid | None, dialect: Dialect = ONNXRUNTIME
) -> bytes:
    """The classifier: features of a shape (C, H, W) to logits (N, classes) float32."""
    graph = GraphBuilder("head", dialect.opset)
    features = feature_input(graph, shape, grid)
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
    weights = {"input_weight": stacked, "bias": gate.bias, **_shared_weights(gate)}
    constant = {name: graph.constant(f"{name}_value", value) for name, value in weights.items()}

    channels = graph.node("Shape", pooled, start=1, end=2)
    zero, one = graph.constant("zero", np.array([0], np.int64)), graph.constant("one", np.array([1], np.int64))
    own = graph.node("Gather", constant["input_weight"], block, axis=0)
    own = graph.node("Slice", own, zero, channels, one)
    own_bias = graph.node("Gather", constant["bias"], block, axis=0)
    scores, new_hidden, new_cell = step_gate(graph, gate, pooled, own, own_bias, hidden, cell)
    decision = graph.node("ArgMax", scores, axis=1, keepdims=0, select_last_index=0)

    graph.output(scores, "scores", np.float32, (BATCH, gate.projection_weight.shape[0]))
    graph.output(decision, "decision", np.int64, (BATCH,))
    graph.output(new_hidden, "hidden_out", np.float32, (BATCH, hidden_size))
    graph.output(new_cell, "cell_out", np.float32, (BATCH, hidden_size))
    for name, value in weights.items():
        graph.output(constant[name], name, np.float32, value.shape)
    return graph.build()


def step_gate(
    graph: GraphBuilder, gate: GatePart, pooled: str, weight: str, bias: str, hidden: str, cell: str
) -> tuple[str, str, str]:
    """Adds one step of the gate.

    Args:
        graph: graph to add it to.
        gate: the gate; the weights that its steps share become constants.
        pooled: (N, channels) float32, a block's output averaged over the map.
        weight: (4 * hidden, channels) float32, the step's input weight.
        bias: (4 * hidden,) float32.
        hidden: (N, hidden) float32.
        cell: (N, hidden) float32.

    Returns:
        Scores (N, options), and the new hidden and cell state.
    """
    shared = {name: graph.constant(f"{name}_value", value) for name, value in _shared_weights(gate).items()}
    step = graph.node("Gemm", pooled, weight, bias, transB=1)
    step = graph.node("Gemm", hidden, shared["recurrent_weight"], step, transB=1)
    size = gate.recurrent_weight.shape[1]
    bounds = [graph.constant(f"bound_{i}", np.array([i], np.int64)) for i in range(0, 5 * size, size)]
    one = graph.constant("one", np.array([1], np.int64))
    activations = ("Sigmoid", "Sigmoid", "Tanh", "Sigmoid")
    input_gate, forget_gate, candidate, output_gate = (
        graph.node(activation, graph.node("Slice", step, start, end, one))
        for activation, (start, end) in zip(activations, itertools.pairwise(bounds), strict=True)
    )
    kept, added = graph.node("Mul", forget_gate, cell), graph.node("Mul", input_gate, candidate)
    new_cell = graph.node("Add", kept, added)
    new_hidden = graph.node("Mul", output_gate, graph.node("Tanh", new_cell))
    scores = graph.node("Gemm", new_hidden, shared["projection_weight"], shared["projection_bias"], transB=1)
    return scores, new_hidden, new_cell


def _shared_weights(gate: GatePart) -> dict[str, NDArray[np.float32]]:
    return {
        "recurrent_weight": gate.recurrent_weight,
        "projection_weight": gate.projection_weight,
        "projection_bias": gate.projection_bias,
    }


def feature_input(graph: GraphBuilder, shape: tuple[int, int, int], grid: Grid | None) -> str:
    """Declares the input ``features`` of a shape (C, H, W) and returns it as float32, read from its grid if it has one.

    uint8 features lie in memory channels last: ONNX Runtime's integer convolutions work channels last, so that between
    two of them the transpositions cancel.
    """
    if grid is None:
        return graph.input("features", np.float32, (BATCH, *shape))
    return graph.node("DequantizeLinear", uint8_input(graph, shape), *grid_constants(graph, "features", grid))


def uint8_input(graph: GraphBuilder, shape: tuple[int, int, int]) -> str:
    """Declares uint8 ``features`` of a shape (C, H, W), channels last, and returns them channels first."""
    channels, height, width = shape
    features = graph.input("features", np.uint8, (BATCH, height, width, channels))
    return graph.node("Transpose", features, perm=[0, 3, 1, 2])


def grid_constants(graph: GraphBuilder, name: str, grid: Grid) -> tuple[str, str]:
    """Scale and zero point of a tensor, as constants."""
    zero_point = np.int8(grid.zero_point) if grid.signed else np.uint8(grid.zero_point)
    return (
        graph.constant(f"{name}_scale", np.float32(grid.scale)),
        graph.constant(f"{name}_zero_point", zero_point),
    )


def finish(graph: GraphBuilder, features: str, shape: tuple[int, int, int], dialect: Dialect) -> bytes:
    """Makes float32 features (C, H, W), with their mean if the dialect wants it, the output of a graph; builds it."""
    graph.output(features, "output", np.float32, (BATCH, *shape))
    if dialect.pooled:
        graph.output(mean_over_map(graph, "output"), "pooled", np.float32, (BATCH, shape[0]))
    return graph.build()


def residual(graph: GraphBuilder, features: str, block: BlockPart, dtype: type[np.floating], prefix: str = "") -> str:
    """Adds a block in float arithmetic, with constants named from ``prefix``; returns the name of its output."""
    shortcut = y = features
    if block.projection is not None:
        shortcut = convolve(graph, f"{prefix}projection", features, block.projection, dtype)
    for i, part in enumerate(block.branch, 1):
        y = convolve(graph, f"{prefix}conv{i}", y, part, dtype)
        if i < len(block.branch):
            y = graph.node("Relu", y)
    return graph.node("Relu", graph.node("Add", y, shortcut))


def convolve(graph: GraphBuilder, name: str, x: str, part: ConvPart, dtype: type[np.floating]) -> str:
    """Adds a convolution in float arithmetic, its input clamped first if its option saturates."""
    if part.saturates is not None:
        ends = {"low": part.saturates.low, "high": part.saturates.high}
        x = graph.node("Clip", x, *(graph.constant(f"{name}_{end}", np.array(v, dtype)) for end, v in ends.items()))
    with np.errstate(over="ignore"):  # what float16 cannot hold is found when the engine is validated
        weight = graph.constant(f"{name}_weight", part.weight.astype(dtype))
        bias = graph.constant(f"{name}_bias", part.bias.astype(dtype))
    return graph.node("Conv", x, weight, bias, **conv_attributes(part.window))


def conv_attributes(window: Window) -> dict[str, Any]:
    """Attributes of a Conv node, spelled out."""
    return {"kernel_shape": [window.kernel] * 2, "strides": [window.stride] * 2, "pads": [window.padding] * 4}


def classify(graph: GraphBuilder, features: str, head: HeadPart, dtype: type[np.floating]) -> str:
    """Adds the classifier; returns the name of the logits."""
    pooled = mean_over_map(graph, features)
    weight = graph.constant("head_weight", head.weight.astype(dtype))
    return graph.node("Gemm", pooled, weight, graph.constant("head_bias", head.bias.astype(dtype)), transB=1)


def mean_over_map(graph: GraphBuilder, features: str) -> str:
    """Features (N, C, H, W) averaged over the map, (N, C)."""
    return graph.node("Flatten", graph.node("GlobalAveragePool", features))


def cast(graph: GraphBuilder, value: str, dtype: type[np.floating]) -> str:
    """A value as another type."""
    return graph.node("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
