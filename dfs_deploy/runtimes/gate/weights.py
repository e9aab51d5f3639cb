"""The gate's weights, and how they are read from a bundle's ``gate.onnx`` without running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.onnx_messages import FLOAT, parse_model
from dfs_deploy.errors import BundleError

Array = NDArray[np.float32]

_T = TypeVar("_T")

MASKED = np.float32(-3e38)
"""Bias of an option that a block may not run: no score wins with it."""


@dataclass(frozen=True, eq=False)
class GateWeights:
    """Weights of the gate; outputs of the same names in the bundle's ``gate.onnx``.

    The scores of an LSTM gate are its projection of the hidden state. A stateless gate has two layers for each block:
    ``projection_weight @ max(0, input_weight @ pooled + bias) + projection_bias``.

    Attributes:
        input_weight: (gates, 4 * hidden, widest) float32, zero beyond a gate's own channels; LSTM gates in the order
            input, forget, cell, output. Of a stateless gate (gates, hidden, widest).
        bias: (gates, 4 * hidden) float32; of a stateless gate (gates, hidden).
        recurrent_weight: (4 * hidden, hidden) float32; ``None`` for a stateless gate.
        projection_weight: (options, hidden) float32; of a stateless gate (gates, options, hidden).
        projection_bias: (gates, options) float32.
    """

    input_weight: Array
    bias: Array
    recurrent_weight: Array | None
    projection_weight: Array
    projection_bias: Array
    _derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def gates(self) -> int:
        """Number of blocks that a gate follows."""
        return len(self.input_weight)

    @property
    def widest(self) -> int:
        """Channels of the widest of these blocks."""
        return int(self.input_weight.shape[2])

    @property
    def hidden(self) -> int:
        """Hidden units of the LSTM, or of each stateless gate."""
        return int(self.projection_weight.shape[-1])

    @property
    def options(self) -> int:
        """Number of options that the gate chooses from."""
        return int(self.projection_bias.shape[1])

    @property
    def parts(self) -> int:
        """Values that a step computes for each hidden unit: four for an LSTM, one for a stateless gate."""
        return 1 if self.recurrent_weight is None else 4

    def offset_bias(self, offset: Array) -> Array:
        """Bias of the projection with an offset, both (gates, options), that masks what either of them masks."""
        masked = (offset <= MASKED) | (self.projection_bias == MASKED)
        with np.errstate(over="ignore"):
            return np.where(masked, MASKED, self.projection_bias + offset).astype(np.float32)

    def derived(self, make: Callable[[GateWeights], _T]) -> _T:
        """Result of ``make`` for these weights, made once and shared by all gates that step with them."""
        if make not in self._derived:
            self._derived[make] = make(self)
        return cast(_T, self._derived[make])


def read_gate_weights(bundle: Bundle, runtime: str) -> GateWeights | None:
    """Reads the weights of the gate among a runtime's engines.

    They are constants of its graph, and among its outputs.

    Args:
        bundle: opened.
        runtime: name of a runtime that the bundle has engines for.

    Returns:
        The weights, or ``None`` with a static policy.

    Raises:
        BundleError: the graph has no such outputs, or they do not fit the network.
    """
    file = bundle.manifest.runtimes[runtime].gate
    if file is None:
        return None
    network = bundle.architecture
    blocks = network.blocks[: network.gated_blocks]
    widest = max((shape.out_channels for shape in blocks), default=1)
    gates, hidden, options = len(blocks), network.gate.hidden, len(bundle.options)
    shapes: dict[str, tuple[int, ...]]
    if network.gate.kind == "lstm":
        shapes = {
            "input_weight": (gates, 4 * hidden, widest),
            "bias": (gates, 4 * hidden),
            "recurrent_weight": (4 * hidden, hidden),
            "projection_weight": (options, hidden),
            "projection_bias": (gates, options),
        }
    else:
        shapes = {
            "input_weight": (gates, hidden, widest),
            "bias": (gates, hidden),
            "projection_weight": (gates, options, hidden),
            "projection_bias": (gates, options),
        }
    found = _constant_outputs(bundle.model(file), f"{bundle.path}: {file}")
    if missing := [name for name in shapes if name not in found]:
        raise BundleError(f"{bundle.path}: the gate's graph does not give its {missing[0]}; export again")
    shared = found["projection_bias"]
    if shared.shape == (options,):  # older bundles have one for all gates
        found["projection_bias"] = np.repeat(shared[None], gates, 0)
    if any(found[name].shape != shape for name, shape in shapes.items()):
        raise BundleError(
            f"{bundle.path}: the gate's weights have other shapes than the network asks for; export again"
        )
    return GateWeights(
        found["input_weight"],
        found["bias"],
        found["recurrent_weight"] if network.gate.kind == "lstm" else None,
        found["projection_weight"],
        found["projection_bias"],
    )


def _constant_outputs(data: bytes, name: str) -> dict[str, Array]:
    """Outputs of a graph that are float32 constants, each an initializer or a copy of one by ``Identity``."""
    graph = parse_model(data, name).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    copies = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    found = {}
    for output in graph.output:
        tensor = constants.get(copies.get(output.name, output.name))
        if tensor is not None and tensor.data_type == FLOAT:
            found[output.name] = np.frombuffer(tensor.raw_data, "<f4").astype(np.float32).reshape(tuple(tensor.dims))
    return found
