"""Writing small ONNX graphs node by node.

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
    """Collects nodes, constants, inputs and outputs, and makes a checked model of them.

    Args:
        name: name of the graph, shown by viewers and in a runtime's errors.
        opset: version of the ONNX operators.
    """

    def __init__(self, name: str, opset: int = OPSET) -> None:
        self._name = name
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

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
        """Adds a constant, or finds it: one name is one value."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        if np.ndim(value) == 0:  # ascontiguousarray makes a scalar one-dimensional
            del tensor.dims[:]
        if self._constants.setdefault(name, tensor) != tensor:
            raise InternalError(f"graph {self._name} has two constants named {name}")
        return name

    def node(self, operator: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name."""
        output = name or f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def build(self) -> bytes:
        """The model, checked against the ONNX specification, as file content."""
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid("", self._opset)]
        # The oldest file format that knows the opset, so that the oldest parsers read it.
        version = helper.find_min_ir_version_for(opsets)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
        model.producer_name = "dfs-deploy"
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


def _value_info(name: str, dtype: Any, shape: Sequence[Dimension]) -> onnx.ValueInfoProto:
    element: TensorProto.DataType = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, element, list(shape))
