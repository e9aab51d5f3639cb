"""ONNX models without the onnx package: the message fields that a check or an edit needs.

ONNX Runtime needs protobuf, so every machine that runs a bundle has it. Protobuf keeps fields that are not listed here
unchanged; ``dfs_deploy.bundle.engine_check`` allows none in an engine. Numbers are those of onnx.proto
(github.com/onnx/onnx), which never change.
"""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from dfs_deploy.errors import BundleError

Message = Any
"""Message of a class that is created at run time."""

FLOAT, UINT8, INT8, INT32, INT64, FLOAT16 = 1, 2, 3, 6, 7, 10
"""Element types (TensorProto.DataType)."""

NUMBER, INTEGER, TEXT, INTEGERS = 1, 2, 3, 7
"""Attribute types (AttributeProto.AttributeType); a number is a float32."""

EXTERNAL = 1
"""Location of a tensor's data in a file of its own (TensorProto.DataLocation)."""


class UnfitError(ValueError):
    """Reason why a model is refused, as the end of a sentence about it."""


Attribute = int | float | bytes | list[int]
"""Value of an attribute."""

_INT64, _STRING, _BYTES, _ENUM_AS_INT, _FLOAT_FIELD = 3, 9, 12, 5, 2  # FieldDescriptorProto.Type
_ONE, _MANY = 1, 3  # FieldDescriptorProto.Label

_ATTRIBUTES: dict[type, tuple[str, int]] = {
    float: ("f", NUMBER),
    int: ("i", INTEGER),
    bytes: ("s", TEXT),
    list: ("ints", INTEGERS),
}
"""Field and type of an attribute, by the type of its value."""

# Message: field: (number, label, type or the name of a message).
_FIELDS: dict[str, dict[str, tuple[int, int, int | str]]] = {
    "Model": {
        "ir_version": (1, _ONE, _INT64),
        "producer_name": (2, _ONE, _STRING),
        "producer_version": (3, _ONE, _STRING),
        "doc_string": (6, _ONE, _STRING),
        "graph": (7, _ONE, "Graph"),
        "opset_import": (8, _MANY, "OperatorSet"),
    },
    "OperatorSet": {"domain": (1, _ONE, _STRING), "version": (2, _ONE, _INT64)},
    "Graph": {
        "node": (1, _MANY, "Node"),
        "name": (2, _ONE, _STRING),
        "initializer": (5, _MANY, "Tensor"),
        "input": (11, _MANY, "Value"),
        "output": (12, _MANY, "Value"),
        "value_info": (13, _MANY, "Value"),
    },
    "Node": {
        "input": (1, _MANY, _STRING),
        "output": (2, _MANY, _STRING),
        "name": (3, _ONE, _STRING),
        "op_type": (4, _ONE, _STRING),
        "attribute": (5, _MANY, "Attribute"),
        "domain": (7, _ONE, _STRING),
    },
    "Attribute": {
        "name": (1, _ONE, _STRING),
        "f": (2, _ONE, _FLOAT_FIELD),
        "i": (3, _ONE, _INT64),
        "s": (4, _ONE, _BYTES),
        "ints": (8, _MANY, _INT64),
        "type": (20, _ONE, _ENUM_AS_INT),
    },
    "Tensor": {
        "dims": (1, _MANY, _INT64),
        "data_type": (2, _ONE, _ENUM_AS_INT),
        "float_data": (4, _MANY, _FLOAT_FIELD),
        "name": (8, _ONE, _STRING),
        "raw_data": (9, _ONE, _BYTES),
        "external_data": (13, _MANY, "Entry"),
        "data_location": (14, _ONE, _ENUM_AS_INT),
    },
    "Entry": {"key": (1, _ONE, _STRING), "value": (2, _ONE, _STRING)},
    "Value": {"name": (1, _ONE, _STRING), "type": (2, _ONE, "Type")},
    "Type": {"tensor_type": (1, _ONE, "TensorType")},
    "TensorType": {"elem_type": (1, _ONE, _ENUM_AS_INT), "shape": (2, _ONE, "Shape")},
    "Shape": {"dim": (1, _MANY, "Dimension")},
    "Dimension": {"dim_value": (1, _ONE, _INT64), "dim_param": (2, _ONE, _STRING)},
}


@functools.cache
def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="dfs_deploy_model.proto", package="dfs_deploy", syntax="proto2")
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for name, (number, label, kind) in fields.items():
            if isinstance(kind, str):
                described.field.add(name=name, number=number, label=label, type=11, type_name=f".dfs_deploy.{kind}")
            else:
                described.field.add(name=name, number=number, label=label, type=kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return {name: message_factory.GetMessageClass(find(f"dfs_deploy.{name}")) for name in _FIELDS}


def parse_model(data: bytes, name: str) -> Message:
    """Reads a serialised ModelProto; raises BundleError, which names it, if it is none."""
    from google.protobuf.message import DecodeError

    try:
        return _classes()["Model"].FromString(data)
    except DecodeError as error:
        raise BundleError(f"{name} is no ONNX model ({error}); export it again") from error


def empty_model(opset: int) -> Message:
    """Creates a model without nodes, with an opset of the standard operators."""
    model = _classes()["Model"].FromString(b"\x08\x08")  # field 1, ir_version, is 8
    model.opset_import.add(domain="", version=opset)
    return model


def make_node(operator: str, inputs: list[str], output: str, domain: str = "", **attributes: Attribute) -> Message:
    """Creates a node with one output."""
    node = _classes()["Node"](op_type=operator, input=inputs, output=[output], name=f"{operator}_{output}")
    if domain:
        node.domain = domain
    for name, value in attributes.items():
        field, kind = _ATTRIBUTES[type(value)]
        node.attribute.add(name=name, type=kind, **{field: value})
    return node


def attribute_value(attribute: Message) -> Attribute | None:
    """Value of an attribute; ``None`` if it is of a type that no exported engine has."""
    field = next((field for field, kind in _ATTRIBUTES.values() if kind == attribute.type), None)
    if field is None:
        return None
    value = getattr(attribute, field)
    return list(value) if attribute.type == INTEGERS else value


def make_value(name: str, element: int, shape: tuple[int | str, ...]) -> Message:
    """Creates an input or output; a named size may have any value."""
    value = _classes()["Value"](name=name)
    value.type.tensor_type.elem_type = element
    for size in shape:
        if isinstance(size, str):
            value.type.tensor_type.shape.dim.add(dim_param=size)
        else:
            value.type.tensor_type.shape.dim.add(dim_value=size)
    return value


def make_tensor(name: str, element: int, shape: tuple[int, ...], data: bytes) -> Message:
    """Creates an initializer."""
    return _classes()["Tensor"](name=name, data_type=element, dims=shape, raw_data=data)


def sizes(value: Message) -> tuple[int, ...]:
    """Shape of an input or output without the batch."""
    return tuple(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim[1:])


def set_nodes(graph: Message, nodes: list[Message]) -> None:
    """Replaces the nodes of a graph."""
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
