"""The gate's weights, and how they are read from a bundle's ``gate.onnx`` without running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.onnx_messages import FLOAT, parse_model
from dfs_deploy.errors import BundleError, InputError

Array = NDArray[np.float32]

_T = TypeVar("_T")
_NAMES = ("input_weight", "bias", "recurrent_weight", "projection_weight", "projection_bias")


def _shapes(gates: int, widest: int, hidden: int, options: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of the weights, in the order of ``_NAMES``."""
    return (gates, 4 * hidden, widest), (gates, 4 * hidden), (4 * hidden, hidden), (options, hidden), (options,)


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

    def __post_init__(self) -> None:
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        shapes = _shapes(len(self.input_weight), self.input_weight.shape[-1], self.hidden, self.options)
        for (name, array), shape in zip(arrays.items(), shapes, strict=True):
            if array.dtype != np.float32 or array.shape != shape:
                raise InputError(
                    f"the gate's {name} is {array.dtype} of shape {array.shape}, expected float32 of shape {shape}"
                )

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

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each block, as far as weights tell: one more than the last with a weight other than zero."""
        return self.derived(_own_channels)

    def derived(self, make: Callable[[GateWeights], _T]) -> _T:
        """Result of ``make`` for these weights, made once and shared by all gates that step with them."""
        if make not in self._derived:
            self._derived[make] = make(self)
        return cast(_T, self._derived[make])


def _own_channels(weights: GateWeights) -> tuple[int, ...]:
    used = (weights.input_weight != 0).any(1)
    return tuple(int(np.flatnonzero(row)[-1]) + 1 if row.any() else 1 for row in used)


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
    shapes = _shapes(len(blocks), widest, network.gate.hidden, len(bundle.options))
    found = _constant_outputs(bundle.read(file), f"{bundle.path}: {file}")
    if missing := [name for name in _NAMES if name not in found]:
        raise BundleError(f"{bundle.path}: the gate's graph does not give its {missing[0]}; export again")
    if any(found[name].shape != shape for name, shape in zip(_NAMES, shapes, strict=True)):
        raise BundleError(
            f"{bundle.path}: the gate's weights have other shapes than the network asks for; export again"
        )
    weights = GateWeights(*(found[name] for name in _NAMES))
    for block, (channels, shape) in enumerate(zip(weights.channels, blocks, strict=True)):
        if channels > shape.out_channels:
            raise BundleError(
                f"{bundle.path}: the gate has weights for channels that block {block} does not have; export again"
            )
    return weights


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
