"""Check of an engine: a plain ONNX graph of operators that an export writes, with tensors of known sizes.

A bundle may come from anyone. Its digests prove that a file is what the manifest's author wrote, not that it is
harmless: ONNX has loops, tensors that grow without bound, and weights in other files. So each engine is read before any
runtime sees it, and refused unless every field, operator, attribute and shape is one that an exported engine has. Its
time and memory are then bounded by the sizes in the manifest and the size of the file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dfs_deploy.bundle.engines import laid_out, walk
from dfs_deploy.bundle.manifest import Manifest, RuntimeEngines
from dfs_deploy.bundle.onnx_messages import (
    FLOAT,
    FLOAT16,
    INT8,
    INT32,
    INT64,
    UINT8,
    Attribute,
    Message,
    UnfitError,
    attribute_value,
    parse_model,
)
from dfs_deploy.bundle.operators import BATCH, OPERATORS, Call, Shape, words
from dfs_deploy.bundle.weights import LEAST_SHARED, Reference, WeightsSource, references_of
from dfs_deploy.errors import BundleError
from dfs_deploy.network import MAX_MAP, Architecture
from dfs_deploy.options import Options

OPSETS = range(13, 22)
"""Versions of the ONNX operators that exports write or wrote."""

_ORT_FORMAT = b"ORTM"
"""Bytes at offset 4 of ONNX Runtime's own format, whose reader trusts the file."""

_BYTES = {FLOAT: 4, UINT8: 1, INT8: 1, INT32: 4, INT64: 8, FLOAT16: 2}

_GROWTH = 64
"""Most times that a tensor within an engine is larger than its input and output. An inverted bottleneck of stride 2 has
six times the channels on four times the map."""

_MOST_NODES = 1024
"""Most nodes of an engine. A block has up to 50, the gate 26; an engine may hold all that always runs between two
decisions."""

_NODES_PER_BLOCK = 64
"""Further nodes for each block of a static baseline."""

_PARTS_PER_NODE = 4
"""Most parts (nodes, constants, inputs, outputs) for each of these nodes; a convolution in integers has three."""

_LARGEST_PART = 4096
"""Most bytes of a node, or of a constant without its data."""

_MEAN_PART = 512
"""Most bytes of all parts together, for each part that an engine may have."""

_SHORT = 16
"""Most values of a constant whose values a rule may ask for."""

_GRAPH, _CONSTANT, _RAW_DATA = 7, 5, 9  # field numbers of ModelProto, GraphProto and TensorProto


@dataclass(frozen=True)
class EngineUse:
    """Use of one engine file.

    Attributes:
        label: name in messages, such as ``block 3, option 8 (int8)``.
        takes: name, element type and shape of each input; the name is empty for an input of any name.
        gives: shape of the first output; ``None`` for the gate, whose outputs are checked when they are read.
        largest: most values per image of any tensor.
        blocks: number of blocks of the network that the engine computes, if it is a static baseline; else 0.
    """

    label: str
    takes: tuple[tuple[str, int, Shape], ...]
    gives: Shape | None
    largest: int
    blocks: int = 0


def engine_uses(manifest: Manifest, options: Options) -> dict[str, list[EngineUse]]:
    """Uses of each engine file of a bundle without contradictions; those that differ only in their label count once."""
    uses: dict[str, dict[tuple[object, ...], EngineUse]] = {}
    for engines in manifest.runtimes.values():
        for file, use in _uses(engines, manifest.architecture, options):
            uses.setdefault(file, {}).setdefault((use.takes, use.gives, use.largest, use.blocks), use)
    return {file: list(different.values()) for file, different in uses.items()}


def check_engine(data: bytes, name: str, use: EngineUse, weights: WeightsSource | None = None) -> int:
    """Checks the content of an engine's file without running any of it, or reading a constant outside it.

    Args:
        data: content of the file.
        name: name for messages.
        use: use of the engine.
        weights: file that its references may lead to; ``None`` if all its constants must be inside.

    Returns:
        Bytes of the constants that it refers to.

    Raises:
        BundleError: it is no ONNX model, or has something that no exported engine has.
    """
    try:
        if data[4:8] == _ORT_FORMAT:
            raise UnfitError("is in ONNX Runtime's own format, expected ONNX")
        most = _MOST_NODES + _NODES_PER_BLOCK * use.blocks
        _check_size(data, _PARTS_PER_NODE * most)
        model = parse_model(data, name)
        references = _check_fields(model, weights)
        _check_graph(model.graph, use, references, most)
        return sum(each.length for each in references.values())
    except UnicodeDecodeError as error:
        raise BundleError(
            f"{name} has a name that is not UTF-8, in the engine of {use.label}; export it again"
        ) from error
    except UnfitError as error:
        raise BundleError(
            f"{name}, the engine of {use.label}, {error}; export it again, and do not use a bundle from an unknown"
            " source"
        ) from error


def _uses(engines: RuntimeEngines, architecture: Architecture, options: Options) -> Iterator[tuple[str, EngineUse]]:
    maps = [block.out_shape for block in architecture.blocks]
    images, logits = architecture.image_shape, (architecture.classes,)
    for each in walk(engines, architecture, options):
        gives, largest = laid_out(each.gives, each.engine.output), _largest(each.takes, each.gives)
        for layout, file in each.engine.files.items():
            takes = ("", UINT8 if layout == "uint8" else FLOAT, (BATCH, *laid_out(each.takes, layout)))
            yield file, EngineUse(each.label, (takes,), (BATCH, *gives), largest)
    largest, taken = _largest(images, logits, *maps), (("", FLOAT, (BATCH, *images)),)
    for precision, file in engines.static.items():
        yield file, EngineUse(f"static {precision}", taken, (BATCH, *logits), largest, len(maps))
    if engines.gate is not None:
        widest = max((channels for channels, *_ in maps[:-1]), default=1)
        state = (BATCH, architecture.gate.hidden)
        states = (("hidden", FLOAT, state), ("cell", FLOAT, state)) if architecture.gate.kind == "lstm" else ()
        inputs = (("pooled", FLOAT, (BATCH, widest)), ("block", INT64, ()), *states)
        yield engines.gate, EngineUse("the gate", inputs, None, max(widest, 4 * architecture.gate.hidden))


def _largest(*ends: Shape) -> int:
    """Most values of a tensor in an engine, by the shapes that it takes and gives."""
    known = max(map(math.prod, ends))
    return max(known, min(_GROWTH * known, MAX_MAP))


# The file is checked before it is parsed: a message of two bytes takes a hundred in memory.


def _check_size(data: bytes, most: int) -> None:
    """Checks the number of parts of a model and their sizes in bytes."""
    parts = total = 0
    for size in _part_sizes(data):
        parts, total = parts + 1, total + size
        if size > _LARGEST_PART:
            raise UnfitError(f"has a part of {size:,} bytes besides its weights, expected at most {_LARGEST_PART:,}")
        if parts > most or total > _MEAN_PART * most:
            raise UnfitError(
                f"has {parts:,} parts of {total:,} bytes, expected at most {most:,} of {_MEAN_PART * most:,} together"
            )


def _part_sizes(data: bytes) -> Iterator[int]:
    """Size of each part of a model, and of its graph, without the weights."""
    for field, start, end in _fields(data, 0, len(data)):
        if field != _GRAPH:
            yield end - start
            continue
        yield 0
        for inner, first, last in _fields(data, start, end):
            size = last - first
            if inner == _CONSTANT and size >= LEAST_SHARED:
                # This many fields are already too many bytes without the data; the rest can be ignored.
                some = itertools.islice(_fields(data, first, last), _LARGEST_PART)
                size -= sum(e - s for number, s, e in some if number == _RAW_DATA)
            yield size


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
                raise UnfitError("is no ONNX model, or is incomplete")
            yield tag >> 3, at, at + size
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            yield tag >> 3, 0, 0
        else:
            raise UnfitError("is no ONNX model")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise UnfitError("is no ONNX model, or is incomplete")


# The model


def _check_fields(model: Message, weights: WeightsSource | None) -> dict[str, Reference]:
    """Checks everything but shapes; returns the references of constants, by name."""
    found = zip(model.graph.initializer, references_of(model.graph, weights), strict=True)
    references = {tensor.name: reference for tensor, reference in found if reference is not None}
    for node in model.graph.node:
        if node.domain or node.op_type not in OPERATORS:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise UnfitError(f"has the operator {name!r}")
    # The parser does not know fields that onnx_messages omits: functions, subgraphs, sparse tensors, training.
    size = model.ByteSize()
    model.DiscardUnknownFields()
    if model.ByteSize() != size or model.graph.value_info:
        raise UnfitError("has other fields than graph, nodes and weights (such as subgraphs or functions)")
    for opset in model.opset_import:
        if opset.domain or opset.version not in OPSETS:
            seen = f"{opset.domain or 'ONNX'} {opset.version}"
            raise UnfitError(f"has operators of {seen}, expected ONNX {OPSETS[0]} to {OPSETS[-1]}")
    return references


def _check_graph(graph: Message, use: EngineUse, references: Mapping[str, Reference], most: int) -> None:
    if len(graph.node) > most:
        raise UnfitError(f"has {len(graph.node)} nodes, expected at most {most}")
    constants = {tensor.name: tensor for tensor in graph.initializer}
    if len(constants) < len(graph.initializer):
        raise UnfitError("has two constants of one name")
    shapes = {name: _constant_shape(tensor, references.get(name)) for name, tensor in constants.items()}
    largest = max(use.largest, *map(_elements, shapes.values()), 1)
    inputs = _input_shapes(graph, use)
    if inputs.keys() & constants.keys():
        raise UnfitError("has an input that is also a constant")
    shapes.update(inputs)
    for node in graph.node:
        operator = OPERATORS[node.op_type]
        missing = [name for name in node.input if name not in shapes]
        if missing or len(node.input) not in operator.inputs or len(node.output) != 1 or node.output[0] in shapes:
            raise UnfitError(f"has a node {node.op_type} with other inputs or outputs than in an export")
        taken = [shapes[name] for name in node.input]
        call = Call(node.op_type, taken, _attributes(node), [_integers(constants.get(name)) for name in node.input])
        if not call.attributes.keys() <= operator.attributes:
            raise UnfitError(f"has a node {node.op_type} with other attributes than in an export")
        made = operator.rule(call)
        if BATCH in made[1:]:
            raise UnfitError(f"has a node {node.op_type} that gives {words([made])}, expected images first")
        if _elements(made) > largest:
            raise UnfitError(f"has a tensor of {_elements(made):,} values, expected at most {largest:,} for an image")
        shapes[node.output[0]] = made
    given = [shapes.get(value.name) for value in graph.output]
    if None in given or (use.gives is not None and given[:1] != [use.gives]):
        raise UnfitError(f"gives {words(given[:1])}, expected {words([use.gives])}")


def _input_shapes(graph: Message, use: EngineUse) -> dict[str, Shape]:
    """Shape of each input, by name."""
    found: dict[str, Shape] = {}
    wanted = {name: (kind, shape) for name, kind, shape in use.takes}
    for value in graph.input:
        kind, shape = wanted.get("" if "" in wanted else value.name, (0, ()))
        if not kind:
            raise UnfitError(f"has an input {value.name!r}, expected {', '.join(wanted)}")
        tensor = value.type.tensor_type
        named = [dim.dim_param or not dim.dim_value for dim in tensor.shape.dim]
        sizes = tuple(BATCH if unknown else dim.dim_value for unknown, dim in zip(named, tensor.shape.dim, strict=True))
        # The gate takes the features of any block, so its number of channels may be open.
        fits = sizes == shape or (use.gives is None and len(sizes) == len(shape) == 2 and sizes == (BATCH, BATCH))
        if tensor.elem_type != kind or not fits:
            raise UnfitError(f"takes {words([sizes])} of type {tensor.elem_type}, expected {words([shape])} of {kind}")
        found[value.name] = shape
    if len(found) != len(wanted) or len(graph.input) != len(wanted):
        names = f" ({', '.join(wanted)})" if len(wanted) > 1 else ""
        raise UnfitError(f"has {len(graph.input)} inputs, expected {len(wanted)}{names}")
    return found


def _constant_shape(tensor: Message, reference: Reference | None) -> Shape:
    shape = tuple(tensor.dims)
    size = _BYTES.get(tensor.data_type)
    if size is None or len(shape) > 4 or any(dim < 0 for dim in shape) or tensor.float_data:
        raise UnfitError(f"has a constant of {len(shape)} dimensions and type {tensor.data_type}")
    held = len(tensor.raw_data) if reference is None else reference.length
    if math.prod(shape) * size != held:
        raise UnfitError(f"has a constant of {held:,} bytes for a shape of {shape}")
    return shape


def _elements(shape: Shape) -> int:
    """Values of a tensor per image."""
    return abs(math.prod(shape))


def _attributes(node: Message) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    for attribute in node.attribute:
        value = attribute_value(attribute)
        if value is None or attribute.name in found:
            raise UnfitError(f"has a node {node.op_type} with other attributes than in an export")
        found[attribute.name] = value
    return found


def _integers(tensor: Message | None) -> tuple[int, ...] | None:
    """Values of a constant that holds a few int64; ``None`` for anything else."""
    if tensor is None or tensor.data_type != INT64 or len(tensor.dims) > 1:
        return None
    size, data = _BYTES[INT64], tensor.raw_data
    if not size <= len(data) <= _SHORT * size:
        return None
    return tuple(int.from_bytes(data[i : i + size], "little", signed=True) for i in range(0, len(data), size))
