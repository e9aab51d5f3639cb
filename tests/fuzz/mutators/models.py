"""ONNX graphs: operators, attributes, dimensions and edges exchanged; numbers that lie elsewhere; loops without end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.mutators.draw import Draw
from tests.fuzz.mutators.raw import mutate_bytes

_OPERATORS = (
    *(
        "Add",
        "Mul",
        "Pad",
        "Tile",
        "Expand",
        "Resize",
        "Reshape",
        "Concat",
        "Transpose",
        "Gather",
        "Slice",
        "Conv",
        "Relu",
    ),
    *(
        "ConstantOfShape",
        "Range",
        "RandomNormal",
        "Loop",
        "If",
        "Scan",
        "NonZero",
        "StringNormalizer",
        "OneHot",
        "EyeLike",
    ),
    *(
        "QuantizeLinear",
        "DequantizeLinear",
        "QLinearConv",
        "ConvTranspose",
        "CumSum",
        "DFT",
        "LSTM",
        "Einsum",
        "Upsample",
    ),
    *(
        "ImageDecoder",
        "SequenceEmpty",
        "Identity",
        "Unique",
        "TopK",
        "MatMul",
        "Gemm",
        "GlobalAveragePool",
        "Cast",
        "Nope",
    ),
)
_BOMBS = ("Loop", "If", "Pad", "Tile", "ConstantOfShape", "Range", "Expand", "RandomNormal", "Einsum")
_DOMAINS = ("", "ai.onnx", "com.microsoft", "com.microsoft.nchwc", "ai.onnx.ml", "ai.onnx.training", "evil", "\x1b[2J")


def mutate_model(draw: Draw, content: bytes) -> tuple[bytes, bool]:
    """Changes a model; says too whether it asks for what no engine of a bundle may: it must then be refused."""
    if draw.chance(0.15):
        return mutate_bytes(draw, content), False
    if draw.chance(0.03):
        return _foreign(draw, content)
    model = onnx.load_from_string(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.choice(tuple(_CHANGES))
        draw.note(f"onnx {kind}")
        _CHANGES[kind](draw, model)
    forbidden = any(map(_leads_elsewhere, model.graph.initializer)) or any(
        node.op_type in _BOMBS and (not node.output or node.output[0] == "bomb") for node in model.graph.node
    )
    try:
        changed = model.SerializeToString()
    except (DecodeError, ValueError):  # a string that no message can hold
        return mutate_bytes(draw, content), False
    return (mutate_bytes(draw, changed), False) if draw.chance(0.05) else (changed, forbidden)


def _leads_elsewhere(tensor: onnx.TensorProto) -> bool:
    """Whether a constant is somewhere else than in the graph or in the bundle's weights."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return tensor.data_location == TensorProto.EXTERNAL and entries.get("location") != "weights.bin"


def _node(draw: Draw, model: onnx.ModelProto) -> Any:
    return draw.choice(model.graph.node) if model.graph.node else model.graph.node.add(op_type="Identity")


def _operator(draw: Draw, model: onnx.ModelProto) -> None:
    node = _node(draw, model)
    node.op_type = draw.choice(_OPERATORS)
    draw.note(node.op_type)


def _domain(draw: Draw, model: onnx.ModelProto) -> None:
    node = _node(draw, model)
    node.domain = draw.choice(_DOMAINS)
    if draw.chance(0.6) and node.domain not in {each.domain for each in model.opset_import}:
        model.opset_import.add(domain=node.domain, version=draw.choice((1, 17, 21)))


def _attribute(draw: Draw, model: onnx.ModelProto) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    if not nodes or draw.chance(0.2):
        name = draw.choice(
            ("pads", "axis", "to", "group", "kernel_shape", "dilations", "strides", "auto_pad", "value", "x" * 999)
        )
        value = draw.choice((5, -1, [1, 2], 1.5, "SAME_UPPER", [2**62] * 4))
        _node(draw, model).attribute.append(helper.make_attribute(name, value))
        return
    node = draw.choice(nodes)
    attribute = draw.choice(node.attribute)
    draw.note(f"{node.op_type}.{attribute.name}")
    kind = draw.choice(("value", "value", "value", "type", "drop", "twice", "reference"))
    if kind == "value":
        attribute.i = _int64(draw)
        for i in range(len(attribute.ints)):
            if draw.chance(0.5):
                attribute.ints[i] = draw.choice((0, 1, -1, 3, 10**4, 10**6, _int64(draw)))
        attribute.f = draw.choice((0.0, -1.0, 1e38, float("nan")))
    elif kind == "type":
        attribute.type = draw.choice(range(15))
    elif kind == "drop":
        node.attribute.remove(attribute)
    elif kind == "twice":
        node.attribute.append(attribute)
    else:
        attribute.ref_attr_name = "x"


def _initializer(draw: Draw, model: onnx.ModelProto) -> None:
    if not model.graph.initializer:
        return
    tensor = draw.choice(model.graph.initializer)
    kind = draw.choice(("dims", "dims", "type", "data", "values", "outside", "outside", "place", "name", "drop"))
    draw.note(f"initializer {kind}")
    if kind == "dims":
        if not tensor.dims or draw.chance(0.2):
            tensor.dims.append(_int64(draw))
        else:
            tensor.dims[draw.randrange(len(tensor.dims))] = _int64(draw)
    elif kind == "type":
        tensor.data_type = draw.choice((*range(24), 2**31 - 1, -1))
    elif kind == "data":
        tensor.raw_data = draw.choice((b"", tensor.raw_data[:-1], tensor.raw_data * 2, draw.randbytes(16)))
    elif kind == "values" and tensor.data_location != TensorProto.EXTERNAL:
        try:
            array = numpy_helper.to_array(tensor).copy()
        except (ValueError, TypeError, KeyError):  # an earlier change left no array
            return
        if array.size and array.dtype.kind == "f":
            array.flat[draw.randrange(array.size)] = draw.choice((float("nan"), float("inf"), 3e38, -3e38, 0.0))
        elif array.size and array.dtype.kind in "iu":
            array.flat[draw.randrange(array.size)] = draw.choice((0, 1, 127))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    elif kind == "place" and tensor.external_data:
        entry = draw.choice([each for each in tensor.external_data if each.key != "location"] or tensor.external_data)
        entry.value = str(draw.choice((0, 64, 256, 1, -64, 2**20, 2**62, 10**400, "x", int(entry.value or 0) + 64)))
        draw.note(f"{entry.key} {entry.value[:30]}")
    elif kind == "outside":
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        place = draw.choice(
            (
                str(draw.outside / "secret.bin"),
                "../outside/secret.bin",
                "../../outside/secret.bin",
                "manifest.json",
                "samples.npz",
                "/dev/zero",
                "/etc/passwd",
                "x" * 5000,
                "",
                "\x1b[2J",
                "*/_ORT_MEM_ADDR_/*",
            )
        )
        tensor.external_data.add(key="location", value=place)
        if draw.chance(0.5):
            tensor.external_data.add(key="offset", value=str(draw.choice((0, 8, -1, 2**62))))
            tensor.external_data.add(key="length", value=str(draw.choice((16, -1, 2**40, "x"))))
        draw.note(place)
    elif kind == "name":
        tensor.name = draw.choice(("", "images", draw.choice(model.graph.initializer).name))
    elif kind == "drop":
        model.graph.initializer.remove(tensor)


def _shape(draw: Draw, model: onnx.ModelProto) -> None:
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    if not values:
        return
    value = draw.choice(values)
    kind = draw.choice(("dim", "dim", "symbol", "type", "name", "drop", "rank"))
    draw.note(f"{kind} of {value.name[:30]}")
    tensor = value.type.tensor_type
    if kind in ("dim", "symbol") and tensor.shape.dim:
        dim = draw.choice(tensor.shape.dim)
        if kind == "dim":
            dim.dim_value = _int64(draw)
        else:
            dim.dim_param = draw.choice(("N", "x", "", "\x1b[2J", "-1"))
    elif kind == "type":
        tensor.elem_type = draw.choice((0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 17, 99))
    elif kind == "name":
        value.name = draw.choice(("", "x", "images", "features", "\x1b[2J\nforged", "caf\u00e9", "y" * 100_000))
    elif kind == "rank":
        tensor.shape.dim.add(dim_value=draw.choice((0, 1, 2)))
    else:
        value.ClearField("type")


def _edge(draw: Draw, model: onnx.ModelProto) -> None:
    node = _node(draw, model)
    other = _node(draw, model)
    kind = draw.choice(("input", "input", "output", "cycle", "empty", "drop", "twice", "swap"))
    names = [name for each in model.graph.node for name in each.output] + [
        each.name for each in model.graph.initializer
    ] or ["x"]
    if kind == "input" and node.input:
        node.input[draw.randrange(len(node.input))] = draw.choice(names)
    elif kind == "output" and node.output:
        node.output[0] = draw.choice((*names[:3], "unknown"))
    elif kind == "cycle" and node.input and node.output:
        node.input[0] = node.output[0]
    elif kind == "empty" and node.input:
        node.input[draw.randrange(len(node.input))] = ""
    elif kind == "drop":
        model.graph.node.remove(node)
    elif kind == "twice":
        model.graph.node.append(node)
    elif kind == "swap":
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        node.CopyFrom(other)
        other.CopyFrom(kept)


def _head(draw: Draw, model: onnx.ModelProto) -> None:
    kind = draw.choice(
        ("ir", "opset", "opset", "producer", "metadata", "function", "graph name", "opset twice", "sparse", "doc")
    )
    draw.note(kind)
    if kind == "ir":
        model.ir_version = draw.choice((0, 1, 3, 8, 12, 99, 2**62, -1))
    elif kind == "opset" and model.opset_import:
        model.opset_import[0].version = draw.choice((0, 1, 7, 13, 17, 21, 25, 99, 2**62, -1))
    elif kind == "opset twice":
        model.opset_import.add(domain="", version=draw.choice((1, 12, 21)))
    elif kind == "producer":
        model.producer_name = draw.choice(("\x1b[2J", "x" * 10**6, ""))
    elif kind == "metadata":
        model.metadata_props.add(
            key=draw.choice(("x", "\x1b[2J", "ort.session.options")), value=draw.choice(("y" * 10**6, "", "{}"))
        )
    elif kind == "function":
        node = _node(draw, model)
        body = helper.make_node(node.op_type, ["a"], ["b"], domain=draw.choice(("", "evil")))
        model.functions.append(helper.make_function("evil", "F", ["a"], ["b"], [body], list(model.opset_import)))
        node.op_type, node.domain = "F", "evil"
        model.opset_import.add(domain="evil", version=1)
    elif kind == "sparse":
        values = helper.make_tensor("s", 1, [1], [1.0])
        model.graph.sparse_initializer.append(
            helper.make_sparse_tensor(values, helper.make_tensor("i", 7, [1], [0]), [2**40])
        )
    elif kind == "doc":
        model.doc_string = model.graph.doc_string = "\x1b[2J" * 1000
    else:
        model.graph.name = draw.choice(("", "\x1b[2J"))


def _bomb(draw: Draw, model: onnx.ModelProto) -> None:
    """Puts something in front of the graph that takes all time or memory that there is."""
    if not model.graph.input or not model.graph.node:
        return
    source = model.graph.input[0].name
    kind = draw.choice(
        ("loop", "pad", "tile", "constant", "constant", "range", "expand", "if", "random", "scan", "deep")
    )
    draw.note(f"bomb {kind}")
    nodes, constants = [], []

    def ints(name: str, values: list[int]) -> str:
        constants.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
        return name

    rank = max(len(model.graph.input[0].type.tensor_type.shape.dim), 1)
    if kind in ("loop", "if"):
        turns = helper.make_tensor("bomb_turns", TensorProto.INT64, [], [2**40])
        constants += [turns, helper.make_tensor("bomb_go", TensorProto.BOOL, [], [True])]
        condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
        body = helper.make_graph(
            [helper.make_node("Identity", ["c"], ["d"])],
            "body",
            [helper.make_tensor_value_info("i", TensorProto.INT64, []), condition],
            [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
        )
        if kind == "loop":
            nodes.append(helper.make_node("Loop", ["bomb_turns", "bomb_go"], [], body=body))
        else:
            branch = helper.make_graph(
                [
                    helper.make_node("Loop", ["bomb_turns", "bomb_go"], [], body=body),
                    helper.make_node("Identity", ["bomb_go"], ["e"]),
                ],
                "branch",
                [],
                [helper.make_tensor_value_info("e", TensorProto.BOOL, [])],
            )
            nodes.append(helper.make_node("If", ["bomb_go"], ["bomb"], then_branch=branch, else_branch=branch))
    elif kind == "pad":
        nodes.append(helper.make_node("Pad", [source, ints("bomb_size", [0] * (2 * rank - 1) + [2**33])], ["bomb"]))
    elif kind == "tile":
        nodes.append(helper.make_node("Tile", [source, ints("bomb_size", [1] * (rank - 1) + [2**30])], ["bomb"]))
    elif kind == "constant":
        size = draw.choice(([2**33], [2**16, 2**16], [2**62], [2**20] * 4))
        nodes.append(helper.make_node("ConstantOfShape", [ints("bomb_size", size)], ["bomb"]))
    elif kind == "range":
        constants += [
            helper.make_tensor(f"bomb_{i}", TensorProto.INT64, [], [value]) for i, value in enumerate((0, 2**34, 1))
        ]
        nodes.append(helper.make_node("Range", ["bomb_0", "bomb_1", "bomb_2"], ["bomb"]))
    elif kind == "expand":
        nodes.append(helper.make_node("Expand", [source, ints("bomb_size", [2**33] + [1] * rank)], ["bomb"]))
    elif kind == "random":
        nodes.append(helper.make_node("RandomNormal", [], ["bomb"], shape=[2**16, 2**16]))
    elif kind == "scan":
        nodes.append(helper.make_node("Einsum", [source, source], ["bomb"], equation="...,...->..."))
    else:
        last = source
        for i in range(20_000):
            nodes.append(helper.make_node("Identity", [last], [f"bomb{i}"]))
            last = f"bomb{i}"
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    model.graph.initializer.extend(constants)
    if nodes[-1].output and draw.chance(0.6):
        model.graph.output.add(name=nodes[-1].output[0]).type.tensor_type.elem_type = draw.choice((1, 7, 9))


def _foreign(draw: Draw, content: bytes) -> tuple[bytes, bool]:
    """Something else than a graph."""
    kind = draw.choice(("ort", "ort made", "empty", "text", "recursion", "length"))
    draw.note(f"onnx becomes {kind}")
    if kind == "ort":
        return b"\x18\0\0\0ORTM" + draw.randbytes(200), True
    if kind == "ort made":
        return b"\x18\0\0\0ORTM" + content, True
    if kind == "empty":
        return b"", True
    if kind == "text":
        return b"not a model\n", True
    if kind == "recursion":
        data = b""
        for _ in range(draw.choice((50, 200, 3000))):  # a graph in an attribute in a node in a graph ...
            data = _field(7, _field(1, _field(5, _field(6, data))))[:1_000_000]
        return data, False
    return content[:40] + b"\x3a\xff\xff\xff\xff\x0f" + content[40:], False


def _field(number: int, data: bytes) -> bytes:
    length, size = len(data), b""
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + data


def _int64(draw: Draw) -> int:
    return max(-(2**63), min(2**63 - 1, draw.number()))


_CHANGES: dict[str, Callable[[Draw, onnx.ModelProto], None]] = {
    "operator": _operator,
    "domain": _domain,
    "attribute": _attribute,
    "initializer": _initializer,
    "shape": _shape,
    "edge": _edge,
    "head": _head,
    "bomb": _bomb,
}
