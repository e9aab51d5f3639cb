"""The pieces of a trained network that become engines, with batch normalisation folded into convolutions.

A piece is plain NumPy: layers over the closed set of operators of ``dfs_deploy.models.graph``, with the numbers that a
convolution multiplies by and adds, and the interval to which its option clamps its input. An option's weights are those
that the option computes with: rounded to its grid first, folded after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfs_deploy.bundle.operators import fits_window
from dfs_deploy.calibration import Range
from dfs_deploy.errors import InternalError
from dfs_deploy.models import DFSNetwork
from dfs_deploy.models.gate import LSTMGate, StatelessGate, StatelessStep
from dfs_deploy.models.graph import INPUT, Attribute, Evaluation, Graph, Node, named_tensors
from dfs_deploy.models.sizes import sizes_of
from dfs_deploy.options import FULL_BITS, Option

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Layer:
    """One operation of a part.

    Attributes:
        name: name of the value that it gives, and key of its calibrated range. A convolution with its normalisation
            folded in has the normalisation's name.
        operator: an operator of ``dfs_deploy.models.graph``, but neither ``batch_norm`` nor ``dropout``. A
            normalisation that no convolution precedes is a depthwise 1x1 convolution, or after a ``flatten`` a linear
            layer, and exact.
        inputs: names of layers before it, or ``input``.
        attributes: constants of the operator.
        weight: (out, in / groups, height, width) of a convolution or (out, in) of a linear layer, float32.
        bias: (out,) float32 of a convolution or linear layer.
        saturates: interval to which the option clamps the input; ``None`` if it does not.
        exact: whether every option computes it in float.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    weight: Array | None = None
    bias: Array | None = None
    saturates: Range | None = None
    exact: bool = False

    def numbers(self, name: str) -> tuple[int, ...]:
        """An attribute that holds several integers."""
        value = self.attributes[name]
        return value if isinstance(value, tuple) else (int(value),)

    def number(self, name: str) -> float:
        """An attribute that holds one number."""
        value = self.attributes[name]
        return float(value[0]) if isinstance(value, tuple) else float(value)


@dataclass(frozen=True, eq=False)
class Part:
    """A piece of a network as one option computes it: layers from one value to another.

    Attributes:
        name: name of the piece, such as ``block_3``.
        layers: the operations, each after those whose values it reads.
        output: name of the value that it gives; ``input`` if it passes its input on.
        sizes: shape without the batch of every value, by name, the input included.
        bits: bitwidth of the option whose weights it has.
    """

    name: str
    layers: tuple[Layer, ...]
    output: str
    sizes: Mapping[str, tuple[int, ...]]
    bits: int = FULL_BITS

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of the input, without the batch."""
        return self.sizes[INPUT]

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output, without the batch."""
        return self.sizes[self.output]


@dataclass(frozen=True, eq=False)
class GatePart:
    """Weights of the gates, each with its own linear layers folded together; zeros for a gate that never steps.

    With ``p`` the pooled features of block i, the scores of block i + 1 are ``projection_weight @ h +
    projection_bias[i]``. Without memory, ``h`` is ``relu(input_weight[i] @ p + bias[i])`` and each gate has its own
    ``projection_weight[i]``. With memory, ``h`` is an LSTM's new hidden state, whose four gates, in torch's order
    (input, forget, cell, output), are ``input_weight[i] @ p + recurrent_weight @ h + bias[i]``.

    Attributes:
        input_weight: one (rows, channels) float32 array for each block but the last; rows are 4 * hidden of an LSTM,
            hidden without memory.
        bias: (gates, rows) float32.
        recurrent_weight: (4 * hidden, hidden) float32; ``None`` without memory.
        projection_weight: (options, hidden) float32 of an LSTM, (gates, options, hidden) without memory.
        projection_bias: (gates, options) float32.
    """

    input_weight: tuple[Array, ...]
    bias: Array
    recurrent_weight: Array | None
    projection_weight: Array
    projection_bias: Array

    @property
    def hidden(self) -> int:
        """Number of hidden features."""
        return int(self.projection_weight.shape[-1])

    @property
    def has_memory(self) -> bool:
        """Whether it is an LSTM."""
        return self.recurrent_weight is not None

    @property
    def shared(self) -> dict[str, Array]:
        """Arrays that all gates share, by name."""
        shared = {} if self.recurrent_weight is None else {"recurrent_weight": self.recurrent_weight}
        return {**shared, "projection_weight": self.projection_weight} if self.projection_weight.ndim == 2 else shared

    @property
    def stacked(self) -> dict[str, Array]:
        """Arrays that hold one entry for each gate, by name; without the input weights, whose sizes differ."""
        stacked = {"bias": self.bias, "projection_bias": self.projection_bias}
        return stacked if self.projection_weight.ndim == 2 else {**stacked, "projection_weight": self.projection_weight}


def split_stem(network: DFSNetwork, bits: int | None = None) -> Part:
    """The stem: from images to the features that the first gated block reads; in its own bitwidth unless told."""
    graphs = network.graphs
    return fold("stem", graphs.stem, network, bits or graphs.always, network.architecture.image_shape)


def split_block(network: DFSNetwork, index: int, option: Option) -> Part:
    """The gated block ``index``, at least 1, as an option that runs it computes it."""
    block = network.block(index)
    return fold(f"block_{index}", block.graphs.whole, network, option.bits, block.shape.in_shape)


def split_skip(network: DFSNetwork, index: int, bits: int | None = None) -> Part | None:
    """Layers that a skip of the gated block ``index`` runs; ``None`` if it runs none or cannot be skipped.

    They are in the network's own bitwidth unless told.
    """
    block = network.block(index)
    graph = block.graphs.skip
    if graph is None or graph.identity:
        return None
    return fold(f"block_{index}_skip", graph, network, bits or network.graphs.always, block.shape.in_shape)


def split_head(network: DFSNetwork, bits: int | None = None) -> Part:
    """The head: from the last block's features to logits; in its own bitwidth unless told."""
    graphs, shape = network.graphs, network.architecture.blocks[-1].out_shape
    return fold("head", graphs.head, network, bits or graphs.always, shape)


def fold(name: str, graph: Graph, network: DFSNetwork, bits: int, shape: Sequence[int]) -> Part:
    """Makes a part of a graph as it computes at a bitwidth, in evaluation mode.

    A normalisation is folded into the convolution or linear layer before it, in float64, so that an FP32 engine differs
    from the reference only by its own arithmetic. Zeros around a map that only convolutions read become their padding.
    Dropout is left out.

    Args:
        name: name of the part.
        graph: a graph of the network.
        network: the network, whose tensors it reads.
        bits: bitwidth of quantisable layers, 2 to 32.
        shape: shape of the graph's input, without the batch.
    """
    with torch.no_grad():
        sizes = sizes_of(graph, named_tensors(network.net), tuple(shape))
        graph = _without_dropout(graph)
        folding = _Folding(network.evaluation(bits), graph.readers(), sizes)
        for node in graph.nodes:
            folding.add(node)
    folding.merge_padding()
    layers = tuple(folding.layers.values())
    return Part(name, layers, graph.output, {value: sizes[value] for value in (INPUT, *folding.layers)}, bits)


def _without_dropout(graph: Graph) -> Graph:
    same: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        inputs = tuple(same.get(name, name) for name in node.inputs)
        if node.operator == "dropout":
            same[node.name] = inputs[0]
        else:
            nodes.append(msgspec.structs.replace(node, inputs=inputs))
    return Graph(tuple(nodes), same.get(graph.output, graph.output))


@dataclass
class _Folding:
    """Layers of a part in the making.

    Attributes:
        run: the tensors, as the option computes with them.
        readers: number of times that each value is read.
        sizes: shapes of the values, without the batch.
        layers: layers made so far, by name.
    """

    run: Evaluation
    readers: Mapping[str, int]
    sizes: Mapping[str, tuple[int, ...]]
    layers: dict[str, Layer] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        """Adds what a node computes."""
        if node.operator == "batch_norm":
            self._normalize(node)
            return
        layer = Layer(node.name, node.operator, node.inputs, node.attributes, exact=node.exact)
        if node.operator in ("conv", "linear"):
            weight, bias = self.run.weight(node), self.run.tensor(node, "bias")
            values = _values(weight, weight.new_zeros(len(weight)) if bias is None else bias)
            layer = replace(layer, **values, saturates=self._saturation(node))
        self.layers[node.name] = layer

    def _saturation(self, node: Node) -> Range | None:
        ranges = self.run.ranges
        if self.run.bits >= FULL_BITS or not node.quantizable or ranges is None or not ranges.known(node.name):
            return None
        low, high = ranges.of(node.name)
        return Range(float(low), float(high))

    def _normalize(self, node: Node) -> None:
        mean, variance = self._double(node, "mean"), self._double(node, "variance")
        scale = self._double(node, "weight", 1.0) / torch.sqrt(variance + node.number("epsilon"))
        shift = self._double(node, "bias") - mean * scale
        (source,) = node.inputs
        before = self.layers.get(source)
        if before is not None and before.weight is not None and before.bias is not None and self.readers[source] == 1:
            weight, bias = (torch.from_numpy(value).double() for value in (before.weight, before.bias))
            folded = _values(weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias * scale + shift)
            del self.layers[source]
            self.layers[node.name] = replace(before, name=node.name, **folded)
        elif len(self.sizes[node.name]) == 1:
            folded = _values(torch.diag(scale), shift)
            self.layers[node.name] = Layer(node.name, "linear", (source,), **folded, exact=True)
        else:
            folded = _values(scale.reshape(-1, 1, 1, 1), shift)
            ones: dict[str, Attribute] = {"stride": (1, 1), "padding": (0,) * 4, "dilation": (1, 1)}
            window = {**ones, "groups": len(scale)}
            self.layers[node.name] = Layer(node.name, "conv", (source,), window, **folded, exact=True)

    def _double(self, node: Node, role: str, default: float = 0.0) -> Tensor:
        """Tensor of a normalisation in float64, on the CPU."""
        tensor = self.run.tensor(node, role)
        return torch.tensor(default, dtype=torch.float64) if tensor is None else tensor.double().cpu()

    def merge_padding(self) -> None:
        """Makes zeros around a map the padding of the convolutions that read it, if nobody else does."""
        for pad in [layer for layer in self.layers.values() if layer.operator == "pad"]:
            before_c, top, left, after_c, bottom, right = pad.numbers("pads")
            readers = [layer for layer in self.layers.values() if pad.name in layer.inputs]
            others = self.readers[pad.name] - len(readers)  # it is the part's output
            negative = min(top, left, bottom, right) < 0
            padded = [_padded(layer, (top, left, bottom, right)) for layer in readers]
            if before_c or after_c or negative or others or None in padded:
                continue
            del self.layers[pad.name]
            for conv in filter(None, padded):
                self.layers[conv.name] = replace(conv, inputs=pad.inputs)


def _padded(layer: Layer, sides: Sequence[int]) -> Layer | None:
    """A layer with more padding on its sides (top, left, bottom, right) in place of zeros around its input.

    ``None`` if it is no convolution, clamps those zeros, or had more padding than the windows of an engine may have.
    """
    interval = layer.saturates
    if layer.weight is None or layer.operator != "conv" or (interval and not interval.low <= 0.0 <= interval.high):
        return None
    padding = tuple(own + more for own, more in zip(layer.numbers("padding"), sides, strict=True))
    if not fits_window(layer.weight.shape[2:], layer.numbers("stride"), layer.numbers("dilation"), padding):
        return None
    return replace(layer, attributes={**layer.attributes, "padding": padding})


class _Values(TypedDict):
    weight: Array
    bias: Array


def _values(weight: Tensor, bias: Tensor) -> _Values:
    return {"weight": _array(weight), "bias": _array(bias)}


def _array(tensor: Tensor) -> Array:
    return np.array(tensor.detach().float().cpu().numpy())


def split_gate(network: DFSNetwork) -> GatePart | None:
    """The gates, with linear layers that follow one another folded together.

    Returns:
        The gates, or ``None`` if a static policy decides.

    Raises:
        InternalError: a gate of an unknown kind.
    """
    gate = network.gate
    channels = [block.out_channels for block in network.architecture.blocks[:-1]]
    with torch.no_grad():
        if gate is None:
            return None
        if isinstance(gate, LSTMGate):
            return _split_lstm(gate, channels)
        if isinstance(gate, StatelessGate):
            return _split_stateless(gate, channels, network.architecture.gate.hidden)
    raise InternalError(f"the gate is a {type(gate).__name__}, whose weights nobody knows how to read")


def _split_lstm(gate: LSTMGate, channels: Sequence[int]) -> GatePart:
    own_weight, own_bias = gate.lstm.weight_ih.double(), (gate.lstm.bias_ih + gate.lstm.bias_hh).double()
    inputs = [torch.zeros(len(own_bias), size) for size in channels]
    bias, projected = torch.zeros(len(channels), len(own_bias)), torch.zeros(len(channels), gate.options)
    for i, embedding in enumerate(gate.embeddings):
        if isinstance(embedding, nn.Linear):
            inputs[i] = own_weight @ embedding.weight.double()
            bias[i] = own_weight @ embedding.bias.double() + own_bias
            projected[i] = gate.projection.bias
    return GatePart(
        input_weight=tuple(map(_array, inputs)),
        bias=_array(bias),
        recurrent_weight=_array(gate.lstm.weight_hh),
        projection_weight=_array(gate.projection.weight),
        projection_bias=_array(projected),
    )


def _split_stateless(gate: StatelessGate, channels: Sequence[int], hidden: int) -> GatePart:
    inputs = [torch.zeros(hidden, size) for size in channels]
    bias = torch.zeros(len(channels), hidden)
    weight, projected = torch.zeros(len(channels), gate.options, hidden), torch.zeros(len(channels), gate.options)
    for i, step in enumerate(gate.steps):
        if isinstance(step, StatelessStep):
            norm = step.norm
            scale = norm.weight.double() / torch.sqrt(norm.get_buffer("running_var").double() + norm.eps)
            inputs[i] = step.reduce.weight.double() * scale[:, None]
            bias[i] = norm.bias.double() - norm.get_buffer("running_mean").double() * scale
            weight[i], projected[i] = step.score.weight, step.score.bias
    return GatePart(
        input_weight=tuple(map(_array, inputs)),
        bias=_array(bias),
        recurrent_weight=None,
        projection_weight=_array(weight),
        projection_bias=_array(projected),
    )
