"""Engines that take and leave float32 features in the blocked layout of ONNX Runtime's convolutions.

On CPUs that it has such kernels for, ONNX Runtime convolves maps whose channels lie together in blocks of 8 or 16: the
memory of an (N, C, H, W) map then holds (N, C / 8, H, W, 8). An optimised model reorders its input first and its output
last, and therefore a network of block engines does so at every boundary. Here these reorderings are cut off: an engine
is optimised behind a convolution that changes nothing, so that its input comes from a convolution, and the part between
the blocked tensors is kept. Such a model fits only the CPU and the version it was made with: see ``prepared.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle.engines import PlacedEngine
from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.bundle.onnx_messages import (
    FLOAT,
    UINT8,
    Message,
    empty_model,
    make_node,
    make_tensor,
    make_value,
    parse_model,
    set_nodes,
    sizes,
)
from dfs_deploy.bundle.operators import OPERATORS
from dfs_deploy.errors import BundleError, OutOfMemoryError
from dfs_deploy.io.files import nameless_file
from dfs_deploy.runtimes.onnxruntime.sessions import open_session, session_options
from dfs_deploy.system.ort import onnxruntime as ort

DOMAIN = "com.microsoft.nchwc"
"""Domain of the operators of ONNX Runtime's blocked layout."""

_OPSET = 13
_PROBED = 64
_ELEMENTWISE = ("Clip", "Relu")
_ALLOWED = {("", name) for name in OPERATORS} | {
    (DOMAIN, name) for name in ("AveragePool", "Conv", "GlobalAveragePool", "MaxPool", "ReorderInput", "ReorderOutput")
}


class UnfitModelError(BundleError):
    """An engine that cannot run in the blocked layout here, however often it is tried."""


def _unfit(name: str) -> UnfitModelError:
    return UnfitModelError(
        f"{name}: ONNX Runtime {ort.__version__} optimises it in another way than its blocked layout needs; it runs in"
        " the plain layout"
    )


@functools.cache
def block_size() -> int:
    """Number of channels that lie together in ONNX Runtime's blocked layout here; 1 if it has none for this CPU.

    The number is not part of its interface, so it is found by reordering a map of distinct values, once per process.
    """
    model = empty_model(_OPSET)
    model.opset_import.add(domain=DOMAIN, version=1)
    model.graph.input.append(make_value("plain", FLOAT, (1, _PROBED, 2, 1)))
    model.graph.output.append(make_value("blocked", FLOAT, (1, _PROBED, 2, 1)))
    model.graph.node.append(make_node("ReorderInput", ["plain"], "blocked", DOMAIN, channels_last=0))
    plain = np.arange(2 * _PROBED, dtype=np.float32).reshape(1, _PROBED, 2, 1)
    try:
        session = open_session(model.SerializeToString(), "the probe of the blocked layout", session_options(1))
        blocked = np.asarray(session.run(None, {"plain": plain})[0])
    except OutOfMemoryError:
        raise
    except Exception:  # an ONNX Runtime built without these operators may raise anything
        return 1
    return next((size for size in (4, 8, 16, 32) if np.array_equal(blocked, to_blocks(plain, size))), 1)


def to_blocks(features: NDArray[Any], channel_block: int) -> NDArray[np.float32]:
    """Memory of (N, C, H, W) maps in the blocked layout, under the same shape."""
    n, c, h, w = features.shape
    moved = features.reshape(n, c // channel_block, channel_block, h, w).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(moved, np.float32).reshape(features.shape)


def from_blocks(features: NDArray[Any], channel_block: int) -> NDArray[np.float32]:
    """Plain maps from memory in the blocked layout; the inverse of ``to_blocks``."""
    n, c, h, w = features.shape
    return features.reshape(n, c // channel_block, h, w, channel_block).transpose(0, 1, 4, 2, 3).reshape(features.shape)


def blocked_layouts(placed: PlacedEngine) -> tuple[Layout, ...]:
    """Layouts of the features for which an engine needs another model; one from uint8 to uint8 runs as it is."""
    if placed.part == "stem":
        return ("float32",) if placed.engine.output == "float32" else ()
    if placed.part == "head" or placed.engine.output == "uint8":
        return tuple(layout for layout in placed.engine.files if layout == "float32")
    return tuple(placed.engine.files)


def blocked_models(placed: PlacedEngine, models: Mapping[Layout, bytes], name: str) -> dict[Layout, bytes]:
    """Makes the models of an engine for the blocked layout.

    Args:
        placed: engine.
        models: its models, by the layout of the features that they take.
        name: name of the engine in messages.

    Returns:
        Models for each of ``blocked_layouts``.

    Raises:
        UnfitModelError: ONNX Runtime optimises it in an unexpected way.
    """
    return {layout: _blocked_model(placed, models, layout, name) for layout in blocked_layouts(placed)}


def _blocked_model(placed: PlacedEngine, models: Mapping[Layout, bytes], layout: Layout, name: str) -> bytes:
    try:
        return _serialised(_blocked(placed, models, layout, name), name)
    except UnfitModelError:  # as fast as in the plain layout, and the other engines need not wait for it
        return _serialised(_reordered(placed, parse_model(models[layout], name), layout), name)


def _blocked(placed: PlacedEngine, models: Mapping[Layout, bytes], layout: Layout, name: str) -> Message:
    """An engine that computes in the blocked layout; raises UnfitModelError if ONNX Runtime has another way."""
    if placed.engine.output == "uint8":
        return _reordered(placed, parse_model(models[layout], name), layout)
    plain = parse_model(models["float32" if "float32" in models else layout], name)
    enters_plain = placed.part == "stem" or "float32" not in models
    model = _optimised(plain) if enters_plain else _from_blocked(plain, name)
    if placed.part != "head":
        _leave_blocked(model.graph)
    if layout == "uint8" and "float32" in models:
        return _from_uint8(model, parse_model(models["uint8"], name), name)
    return model


def _reordered(placed: PlacedEngine, model: Message, layout: Layout) -> Message:
    """An engine as it is between reorderings of its float32 features: what it computes in between does not matter."""
    if placed.part != "stem" and layout == "float32":
        _unblock_input(model.graph, channels_last=placed.engine.output == "uint8")
    if placed.part != "head" and placed.engine.output == "float32":
        _append_reordering(model.graph)
    return model


def check_operators(model: Message, name: str) -> None:
    """Checks that a prepared engine has no operators but those of exported engines and of the blocked layout.

    Raises:
        UnfitModelError: it has others, or defines functions.
    """
    others = {(node.domain, node.op_type) for node in model.graph.node} - _ALLOWED
    if others:
        raise UnfitModelError(f"{name} has the operator {'.'.join(filter(None, min(others)))!r}")
    frame = type(model).FromString(model.SerializeToString())
    frame.ClearField("graph")
    size = frame.ByteSize()
    frame.DiscardUnknownFields()
    if frame.ByteSize() != size:
        raise UnfitModelError(f"{name} has fields beside its graph (functions or the like)")


def _optimised(model: Message) -> Message:
    """The model as ONNX Runtime optimises it for this CPU."""
    options = session_options(1)
    with nameless_file() as file:
        options.optimized_model_filepath = f"/dev/fd/{file.fileno()}"  # it writes only to a path
        open_session(model.SerializeToString(), "a model to optimise", options)
        file.seek(0)
        return parse_model(file.read(), "an optimised model")


def _from_blocked(model: Message, name: str) -> Message:
    """Optimises a model in such a way that its input is blocked."""
    graph = model.graph
    entry = graph.input[0]
    channels, taken = sizes(entry)[0], entry.name
    # This convolution multiplies each channel by one. Its output is blocked, and ONNX Runtime goes on from there; that
    # it is an output of the graph too keeps it from being fused with what follows.
    graph.output.append(make_value(taken, FLOAT, ("n", *sizes(entry))))
    entry.name = "outside"
    ones = np.ones((channels, 1, 1, 1), np.float32)
    graph.initializer.append(make_tensor("ones", FLOAT, ones.shape, ones.tobytes()))
    same = make_node("Conv", ["outside", "ones"], taken, group=channels, kernel_shape=[1, 1], pads=[0] * 4)
    set_nodes(graph, [same, *graph.node])
    model = _optimised(model)
    graph = model.graph
    reordering = _only_user(graph, "outside", "ReorderInput")
    same = None if reordering is None else _only_user(graph, reordering.output[0], "Conv")
    if reordering is None or same is None or taken not in _makers(graph):
        raise _unfit(name)
    graph.input[0].name = same.output[0]
    del graph.output[1:]
    set_nodes(graph, [node for node in graph.node if node.output[0] not in (reordering.output[0], same.output[0])])
    _drop_reorderings(graph)
    return model


def _leave_blocked(graph: Message) -> None:
    """Makes the output of a graph blocked: without its last reordering, or with one more if it had none."""
    output = graph.output[0].name
    last = _makers(graph)[output]
    if last.op_type == "ReorderOutput" and not _users(graph, output) and _is_channels_first(last):
        graph.output[0].name = last.input[0]
        set_nodes(graph, [node for node in graph.node if node.output[0] != output])
        return
    _append_reordering(graph)


def _append_reordering(graph: Message) -> None:
    output = graph.output[0].name
    graph.node.append(make_node("ReorderInput", [output], "blocked_output", DOMAIN, channels_last=0))
    graph.output[0].name = "blocked_output"


def _from_uint8(model: Message, plain: Message, name: str) -> Message:
    """The same engine for uint8 features, channels last, with the scale of the plain engine's first step."""
    constants = {tensor.name: tensor for tensor in plain.graph.initializer}
    first = next((node for node in plain.graph.node if node.op_type == "DequantizeLinear"), None)
    if first is None or any(constant not in constants for constant in first.input[1:]):
        raise _unfit(name)
    made = type(model).FromString(model.SerializeToString())
    graph = made.graph
    blocked, (channels, height, width) = graph.input[0].name, sizes(graph.input[0])
    del graph.input[:]
    graph.input.append(make_value("taken", UINT8, ("n", height, width, channels)))
    names = []
    for constant in first.input[1:]:
        tensor = graph.initializer.add()
        tensor.CopyFrom(constants[constant])
        tensor.name = f"taken_{constant}"
        names.append(tensor.name)
    dequantised = make_node("DequantizeLinear", ["taken", *names], "dequantised")
    reordered = make_node("ReorderInput", ["dequantised"], blocked, DOMAIN, channels_last=1)
    set_nodes(graph, [dequantised, reordered, *graph.node])
    return made


def _unblock_input(graph: Message, channels_last: bool) -> None:
    """Puts a reordering of the blocked input in front of an engine, for one that computes channels last or first."""
    entry = graph.input[0]
    taken, channels = entry.name, sizes(entry)[0]
    entry.name = "blocked"
    if not channels_last:
        plain = make_node("ReorderOutput", ["blocked"], taken, DOMAIN, channels_last=0, channels=channels)
        set_nodes(graph, [plain, *graph.node])
        return
    last = make_node("ReorderOutput", ["blocked"], "channels_last", DOMAIN, channels_last=1, channels=channels)
    first = make_node("Transpose", ["channels_last"], taken, perm=[0, 3, 1, 2])
    set_nodes(graph, [last, first, *graph.node])


def _drop_reorderings(graph: Message) -> None:
    """Drops reorderings around elementwise nodes, which do the same in any layout, and nodes that nobody uses."""
    makers = _makers(graph)
    renamed: dict[str, str] = {}
    for node in graph.node:
        source = makers.get(node.input[0]) if node.op_type in _ELEMENTWISE else None
        users = _users(graph, node.output[0])
        if (
            source is not None
            and users
            and source.op_type == "ReorderOutput"
            and all(user.op_type == "ReorderInput" for user in users)
            and all(map(_is_channels_first, (source, *users)))
        ):
            node.input[0] = source.input[0]
            renamed.update({user.output[0]: node.output[0] for user in users})
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    kept = [node for node in graph.node if node.output[0] not in renamed]
    wanted = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    set_nodes(graph, [node for node in kept if any(name in wanted for name in node.output)])


def _is_channels_first(reordering: Message) -> bool:
    """Whether a reordering goes from or to channels first."""
    return not any(a.name == "channels_last" and a.i for a in reordering.attribute)


def _serialised(model: Message, name: str) -> bytes:
    if all(opset.domain != DOMAIN for opset in model.opset_import):
        model.opset_import.add(domain=DOMAIN, version=1)
    del model.graph.value_info[:]  # would be wrong about tensors that are gone
    check_operators(model, name)
    data: bytes = model.SerializeToString()
    return data


def _makers(graph: Message) -> dict[str, Message]:
    """Node that makes each tensor."""
    return {name: node for node in graph.node for name in node.output}


def _users(graph: Message, name: str) -> list[Message]:
    """Nodes that take a tensor."""
    return [node for node in graph.node if name in node.input]


def _only_user(graph: Message, name: str, operator: str) -> Message | None:
    """The node that takes a tensor, if it is the only one and of this operator."""
    users = _users(graph, name)
    return users[0] if len(users) == 1 and users[0].op_type == operator else None
