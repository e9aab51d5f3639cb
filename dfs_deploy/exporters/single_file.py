"""The whole adaptive network, gate included, as one standard ONNX file, for any language's ONNX Runtime.

A block that is decided is a chain of ``If`` over the gate's decision, the cheapest option first; weights live inside
the branches, where a runtime can prepack and fuse them. A block with one choice, and every block under a static policy,
is part of a straight line. Features are float32 between blocks, whatever branch made them; those that an INT8 branch
left lie on its grid exactly, so that rounding them to it again changes nothing.

If features may hold what no grid does, an INT8 branch still has both layouts of its engine, and chooses by a flag that
goes along with the features: those on the grid are read on it, others as they are, as the runtime does. So both take
the same decisions.

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
from dfs_deploy.calibration import ALWAYS
from dfs_deploy.errors import ExportMismatchError
from dfs_deploy.exporters.engines import IMAGES, STATE, mean_over_map, step_gate
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.exporters.int8 import LEAST_SCALE
from dfs_deploy.exporters.int8_forms import Int8Forms
from dfs_deploy.exporters.int8_graphs import dequantize, onnxruntime_part, quantize
from dfs_deploy.exporters.layers import float_part
from dfs_deploy.exporters.split import GatePart, Part, split_block, split_gate, split_head, split_skip, split_stem
from dfs_deploy.exporters.writing import always_precision, feature_grids, gives_beyond_grid
from dfs_deploy.models import DFSNetwork
from dfs_deploy.models.network import MASKED
from dfs_deploy.options import Option, Precision, engine_precision
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


def single_file(network: DFSNetwork, contract: InputContract, forms: Int8Forms, targets: Sequence[Precision]) -> bytes:
    """Writes a network as one graph with ``If`` operators; ``DESCRIPTION`` says what goes in and out.

    Args:
        network: the reference, in evaluation mode.
        contract: preparation of its input; it goes into the metadata.
        forms: forms in INT8 of its parts.
        targets: precisions to use; the next more precise one stands in for one that is missing.
    """
    graph = GraphBuilder("single_file")
    writer = _Writer(network, forms, targets)
    state = writer.stem(graph, graph.input(IMAGES, np.float32, (1, *contract.shape)))
    gate = split_gate(network)
    steps = None if gate is None else _GateSteps(graph, gate, network)
    choices = []
    for index in range(1, len(network.architecture.blocks)):
        decision = None
        if steps is not None and network.decided(index):
            decision = steps.decide(index, state.features)
        choices.append(decision or _only_choice(graph, network, index))
        state = writer.block(graph if decision else graph.section(f"block_{index}"), index, decision, state)
    logits, classes = writer.head(graph.section("head"), state), network.architecture.classes
    graph.output(logits, "logits", np.float32, (1, classes))
    path = (
        graph.node("Concat", *choices, axis=1) if choices else graph.constant("path_value", np.zeros((1, 0), np.int64))
    )
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


def _only_choice(graph: GraphBuilder, network: DFSNetwork, index: int) -> str:
    """The index, (1, 1), of the one option that a block may run."""
    (option,) = network.options_of(index)
    return graph.constant(f"choice_{index}", np.array([[network.options.bits.index(option.bits)]], np.int64))


class _GateSteps:
    """The gate in a graph, stepped from block to block."""

    def __init__(self, graph: GraphBuilder, gate: GatePart, network: DFSNetwork) -> None:
        self._graph = graph
        self._gate = gate
        self._network = network
        zeros = np.zeros((1, gate.hidden), np.float32)
        self._state = [graph.constant("zeros", zeros) for _ in STATE] if gate.has_memory else []
        self._shared = {name: graph.constant(f"{name}_value", value) for name, value in gate.shared.items()}

    def decide(self, index: int, features: str) -> str:
        """Adds the decision about a block, by index, from the features (1, C, H, W) before it; (1, 1) int64."""
        graph, gate, before = self._graph, self._gate, index - 1
        own = {"input_weight": gate.input_weight[before], **{k: value[before] for k, value in gate.stacked.items()}}
        weights = {name: graph.constant(f"gate_{before}_{name}", value) for name, value in own.items()}
        pooled = mean_over_map(graph, features)
        scores, state = step_gate(graph, gate, pooled, {**self._shared, **weights}, self._state)
        self._state = list(state)
        possible = self._network.options_of(index)
        if len(possible) < len(self._network.options):
            masks = [0.0 if option in possible else MASKED for option in self._network.options]
            scores = graph.node("Add", scores, graph.constant(f"gate_{before}_masks", np.array([masks], np.float32)))
        return graph.node("ArgMax", scores, axis=1, keepdims=1, select_last_index=0)


@dataclass(frozen=True)
class _State:
    """A feature map between blocks.

    Attributes:
        features: name of the value, float32.
        in_uint8: whether the runtime would have them in uint8, and they lie on their grid: name of a scalar bool, or
            known beforehand.
    """

    features: str
    in_uint8: str | bool


@dataclass(frozen=True)
class _Engine:
    """What an option of a block, or a part that always runs, computes.

    Attributes:
        part: the part.
        option: index of the option, or ``ALWAYS``.
        int8: whether it computes in INT8; else in FP32.
    """

    part: Part
    option: int
    int8: bool


class _Writer:
    """Adds parts of a network to a graph; the arguments are those of ``single_file``."""

    def __init__(self, network: DFSNetwork, forms: Int8Forms, targets: Sequence[Precision]) -> None:
        self._network = network
        self._forms = forms
        self._targets = targets
        self._grids = feature_grids(network, forms.ranges)
        self._beyond = gives_beyond_grid(network)

    def stem(self, graph: GraphBuilder, images: str) -> _State:
        """Adds the stem."""
        engine = self._always(split_stem(self._network), 0)
        return _State(self._run(graph, engine, 0, images, False), engine.int8)

    def head(self, graph: GraphBuilder, state: _State) -> str:
        """Adds the head; returns the logits."""
        place = len(self._grids)
        return self._reading(graph, self._always(split_head(self._network), place), place, state)

    def block(self, graph: GraphBuilder, index: int, decision: str | None, state: _State) -> _State:
        """Adds a block that does what a decision says, or, if that is ``None``, the only thing that it may."""
        network, options = self._network, self._network.options
        engines = {k: self._option(index, o) for k, o in enumerate(options) if o in network.options_of(index)}
        in_uint8 = {k: state.in_uint8 if engine is None else engine.int8 for k, engine in engines.items()}
        # Only where features may lie beyond their grid does it matter whether they are on it.
        varies = self._beyond and len(set(in_uint8.values())) > 1 and index + 1 < len(self._grids)
        shape = network.architecture.blocks[index].out_shape
        types = [_float_type(shape)] + [helper.make_tensor_type_proto(onnx.TensorProto.BOOL, ())] * varies

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
            engine, layout = engines[first], in_uint8[first]
            if engine is None:
                features = branch.node("Identity", state.features)
            else:
                features = self._reading(branch, engine, index, state)
            if not varies:
                return [features]
            return [features, layout if isinstance(layout, str) else branch.constant("in_uint8", np.bool_(layout))]

        # The cheapest first: the less it computes, the more the tests before it would weigh.
        outputs = write(graph, sorted(engines, key=options.costs.__getitem__))
        return _State(outputs[0], outputs[1] if varies else next(iter(in_uint8.values())))

    def _option(self, index: int, option: Option) -> _Engine | None:
        """What an option of a block computes; ``None`` if it passes the features on."""
        if option.skips:
            part = split_skip(self._network, index)
            return None if part is None else self._always(part, index)
        position = self._network.options.bits.index(option.bits)
        int8 = engine_precision(option, self._targets) == "int8"
        return _Engine(split_block(self._network, index, option), position, int8)

    def _always(self, part: Part, place: int) -> _Engine:
        int8 = always_precision(self._network, self._forms, place, self._targets) == "int8"
        return _Engine(part, ALWAYS, int8)

    def _reading(self, branch: GraphBuilder, engine: _Engine, place: int, state: _State) -> str:
        """Adds what an engine makes of the features before a block, or before the head, in their layout."""
        if not engine.int8 or not self._beyond:
            return self._run(branch, engine, place, state.features, engine.int8)
        if not isinstance(state.in_uint8, str):
            return self._run(branch, engine, place, state.features, state.in_uint8)
        then, otherwise = branch.branch("from_uint8"), branch.branch("from_float32")
        kind = _float_type(engine.part.out_shape)
        (output,) = branch.choose(
            state.in_uint8,
            then.returning([self._run(then, engine, place, state.features, True)], [kind]),
            otherwise.returning([self._run(otherwise, engine, place, state.features, False)], [kind]),
        )
        return output

    def _run(self, branch: GraphBuilder, engine: _Engine, place: int, x: str, on_grid: bool) -> str:
        """Adds an engine from float32 to float32, which reads its input on the grid before its place, or as it is."""
        if not engine.int8:
            return float_part(branch, x, engine.part)
        takes = self._grids[place - 1] if on_grid else None
        gives = self._grids[place] if place < len(self._grids) else None
        made = self._forms.of("onnxruntime", engine.part, place, engine.option, takes, gives)
        y = onnxruntime_part(branch, quantize(branch, "features", x, takes), made)
        return dequantize(branch, "block_output", y, gives)


def _float_type(shape: tuple[int, ...]) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, (1, *shape))
