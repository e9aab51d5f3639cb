"""ONNX graphs written node by node, a thin layer over ``onnx.helper``.

The engines are a handful of nodes with folded weights, and there are hundreds of them: written directly they come out
the same to the byte every time, in the layout and with the quantisation nodes that a runtime fuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dfs_deploy.errors import InternalError

OPSET = 21
"""Opset of a graph unless it says otherwise: every supported version of ONNX Runtime reads it."""

Dimension = int | str


class GraphBuilder:
    """Nodes, constants, inputs and outputs of a graph, from which a checked model is made.

    Args:
        name: name of the graph, shown by viewers and in a runtime's errors.
        opset: version of the ONNX operators.
        prefix: beginning of every name in the graph: a name may stand once in a graph and all its branches.
    """

    def __init__(self, name: str, opset: int = OPSET, prefix: str = "") -> None:
        self._name = name
        self._opset = opset
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    @property
    def opset(self) -> int:
        """Version of the ONNX operators."""
        return self._opset

    def input(self, name: str, dtype: Any, shape: Sequence[Dimension]) -> str:
        """Declares a graph input; a string in the shape is a dimension known at run time."""
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: Any, shape: Sequence[Dimension]) -> None:
        """Makes a value an output of the graph under a name."""
        producer = next((node for node in self._nodes if value in node.output), None)
        if producer is None:  # a constant or an input
            self.node("Identity", value, name=name)
        else:
            for node in self._nodes:
                node.input[:] = [name if i == value else i for i in node.input]
            producer.output[:] = [name if o == value else o for o in producer.output]
        self._outputs.append(_value_info(name, dtype, shape))

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """Adds a constant and returns its name; asked for twice, the same constant is made once."""
        name = self._prefix + name
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        if np.ndim(value) == 0:  # ascontiguousarray makes a scalar one-dimensional
            del tensor.dims[:]
        if self._constants.setdefault(name, tensor) != tensor:
            raise InternalError(f"graph {self._name} has two constants named {name}")
        return name

    def node(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name."""
        output = self._prefix + (name or f"{operator.lower()}_{len(self._nodes)}")
        self._nodes.append(helper.make_node(operator, list(inputs), [output], name=output, domain="", **attributes))
        return output

    def nodes(self, operator: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Adds a node with several outputs and returns their names."""
        first = self.node(operator, *inputs, **attributes)
        names = (first, *(f"{first}_{i}" for i in range(1, outputs)))
        self._nodes[-1].output[:] = names
        return names

    def section(self, label: str) -> GraphBuilder:
        """This same graph under a longer prefix."""
        section = GraphBuilder(self._name, self._opset, f"{self._prefix}{label}_")
        section._nodes, section._constants = self._nodes, self._constants
        return section

    def branch(self, label: str) -> GraphBuilder:
        """A graph that may become a branch of this one and may read its values."""
        return GraphBuilder(f"{self._prefix}{label}", self._opset, f"{self._prefix}{label}_")

    def returning(self, values: Sequence[str], types: Sequence[onnx.TypeProto]) -> onnx.GraphProto:
        """This branch with the given values, of the given types, as its outputs."""
        made = {name for node in self._nodes for name in node.output}
        # A branch may only return what is made in it.
        names = [value if value in made else self.node("Identity", value) for value in values]
        outputs = [helper.make_value_info(name, kind) for name, kind in zip(names, types, strict=True)]
        return helper.make_graph(self._nodes, self._name, [], outputs, list(self._constants.values()))

    def choose(self, condition: str, then: onnx.GraphProto, otherwise: onnx.GraphProto) -> tuple[str, ...]:
        """Adds an ``If`` and returns the names of its outputs."""
        return self.nodes("If", [condition], len(then.output), then_branch=then, else_branch=otherwise)

    def build(self, description: str = "", metadata: dict[str, str] | None = None) -> bytes:
        """The model, checked against the ONNX specification, as file content."""
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid("", self._opset)]
        # The oldest file format that knows the opset, so that the oldest parsers read it.
        version = helper.find_min_ir_version_for(opsets)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="dfs-deploy")
        if description:
            model.doc_string = description
        helper.set_model_props(model, metadata or {})
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


def _value_info(name: str, dtype: Any, shape: Sequence[Dimension]) -> onnx.ValueInfoProto:
    element: TensorProto.DataType = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, element, list(shape))
