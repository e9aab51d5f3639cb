"""The whole adaptive network, gate included, as one standard ONNX file, for any language's ONNX Runtime.

A gated block is a chain of ``If`` over the gate's decision, the cheapest option first; weights live inside the
branches, where a runtime can prepack and fuse them. A network with a static policy is a straight line, without gate and
``If``. Features are float32 between blocks, whatever branch made them. An INT8 branch still has both layouts of its
engine, and chooses by a flag that goes along with the features: those that an INT8 block left lie on its grid exactly
and are read on that grid, as the runtime does. So both take the same decisions.

An option of 9 to 16 bits keeps its rounded weights and is computed in FP32, as the runtime does on a CPU without fast
float16.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from dfs_deploy.bundle import Bundle
from dfs_deploy.calibration import Ranges, block_ranges
from dfs_deploy.errors import ExportMismatchError
from dfs_deploy.exporters.engines import classify, convolve, mean_over_map, residual, step_gate
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.exporters.int8 import LEAST_SCALE, BlockRanges, Grid, Int8Block, output_grid
from dfs_deploy.exporters.int8_graphs import dequantize, onnxruntime_block, quantize
from dfs_deploy.exporters.split import (
    BlockPart,
    split_block,
    split_gate,
    split_head,
    split_skip,
    split_stem,
)
from dfs_deploy.models import BasicBlock, DFSNetwork
from dfs_deploy.network import Block
from dfs_deploy.options import Precision, engine_precision
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.sessions import open_session, session_options

LOGIT_TOLERANCE = 1e-3
"""Greatest difference of a logit from the runtime's, relative to the image's greatest logit."""

DESCRIPTION = """\
Chooses, for each image and each gated block, what to compute. Batch 1.
images: (1, C, H, W) float32, normalised: (pixel / 255 - mean) / std, with mean and std of each channel.
logits: (1, classes) float32.
path: (1, gated blocks) int64, the index of the option that each gated block ran.
metadata_props, each a JSON value: options (name, bits and cost of each, by index), class_names, mean, std, input_shape.
"""


def single_file(
    network: DFSNetwork, contract: InputContract, ranges: Ranges, targets: Sequence[Precision], weight_bits: int = 8
) -> bytes:
    """Writes a network as one graph with ``If`` operators; ``DESCRIPTION`` says what goes in and out.

    Args:
        network: the reference, in evaluation mode.
        contract: preparation of its input; it goes into the metadata.
        ranges: an interval for each tensor of each option that INT8 engines run.
        targets: precisions to use; the next more precise one stands in for one that is missing.
        weight_bits: bits of INT8 weights, 8 or 7.
    """
    graph = GraphBuilder("single_file")
    stem, first = split_stem(network)
    images = graph.input("images", np.float32, (1, *contract.shape))
    features = graph.node("Relu", convolve(graph, "stem", images, stem, np.float32))
    features = residual(graph, features, first, np.float32, "block_0_")

    gate = split_gate(network)
    writer = _BlockWriter(network, ranges, targets, weight_bits)
    state = _State(features, None, False)
    decisions: list[str] = []
    for index in range(1, len(network.blocks)):
        if gate is not None:
            if not decisions:
                hidden = cell = graph.constant("zeros", np.zeros((1, network.architecture.gate.hidden), np.float32))
            pooled = mean_over_map(graph, state.features)
            weight = graph.constant(f"gate_{index - 1}_weight", gate.input_weight[index - 1])
            bias = graph.constant(f"gate_{index - 1}_bias", gate.bias[index - 1])
            scores, hidden, cell = step_gate(graph, gate, pooled, weight, bias, hidden, cell)
            decisions.append(graph.node("ArgMax", scores, axis=1, keepdims=1, select_last_index=0))
            state = writer.block(graph, index, decisions[-1], state)
        else:
            state = writer.block(graph.section(f"block_{index}"), index, None, state)

    head = split_head(network)
    graph.output(classify(graph, state.features, head, np.float32), "logits", np.float32, (1, head.weight.shape[0]))
    if decisions:
        path = graph.node("Concat", *decisions, axis=1)
    else:
        path = graph.constant("policy", np.array([network.policy or ()], np.int64))
    graph.output(path, "path", np.int64, (1, network.architecture.gated_blocks))

    metadata = {
        "options": [{"name": o.name, "bits": o.bits, "cost": o.cost} for o in network.options],
        "class_names": list(contract.class_names),
        "mean": list(contract.mean),
        "std": list(contract.std),
        "input_shape": list(contract.shape),
        "resize": contract.resize,
        "interpolation": contract.interpolation,
    }
    return graph.build(DESCRIPTION, {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()})


def check_single_file(model: bytes, bundle: Bundle, images: NDArray[np.float32]) -> None:
    """Compares a single file with the runtime on the bundle made from the same parts.

    The images are (N, C, H, W) float32, normalised, and run one by one.

    Raises:
        ExportMismatchError: a decision differs, or a logit by more than ``LOGIT_TOLERANCE``.
    """
    session = open_session(model, "the single file", session_options(threads=1))
    mismatches = []
    with Runtime(bundle.without("fp16"), "onnxruntime", plan=False, prepared=False) as runtime:
        for i in range(len(images)):
            logits, path = session.run(["logits", "path"], {"images": images[i : i + 1]})
            expected = runtime(images[i : i + 1])
            if not np.array_equal(path, expected.path):
                mismatches.append(f"image {i}: path {path[0].tolist()}, the runtime took {expected.path[0].tolist()}")
                continue
            error = float(np.abs(logits - expected.logits).max() / max(np.abs(expected.logits).max(), LEAST_SCALE))
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


@dataclass(frozen=True)
class _State:
    """A feature map between blocks.

    Attributes:
        features: name of the value, float32.
        grid: grid on which the features lie if ``in_uint8`` holds; ``None`` if it cannot.
        in_uint8: whether the runtime would have them in uint8: name of a scalar bool, or known beforehand.
    """

    features: str
    grid: Grid | None
    in_uint8: str | bool


@dataclass(frozen=True)
class _BlockWriter:
    """Adds gated blocks to a graph; the attributes are arguments of ``single_file``."""

    network: DFSNetwork
    ranges: Ranges
    targets: Sequence[Precision]
    weight_bits: int

    def block(self, graph: GraphBuilder, index: int, decision: str | None, state: _State) -> _State:
        """Adds a gated block that does what a decision says, or, if that is ``None``, what the policy says."""
        block, options = self.network.blocks[index], self.network.options
        possible = [i for i, option in enumerate(options) if option in self.network.options_of(index)]
        grid = state.grid if block.projection is None else None
        in_uint8: dict[int, str | bool] = {}  # whether the features are in uint8 after each option
        for position in possible:
            if options[position].skips:
                in_uint8[position] = state.in_uint8 if block.projection is None else False
            else:
                in_uint8[position] = self._in_int8(position)
                if self._in_int8(position):
                    grid = output_grid(block_ranges(self.ranges, index, position))

        varies = len(set(in_uint8.values())) > 1 and index + 1 < len(self.network.blocks)
        types = [_features_type(block.shape)] + [helper.make_tensor_type_proto(onnx.TensorProto.BOOL, ())] * varies

        def write(branch: GraphBuilder, positions: Sequence[int]) -> Sequence[str]:
            first, *rest = positions
            if rest and decision is not None:
                condition = branch.node("Equal", decision, branch.constant(f"option_{first}", np.int64(first)))
                then, otherwise = (branch.branch(f"block_{index}_{name}") for name in (options[first].name, "else"))
                return branch.choose(
                    condition,
                    then.returning(write(then, [first]), types),
                    otherwise.returning(write(otherwise, rest), types),
                )
            features, layout = self._option(branch, block, first, state), in_uint8[first]
            if not varies:
                return [features]
            return [features, layout if isinstance(layout, str) else branch.constant("in_uint8", np.bool_(layout))]

        # The cheapest first: the less it computes, the more the tests before it would weigh.
        outputs = write(graph, sorted(possible, key=options.costs.__getitem__))
        return _State(outputs[0], grid, outputs[1] if varies else in_uint8[possible[0]])

    def _in_int8(self, position: int) -> bool:
        return engine_precision(self.network.options[position], self.targets) == "int8"

    def _option(self, branch: GraphBuilder, block: BasicBlock, position: int, state: _State) -> str:
        """Adds what an option of a block computes, from float32 to float32; returns its output."""
        option = self.network.options[position]
        if option.skips:
            projection = split_skip(block)
            if projection is None:
                return branch.node("Identity", state.features)
            return convolve(branch, "projection", state.features, projection, np.float32)
        part = split_block(block, option)
        if not self._in_int8(position):
            return residual(branch, state.features, part, np.float32)
        ranges = block_ranges(self.ranges, block.shape.index, position)
        if not isinstance(state.in_uint8, str):
            return self._int8(branch, part, ranges, state, state.in_uint8)
        then, otherwise = branch.branch("from_uint8"), branch.branch("from_float32")
        types = [_features_type(block.shape)]
        (output,) = branch.choose(
            state.in_uint8,
            then.returning([self._int8(then, part, ranges, state, True)], types),
            otherwise.returning([self._int8(otherwise, part, ranges, state, False)], types),
        )
        return output

    def _int8(self, branch: GraphBuilder, part: BlockPart, ranges: BlockRanges, state: _State, in_uint8: bool) -> str:
        """Adds the engine that an INT8 option has for one layout of its features."""
        block = Int8Block.for_onnxruntime(part, ranges, state.grid if in_uint8 else None, self.weight_bits)
        features = quantize(branch, "features", state.features, block.features)
        return dequantize(branch, "block_output", onnxruntime_block(branch, features, block), block.output)


def _features_type(shape: Block) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, (1, *shape.out_shape))
