"""Engines as ONNX models: parts of a network between features and features, and the gate's step.

An engine takes its features in one of two layouts: float32, or uint8 on a grid that the graph knows. It gives float32,
or uint8 on a grid. What lies between, in float arithmetic, is in ``dfs_deploy.exporters.layers``; in INT8, in
``dfs_deploy.exporters.int8_graphs``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import helper

from dfs_deploy.exporters.graph import OPSET, GraphBuilder
from dfs_deploy.exporters.int8 import Grid
from dfs_deploy.exporters.layers import Float, float_part
from dfs_deploy.exporters.split import GatePart, Part

BATCH = "N"

IMAGES, FEATURES = "images", "features"
"""Names of the input of an engine: of the stem and of a static network, and of every other."""


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

Body = Callable[[GraphBuilder, str], str]
"""Adds an engine's arithmetic to a graph, from the name of its input to that of its output."""


def part_engine(
    name: str,
    part: Part,
    body: Body,
    dialect: Dialect = ONNXRUNTIME,
    *,
    takes: Grid | None = None,
    gives: Grid | None = None,
    source: str = FEATURES,
) -> bytes:
    """A part of a network as a model.

    uint8 features lie in memory channels last: ONNX Runtime's integer convolutions work channels last, so that between
    two of them the transpositions cancel.

    Args:
        name: name of the graph.
        part: the part, whose shapes it has.
        body: its arithmetic: from (N, C, H, W), uint8 if ``takes`` is a grid, to float32 as the part gives it, or uint8
            (N, H, W, C) if ``gives`` is a grid.
        dialect: form of the graph.
        takes: grid of the features; ``None`` for float32.
        gives: grid of the output; ``None`` for float32.
        source: name of the input.
    """
    graph = GraphBuilder(name, dialect.opset)
    if takes is None:
        x = graph.input(source, np.float32, (BATCH, *part.in_shape))
    else:
        channels, *size = part.in_shape
        x = graph.node("Transpose", graph.input(source, np.uint8, (BATCH, *size, channels)), perm=[0, 3, 1, 2])
    y, shape = body(graph, x), part.out_shape
    if gives is not None:
        graph.output(y, "output", np.uint8, (BATCH, *shape[1:], shape[0]))
        return graph.build()
    graph.output(y, "output", np.float32, (BATCH, *shape))
    if dialect.pooled and len(shape) == len(part.in_shape):
        graph.output(mean_over_map(graph, "output"), "pooled", np.float32, (BATCH, shape[0]))
    return graph.build()


def float_engine(
    name: str,
    part: Part,
    dtype: Float = np.float32,
    dialect: Dialect = ONNXRUNTIME,
    *,
    takes: Grid | None = None,
    source: str = FEATURES,
) -> bytes:
    """A part computed in float32 or float16, with float32 at both ends, or from uint8; see ``part_engine``."""

    def body(graph: GraphBuilder, x: str) -> str:
        if takes is not None:
            x = graph.node("DequantizeLinear", x, *grid_constants(graph, source, takes))
        return float_body(graph, x, part, dtype)

    return part_engine(name, part, body, dialect, takes=takes, source=source)


def float_body(graph: GraphBuilder, x: str, part: Part, dtype: Float, prefix: str = "") -> str:
    """Adds a part in float32 or float16, from float32 to float32; returns the name of its output."""
    if dtype is np.float32:
        return float_part(graph, x, part, dtype, prefix)
    return cast(graph, float_part(graph, cast(graph, x, dtype), part, dtype, prefix), np.float32)


def gate_engine(gate: GatePart) -> bytes:
    """One step of the gate after any block.

    Inputs: ``pooled`` (N, channels) float32, the block's output averaged over the map; ``block`` () int64, its index;
    and of a gate with memory ``hidden`` and ``cell`` (N, hidden) float32. Outputs: ``scores`` (N, options),
    ``decision`` (N,) int64, and of a gate with memory the new ``hidden_out`` and ``cell_out``. The weights are outputs
    as well, so that a runtime without an ONNX reader can ask an ONNX runtime for them: ``input_weight`` (gates, rows,
    widest), zero beyond a gate's own channels, and the other arrays of ``GatePart``.
    """
    widest = max((weight.shape[1] for weight in gate.input_weight), default=1)
    stacked = np.zeros((len(gate.input_weight), gate.bias.shape[1], widest), np.float32)
    for i, weight in enumerate(gate.input_weight):
        stacked[i, :, : weight.shape[1]] = weight
    per_gate = {"input_weight": stacked, **gate.stacked}
    weights = {**per_gate, **gate.shared}

    graph = GraphBuilder("gate")
    pooled = graph.input("pooled", np.float32, (BATCH, "channels"))
    block = graph.input("block", np.int64, ())
    names = STATE if gate.has_memory else ()
    state = [graph.input(name, np.float32, (BATCH, gate.hidden)) for name in names]
    constant = {name: graph.constant(f"{name}_value", value) for name, value in weights.items()}

    own = {name: graph.node("Gather", constant[name], block, axis=0) for name in per_gate}
    channels = graph.node("Shape", pooled, start=1, end=2)
    zero, one = graph.constant("zero", np.array([0], np.int64)), graph.constant("one", np.array([1], np.int64))
    own["input_weight"] = graph.node("Slice", own["input_weight"], zero, channels, one)
    scores, new_state = step_gate(graph, gate, pooled, {**constant, **own}, state)
    decision = graph.node("ArgMax", scores, axis=1, keepdims=0, select_last_index=0)

    graph.output(scores, "scores", np.float32, (BATCH, gate.projection_bias.shape[1]))
    graph.output(decision, "decision", np.int64, (BATCH,))
    for name, value in zip(names, new_state, strict=True):
        graph.output(value, f"{name}_out", np.float32, (BATCH, gate.hidden))
    for name, array in weights.items():
        graph.output(constant[name], name, np.float32, array.shape)
    return graph.build()


STATE = ("hidden", "cell")
"""Names of a gate's memory."""


def step_gate(
    graph: GraphBuilder, gate: GatePart, pooled: str, weights: Mapping[str, str], state: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
    """Adds one step of the gate.

    Args:
        graph: graph to add it to.
        gate: the gate.
        pooled: (N, channels) float32, a block's output averaged over the map.
        weights: names of the values that hold this step's part of each array of ``GatePart``, by its name.
        state: the memory before, each (N, hidden) float32; empty for a gate without memory.

    Returns:
        Scores (N, options), and the new memory.
    """
    step = graph.node("Gemm", pooled, weights["input_weight"], weights["bias"], transB=1)
    new_state: tuple[str, ...] = ()
    if not gate.has_memory:
        new_hidden = graph.node("Relu", step)
    else:
        hidden, cell = state
        step = graph.node("Gemm", hidden, weights["recurrent_weight"], step, transB=1)
        bounds = [graph.constant(f"bound_{i}", np.array([i * gate.hidden], np.int64)) for i in range(5)]
        one = graph.constant("one", np.array([1], np.int64))
        activations = ("Sigmoid", "Sigmoid", "Tanh", "Sigmoid")
        input_gate, forget_gate, candidate, output_gate = (
            graph.node(activation, graph.node("Slice", step, start, end, one))
            for activation, (start, end) in zip(activations, itertools.pairwise(bounds), strict=True)
        )
        new_cell = graph.node("Add", graph.node("Mul", forget_gate, cell), graph.node("Mul", input_gate, candidate))
        new_hidden = graph.node("Mul", output_gate, graph.node("Tanh", new_cell))
        new_state = (new_hidden, new_cell)
    projection = (weights["projection_weight"], weights["projection_bias"])
    return graph.node("Gemm", new_hidden, *projection, transB=1), new_state


def grid_constants(graph: GraphBuilder, name: str, grid: Grid) -> tuple[str, str]:
    """Scale and zero point of a tensor, as constants."""
    zero_point = np.int8(grid.zero_point) if grid.signed else np.uint8(grid.zero_point)
    return (
        graph.constant(f"{name}_scale", np.float32(grid.scale)),
        graph.constant(f"{name}_zero_point", zero_point),
    )


def mean_over_map(graph: GraphBuilder, features: str) -> str:
    """Features (N, C, H, W) averaged over the map, (N, C)."""
    return graph.node("Flatten", graph.node("GlobalAveragePool", features))


def cast(graph: GraphBuilder, value: str, dtype: Float) -> str:
    """A value as another type."""
    return graph.node("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
