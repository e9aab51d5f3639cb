"""Check of graphs against TensorRT's rules, before a device sees them.

The machine that exports need not have TensorRT, and a build that fails on a device is found late. So every graph
for TensorRT is held to the rules of its documentation: "Working with Quantized Types" for where QuantizeLinear and
DequantizeLinear may stand, and ``docs/operators.md`` of the ONNX-TensorRT parser for operators, types and opsets.
Networks are strongly typed: a type is what the graph says, and nothing is converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from dfs_deploy.errors import GraphRuleError

OPSETS = range(13, 21)
"""Opset 13 gave Q/DQ an axis; the parser of TensorRT 10.3, that of JetPack 6, reads up to 20."""

FLOAT16_SCALE_OPSET = 19
QDQ = ("QuantizeLinear", "DequantizeLinear")
OPERATORS = frozenset({"Add", "Cast", "Clip", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "Relu", *QDQ})
"""Operators of blocks, stem and head; TensorRT reads more, and none of them belongs in these graphs."""

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class Finding:
    """A breach of a rule.

    Attributes:
        rule: short name of the rule.
        where: name of the node, constant or value that breaks it.
        text: what was seen and what was expected.
    """

    rule: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text} [{self.rule}]"


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


def lint(model: bytes) -> list[Finding]:
    """Finds breaches of the rules in one graph.

    Args:
        model: content of an ONNX file.

    Returns:
        The findings, in the order of the rules; empty for a graph that TensorRT takes.
    """
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        return [Finding("onnx", "model", f"not a valid ONNX model: {' '.join(str(error).split())}")]
    proto, found = onnx.load_model_from_string(model), []
    try:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        found.append(Finding("onnx", "model", f"types or shapes that do not fit: {' '.join(str(error).split())}"))
    graph = _Graph(onnx.shape_inference.infer_shapes(proto))
    return found + [Finding(rule, *breach) for rule, breaches in RULES.items() for breach in breaches(graph)]


class _Graph:
    """A graph, indexed by what the rules ask."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.inputs, self.outputs = ([value.name for value in values] for values in (graph.input, graph.output))
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.all_nodes = list(graph.node)
        self.makers = {name: node for node in graph.node for name in node.output}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.shapes: dict[str, list[int | str]] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            self.types[value.name] = kind.elem_type
            self.shapes[value.name] = [
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim
            ]

    def nodes(self, *operators: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.all_nodes if node.op_type in operators)

    def readers(self, value: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.all_nodes if value in node.input)

    def is_made_by(self, value: str, operator: str) -> bool:
        node = self.makers.get(value)
        return node is not None and node.op_type == operator

    def weight_behind(self, value: str) -> NDArray[np.generic] | None:
        """The constant that a value is, or that it was rounded from; ``None`` for an activation."""
        while value not in self.constants:
            node = self.makers.get(value)
            if node is None or node.op_type not in QDQ:
                return None
            value = node.input[0]
        return self.constants[value]

    def type_name(self, value: str) -> str:
        return str(TensorProto.DataType.Name(self.types.get(value, TensorProto.UNDEFINED))).lower()

    def is_quantized(self, value: str) -> bool:
        return self.is_made_by(value, "DequantizeLinear")

    def scales(self) -> Iterator[tuple[onnx.NodeProto, NDArray[np.generic]]]:
        """Q/DQ whose scale is a constant, with that scale."""
        return ((node, self.constants[node.input[1]]) for node in self.nodes(*QDQ) if node.input[1] in self.constants)


Breaches = Iterator[tuple[str, str]]
"""For each breach where it is, and what was seen and expected."""


def _opset(graph: _Graph) -> Breaches:
    for domain, version in graph.opsets.items():
        if domain not in ("", "ai.onnx"):
            yield "model", f"operators of domain {domain!r}, expected only those of ONNX"
        elif version not in OPSETS:
            yield "model", f"opset {version}, expected {OPSETS[0]} to {OPSETS[-1]}"


def _operator(graph: _Graph) -> Breaches:
    for node in graph.all_nodes:
        if node.op_type not in OPERATORS:  # a BatchNormalization is folded into the convolution before it
            yield node.name, f"{node.op_type}, expected one of {', '.join(sorted(OPERATORS))}"


def _interface(graph: _Graph) -> Breaches:
    if graph.inputs not in (["features"], ["images"]):
        yield "inputs", f"{', '.join(graph.inputs) or 'none'}, expected features or images"
    expected = ["output", "pooled"] if len(graph.shapes[graph.outputs[0]]) == 4 else ["output"]
    if graph.outputs != expected:
        yield "outputs", f"{', '.join(graph.outputs)}, expected {' and '.join(expected)}"
    for name in (*graph.inputs, *graph.outputs):
        if graph.types[name] != TensorProto.FLOAT:
            yield name, f"{graph.type_name(name)}, expected float at a boundary"


def _shape(graph: _Graph) -> Breaches:
    for name in (*graph.inputs, *graph.makers):
        shape = graph.shapes.get(name, [])
        dynamic, fixed = bool(shape) and isinstance(shape[0], str), all(isinstance(n, int) and n > 0 for n in shape[1:])
        if graph.weight_behind(name) is None and not (dynamic and fixed):
            yield name, f"shape {shape}, expected a dynamic first dimension and fixed ones after it"


def _type(graph: _Graph) -> Breaches:
    for name, element in graph.types.items():
        if element not in (*FLOATS, TensorProto.INT8):
            yield name, f"{graph.type_name(name)}, expected float, float16 or int8"


def _strong_typing(graph: _Graph) -> Breaches:
    for node in graph.all_nodes:
        kinds = [graph.type_name(name) for name in (*node.input, *node.output) if name in graph.types]
        if node.op_type not in QDQ and "int8" in kinds:
            yield node.name, f"{node.op_type} of int8, expected float types outside Q/DQ"
        elif node.op_type not in (*QDQ, "Cast") and len(set(kinds)) > 1:
            yield node.name, f"{node.op_type} of {', '.join(kinds)}, expected one type"


def _finite(graph: _Graph) -> Breaches:
    for name, value in graph.constants.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            yield name, f"holds infinity or NaN in {value.dtype}, expected finite values"


def _scale(graph: _Graph) -> Breaches:
    for node in graph.nodes(*QDQ):
        if node.input[1] not in graph.constants:
            yield node.name, "a computed scale, expected a constant"
    for node, scale in graph.scales():
        if not scale.size or scale.dtype not in (np.float32, np.float16):
            yield node.name, f"{scale.size} of {scale.dtype}, expected some of float32 or float16"
            continue
        least = float(np.min(scale))
        if not least >= float(np.finfo(np.float16 if scale.dtype == np.float16 else np.float32).tiny):
            yield node.name, f"least scale {least:g}, expected a positive normal {scale.dtype}"
        if scale.dtype == np.float16 and graph.opsets.get("", 0) < FLOAT16_SCALE_OPSET:
            yield node.name, f"float16 in opset {graph.opsets.get('')}, expected opset {FLOAT16_SCALE_OPSET} or later"


def _zero_point(graph: _Graph) -> Breaches:
    for node in graph.nodes(*QDQ):
        if len(node.input) < 3 or not node.input[2]:
            if node.op_type == "QuantizeLinear":
                yield node.name, "none, which makes it uint8; expected an int8 zero"
            continue
        point, scale = graph.constants.get(node.input[2]), graph.constants.get(node.input[1])
        if point is None:
            yield node.name, "a computed zero point, expected a constant"
        elif point.dtype != np.int8 or point.any():
            yield node.name, f"{np.unique(point).tolist()} of {point.dtype}, expected 0 of int8"
        elif scale is not None and point.size != scale.size:
            yield node.name, f"{point.size} value(s) for {scale.size} scale(s), expected as many"


def _granularity(graph: _Graph) -> Breaches:
    """One scale per activation, and one per output channel of a weight: axis 0 of a Conv, and of a Gemm here."""
    for node, scale in graph.scales():
        weight = graph.weight_behind(node.input[0])
        if weight is None:
            if scale.size != 1:
                yield node.name, f"{scale.size} scales for an activation, expected one"
        elif scale.ndim != 1 or weight.ndim == 0:
            yield node.name, "one scale for a weight, expected one per output channel"
        else:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1) % weight.ndim
            if axis != 0 or scale.size != weight.shape[0]:
                expected = f"{weight.shape[0]} along axis 0"
                yield node.name, f"{scale.size} scales along axis {axis} of a weight, expected {expected}"


def _pair(graph: _Graph) -> Breaches:
    """A QuantizeLinear is read by DequantizeLinear of the same scale and by nothing else."""
    for node in graph.nodes("QuantizeLinear"):
        for reader in graph.readers(node.output[0]):
            if reader.op_type != "DequantizeLinear":
                yield node.name, f"read by {reader.op_type} {reader.name}, expected DequantizeLinear"
                continue
            one, other = (graph.constants.get(each.input[1]) for each in (node, reader))
            if one is None or other is None or not np.array_equal(one, other):
                yield node.name, f"another scale than {reader.name} after it, expected the same"
    for node in graph.nodes("DequantizeLinear"):
        constant = graph.constants.get(node.input[0])
        if constant is None and not graph.is_made_by(node.input[0], "QuantizeLinear"):
            yield node.name, f"of {node.input[0]}, expected of a QuantizeLinear or a constant"
        elif constant is not None and constant.dtype != np.int8:
            yield node.name, f"a constant of {constant.dtype}, expected int8"


def _half_quantized(graph: _Graph) -> Breaches:
    for node in graph.nodes("Conv", "Gemm"):
        features, weight = map(graph.is_quantized, node.input[:2])
        if features != weight:
            which, other = ("input", "weight") if features else ("weight", "input")
            yield node.name, f"an int8 {which} and a float {other}, expected both in int8"


def _constant_weights(graph: _Graph) -> Breaches:
    for node in graph.nodes("Conv", "Gemm"):
        if graph.weight_behind(node.input[1]) is None:
            yield node.name, "a computed weight, expected a constant"
        if len(node.input) > 2 and node.input[2] and node.input[2] not in graph.constants:
            yield node.name, "a quantised or computed bias, expected a float constant"


def _residual(graph: _Graph) -> Breaches:
    """At an Add that ends an INT8 block, Q/DQ stand on the shortcut and not on the convolution."""
    for node in graph.nodes("Add"):
        makers = [graph.makers.get(name) for name in node.input]
        rounded = [graph.is_quantized(name) for name in node.input]
        integer = any(
            maker is not None and maker.op_type == "Conv" and any(map(graph.is_quantized, maker.input[:2]))
            for maker in makers
        )
        if (integer or any(rounded)) and not (integer and sum(rounded) == 1):
            seen = f"{sum(rounded)} of 2 inputs rounded, {'one' if integer else 'none'} from an INT8 convolution"
            yield node.name, f"{seen}; expected Q/DQ on the shortcut and none after the INT8 convolution"


RULES: Mapping[str, Callable[[_Graph], Breaches]] = {
    "opset": _opset,
    "operator": _operator,
    "interface": _interface,
    "shape": _shape,
    "type": _type,
    "strong typing": _strong_typing,
    "finite": _finite,
    "scale": _scale,
    "zero point": _zero_point,
    "granularity": _granularity,
    "pair": _pair,
    "half quantised": _half_quantized,
    "weights": _constant_weights,
    "residual": _residual,
}
"""The rules by name, in the order of the findings."""
