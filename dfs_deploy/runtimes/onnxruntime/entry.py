"""The way from an image to the first engine's input.

An INT8 network begins with operators that only rearrange its image: they quantise it, add a channel of zeros (see
``dfs_deploy.exporters.int8_graphs``) and put its channels last. If the compiled part is there, these operators are cut
off when the engine is loaded, and one pass over the image does the same, to the bit, and sees whether it is finite.
Pixels of uint8 are looked up, and are never normalised. Otherwise, and in bundles whose engines do not begin so, an
image arrives in float32.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle.engines import FeatureGrid
from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.bundle.onnx_messages import FLOAT, INT64, UINT8, Message, make_node, make_value, parse_model, set_nodes
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes import native
from dfs_deploy.runtimes.dispatch import Call

_CHANNELS_FIRST = [0, 3, 1, 2]
_PIXELS = "pixels"
_LEVELS = 256


@dataclass(frozen=True, eq=False)
class Entry:
    """Way from images to the input of an engine.

    Attributes:
        contract: contract by which pixels become normalised images.
        grid: grid of the pixels that the engine takes; ``None`` for one that takes normalised images.
        channels: channels of a pixel, those of zeros included.
    """

    contract: InputContract
    grid: FeatureGrid | None = None
    channels: int = 0
    _levels: NDArray[np.uint8] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.grid is not None:
            levels = np.rint(self.contract.levels / np.float32(self.grid.scale)) + np.float32(self.grid.zero_point)
            object.__setattr__(self, "_levels", np.clip(levels, 0, _LEVELS - 1).astype(np.uint8))

    @property
    def layout(self) -> Layout:
        """Layout of what the engine takes."""
        return "float32" if self.grid is None else "uint8"

    @property
    def size(self) -> tuple[int, int, int]:
        """Channels, height and width of what the engine takes."""
        channels, height, width = self.contract.shape
        return (channels if self.grid is None else self.channels, height, width)

    def admit(self, images: NDArray[Any], first: int = 0) -> NDArray[Any]:
        """Checks values, and normalises pixels, unless ``fill`` does both.

        Args:
            images: images as ``InputContract.arrange`` gives them.
            first: index in the whole batch of the first image, for messages.

        Raises:
            InputError: NaN or infinity.
        """
        return self.contract.prepare(images, first) if self.grid is None else images

    def fill(self, images: NDArray[Any], target: NDArray[Any], first: int = 0) -> None:
        """Writes what the engine takes.

        Args:
            images: images as ``admit`` gave them.
            target: (N, C, H, W) float32, or (N, H, W, channels) uint8, as ``layout`` and ``size`` say.
            first: index in the whole batch of the first image, for messages.

        Raises:
            InputError: NaN or infinity, if ``admit`` did not look for it.
        """
        if self.grid is None:
            np.copyto(target, images)
            return
        quantize, look_up = _compiled()
        images = np.ascontiguousarray(images)
        if images.dtype == np.uint8:
            for image, pixels in zip(images, target, strict=True):
                look_up(image, self._levels, self.grid.zero_point, pixels)
            return
        for index, (image, pixels) in enumerate(zip(images, target, strict=True)):
            squares = quantize(image, *self.grid, pixels)
            self.contract.check_values(images[index : index + 1], squares, first + index)

    def ahead_of(self, call: Call, target: NDArray[Any]) -> Call:
        """A call that first fills in a blank image, if the engine did that by itself as exported: for a bench.

        Args:
            call: call of the engine.
            target: its input.
        """
        if self.grid is None:
            return call
        blank = np.zeros((1, *self.contract.shape), np.float32)

        def filled() -> None:
            self.fill(blank, target)
            call()

        return filled


def _compiled() -> tuple[Callable[..., float], Callable[..., None]]:
    from dfs_deploy.runtimes.native._ends import look_up, quantize

    return quantize, look_up


def split_entry(model: bytes, contract: InputContract, name: str) -> tuple[bytes, Entry]:
    """Cuts off what an engine does with its image before it computes, if compiled code can do it instead.

    Args:
        model: ONNX model that takes images, (N, C, H, W) float32.
        contract: contract of these images.
        name: name of the model in messages.

    Returns:
        The model that remains, and the way to its input.

    Raises:
        BundleError: it is no model.
    """
    if native.ends_missing is not None or sys.byteorder != "little":
        return model, Entry(contract)
    parsed = parse_model(model, name)
    found = _first_nodes(parsed.graph, contract.shape)
    if found is None:
        return model, Entry(contract)
    cut, grid, channels = found
    graph = parsed.graph
    dropped = {tensor for node in cut for tensor in node.output}
    taken = cut[-1].output[0]
    _, height, width = contract.shape
    kept = [node for node in graph.node if not dropped.intersection(node.output)]
    set_nodes(graph, [make_node("Transpose", [_PIXELS], taken, perm=_CHANNELS_FIRST), *kept])
    del graph.input[:]
    graph.input.append(make_value(_PIXELS, UINT8, ("N", height, width, channels)))
    used = {tensor for node in graph.node for tensor in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    kept_constants = [type(tensor).FromString(tensor.SerializeToString()) for tensor in constants]
    del graph.initializer[:]
    graph.initializer.extend(kept_constants)
    data: bytes = parsed.SerializeToString()
    return data, Entry(contract, grid, channels)


def _first_nodes(graph: Message, shape: tuple[int, int, int]) -> tuple[list[Message], FeatureGrid, int] | None:
    """The nodes that quantise images and complete their channels, with the grid and the number of channels.

    ``None`` if the graph does not begin with exactly these.
    """
    from dfs_deploy.runtimes.native._ends import CHANNELS

    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[Message]] = {}
    for node in graph.node:
        for value in dict.fromkeys(node.input):
            readers.setdefault(value, []).append(node)

    def only_reader(value: str, operator: str, inputs: int) -> Message | None:
        (node, *others) = readers.get(value, [None])
        fits = node is not None and not others and node.op_type == operator and not node.attribute
        return node if fits and len(node.input) == inputs and node.input[0] == value else None

    def number(value: str, element: int) -> NDArray[Any] | None:
        tensor = constants.get(value)
        if tensor is None or tensor.data_type != element or not tensor.raw_data:
            return None
        return np.frombuffer(tensor.raw_data, {FLOAT: "<f4", UINT8: "u1", INT64: "<i8"}[element])

    quantiser = only_reader(graph.input[0].name, "QuantizeLinear", 3)
    if quantiser is None:
        return None
    scale, zero_point = number(quantiser.input[1], FLOAT), number(quantiser.input[2], UINT8)
    if scale is None or zero_point is None or scale.size != 1 or zero_point.size != 1 or not 0.0 < scale[0] < math.inf:
        return None
    nodes, grid = [quantiser], FeatureGrid(float(scale[0]), int(zero_point[0]))
    if shape[0] < CHANNELS:
        padding = only_reader(quantiser.output[0], "Pad", 3)
        if padding is None:
            return None
        pads, value = number(padding.input[1], INT64), number(padding.input[2], UINT8)
        wanted = [0, 0, 0, 0, 0, CHANNELS - shape[0], 0, 0]
        if pads is None or value is None or pads.tolist() != wanted or value.tolist() != zero_point.tolist():
            return None
        nodes.append(padding)
    return (nodes, grid, CHANNELS) if shape[0] <= CHANNELS else None
