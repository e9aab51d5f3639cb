"""The whole adaptive network, gate included, as one standard ONNX file, for any language's ONNX Runtime.

A gated block is a chain of ``If`` over the gate's decision, the cheapest option first; weights live inside the
branches, where a runtime can prepack and fuse them. A network with a static policy is a straight line, without gate and
``If``. Features are float32 between blocks, whatever branch made them. An
INT8 branch still has both layouts of its engine, and chooses by a flag that goes along with the features: those that an
INT8 block left lie on its grid exactly and are read on that grid, as the runtime does. So both take the same decisions.

An option of 9 to 16 bits keeps its rounded weights and is computed in FP32, as the runtime does on a CPU without fast
float16.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from dfs_deploy.bundle import Bundle
from dfs_deploy.calibration import CalibratedRange, TensorKey
from dfs_deploy.errors import ExportMismatchError
from dfs_deploy.exporters.engines import Grid, classify, convolve, residual
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.exporters.quantized import BlockRanges, OnnxRuntimeWriter, output_grid
from dfs_deploy.exporters.split import (
    BlockPart,
    ConvPart,
    GatePart,
    split_block,
    split_gate,
    split_head,
    split_skip,
    split_stem,
)
from dfs_deploy.models import DFSNetwork
from dfs_deploy.network import Block
from dfs_deploy.options import Precision, engine_precision
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.binding import open_session, session_options

LOGIT_TOLERANCE = 1e-3
"""Greatest difference of a logit from the runtime's, relative to the image's greatest logit."""

DESCRIPTION = """\
Chooses, for each image and each gated block, what to compute. Batch 1.
images: (1, C, H, W) float32, normalised: (pixel / 255 - mean) / std, with mean and std of each channel.
logits: (1, classes) float32.
path: (1, gated blocks) int64, the index of the option that each gated block ran.
metadata_props, each a JSON value: options (name, bits and cost of each, by index), class_names, mean, std, input_shape.
"""

Ranges = Mapping[TensorKey, CalibratedRange]


def single_file(
    network: DFSNetwork, contract: InputContract, ranges: Ranges, targets: Sequence[Precision], weight_bits: int = 8
) -> bytes:
    """Writes a network as one graph with ``If`` operators; :data:`DESCRIPTION` says what goes in and out.

    Args:
        network: the reference, in evaluation mode.
        contract: how pixels become its input; it goes into the metadata.
        ranges: an interval for each tensor of each option that INT8 serves.
        targets: precisions to use; one that is missing is served by the next more precise one.
        weight_bits: bits of INT8 weights, 8 or 7.

    Returns:
        The file's content: the same network gives the same bytes.
    """
    graph = _Graph("single_file")
    stem, first = split_stem(network)
    images = graph.input("images", np.float32, (1, *contract.shape))
    features = graph.node("Relu", convolve(graph, "stem", images, stem, np.float32))
    features = residual(graph, features, first, np.float32, "block_0_")

    gate = split_gate(network)
    stepped = None if gate is None else _GateWriter(graph, gate)
    writer = _BlockWriter(network, ranges, targets, weight_bits)
    state, decisions = _State(features, None, False), []
    for index in range(1, len(network.blocks)):
        if stepped is not None:
            decisions.append(stepped.step(index - 1, state.features))
            state = writer.block(graph, index, decisions[-1], state)
        else:
            state = writer.block(graph.part(f"block_{index}"), index, None, state)

    head = split_head(network)
    graph.output(classify(graph, state.features, head, np.float32), "logits", np.float32, (1, head.weight.shape[0]))
    if decisions:
        path = graph.node("Concat", *decisions, axis=1)
    else:
        path = graph.constant("policy", np.array([network.policy or ()], np.int64))
    graph.output(path, "path", np.int64, (1, network.architecture.gated_blocks))

    model = onnx.load_model_from_string(graph.build())
    model.doc_string = DESCRIPTION
    metadata = {
        "options": [{"name": o.name, "bits": o.bits, "cost": o.cost} for o in network.options],
        "class_names": list(contract.class_names),
        "mean": list(contract.mean),
        "std": list(contract.std),
        "input_shape": list(contract.shape),
    }
    helper.set_model_props(model, {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()})
    return bytes(model.SerializeToString(deterministic=True))


def check_single_file(model: bytes, bundle: Bundle, images: NDArray[np.float32]) -> None:
    """Compares a single file with the runtime on the bundle made from the same parts, image by image.

    Args:
        model: what :func:`single_file` made.
        bundle: bundle with engines for ONNX Runtime.
        images: (N, C, H, W) float32, normalised.

    Raises:
        ExportMismatchError: a decision differs, or a logit by more than :data:`LOGIT_TOLERANCE`.
    """
    session = open_session(model, "the single file", session_options(threads=1))
    mismatches = []
    with Runtime(_without_float16(bundle), "onnxruntime", plan=False, prepared=False) as runtime:
        for i in range(len(images)):
            logits, path = session.run(["logits", "path"], {"images": images[i : i + 1]})
            expected = runtime(images[i : i + 1])
            if not np.array_equal(path, expected.path):
                mismatches.append(f"image {i}: path {path[0].tolist()}, the runtime took {expected.path[0].tolist()}")
                continue
            error = float(np.abs(logits - expected.logits).max() / max(np.abs(expected.logits).max(), _TINY))
            if not error <= LOGIT_TOLERANCE:
                mismatches.append(
                    f"image {i}: logits differ by {error:.3g} of the greatest, {LOGIT_TOLERANCE:g} is fine"
                )
    if mismatches:
        raise ExportMismatchError(
            f"the single file disagrees with the runtime on {len(mismatches)} of {len(images)} images;"
            f" the first: {mismatches[0]}",
            mismatches,
        )


def _without_float16(bundle: Bundle) -> Bundle:
    """The bundle as a CPU without fast float16 runs it."""
    engines = bundle.manifest.runtimes["onnxruntime"]
    blocks = [
        msgspec.structs.replace(
            block,
            options={name: [e for e in served if e.precision != "fp16"] for name, served in block.options.items()},
        )
        for block in engines.blocks
    ]
    runtimes = {**bundle.manifest.runtimes, "onnxruntime": msgspec.structs.replace(engines, blocks=blocks)}
    twin = copy.copy(bundle)
    twin.manifest = msgspec.structs.replace(bundle.manifest, runtimes=runtimes)
    return twin


_TINY = float(np.finfo(np.float32).tiny)


class _Graph(GraphBuilder):
    """A graph whose branches are graphs too.

    Args:
        name: name of the graph.
        prefix: beginning of every name in it: a name may stand once in a graph and all its branches.
    """

    def __init__(self, name: str, prefix: str = "") -> None:
        super().__init__(name)
        self._prefix = prefix

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        return super().constant(self._prefix + name, value)

    def node(self, operator: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Any) -> str:
        name = self._prefix + (name or f"{operator.lower()}_{len(self._nodes)}")
        return super().node(operator, *inputs, name=name, domain=domain, **attributes)

    def nodes(self, operator: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Adds a node with several outputs and returns their names."""
        first = self.node(operator, *inputs, **attributes)
        names = (first, *(f"{first}_{i}" for i in range(1, outputs)))
        self._nodes[-1].output[:] = names
        return names

    def part(self, label: str) -> _Graph:
        """This graph under another prefix: what is added to the part stands in this graph."""
        part = _Graph(self._name, f"{self._prefix}{label}_")
        part._nodes, part._constants = self._nodes, self._constants
        return part

    def branch(self, label: str) -> _Graph:
        """A graph that may become a branch of this one and may read its values."""
        return _Graph(f"{self._prefix}{label}", f"{self._prefix}{label}_")

    def returning(self, values: Sequence[str], types: Sequence[onnx.TypeProto]) -> onnx.GraphProto:
        """The branch itself, with these values of these types as its outputs."""
        made = {name for node in self._nodes for name in node.output}
        # What a branch returns must be made in it.
        names = [value if value in made else self.node("Identity", value) for value in values]
        outputs = [helper.make_value_info(name, kind) for name, kind in zip(names, types, strict=True)]
        return helper.make_graph(self._nodes, self._name, [], outputs, list(self._constants.values()))

    def either(self, condition: str, then: onnx.GraphProto, otherwise: onnx.GraphProto) -> tuple[str, ...]:
        """Adds an ``If`` and returns its outputs' names."""
        return self.nodes("If", [condition], len(then.output), then_branch=then, else_branch=otherwise)


class _GateWriter:
    """Adds the gate's steps to the top of a graph; the weights that all blocks share stand there once.

    The LSTM's gates are put in the order input, forget, output, cell, so that one node is the sigmoid of three.
    """

    def __init__(self, graph: _Graph, gate: GatePart) -> None:
        self._graph = graph
        self._gate = gate
        size = gate.recurrent_weight.shape[1]
        self._order = np.r_[0 : 2 * size, 3 * size : 4 * size, 2 * size : 3 * size]
        self._state: tuple[str, str] | None = None

    def step(self, block: int, features: str) -> str:
        """A step on the output of a block; returns the decision for the next one, (1, 1) int64."""
        graph, gate, order = self._graph, self._gate, self._order
        sizes = np.array([3 * len(order) // 4, len(order) // 4], np.int64)
        pooled = graph.node("ReduceMean", features, graph.constant("map_axes", np.array([2, 3], np.int64)), keepdims=0)
        weight = graph.constant(f"gate_{block}_weight", gate.input_weight[block][order])
        bias = graph.constant(f"gate_{block}_bias", gate.bias[block][order])
        step = graph.node("Gemm", pooled, weight, bias, transB=1)
        if self._state is not None:  # the first step starts from zeros
            recurrent = graph.constant("gate_recurrent_weight", gate.recurrent_weight[order])
            step = graph.node("Gemm", self._state[0], recurrent, step, transB=1)
        opening, candidate = graph.nodes("Split", [step, graph.constant("gate_sizes", sizes)], 2, axis=1)
        update, forget, output = graph.nodes("Split", [graph.node("Sigmoid", opening)], 3, axis=1, num_outputs=3)
        cell = graph.node("Mul", update, graph.node("Tanh", candidate))
        if self._state is not None:
            cell = graph.node("Add", graph.node("Mul", forget, self._state[1]), cell)
        hidden = graph.node("Mul", output, graph.node("Tanh", cell))
        self._state = hidden, cell
        projection = graph.constant("gate_projection_weight", gate.projection_weight)
        projection_bias = graph.constant("gate_projection_bias", gate.projection_bias)
        scores = graph.node("Gemm", hidden, projection, projection_bias, transB=1)
        return graph.node("ArgMax", scores, axis=1, keepdims=1, select_last_index=0)


@dataclass(frozen=True)
class _State:
    """A feature map between blocks.

    Attributes:
        features: name of the value, float32.
        grid: on which they lie where ``in_uint8`` holds, or ``None`` where it cannot.
        in_uint8: whether the runtime would have them in uint8: name of a scalar bool, or known beforehand.
    """

    features: str
    grid: Grid | None
    in_uint8: str | bool


_Leaf = Callable[[_Graph], str]
"""Writes what a branch computes into it, and returns the features' name."""


@dataclass(frozen=True)
class _BlockWriter:
    """Adds gated blocks to a graph; the attributes are arguments of :func:`single_file`."""

    network: DFSNetwork
    ranges: Ranges
    targets: Sequence[Precision]
    weight_bits: int

    def block(self, graph: _Graph, index: int, decision: str | None, state: _State) -> _State:
        """Adds a gated block that does with the features what its decision says, or the policy where that is None."""
        block, options = self.network.blocks[index], self.network.options
        projection = split_skip(block)
        grid = state.grid if projection is None else None
        leaves: dict[int, tuple[_Leaf, str | bool]] = {}  # with whether the features are in uint8 after it
        for position, option in enumerate(options):
            if option not in self.network.options_of(index):
                continue
            if option.skips:
                leaves[position] = _skip(state, projection), state.in_uint8 if projection is None else False
                continue
            part = split_block(block, option)
            if engine_precision(option, self.targets) == "int8":
                ranges = BlockRanges.calibrated(self.ranges, index, position)
                leaves[position] = self._int8(state, part, ranges), True
                grid = output_grid(ranges)
            else:
                leaves[position] = _floats(state, part), False

        varies = len({layout for _, layout in leaves.values()}) > 1 and index + 1 < len(self.network.blocks)
        types = [_features_type(block.shape)] + [helper.make_tensor_type_proto(onnx.TensorProto.BOOL, ())] * varies

        def write(branch: _Graph, positions: Sequence[int]) -> Sequence[str]:
            first, *rest = positions
            if rest and decision is not None:
                condition = branch.node("Equal", decision, branch.constant(f"option_{first}", np.int64(first)))
                then, otherwise = (branch.branch(f"block_{index}_{name}") for name in (options[first].name, "else"))
                return branch.either(
                    condition,
                    then.returning(write(then, [first]), types),
                    otherwise.returning(write(otherwise, rest), types),
                )
            leaf, layout = leaves[first]
            features = leaf(branch)
            if not varies:
                return [features]
            return [features, layout if isinstance(layout, str) else branch.constant("in_uint8", np.bool_(layout))]

        # The cheapest first: the less it computes, the more the tests before it would weigh.
        outputs = write(graph, sorted(leaves, key=options.costs.__getitem__))
        return _State(outputs[0], grid, outputs[1] if varies else next(iter(leaves.values()))[1])

    def _int8(self, state: _State, part: BlockPart, ranges: BlockRanges) -> _Leaf:
        """The option's engine in the layout that the features call for, from float32 to float32."""

        def compute(branch: _Graph, grid: Grid | None) -> str:
            writer = OnnxRuntimeWriter(branch, self.weight_bits)
            features = state.features if grid is None else writer.quantize("features", state.features, grid)
            return writer.dequantize("block_output", writer.block(features, grid, part, ranges), output_grid(ranges))

        def choose(branch: _Graph) -> str:
            if not isinstance(state.in_uint8, str):
                return compute(branch, state.grid if state.in_uint8 else None)
            then, otherwise = branch.branch("from_uint8"), branch.branch("from_float32")
            types = [_features_type(part.shape)]
            outputs = branch.either(
                state.in_uint8,
                then.returning([compute(then, state.grid)], types),
                otherwise.returning([compute(otherwise, None)], types),
            )
            return outputs[0]

        return choose


def _skip(state: _State, projection: ConvPart | None) -> _Leaf:
    if projection is None:
        return lambda branch: branch.node("Identity", state.features)
    return lambda branch: convolve(branch, "projection", state.features, projection, np.float32)


def _floats(state: _State, part: BlockPart) -> _Leaf:
    return lambda branch: residual(branch, state.features, part, np.float32)


def _features_type(shape: Block) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, (1, *shape.out_shape))
