"""Engines that take and leave float32 features in the blocked layout of ONNX Runtime's convolutions.

On CPUs for which it has such kernels, ONNX Runtime convolves maps whose channels lie together in eights or sixteens:
the memory of an (N, C, H, W) map then holds (N, C / 8, H, W, 8). An optimised model reorders its input first and its
output last, and a network of block engines so at every boundary. Here those reorderings are cut off: an engine is
optimised with a convolution that changes nothing before it, so that its input comes from a convolution, and what lies
between the blocked tensors is kept. Such a model fits the CPU and the version it was made with: see ``prepared.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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
from dfs_deploy.errors import BundleError, OutOfMemoryError
from dfs_deploy.io.files import nameless_file
from dfs_deploy.runtimes.onnxruntime.binding import open_session, session_options
from dfs_deploy.system.ort import onnxruntime as ort

DOMAIN = "com.microsoft.nchwc"
"""Of the operators of ONNX Runtime's blocked layout."""

_OPSET = 13
_PROBED = 64
_ELEMENTWISE = ("Clip", "Relu")


def block_size() -> int:
    """How many channels lie together in ONNX Runtime's blocked layout here; 1 where it has none for this CPU.

    The number is no part of its interface, so it is found by reordering a map whose values are told apart.
    """
    model = empty_model(_OPSET)
    model.opset_import.add(domain=DOMAIN, version=1)
    model.graph.input.append(make_value("plain", FLOAT, (1, _PROBED, 2, 1)))
    model.graph.output.append(make_value("blocked", FLOAT, (1, _PROBED, 2, 1)))
    model.graph.node.append(make_node("ReorderInput", ["plain"], "blocked", DOMAIN, channels_last=0))
    plain = np.arange(2 * _PROBED, dtype=np.float32).reshape(1, _PROBED, 2, 1)
    try:
        session = open_session(model.SerializeToString(), "the probe of the blocked layout", session_options(1))
        blocked = np.asarray(session.run(None, {"plain": plain})[0]).reshape(-1)
    except OutOfMemoryError:
        raise
    except Exception:  # an ONNX Runtime built without these operators, in whichever way it says so
        return 1
    for together in (4, 8, 16, 32):
        expected = plain.reshape(_PROBED // together, together, 2).transpose(0, 2, 1).reshape(-1)
        if np.array_equal(blocked, expected):
            return together
    return 1


def blocked_stem(data: bytes, name: str) -> bytes:
    """The stem, which takes plain images and leaves blocked features."""
    graph = _optimised(parse_model(data, name))
    _leave_blocked(graph.graph)
    return _serialised(graph)


def blocked_head(data: bytes, name: str) -> bytes:
    """The head, which takes blocked features and gives logits."""
    model = _from_blocked(data, name)
    return _serialised(model)


def blocked_files(files: Mapping[Layout, bytes], output: Layout, name: str) -> dict[Layout, bytes]:
    """Every variant of a block engine or of a projection at a skip.

    Args:
        files: a model by the layout that it takes.
        output: the layout that it leaves.
        name: what a message calls it.

    Returns:
        By the layout that is taken: the models to run instead. One that neither takes nor leaves float32 is left out.
    """
    if output == "uint8":
        return {"float32": _unblocked_first(files["float32"], name)}
    model = _from_blocked(files["float32"], name)
    _leave_blocked(model.graph)
    made: dict[Layout, bytes] = {"float32": _serialised(model)}
    if "uint8" in files:
        made["uint8"] = _from_uint8(model, parse_model(files["uint8"], name), name)
    return made


def _optimised(model: Message) -> Message:
    """What ONNX Runtime makes of a model for this CPU."""
    options = session_options(1)
    with nameless_file() as file:
        options.optimized_model_filepath = f"/dev/fd/{file.fileno()}"  # it writes to a path alone
        open_session(model.SerializeToString(), "a model to optimise", options)
        file.seek(0)
        return parse_model(file.read(), "an optimised model")


def _from_blocked(data: bytes, name: str) -> Message:
    """An optimised model whose input is blocked."""
    model = parse_model(data, name)
    graph = model.graph
    entry = graph.input[0]
    channels, taken = sizes(entry)[0], entry.name
    # Each channel times one: its output is blocked, and ONNX Runtime goes on from there. That it is an output as well
    # keeps it from being fused with what follows.
    graph.output.append(make_value(taken, FLOAT, ("n", *sizes(entry))))
    entry.name = "outside"
    ones = np.ones((channels, 1, 1, 1), np.float32)
    graph.initializer.append(make_tensor("ones", FLOAT, ones.shape, ones.tobytes()))
    same = make_node("Conv", ["outside", "ones"], taken, group=channels, kernel_shape=[1, 1], pads=[0] * 4)
    set_nodes(graph, [same, *graph.node])
    model = _optimised(model)
    graph = model.graph
    users = _Users(graph)
    reordered = users.only_of("outside", "ReorderInput")
    first = None if reordered is None else users.only_of(reordered.output[0], "Conv")
    if reordered is None or first is None or taken not in users.made:
        raise _unfit(name)
    graph.input[0].name = first.output[0]
    del graph.output[1:]
    set_nodes(graph, [node for node in graph.node if node.output[0] not in (reordered.output[0], first.output[0])])
    _join(graph)
    return model


def _leave_blocked(graph: Message) -> None:
    """Lets a model's output be blocked: without its last reordering, or with one more where it had none."""
    users, left = _Users(graph), graph.output[0].name
    last = users.made[left]
    if last.op_type == "ReorderOutput" and not users.of(left) and _is_plain(last):
        graph.output[0].name = last.input[0]
        set_nodes(graph, [node for node in graph.node if node.output[0] != left])
        return
    graph.node.append(make_node("ReorderInput", [left], "blocked_output", DOMAIN, channels_last=0))
    graph.output[0].name = "blocked_output"


def _from_uint8(model: Message, plain: Message, name: str) -> bytes:
    """The same engine for uint8 features, channels last: worth what the plain engine's first step says."""
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
    worth = make_node("DequantizeLinear", ["taken", *names], "worth")
    reordered = make_node("ReorderInput", ["worth"], blocked, DOMAIN, channels_last=1)
    set_nodes(graph, [worth, reordered, *graph.node])
    return _serialised(made)


def _unblocked_first(data: bytes, name: str) -> bytes:
    """An engine that computes channels last, behind a reordering of its blocked input to that."""
    model = parse_model(data, name)
    graph = model.graph
    entry = graph.input[0]
    taken, channels = entry.name, sizes(entry)[0]
    entry.name = "blocked"
    lasts = make_node("ReorderOutput", ["blocked"], "channels_last", DOMAIN, channels_last=1, channels=channels)
    firsts = make_node("Transpose", ["channels_last"], taken, perm=[0, 3, 1, 2])
    set_nodes(graph, [lasts, firsts, *graph.node])
    return _serialised(model)


def _join(graph: Message) -> None:
    """Takes out the reorderings around an elementwise step, which is the same in any layout, and nodes without use."""
    users = _Users(graph)
    renamed: dict[str, str] = {}
    gone: set[str] = set()
    for node in graph.node:
        source = users.made.get(node.input[0]) if node.op_type in _ELEMENTWISE else None
        after = users.of(node.output[0])
        around = source is not None and source.op_type == "ReorderOutput" and _is_plain(source)
        if source is not None and around and after and all(n.op_type == "ReorderInput" and _is_plain(n) for n in after):
            node.input[0] = source.input[0]
            for reordering in after:
                renamed[reordering.output[0]] = node.output[0]
                gone.add(reordering.output[0])
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    kept = [node for node in graph.node if node.output[0] not in gone]
    wanted = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    set_nodes(graph, [node for node in kept if any(name in wanted for name in node.output)])


def _is_plain(reordering: Message) -> bool:
    """Whether it reorders from or to channels first."""
    return not any(a.name == "channels_last" and a.i for a in reordering.attribute)


def _serialised(model: Message) -> bytes:
    if all(opset.domain != DOMAIN for opset in model.opset_import):
        model.opset_import.add(domain=DOMAIN, version=1)
    del model.graph.value_info[:]  # what it says of tensors that are gone would be wrong
    data: bytes = model.SerializeToString()
    return data


@dataclass
class _Users:
    """Which node makes a tensor, and which take it."""

    graph: Message

    def __post_init__(self) -> None:
        self.made = {name: node for node in self.graph.node for name in node.output}

    def of(self, name: str) -> list[Message]:
        return [node for node in self.graph.node if name in node.input]

    def only_of(self, name: str, operator: str) -> Message | None:
        users = self.of(name)
        return users[0] if len(users) == 1 and users[0].op_type == operator else None


class UnfitModelError(BundleError):
    """An engine that cannot run in the blocked layout here, whenever it is tried."""


def _unfit(name: str) -> UnfitModelError:
    return UnfitModelError(
        f"{name}: ONNX Runtime {ort.__version__} optimises it in another way than its blocked layout needs; it runs in"
        " the plain layout"
    )
