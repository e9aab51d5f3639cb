"""What TensorRT refuses, or takes and runs slowly, found in a graph before a device sees it.

No machine that exports has to have TensorRT, and a build that fails on a device is found late. So every graph that is
written for TensorRT is held to the rules of its ONNX parser and of its documentation: "Working with Quantized Types"
for where QuantizeLinear and DequantizeLinear may stand, and the ONNX-TensorRT parser's ``docs/operators.md`` for
operators, types and opsets. Networks are strongly typed: a type is what the graph says, and nothing is converted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dfs_deploy.errors import GraphRuleError

OPSETS = range(13, 21)
"""Opset 13 gave Q/DQ an axis; the parser of TensorRT 10.3, that of JetPack 6, reads up to 20."""

FLOAT16_SCALE_OPSET = 19
OPERATORS = frozenset(
    {
        "Add",
        "Cast",
        "Clip",
        "Conv",
        "DequantizeLinear",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "QuantizeLinear",
        "Relu",
    }
)
"""What a block, a stem or a head is made of; TensorRT reads more, and none of it belongs in these graphs."""

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_SAME_TYPE = ("Add", "Clip", "Conv", "Gemm")


@dataclass(frozen=True)
class Finding:
    """A rule that a graph breaks.

    Attributes:
        rule: its short name.
        where: the node, constant or value that breaks it.
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
    """Finds what breaks a rule in one graph.

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
    graph = _Graph.of(onnx.shape_inference.infer_shapes(proto))
    return found + [finding for rule in _RULES for finding in rule(graph)]


@dataclass(frozen=True, eq=False)
class _Graph:
    """A graph with what its rules ask: who makes a value, who reads it, its type, its shape, its constant."""

    proto: onnx.GraphProto
    opsets: Mapping[str, int]
    constants: Mapping[str, NDArray[np.generic]]
    makers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[onnx.NodeProto]]
    types: Mapping[str, int]
    shapes: Mapping[str, list[int | str | None]]

    @staticmethod
    def of(model: onnx.ModelProto) -> _Graph:
        graph = model.graph
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        values = [*graph.input, *graph.value_info, *graph.output]
        return _Graph(
            proto=graph,
            opsets={entry.domain: entry.version for entry in model.opset_import},
            constants={tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer},
            makers={name: node for node in graph.node for name in node.output},
            readers=readers,
            types={value.name: value.type.tensor_type.elem_type for value in values}
            | {tensor.name: tensor.data_type for tensor in graph.initializer},
            shapes={value.name: _shape(value) for value in values}
            | {tensor.name: list(tensor.dims) for tensor in graph.initializer},
        )

    def nodes(self, *operators: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.proto.node if node.op_type in operators)

    def made_by(self, value: str, operator: str) -> onnx.NodeProto | None:
        """The node that makes a value, if it is of this operator."""
        node = self.makers.get(value)
        return node if node is not None and node.op_type == operator else None

    def constant_behind(self, value: str) -> NDArray[np.generic] | None:
        """The weight that a value is: a constant, or one that a QuantizeLinear or DequantizeLinear rounds."""
        while value not in self.constants:
            node = self.makers.get(value)
            if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                return None
            value = node.input[0]
        return self.constants[value]

    def type_name(self, value: str) -> str:
        return str(TensorProto.DataType.Name(self.types.get(value, TensorProto.UNDEFINED))).lower()

    def quantized(self, conv: onnx.NodeProto) -> bool:
        """Whether a convolution or a Gemm reads anything in int8."""
        return any(self.made_by(name, "DequantizeLinear") is not None for name in conv.input[:2])


def _shape(value: onnx.ValueInfoProto) -> list[int | str | None]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims]


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _opset(graph: _Graph) -> Iterator[Finding]:
    for domain, version in graph.opsets.items():
        if domain not in ("", "ai.onnx"):
            yield Finding("opset", "model", f"operators of domain {domain!r}, expected those of ONNX alone")
        elif version not in OPSETS:
            yield Finding("opset", "model", f"opset {version}, expected {OPSETS[0]} to {OPSETS[-1]}")


def _operators(graph: _Graph) -> Iterator[Finding]:
    for node in graph.proto.node:
        if node.op_type == "BatchNormalization":
            yield Finding("folding", node.name, "BatchNormalization, expected it folded into the convolution before it")
        elif node.op_type not in OPERATORS:
            yield Finding("operator", node.name, f"{node.op_type}, expected one of {', '.join(sorted(OPERATORS))}")


def _interface(graph: _Graph) -> Iterator[Finding]:
    inputs, outputs = ([value.name for value in values] for values in (graph.proto.input, graph.proto.output))
    if inputs not in (["features"], ["images"]):
        yield Finding("interface", "inputs", f"{', '.join(inputs) or 'none'}, expected features or images")
    if outputs[:1] != ["output"] or outputs[1:] not in ([], ["pooled"]):
        yield Finding("interface", "outputs", f"{', '.join(outputs)}, expected output, and pooled after a feature map")
    elif (len(graph.shapes["output"]) == 4) != (outputs[1:] == ["pooled"]):
        yield Finding("interface", "pooled", "expected it after a feature map, and not after logits")
    for name in (*inputs, *outputs):
        if graph.types[name] != TensorProto.FLOAT:
            yield Finding("interface", name, f"{graph.type_name(name)}, expected float at a boundary")


def _shapes(graph: _Graph) -> Iterator[Finding]:
    for name in [*(value.name for value in graph.proto.input), *graph.makers]:
        shape = graph.shapes.get(name)
        if graph.constant_behind(name) is not None:
            continue
        if not shape or not isinstance(shape[0], str):
            yield Finding("batch", name, f"shape {shape}, expected a dynamic first dimension")
        if not shape or not all(isinstance(extent, int) and extent > 0 for extent in shape[1:]):
            yield Finding("static shape", name, f"shape {shape}, expected fixed dimensions after the first")


def _used(graph: _Graph) -> Iterator[Finding]:
    outputs = {value.name for value in graph.proto.output}
    for name in (*graph.constants, *(value.name for value in graph.proto.input)):
        if name not in graph.readers and name not in outputs:
            yield Finding("unused", name, "nothing reads it")
    for node in graph.proto.node:
        if not any(name in graph.readers or name in outputs for name in node.output):
            yield Finding("unused", node.name, f"{node.op_type} whose output nothing reads")


def _types(graph: _Graph) -> Iterator[Finding]:
    for name, element in graph.types.items():
        if element not in (*FLOATS, TensorProto.INT8):
            yield Finding("type", name, f"{graph.type_name(name)}, expected float, float16 or int8")
    for node in graph.nodes(*_SAME_TYPE):
        kinds = [graph.type_name(name) for name in node.input if name]
        if len(set(kinds)) > 1:
            yield Finding("strong typing", node.name, f"{node.op_type} of {', '.join(kinds)}, expected one type")
    for node in graph.nodes("Conv", "Gemm", "Add", "Relu", "GlobalAveragePool"):
        if graph.types.get(node.input[0]) not in FLOATS:
            kind = graph.type_name(node.input[0])
            yield Finding("strong typing", node.name, f"{node.op_type} of {kind}, expected a float type")
    for node in graph.nodes("Cast"):
        if helper.get_node_attr_value(node, "to") not in FLOATS:
            yield Finding("strong typing", node.name, "a Cast to no float type, expected float or float16")


def _values(graph: _Graph) -> Iterator[Finding]:
    for name, value in graph.constants.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            yield Finding("finite", name, f"holds infinity or NaN in {value.dtype}, expected finite values")


def _quantization_constants(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes("QuantizeLinear", "DequantizeLinear"):
        scale = graph.constants.get(node.input[1])
        if scale is None:
            yield Finding("scale", node.name, "a computed scale, expected a constant")
        elif not scale.size or scale.dtype not in (np.float32, np.float16):
            yield Finding("scale", node.name, f"{scale.size} of {scale.dtype}, expected some of float32 or float16")
        else:
            least = float(np.min(scale))
            if not least >= float(np.finfo(np.float16 if scale.dtype == np.float16 else np.float32).tiny):
                yield Finding("scale", node.name, f"least scale {least:g}, expected a positive normal {scale.dtype}")
            if scale.dtype == np.float16 and graph.opsets.get("", 0) < FLOAT16_SCALE_OPSET:
                text = f"a float16 scale in opset {graph.opsets.get('')}, expected opset {FLOAT16_SCALE_OPSET} or later"
                yield Finding("float16 scale", node.name, text)
        yield from _zero_point(graph, node, scale)


def _zero_point(graph: _Graph, node: onnx.NodeProto, scale: NDArray[np.generic] | None) -> Iterator[Finding]:
    if len(node.input) < 3 or not node.input[2]:
        if node.op_type == "QuantizeLinear":
            yield Finding("zero point", node.name, "none, which makes it uint8; expected an int8 zero")
        return
    point = graph.constants.get(node.input[2])
    if point is None:
        yield Finding("zero point", node.name, "a computed zero point, expected a constant")
        return
    if point.dtype != np.int8:
        yield Finding("zero point", node.name, f"of {point.dtype}, expected int8")
    if point.any():
        yield Finding("zero point", node.name, f"{point.ravel()[point.ravel().nonzero()[0][0]]}, expected 0")
    if scale is not None and point.size != scale.size:
        yield Finding("zero point", node.name, f"{point.size} value(s) for {scale.size} scale(s), expected as many")


def _granularity(graph: _Graph) -> Iterator[Finding]:
    """Activations have a scale a tensor; weights one an output channel, which is axis 0 of a Conv and a Gemm here."""
    for node in graph.nodes("QuantizeLinear", "DequantizeLinear"):
        scale, weight = graph.constants.get(node.input[1]), graph.constant_behind(node.input[0])
        if scale is None:
            continue
        if weight is None:
            if scale.size != 1:
                yield Finding("granularity", node.name, f"{scale.size} scales for an activation, expected one")
        elif scale.ndim != 1 or weight.ndim == 0:
            yield Finding("granularity", node.name, "one scale for a weight, expected one an output channel")
        else:
            axis = _attribute(node, "axis", 1) % weight.ndim
            if axis != 0:
                yield Finding("axis", node.name, f"axis {axis} for a weight, expected 0")
            if scale.size != weight.shape[axis]:
                text = f"{scale.size} scales for {weight.shape[axis]} channels, expected as many"
                yield Finding("granularity", node.name, text)


def _pairs(graph: _Graph) -> Iterator[Finding]:
    """A QuantizeLinear is read by DequantizeLinear of the same scale and by nothing else."""
    for node in graph.nodes("QuantizeLinear"):
        for reader in graph.readers.get(node.output[0], []):
            if reader.op_type != "DequantizeLinear":
                yield Finding("pair", node.name, f"read by {reader.op_type} {reader.name}, expected DequantizeLinear")
            elif not _same(graph, node.input[1], reader.input[1]):
                yield Finding("pair", node.name, f"another scale than {reader.name} after it, expected the same")
    for node in graph.nodes("DequantizeLinear"):
        constant = graph.constants.get(node.input[0])
        if constant is not None and constant.dtype != np.int8:
            yield Finding("pair", node.name, f"a constant of {constant.dtype}, expected int8")
        elif constant is None and graph.made_by(node.input[0], "QuantizeLinear") is None:
            yield Finding("pair", node.name, f"of {node.input[0]}, expected of a QuantizeLinear or a constant")


def _same(graph: _Graph, first: str, second: str) -> bool:
    one, other = graph.constants.get(first), graph.constants.get(second)
    return one is not None and other is not None and np.array_equal(one, other)


def _convolutions(graph: _Graph) -> Iterator[Finding]:
    """Input and weight both in int8 or neither; weight and bias constant, and the bias never quantised."""
    for node in graph.nodes("Conv", "Gemm"):
        rounded = [graph.made_by(name, "DequantizeLinear") is not None for name in node.input[:2]]
        if rounded[0] != rounded[1]:
            which, other = ("input", "weight") if rounded[0] else ("weight", "input")
            yield Finding("half quantised", node.name, f"an int8 {which} and a float {other}, expected both in int8")
        if graph.constant_behind(node.input[1]) is None:
            yield Finding("weight", node.name, "a computed weight, expected a constant")
        if len(node.input) > 2 and node.input[2]:
            if graph.made_by(node.input[2], "DequantizeLinear") is not None:
                yield Finding("bias", node.name, "a quantised bias, expected a float constant")
            elif node.input[2] not in graph.constants:
                yield Finding("bias", node.name, "a computed bias, expected a float constant")


def _residuals(graph: _Graph) -> Iterator[Finding]:
    """At an Add that ends an INT8 block, Q/DQ stand on the shortcut and not on the convolution."""
    for node in graph.nodes("Add"):
        direct = [graph.made_by(name, "Conv") for name in node.input]
        rounded = [graph.made_by(name, "DequantizeLinear") is not None for name in node.input]
        integer = [conv is not None and graph.quantized(conv) for conv in direct]
        if not any(integer) and not any(rounded):
            continue  # an Add in float arithmetic
        if all(rounded):
            yield Finding("residual", node.name, "Q/DQ on both inputs, expected none after the convolution")
        elif not any(rounded):
            yield Finding("residual", node.name, "no Q/DQ on the shortcut of an INT8 block, expected a pair")
        elif not any(integer):
            yield Finding("residual", node.name, "a rounded shortcut beside no INT8 convolution, expected one")


def _names(graph: _Graph) -> Iterator[Finding]:
    """Layers are named after nodes: in a profile and in an error a name must say which."""
    for name, count in Counter(node.name for node in graph.proto.node).items():
        if not name or count > 1:
            yield Finding("name", name or "node", f"{count} node(s) of this name, expected every node named once")


_RULES: tuple[Callable[[_Graph], Iterator[Finding]], ...] = (
    _opset,
    _operators,
    _interface,
    _shapes,
    _used,
    _types,
    _values,
    _quantization_constants,
    _granularity,
    _pairs,
    _convolutions,
    _residuals,
    _names,
)
