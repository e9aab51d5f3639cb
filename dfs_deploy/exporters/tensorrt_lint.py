"""Check of graphs against TensorRT's rules, before a device sees them.

The machine that exports need not have TensorRT, and a build that fails on a device is found late. So every graph
for TensorRT is held to what ONNX's own checker does not know: "Working with Quantized Types" (NVIDIA TensorRT
documentation) for where QuantizeLinear and DequantizeLinear may stand, and ``docs/operators.md`` of the ONNX-TensorRT
parser for operators and opsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from dfs_deploy.errors import GraphRuleError
from dfs_deploy.exporters.int8 import LEAST_SCALE

OPSETS = range(13, 21)
"""Opset 13 gave Q/DQ an axis; the parser of TensorRT 10.3, that of JetPack 6, reads up to 20."""

QDQ = ("QuantizeLinear", "DequantizeLinear")
POOLS = ("AveragePool", "GlobalAveragePool", "MaxPool")
ACTIVATIONS = ("Clip", "Erf", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh")
SHAPES = ("Cast", "Concat", "Flatten", "Pad", "Reshape", "Slice")
PRODUCTS = ("Conv", "Gemm")
OPERATORS = frozenset({*PRODUCTS, "Add", "Mul", *ACTIVATIONS, *POOLS, *SHAPES, *QDQ})
"""Operators of blocks, stem and head; TensorRT reads more, and none of them belongs in these graphs."""

_Findings = Iterator[tuple[str, str]]
"""For each breach the name of the node or constant, and what was seen and expected."""


def check_graphs(graphs: Mapping[str, bytes]) -> None:
    """Holds graphs to all the rules.

    Args:
        graphs: content of ONNX files by their names.

    Raises:
        GraphRuleError: at least one breaks a rule; it lists every finding.
    """
    found = [f"{name}: {finding}" for name, model in graphs.items() for finding in lint(model)]
    if found:
        raise GraphRuleError(
            f"{len(found)} breach(es) of TensorRT's rules in the graphs for it, expected none; the first: {found[0]};"
            " leave that precision out of --targets, or export for another --runtime",
            found,
        )


def lint(model: bytes) -> list[str]:
    """Finds breaches of the rules in one ONNX file.

    Returns:
        One line per breach, which ends with the rule in brackets; empty for a graph that TensorRT takes.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        return [f"not a valid ONNX model: {' '.join(str(error).split())} [onnx]"]
    graph = _Graph(onnx.load_model_from_string(model))
    return [f"{where}: {text} [{rule}]" for rule, breaches in _RULES.items() for where, text in breaches(graph)]


class _Graph:
    """A graph, indexed by what the rules ask."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.all_nodes = list(model.graph.node)
        self.makers = {name: node for node in self.all_nodes for name in node.output}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def nodes(self, *operators: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.all_nodes if node.op_type in operators)

    def made_by(self, value: str) -> str:
        """Operator that makes a value; empty for an input or a constant."""
        return self.makers[value].op_type if value in self.makers else ""

    def is_rounded(self, value: str) -> bool:
        return self.made_by(value) == "DequantizeLinear"

    def share_scale(self, *nodes: onnx.NodeProto) -> bool:
        one, other = (self.constants.get(node.input[1]) for node in nodes)
        return one is not None and other is not None and np.array_equal(one, other)

    def weight_behind(self, value: str) -> NDArray[np.generic] | None:
        """The constant that a value is, or that it was rounded from; ``None`` for an activation."""
        while value not in self.constants:
            if self.made_by(value) not in QDQ:
                return None
            value = self.makers[value].input[0]
        return self.constants[value]


def _operator(graph: _Graph) -> _Findings:
    for domain, version in graph.opsets.items():
        if domain not in ("", "ai.onnx") or version not in OPSETS:
            yield "model", f"opset {version} of {domain or 'ONNX'}, expected {OPSETS[0]} to {OPSETS[-1]} of ONNX"
    for node in graph.all_nodes:
        if node.op_type not in OPERATORS:  # a BatchNormalization is folded into the convolution before it
            yield node.name, f"{node.op_type}, expected one of {', '.join(sorted(OPERATORS))}"


def _finite(graph: _Graph) -> _Findings:
    for name, value in graph.constants.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            yield name, f"holds infinity or NaN in {value.dtype}, expected finite values"


def _scale(graph: _Graph) -> _Findings:
    """Scales are positive normal constants; integers are int8 with zero point 0."""
    for node in graph.nodes(*QDQ):
        scale, point = (graph.constants.get(name) for name in (*node.input, "", "")[1:3])
        if scale is None or scale.dtype != np.float32 or not scale.size or not np.min(scale) >= LEAST_SCALE:
            yield node.name, "a scale that is computed, or not a positive normal float32; expected constants that are"
        elif point is None or point.dtype != np.int8 or point.any() or point.size != scale.size:
            seen = "no constant" if point is None else f"{np.unique(point).tolist()} of {point.dtype}"
            yield node.name, f"zero point: {seen}, expected 0 of int8, as many as scales"


def _granularity(graph: _Graph) -> _Findings:
    """One scale per activation, and one per output channel of a weight: axis 0 of a Conv, and of a Gemm here."""
    for node in graph.nodes(*QDQ):
        weight, scale = graph.weight_behind(node.input[0]), graph.constants.get(node.input[1], np.zeros(1))
        if weight is None:
            if scale.size != 1:
                yield node.name, f"{scale.size} scales for an activation, expected one"
            continue
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        if scale.ndim != 1 or axis != 0 or scale.size != weight.shape[0]:
            yield node.name, f"{scale.size} scales along axis {axis} of a weight, expected one per output channel"


def _pair(graph: _Graph) -> _Findings:
    """A QuantizeLinear is read by DequantizeLinear of the same scale and by nothing else."""
    for node in graph.nodes("QuantizeLinear"):
        for reader in (each for each in graph.all_nodes if node.output[0] in each.input):
            if reader.op_type != "DequantizeLinear" or not graph.share_scale(node, reader):
                yield node.name, f"read by {reader.op_type} {reader.name}, expected DequantizeLinear of the same scale"


def _weights(graph: _Graph) -> _Findings:
    """A convolution, of any number of groups, has input and weight both in INT8 or both in floats, and a float bias."""
    for node in graph.nodes(*PRODUCTS):
        features, weight, *bias = node.input
        if graph.is_rounded(features) != graph.is_rounded(weight):
            yield node.name, "one of input and weight in int8, expected both or none"
        if graph.weight_behind(weight) is None or any(name not in graph.constants for name in bias):
            yield node.name, "a computed weight, or a bias that is quantised or computed; expected constants"


def _residual(graph: _Graph) -> _Findings:
    """At an Add that ends an INT8 block, Q/DQ stand on the shortcut and not on the convolution."""
    for node in graph.nodes("Add"):
        rounded = sum(map(graph.is_rounded, node.input))
        makers = [graph.makers[name] for name in node.input if graph.made_by(name) == "Conv"]
        integer = any(graph.is_rounded(name) for maker in makers for name in maker.input[:2])
        if (integer or rounded) and not (integer and rounded == 1):
            yield (
                node.name,
                f"{rounded} of 2 inputs rounded; expected Q/DQ on the shortcut and none after the convolution",
            )


def _float(graph: _Graph) -> _Findings:
    """Squeeze-and-excitation, pools and activations read floats; a rounded operand costs a kernel of its own."""
    for node in graph.nodes("Mul", *POOLS, *ACTIVATIONS):
        if any(map(graph.is_rounded, node.input)):
            yield node.name, f"a {node.op_type} of a rounded value, expected floats"


def _dilation(graph: _Graph) -> _Findings:
    """The parser reads no pool with gaps in its window."""
    for node in graph.nodes(*POOLS):
        dilations = [list(attribute.ints) for attribute in node.attribute if attribute.name == "dilations"]
        if any(step != 1 for steps in dilations for step in steps):
            yield node.name, f"a {node.op_type} with dilations {dilations[0]}, expected 1"


_RULES: Mapping[str, Callable[[_Graph], _Findings]] = {
    "operator": _operator,
    "finite": _finite,
    "scale": _scale,
    "granularity": _granularity,
    "pair": _pair,
    "weights": _weights,
    "residual": _residual,
    "float": _float,
    "dilation": _dilation,
}
"""The rules by name, in the order of the findings."""
