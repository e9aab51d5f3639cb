"""Networks as graphs over a closed set of operators: what proof, training, checkpoints, calibration and export share.

A graph has one input and one output and holds no tensors, only their names in the network's state dict, so it can be
written to a checkpoint as plain values and computed on a machine that never saw the user's code. ``Evaluation``
computes it in PyTorch; ``dfs_deploy.exporters`` writes it as ONNX.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.errors import CheckpointError
from dfs_deploy.io.json_files import Name
from dfs_deploy.io.text import one_line
from dfs_deploy.models.quantize import Quantizer, batch_range, fake_quantize, fake_quantize_weight
from dfs_deploy.network import MAX_BLOCKS, MAX_MAP
from dfs_deploy.options import FULL_BITS

INPUT = "input"
"""Name of the value that enters a graph."""

OUTPUT = "output"
"""Name of a block's result in observations and calibrated ranges; no node has it."""

RANGE_MOMENTUM = 0.1
"""Share of the newest batch in the running range of a layer's input."""

MAX_NODES = 1 << 14
"""Most nodes of a network; a thousand bottleneck blocks have about 11,000."""

Attribute = int | float | tuple[int, ...]
Bits = Annotated[int, Meta(ge=2, le=FULL_BITS)]


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One operation.

    Attributes:
        name: name of the node and of its output; unique in a network.
        operator: a key of ``OPERATORS``.
        inputs: names of the values that it reads: nodes before it, or ``input``.
        tensors: names in the state dict of its weights, by role, such as ``weight``.
        attributes: its constants, by name; see ``OPERATORS``.
        exact: whether every option computes it in float, such as the small layers of squeeze-and-excitation.
    """

    name: Name
    operator: Name
    inputs: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=64)]
    tensors: dict[str, Name] = {}
    attributes: dict[str, Attribute] = {}
    exact: bool = False

    @property
    def quantizable(self) -> bool:
        """Whether a quantised option rounds its input and weight."""
        return self.operator in ("conv", "linear") and not self.exact

    def numbers(self, name: str) -> tuple[int, ...]:
        """An attribute that holds several integers."""
        value = self.attributes[name]
        return value if isinstance(value, tuple) else (int(value),)

    def number(self, name: str) -> float:
        """An attribute that holds one number."""
        value = self.attributes[name]
        return float(value[0]) if isinstance(value, tuple) else value


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Operations from one value to another.

    Attributes:
        nodes: the operations, each after those whose outputs it reads.
        output: name of the value that it gives; ``input`` if it passes its input on.
    """

    nodes: Annotated[tuple[Node, ...], Meta(max_length=MAX_NODES)] = ()
    output: Name = INPUT

    @property
    def identity(self) -> bool:
        """Whether it gives its input, untouched."""
        return self.output == INPUT

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of its tensors, in order, each once."""
        return tuple(dict.fromkeys(name for node in self.nodes for name in node.tensors.values()))

    def then(self, other: Graph) -> Graph:
        """This graph, followed by another."""
        return Graph((*self.nodes, *_reading(other.nodes, self.output)), self._value(other.output))

    def _value(self, name: str) -> str:
        return self.output if name == INPUT else name

    def readers(self) -> dict[str, int]:
        """Number of times that each value is read, the graph's output included."""
        counts = {INPUT: 0, **{node.name: 0 for node in self.nodes}}
        for name in (*(name for node in self.nodes for name in node.inputs), self.output):
            counts[name] += 1
        return counts


def _reading(nodes: Iterable[Node], source: str) -> Iterator[Node]:
    """Nodes that read ``source`` in place of their graph's input."""
    for node in nodes:
        inputs = tuple(source if name == INPUT else name for name in node.inputs)
        yield msgspec.structs.replace(node, inputs=inputs)


def chained(graphs: Iterable[Graph]) -> Graph:
    """Graphs one after the other, as one."""
    return functools.reduce(Graph.then, graphs, Graph())


class BlockGraphs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One block: ``after(branch(x) + shortcut(x))``.

    Attributes:
        name: name of the block; a qualified name of the user's module, as a rule.
        branch: graph that a skip leaves out.
        shortcut: graph whose output is added to the branch's; ``None`` for a block without an addition.
        after: graph that follows the addition.
        skip_after: whether a skip computes ``after`` too. The releases of DFS and SkipNet leave out the relu.
        free: whether a skip passes the block's input on untouched, since ``after`` does not change it.
    """

    name: Name
    branch: Graph
    shortcut: Graph | None
    after: Graph = Graph()
    skip_after: bool = True
    free: bool = False

    @property
    def whole(self) -> Graph:
        """The block as one graph; its addition is named after the block."""
        if self.shortcut is None:
            return self.branch.then(self.after)
        addition = Node(f"{self.name}.addition", "add", (self.branch.output, self.shortcut.output))
        nodes = (*self.branch.nodes, *self.shortcut.nodes, addition)
        return Graph(nodes, addition.name).then(self.after)

    @property
    def skip(self) -> Graph | None:
        """What a skipped block computes; ``None`` if it cannot be skipped."""
        if self.shortcut is None:
            return None
        if self.free:
            return Graph()
        return self.shortcut.then(self.after) if self.skip_after else self.shortcut


class NetworkGraphs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network: stem, chain of blocks, and head.

    Attributes:
        stem: from images to the input of the first block that is decided; it always runs.
        blocks: blocks 1 and up.
        head: from the last block's output to logits; it always runs.
        quantizer: grid of quantised weights: ``tensor``, from the least to the greatest value of the tensor, as in the
            paper; or ``channel``, symmetric about zero for each output channel.
        always: bits in which stem, head and skips compute.
    """

    stem: Graph
    blocks: Annotated[tuple[BlockGraphs, ...], Meta(max_length=MAX_BLOCKS)]
    head: Graph
    quantizer: Quantizer
    always: Bits

    @property
    def parts(self) -> tuple[Graph, ...]:
        """Its graphs, each once, in the order in which they run."""
        inside = ((block.branch, block.shortcut or Graph(), block.after) for block in self.blocks)
        return (self.stem, *itertools.chain.from_iterable(inside), self.head)

    @property
    def whole(self) -> Graph:
        """The static network as one graph, from images to logits."""
        return chained([self.stem, *(block.whole for block in self.blocks), self.head])


class Ranges(nn.Module):
    """Running ranges of the inputs of quantisable layers.

    Args:
        names: names of the nodes, in the network's order.

    Attributes:
        names: position of each node's range, by name.
        low: (layers,) float32 buffer, least values; both ends are zero until a range was recorded.
        high: (layers,) float32 buffer, greatest values.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = {name: index for index, name in enumerate(names)}
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.zeros(len(self.names)))
        self.register_buffer("high", torch.zeros(len(self.names)))

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """Least and greatest value of a node's input, each (1,) float32."""
        at = self.names[name]
        return self.low[at : at + 1], self.high[at : at + 1]

    def known(self, name: str) -> bool:
        """Whether a range was ever recorded for a node."""
        low, high = self.of(name)
        return bool(high > low)

    @torch.no_grad()
    def follow(self, name: str, x: Tensor) -> None:
        """Moves a running range toward that of a batch of inputs; the first batch sets it."""
        low, high = batch_range(x)
        at = self.names[name]
        momentum = RANGE_MOMENTUM if self.known(name) else 1.0
        self.low[at : at + 1].lerp_(low.to(self.low.dtype), momentum)
        self.high[at : at + 1].lerp_(high.to(self.high.dtype), momentum)


Observer = Callable[[str, Tensor], None]
"""Called as ``observer(name, value)`` with the input of a graph and every value that its nodes give."""


@dataclass(eq=False)
class Evaluation:
    """One way to compute graphs in PyTorch; subclasses compute some operators in another way.

    Args:
        tensors: tensors by name.
        ranges: running ranges of quantisable layers; ``None`` for a network that is not quantised.
        quantizer: grid of quantised weights.
        bits: bitwidth of quantisable layers, 2 to 32.
        round_inputs: whether inputs of quantised layers are rounded; if not, they are still clamped to their range.
        training: whether normalisations use the batch, and dropout drops.
        frozen: names of modules that are in evaluation mode all the same.
        observer: sees every value; ``None`` for nobody.
    """

    tensors: Mapping[str, Tensor]
    ranges: Ranges | None = None
    quantizer: Quantizer = "channel"
    bits: int = FULL_BITS
    round_inputs: bool = True
    training: bool = False
    frozen: Collection[str] = ()
    observer: Observer | None = field(default=None, repr=False)

    def run(self, graph: Graph, x: Tensor) -> Tensor:
        """Computes a graph."""
        values = {INPUT: x}
        left = graph.readers()
        if self.observer is not None:
            self.observer(INPUT, x)
        for node in graph.nodes:
            inputs = [values[name] for name in node.inputs]
            result = values[node.name] = OPERATORS[node.operator].compute(self, node, inputs)
            if self.observer is not None:
                self.observer(node.name, result)
            for name in node.inputs:  # memory is freed as soon as nobody reads a value any more
                left[name] -= 1
                if not left[name]:
                    values.pop(name, None)
        return values[graph.output]

    def tensor(self, node: Node, role: str) -> Tensor | None:
        """Tensor of a node in a role, if it has one."""
        name = node.tensors.get(role)
        return None if name is None else self.tensors[name]

    def weight(self, node: Node) -> Tensor:
        """Weight of a quantisable layer, as it computes with it."""
        weight = self.tensors[node.tensors["weight"]]
        return fake_quantize_weight(weight, self.bits if node.quantizable else FULL_BITS, self.quantizer)

    def follow(self, node: Node, x: Tensor) -> None:
        """Moves the running range of a quantised layer toward its inputs, in training mode."""
        if self.ranges is not None and self.ranges.training:
            self.ranges.follow(node.name, x.detach())

    def rounded(self, node: Node, x: Tensor) -> Tensor:
        """Input of a quantisable layer, as it computes with it; in training mode its range follows."""
        if self.bits >= FULL_BITS or self.ranges is None or not node.quantizable:
            return x
        self.follow(node, x)
        if not self.ranges.known(node.name):
            return x
        low, high = self.ranges.of(node.name)
        return fake_quantize(x, low, high, self.bits) if self.round_inputs else x.clamp(low, high)

    def weighted(self, node: Node, x: Tensor) -> Tensor:
        """Convolution or linear layer, quantised as the option says."""
        return self.multiply(node, self.rounded(node, x), self.weight(node), self.tensor(node, "bias"))

    def multiply(self, node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolution or linear layer of rounded values."""
        if node.operator == "linear":
            return functional.linear(x, weight, bias)
        top, left, bottom, right = node.numbers("padding")
        if (top, left) != (bottom, right):
            x, top, left = functional.pad(x, (left, right, top, bottom)), 0, 0
        stride, dilation = node.numbers("stride"), node.numbers("dilation")
        return functional.conv2d(x, weight, bias, stride, (top, left), dilation, int(node.number("groups")))

    def trains(self, member: str) -> bool:
        """Whether the module of a tensor or node, by the qualified name of that, is in training mode."""
        return self.training and member.rpartition(".")[0] not in self.frozen

    def uses_batch(self, node: Node) -> bool:
        """Whether a normalisation takes the statistics of the batch."""
        return self.trains(node.tensors["mean"])

    def batch_norm(self, node: Node, x: Tensor) -> Tensor:
        """Batch normalisation; if it takes the batch's statistics, its running ones follow."""
        mean, variance = self.tensors[node.tensors["mean"]], self.tensors[node.tensors["variance"]]
        weight, bias = self.tensor(node, "weight"), self.tensor(node, "bias")
        momentum, epsilon = node.number("momentum"), node.number("epsilon")
        return functional.batch_norm(x, mean, variance, weight, bias, self.uses_batch(node), momentum, epsilon)


Compute = Callable[[Evaluation, Node, Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Operator:
    """An operator of the closed set.

    Attributes:
        compute: its arithmetic in PyTorch.
        inputs: number of values that it reads; ``None`` for one or more.
        attributes: its attributes: ``int`` or ``float``, or how many integers.
        roles: roles of its tensors; those that end in ``?`` may be missing.
        sign: sign of its output: ``nonnegative``, ``same`` if it is not negative for inputs that are not, or ``any``.
    """

    compute: Compute
    inputs: int | None = 1
    attributes: Mapping[str, type[int] | type[float] | int] = field(default_factory=dict)
    roles: tuple[str, ...] = ()
    sign: Literal["nonnegative", "same", "any"] = "any"


def _max_pool(run: Evaluation, node: Node, x: Sequence[Tensor]) -> Tensor:
    kernel, stride, padding, dilation = (node.numbers(name) for name in ("kernel", "stride", "padding", "dilation"))
    return functional.max_pool2d(x[0], kernel, stride, padding, dilation, bool(node.number("ceil")))


def _avg_pool(run: Evaluation, node: Node, x: Sequence[Tensor]) -> Tensor:
    kernel, stride, padding = (node.numbers(name) for name in ("kernel", "stride", "padding"))
    count_padding = bool(node.number("count_padding"))
    return functional.avg_pool2d(x[0], kernel, stride, padding, bool(node.number("ceil")), count_padding)


def _pad(run: Evaluation, node: Node, x: Sequence[Tensor]) -> Tensor:
    before_c, before_h, before_w, after_c, after_h, after_w = node.numbers("pads")
    return functional.pad(x[0], (before_w, after_w, before_h, after_h, before_c, after_c))


def _slice(run: Evaluation, node: Node, x: Sequence[Tensor]) -> Tensor:
    starts, ends, steps = (node.numbers(name) for name in ("starts", "ends", "steps"))
    return x[0][(slice(None), *map(slice, starts, ends, steps))]


_WINDOW: dict[str, type[int] | type[float] | int] = {"kernel": 2, "stride": 2, "padding": 2, "ceil": int}

OPERATORS: dict[str, Operator] = {
    "conv": Operator(
        lambda run, node, x: run.weighted(node, x[0]),
        attributes={"stride": 2, "padding": 4, "dilation": 2, "groups": int},  # padding: top, left, bottom, right
        roles=("weight", "bias?"),
    ),
    "linear": Operator(lambda run, node, x: run.weighted(node, x[0]), roles=("weight", "bias?")),
    "batch_norm": Operator(
        lambda run, node, x: run.batch_norm(node, x[0]),
        attributes={"epsilon": float, "momentum": float},
        roles=("weight?", "bias?", "mean", "variance"),
    ),
    "relu": Operator(lambda run, node, x: functional.relu(x[0]), sign="nonnegative"),
    "clip": Operator(
        lambda run, node, x: functional.hardtanh(x[0], node.number("low"), node.number("high")),
        attributes={"low": float, "high": float},
        sign="same",
    ),
    "leaky_relu": Operator(
        lambda run, node, x: functional.leaky_relu(x[0], node.number("slope")), attributes={"slope": float}, sign="same"
    ),
    "hard_swish": Operator(lambda run, node, x: functional.hardswish(x[0]), sign="same"),
    "hard_sigmoid": Operator(lambda run, node, x: functional.hardsigmoid(x[0]), sign="nonnegative"),
    "sigmoid": Operator(lambda run, node, x: torch.sigmoid(x[0]), sign="nonnegative"),
    "silu": Operator(lambda run, node, x: functional.silu(x[0]), sign="same"),
    "tanh": Operator(lambda run, node, x: torch.tanh(x[0]), sign="same"),
    "gelu": Operator(lambda run, node, x: functional.gelu(x[0]), sign="same"),
    "add": Operator(lambda run, node, x: x[0] + x[1], 2, sign="same"),
    "mul": Operator(lambda run, node, x: x[0] * x[1], 2, sign="same"),
    # x * scale + shift
    "affine": Operator(
        lambda run, node, x: x[0] * node.number("scale") + node.number("shift"),
        attributes={"scale": float, "shift": float},
    ),
    "max_pool": Operator(_max_pool, attributes={**_WINDOW, "dilation": 2}, sign="same"),
    "avg_pool": Operator(_avg_pool, attributes={**_WINDOW, "count_padding": int}, sign="same"),
    # (N, C, H, W) to (N, C, 1, 1)
    "global_avg_pool": Operator(lambda run, node, x: x[0].mean((2, 3), keepdim=True), sign="same"),
    # (N, ...) to (N, values)
    "flatten": Operator(lambda run, node, x: x[0].flatten(1), sign="same"),
    # (N, C) to (N, C, 1, 1)
    "unflatten": Operator(lambda run, node, x: x[0][:, :, None, None], sign="same"),
    # zeros before and after the channels, rows and columns: three numbers before, then three after
    "pad": Operator(_pad, attributes={"pads": 6}, sign="same"),
    # of channels, rows and columns
    "slice": Operator(_slice, attributes={"starts": 3, "ends": 3, "steps": 3}, sign="same"),
    # along the channels
    "concat": Operator(lambda run, node, x: torch.cat(list(x), 1), None, sign="same"),
    "dropout": Operator(
        lambda run, node, x: functional.dropout(x[0], node.number("share"), run.trains(node.name)),
        attributes={"share": float},
        sign="same",
    ),
}
"""Every operator of a graph, by name. An export writes each of them; docs/any-network.md lists them for people."""


def nonnegative(graph: Graph, given: bool = False) -> bool:
    """Whether no value that a graph gives can be negative.

    Args:
        graph: the graph.
        given: whether its input cannot be negative.
    """
    known = {INPUT: given}
    for node in graph.nodes:
        sign = OPERATORS[node.operator].sign
        same = sign == "same" and all(known[name] for name in node.inputs)
        if node.operator == "clip":
            known[node.name] = node.number("low") >= 0.0 or (same and node.number("high") >= 0.0)
        else:
            known[node.name] = sign == "nonnegative" or same
    return known[graph.output]


def skip_is_free(block: BlockGraphs, given: bool) -> bool:
    """Whether a skip may pass a block's input on untouched: the shortcut does, and nothing after it changes it.

    Args:
        block: the block.
        given: whether its input cannot be negative.
    """
    if block.shortcut is None or not block.shortcut.identity:
        return False
    relu = [node.operator for node in block.after.nodes] == ["relu"]
    return block.after.identity or not block.skip_after or (given and relu)


def check_graphs(graphs: NetworkGraphs, tensors: Mapping[str, Tensor]) -> None:
    """Checks graphs from a file: operators, attributes, names and sizes.

    Nothing is computed; sizes follow later from running them on the meta device.

    Args:
        graphs: the graphs.
        tensors: tensors by name.

    Raises:
        CheckpointError: a node has an operator, an attribute, an input or a tensor that it cannot have.
    """
    count = sum(len(part.nodes) for part in graphs.parts)
    if count > MAX_NODES:
        raise CheckpointError(f"a network of {count:,} nodes, expected at most {MAX_NODES:,}; save the network again")
    seen: set[str] = {INPUT, OUTPUT}
    parts = [("stem", graphs.stem), ("head", graphs.head)]
    for block in graphs.blocks:
        shortcut = [] if block.shortcut is None else [(block.name, block.shortcut)]
        parts += [(block.name, block.branch), *shortcut, (block.name, block.after)]
        if f"{block.name}.addition" in seen:
            raise CheckpointError(f"two blocks named {block.name}, expected names that differ; save it again")
        seen.add(f"{block.name}.addition")
    for part, graph in parts:
        inside = {INPUT}
        for node in graph.nodes:
            if problem := _node_problem(node, inside, seen, tensors):
                raise CheckpointError(f"{part}: node {node.name} {problem}; save the network again")
            inside.add(node.name)
            seen.add(node.name)
        if graph.output not in inside:
            raise CheckpointError(f"{part}: its output {graph.output} is no value of it; save the network again")


def _node_problem(node: Node, inside: set[str], seen: set[str], tensors: Mapping[str, Tensor]) -> str | None:
    operator = OPERATORS.get(node.operator)
    if operator is None:
        return f"has the operator {node.operator}, expected one of {', '.join(OPERATORS)}"
    if node.name in seen:
        return "has a name that occurs twice"
    if unknown := [name for name in node.inputs if name not in inside]:
        return f"reads {unknown[0]}, which no node before it gives"
    if operator.inputs is not None and len(node.inputs) != operator.inputs:
        return f"reads {len(node.inputs)} values, expected {operator.inputs}"
    roles = {role.rstrip("?"): role.endswith("?") for role in operator.roles}
    if set(node.tensors) - set(roles) or any(not free and role not in node.tensors for role, free in roles.items()):
        return f"has tensors {', '.join(node.tensors) or 'none'}, expected {', '.join(operator.roles) or 'none'}"
    if missing := [name for name in node.tensors.values() if name not in tensors]:
        return f"has a tensor {missing[0]} that the file lacks"
    if set(node.attributes) != set(operator.attributes):
        return f"has attributes {', '.join(node.attributes) or 'none'}, expected {', '.join(operator.attributes)}"
    for name, kind in operator.attributes.items():
        if not _is_attribute(node.attributes[name], kind, bounds := _BOUNDS[name]):
            wanted = "whole number" if kind is int else "number" if kind is float else f"{kind} whole numbers"
            given = one_line(node.attributes[name], 80)
            return f"has {name} {given}, expected {wanted} from {bounds[0]} to {bounds[1]}"
    if node.operator == "clip" and node.number("low") > node.number("high"):
        return f"clips to {node.number('low')} at least and {node.number('high')} at most, expected an interval"
    return None


_MOST_PADDING = 1 << 12
"""Most rows, columns or channels that a layer adds to its input on one side."""

_MOST_FLOAT = 3.4e38
"""About the greatest number of float32."""

_BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("kernel", "stride", "dilation", "groups", "steps"), (1, MAX_MAP)),
    **dict.fromkeys(("padding", "pads"), (0, _MOST_PADDING)),
    **dict.fromkeys(("ceil", "count_padding"), (0, 1)),
    "starts": (0, MAX_MAP),
    "ends": (-MAX_MAP, MAX_MAP),
    **dict.fromkeys(("momentum", "share"), (0.0, 1.0)),
    "epsilon": (0.0, _MOST_FLOAT),
    **dict.fromkeys(("low", "high", "slope", "scale", "shift"), (-_MOST_FLOAT, _MOST_FLOAT)),
}
"""Least and greatest value of each attribute."""


def _is_attribute(value: Attribute, kind: type[int] | type[float] | int, bounds: tuple[float, float]) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    wanted = kind if isinstance(kind, int) else 1
    whole = kind is not float
    return (
        isinstance(value, tuple) == isinstance(kind, int)
        and len(values) == wanted
        and all(isinstance(v, int) or not whole for v in values)
        and all(bounds[0] <= v <= bounds[1] for v in values)  # nor is NaN within bounds
    )


def named_tensors(module: nn.Module) -> dict[str, Any]:
    """Parameters and buffers of a module by name; a tensor that has several names stands under each."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The module of a qualified name inside another; empty modules are added if it is missing."""
    for part in path.split(".") if path else ():
        if root._modules.get(part) is None:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root


def tensor_tree(tensors: Mapping[str, Tensor], trained: Collection[str], unsaved: Collection[str] = ()) -> nn.Module:
    """A module that holds tensors under dotted names, and computes nothing.

    Args:
        tensors: tensors by name; one that stands under several names becomes one parameter under all of them.
        trained: names of those that are parameters; the others become buffers.
        unsaved: names of the buffers that are no part of the state dict.
    """
    root = nn.Module()
    parameters: dict[int, nn.Parameter] = {}
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        owner = module_at(root, path)
        if name in trained:
            made = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
            owner.register_parameter(last, parameters.setdefault(id(tensor), made))
        else:
            owner.register_buffer(last, tensor, persistent=name not in unsaved)
    return root
