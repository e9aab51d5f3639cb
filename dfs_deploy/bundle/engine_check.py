"""Check of an engine: a plain ONNX graph of operators that an export writes, with tensors of known sizes.

A bundle may come from anyone. Its digests prove that a file is what the manifest's author wrote, not that it is
harmless: ONNX has loops, tensors that grow without bound, and weights in other files. So each engine is read before any
runtime sees it, and refused unless every field, operator, attribute and shape is one that an exported engine has. Its
time and memory are then bounded by the sizes in the manifest and the size of the file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dfs_deploy.bundle.engines import laid_out, walk
from dfs_deploy.bundle.manifest import Manifest, RuntimeEngines
from dfs_deploy.bundle.onnx_messages import (
    FLOAT,
    FLOAT16,
    INT8,
    INT32,
    INT64,
    INTEGER,
    INTEGERS,
    UINT8,
    Message,
    parse_model,
)
from dfs_deploy.errors import BundleError
from dfs_deploy.network import Architecture
from dfs_deploy.options import Options

BATCH = -1
"""Placeholder for the number of images in a shape."""

OPSETS = range(13, 22)
"""Versions of the ONNX operators that exports write or wrote."""

Shape = tuple[int, ...]

_ORT_FORMAT = b"ORTM"
"""Bytes at offset 4 of ONNX Runtime's own format, whose reader trusts the file."""

_BYTES = {FLOAT: 4, UINT8: 1, INT8: 1, INT32: 4, INT64: 8, FLOAT16: 2}
_KERNELS = (1, 3)
_STRIDES = (1, 2)

_MOST_NODES = 64
"""Most nodes per block; the largest exported block has 22, the gate 26."""

_MOST_PARTS = 4 * _MOST_NODES
"""Most nodes, constants, inputs and outputs per block."""

_LARGEST_PART = 4096
"""Most bytes of a node, or of a constant without its data."""

_GRAPH, _NODE, _CONSTANT, _RAW_DATA = 7, 1, 5, 9  # field numbers of ModelProto, GraphProto (two) and TensorProto


@dataclass(frozen=True)
class EngineUse:
    """Use of one engine file.

    Attributes:
        label: name in messages, such as ``block 3, option 8 (int8)``.
        takes: name, element type and shape of each input; the name is empty for an input of any name.
        gives: shape of the first output; ``None`` for the gate, whose outputs are checked when they are read.
        largest: most values per image of any tensor.
        blocks: number of blocks that the engine computes.
    """

    label: str
    takes: tuple[tuple[str, int, Shape], ...]
    gives: Shape | None
    largest: int
    blocks: int = 1


def engine_uses(manifest: Manifest, options: Options) -> dict[str, list[EngineUse]]:
    """Uses of each engine file of a bundle without contradictions; those that differ only in their label count once."""
    uses: dict[str, dict[tuple[object, ...], EngineUse]] = {}
    for engines in manifest.runtimes.values():
        for file, use in _uses(engines, manifest.architecture, options):
            uses.setdefault(file, {}).setdefault((use.takes, use.gives, use.largest, use.blocks), use)
    return {file: list(different.values()) for file, different in uses.items()}


def check_engine(data: bytes, name: str, use: EngineUse) -> None:
    """Checks the content of an engine's file without running any of it; the name is for messages.

    Raises:
        BundleError: it is no ONNX model, or has something that no exported engine has.
    """
    try:
        if data[4:8] == _ORT_FORMAT:
            raise _UnfitError("is in ONNX Runtime's own format, expected ONNX")
        _check_size(data, use.blocks)
        model = parse_model(data, name)
        _check_fields(model)
        _check_graph(model.graph, use)
    except UnicodeDecodeError as error:
        raise BundleError(
            f"{name} has a name that is not UTF-8, in the engine of {use.label}; export it again"
        ) from error
    except _UnfitError as error:
        raise BundleError(
            f"{name}, the engine of {use.label}, {error}; export it again, and do not use a bundle from an unknown"
            " source"
        ) from error


class _UnfitError(ValueError):
    """Reason why an engine is refused, as the end of a sentence about it."""


def _uses(engines: RuntimeEngines, architecture: Architecture, options: Options) -> Iterator[tuple[str, EngineUse]]:
    maps = [block.out_shape for block in architecture.blocks]
    images, logits = architecture.image_shape, (architecture.classes,)
    for each in walk(engines, architecture, options):
        gives, largest = laid_out(each.gives, each.engine.output), max(math.prod(each.takes), math.prod(each.gives))
        for layout, file in each.engine.files.items():
            takes = ("", UINT8 if layout == "uint8" else FLOAT, (BATCH, *laid_out(each.takes, layout)))
            yield file, EngineUse(each.label, (takes,), (BATCH, *gives), largest)
    largest, taken = max(map(math.prod, (images, logits, *maps))), (("", FLOAT, (BATCH, *images)),)
    for precision, file in engines.static.items():
        yield file, EngineUse(f"static {precision}", taken, (BATCH, *logits), largest, len(maps) + 2)
    if engines.gate is not None:
        widest = max((channels for channels, *_ in maps[:-1]), default=1)
        state = (BATCH, architecture.gate.hidden)
        states = (("hidden", FLOAT, state), ("cell", FLOAT, state)) if architecture.gate.kind == "lstm" else ()
        inputs = (("pooled", FLOAT, (BATCH, widest)), ("block", INT64, ()), *states)
        yield engines.gate, EngineUse("the gate", inputs, None, max(widest, 4 * architecture.gate.hidden))


# The file is checked before it is parsed: a message of two bytes takes a hundred in memory.


def _check_size(data: bytes, blocks: int) -> None:
    """Checks the number of parts of a model and their sizes in bytes."""
    parts = 0
    for field, start, end in _fields(data, 0, len(data)):
        parts += 1
        if field != _GRAPH:
            _check_part(end - start)
            continue
        for inner, first, last in _fields(data, start, end):
            parts += 1
            size = last - first
            if inner == _CONSTANT and size > _LARGEST_PART:
                # This many fields are already too many bytes without the data; the rest can be ignored.
                some = itertools.islice(_fields(data, first, last), _LARGEST_PART)
                size -= sum(e - s for number, s, e in some if number == _RAW_DATA)
            _check_part(size)
            if parts > _MOST_PARTS * blocks:
                raise _UnfitError(f"has more than {_MOST_PARTS * blocks} parts")
        if parts > _MOST_PARTS * blocks:
            raise _UnfitError(f"has more than {_MOST_PARTS * blocks} parts")


def _check_part(size: int) -> None:
    if size > _LARGEST_PART:
        raise _UnfitError(f"has a part of {size:,} bytes besides its weights, expected at most {_LARGEST_PART:,}")


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Fields of a Protobuf message: number, and begin and end of the content (0, 0 if it is a number)."""
    while at < end:
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at, end)
            yield tag >> 3, 0, 0
        elif kind == 2:
            size, at = _varint(data, at, end)
            if size > end - at:
                raise _UnfitError("is no ONNX model, or is incomplete")
            yield tag >> 3, at, at + size
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            yield tag >> 3, 0, 0
        else:
            raise _UnfitError("is no ONNX model")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise _UnfitError("is no ONNX model, or is incomplete")


# The model


def _check_fields(model: Message) -> None:
    for tensor in model.graph.initializer:
        if tensor.external_data or tensor.data_location:
            raise _UnfitError("keeps weights in another file")
    for node in model.graph.node:
        if node.domain or node.op_type not in _OPERATORS:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise _UnfitError(f"has the operator {name!r}")
    # The parser does not know fields that onnx_messages omits: functions, subgraphs, sparse tensors, training.
    size = model.ByteSize()
    model.DiscardUnknownFields()
    if model.ByteSize() != size or model.graph.value_info:
        raise _UnfitError("has other fields than graph, nodes and weights (such as subgraphs or functions)")
    for opset in model.opset_import:
        if opset.domain or opset.version not in OPSETS:
            seen = f"{opset.domain or 'ONNX'} {opset.version}"
            raise _UnfitError(f"has operators of {seen}, expected ONNX {OPSETS[0]} to {OPSETS[-1]}")


def _check_graph(graph: Message, use: EngineUse) -> None:
    if len(graph.node) > _MOST_NODES * use.blocks:
        raise _UnfitError(f"has {len(graph.node)} nodes, expected at most {_MOST_NODES * use.blocks}")
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {name: _constant_shape(tensor) for name, tensor in constants.items()}
    largest = max(use.largest, *map(_elements, shapes.values()), 1)
    inputs = _input_shapes(graph, use)
    if inputs.keys() & constants.keys():
        raise _UnfitError("has an input that is also a constant")
    shapes.update(inputs)
    for node in graph.node:
        operator = _OPERATORS[node.op_type]
        missing = [name for name in node.input if name not in shapes]
        if missing or len(node.input) not in operator.inputs or len(node.output) != 1 or node.output[0] in shapes:
            raise _UnfitError(f"has a node {node.op_type} with other inputs or outputs than in an export")
        taken = [shapes[name] for name in node.input]
        call = _Call(node.op_type, taken, _attributes(node), [_integer(constants.get(name)) for name in node.input])
        if not call.attributes.keys() <= operator.attributes:
            raise _UnfitError(f"has a node {node.op_type} with other attributes than in an export")
        made = operator.rule(call)
        if _elements(made) > largest:
            raise _UnfitError(f"has a tensor of {_elements(made):,} values, expected at most {largest:,} for an image")
        shapes[node.output[0]] = made
    given = [shapes.get(value.name) for value in graph.output]
    if None in given or (use.gives is not None and given[:1] != [use.gives]):
        raise _UnfitError(f"gives {_words(given[:1])}, expected {_words([use.gives])}")


def _input_shapes(graph: Message, use: EngineUse) -> dict[str, Shape]:
    """Shape of each input, by name."""
    found: dict[str, Shape] = {}
    wanted = {name: (kind, shape) for name, kind, shape in use.takes}
    for value in graph.input:
        kind, shape = wanted.get("" if "" in wanted else value.name, (0, ()))
        tensor = value.type.tensor_type
        named = [dim.dim_param or not dim.dim_value for dim in tensor.shape.dim]
        sizes = tuple(BATCH if unknown else dim.dim_value for unknown, dim in zip(named, tensor.shape.dim, strict=True))
        # The gate takes the features of any block, so its number of channels may be open.
        fits = sizes == shape or (use.gives is None and len(sizes) == len(shape) == 2 and sizes == (BATCH, BATCH))
        if tensor.elem_type != kind or not fits:
            raise _UnfitError(
                f"takes {_words([sizes])} of type {tensor.elem_type}, expected {_words([shape])} of {kind}"
            )
        found[value.name] = shape
    if len(found) != len(wanted) or len(graph.input) != len(wanted):
        raise _UnfitError(f"has {len(graph.input)} inputs, expected {len(wanted)}")
    return found


def _constant_shape(tensor: Message) -> Shape:
    shape = tuple(tensor.dims)
    size = _BYTES.get(tensor.data_type)
    if size is None or len(shape) > 4 or any(dim < 0 for dim in shape) or tensor.float_data:
        raise _UnfitError(f"has a constant of {len(shape)} dimensions and type {tensor.data_type}")
    if math.prod(shape) * size != len(tensor.raw_data):
        raise _UnfitError(f"has a constant of {len(tensor.raw_data):,} bytes for a shape of {shape}")
    return shape


def _elements(shape: Shape) -> int:
    """Values of a tensor per image."""
    return abs(math.prod(shape))


def _words(shapes: Sequence[Shape | None]) -> str:
    return ", ".join("nothing" if s is None else str(s).replace(str(BATCH), "N") for s in shapes) or "nothing"


def _attributes(node: Message) -> dict[str, int | list[int]]:
    found: dict[str, int | list[int]] = {}
    for attribute in node.attribute:
        if attribute.type not in (INTEGER, INTEGERS) or attribute.name in found:
            raise _UnfitError(f"has a node {node.op_type} with other attributes than in an export")
        found[attribute.name] = attribute.i if attribute.type == INTEGER else list(attribute.ints)
    return found


def _integer(tensor: Message | None) -> int | None:
    """Value of a constant that is one int64; ``None`` for anything else."""
    if tensor is None or tensor.data_type != INT64 or len(tensor.raw_data) != _BYTES[INT64]:
        return None
    return int.from_bytes(tensor.raw_data, "little", signed=True)


@dataclass(frozen=True)
class _Call:
    """A node for its rule: shapes of the inputs, attributes, and values of inputs that are a constant integer."""

    operator: str
    shapes: list[Shape]
    attributes: Mapping[str, int | list[int]]
    integers: list[int | None]

    def require(self, fits: bool) -> None:
        """Raises ``unfit`` unless ``fits``."""
        if not fits:
            raise self.unfit()

    def unfit(self) -> _UnfitError:
        """Error for a node that no export has."""
        seen = ", ".join(f"{name} {value}" for name, value in self.attributes.items())
        return _UnfitError(f"has a node {self.operator} of {_words(self.shapes)} ({seen or 'no attributes'})")


@dataclass(frozen=True)
class _Operator:
    """An operator that exports write: number of inputs, attributes, and rule for the shape of the output.

    If the shape depends on values, the rule returns the largest possible one.
    """

    inputs: range
    rule: Callable[[_Call], Shape]
    attributes: frozenset[str] = frozenset()


def _same(call: _Call) -> Shape:
    return call.shapes[0]


def _alike(call: _Call) -> Shape:
    call.require(call.shapes[0] == call.shapes[1])  # otherwise the result would broadcast to a larger shape
    return call.shapes[0]


def _cast(call: _Call) -> Shape:
    call.require(call.attributes.get("to") in (FLOAT, FLOAT16))
    return call.shapes[0]


def _convolution(call: _Call) -> Shape:
    x, weight = call.shapes[:2]
    stride = next((each for each in _STRIDES if call.attributes.get("strides") == [each, each]), None)
    call.require(len(x) == 4 and len(weight) == 4 and BATCH not in weight)
    channels, _, kernel, width = weight
    if (
        stride is None
        or kernel != width
        or kernel not in _KERNELS
        or call.attributes.get("kernel_shape") != [kernel] * 2
        or call.attributes.get("pads") != [kernel // 2] * 4
    ):
        raise call.unfit()
    return (x[0], channels, *((size + stride - 1) // stride for size in x[2:]))


def _product(call: _Call) -> Shape:
    a, b = call.shapes[:2]
    transposed = call.attributes.get("transB", 0)
    call.require(len(a) == 2 and len(b) == 2 and BATCH not in b and transposed in (0, 1))
    return a[0], b[0 if transposed else 1]


def _mean(call: _Call) -> Shape:
    call.require(len(call.shapes[0]) == 4)
    return (*call.shapes[0][:2], 1, 1)


def _flat(call: _Call) -> Shape:
    first, *others = call.shapes[0] or (1,)
    return first, math.prod(others)


def _transposed(call: _Call) -> Shape:
    x, perm = call.shapes[0], call.attributes.get("perm")
    if not isinstance(perm, list) or perm[:1] != [0] or sorted(perm) != list(range(len(x))):
        raise call.unfit()
    return tuple(x[i] for i in perm)


def _element(call: _Call) -> Shape:
    data, index = call.shapes
    call.require(index == () and len(data) >= 1 and call.attributes.get("axis", 0) == 0)
    return data[1:]


def _size(call: _Call) -> Shape:
    return (len(call.shapes[0]),)


def _sliced(call: _Call) -> Shape:
    data, (start, end, axis) = call.shapes[0], call.integers[1:]
    if start is None or end is None or axis is None or axis not in range(len(data)) or data[axis] == BATCH:
        return data
    kept = len(range(*slice(start, end).indices(data[axis])))
    return (*data[:axis], kept, *data[axis + 1 :])


def _greatest(call: _Call) -> Shape:
    x = call.shapes[0]
    call.require(len(x) == 2 and call.attributes.get("axis") == 1 and call.attributes.get("keepdims") == 0)
    return x[:1]


_OPERATORS = {
    **dict.fromkeys(("Identity", "Relu", "Sigmoid", "Tanh"), _Operator(range(1, 2), _same)),
    **dict.fromkeys(("Add", "Mul"), _Operator(range(2, 3), _alike)),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), _Operator(range(3, 4), _same, frozenset({"axis"}))),
    "ArgMax": _Operator(range(1, 2), _greatest, frozenset({"axis", "keepdims", "select_last_index"})),
    "Cast": _Operator(range(1, 2), _cast, frozenset({"to"})),
    "Clip": _Operator(range(3, 4), _same),
    "Conv": _Operator(range(3, 4), _convolution, frozenset({"kernel_shape", "pads", "strides"})),
    "Flatten": _Operator(range(1, 2), _flat),
    "Gather": _Operator(range(2, 3), _element, frozenset({"axis"})),
    "Gemm": _Operator(range(3, 4), _product, frozenset({"transB"})),
    "GlobalAveragePool": _Operator(range(1, 2), _mean),
    "Shape": _Operator(range(1, 2), _size, frozenset({"start", "end"})),
    "Slice": _Operator(range(4, 5), _sliced),
    "Transpose": _Operator(range(1, 2), _transposed, frozenset({"perm"})),
}
"""Operators of exported engines, in the standard domain: no loops, no branches, no shapes that depend on values."""

OPERATORS = frozenset(_OPERATORS)
"""Names of these operators."""
