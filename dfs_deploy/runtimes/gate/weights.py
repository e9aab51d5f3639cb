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
_NAMES = ("input_weight", "bias", "recurrent_weight", "projection_weight", "projection_bias")


@dataclass(frozen=True, eq=False)
class GateWeights:
    """Weights of the gate; outputs of the same names in the bundle's ``gate.onnx``.

    Attributes:
        input_weight: (gates, 4 * hidden, widest) float32, zero beyond a gate's own channels; LSTM gates in the order
            input, forget, cell, output.
        bias: (gates, 4 * hidden) float32.
        recurrent_weight: (4 * hidden, hidden) float32.
        projection_weight: (options, hidden) float32.
        projection_bias: (options,) float32.
    """

    input_weight: Array
    bias: Array
    recurrent_weight: Array
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
        """Hidden units of the LSTM."""
        return int(self.recurrent_weight.shape[-1])

    @property
    def options(self) -> int:
        """Number of options that the gate chooses from."""
        return len(self.projection_bias)

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
    rows, options = 4 * network.gate.hidden, len(bundle.options)
    shapes = ((len(blocks), rows, widest), (len(blocks), rows), (rows, rows // 4), (options, rows // 4), (options,))
    found = _constant_outputs(bundle.model(file), f"{bundle.path}: {file}")
    if missing := [name for name in _NAMES if name not in found]:
        raise BundleError(f"{bundle.path}: the gate's graph does not give its {missing[0]}; export again")
    if any(found[name].shape != shape for name, shape in zip(_NAMES, shapes, strict=True)):
        raise BundleError(
            f"{bundle.path}: the gate's weights have other shapes than the network asks for; export again"
        )
    return GateWeights(*(found[name] for name in _NAMES))


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
