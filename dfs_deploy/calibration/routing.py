"""Ranges from what the gate really sends to each block at each option, through the blocks as they ran before it.

A static calibration of the whole network sees another distribution. Data streams through the routed reference twice:
once for the extent of each tensor, once more for its histogram where the method wants one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dfs_deploy.architecture import Architecture
from dfs_deploy.calibration.histogram import Extent, HistogramCounter
from dfs_deploy.calibration.methods import METHODS, Method, minmax
from dfs_deploy.models import BasicBlock, DFSNetwork, QuantizedConv2d, run_option

TensorName = Literal["conv1", "conv2", "projection", "conv2_out", "projection_out", "output"]
CONV_INPUTS: tuple[TensorName, ...] = ("conv1", "conv2", "projection")
Source = Literal["routed", "reached", "checkpoint", "statistics"]


@dataclass(frozen=True, order=True)
class TensorKey:
    """A tensor of a block at an option.

    Attributes:
        block: index of the block.
        option: index of the option.
        tensor: a convolution's input (``conv1``, ``conv2``, ``projection``), the normalised output of the second
            convolution or of the projection (``conv2_out``, ``projection_out``), or the block's ``output``.
    """

    block: int
    option: int
    tensor: TensorName


@dataclass(frozen=True)
class CalibratedRange:
    """An interval, where it comes from, and how many samples it was measured on."""

    low: float
    high: float
    source: Source
    samples: int


Ranges = Mapping[TensorKey, CalibratedRange]
Batches = Callable[[], Iterator[Tensor]]
"""Called once a pass; yields (N, C, H, W) float32, normalised, the same each time."""


def group_of(architecture: Architecture) -> tuple[int, ...]:
    """The group that each block belongs to, from 0."""
    return tuple(group for group, count in enumerate(architecture.groups) for _ in range(count))


def calibrate(
    network: DFSNetwork, options: Sequence[int], batches: Batches, method: str
) -> dict[TensorKey, CalibratedRange]:
    """Measures every tensor that an INT8 engine rounds.

    A convolution's input is taken as its option sees it: clamped to the checkpoint's range, which is part of what the
    network computes. So no method widens that range.

    Args:
        network: the reference, in evaluation mode.
        options: indices of the options that INT8 engines serve.
        batches: the calibration data.
        method: ``minmax``, ``percentile``, ``entropy`` or ``mse``; or ``checkpoint``, which keeps the checkpoint's
            range of a convolution's input and measures the other tensors by their extent.

    Returns:
        An interval for each tensor of each gated block at each of ``options``. The outputs of a group's blocks share
        one, so that a skipped block can pass on a feature map as it is.
    """
    taken = _count_taken(network, batches)
    observed = _Observer(network, options, taken)
    extents: dict[TensorKey, Extent] = {}
    observed.run(batches, lambda key, x: extents.setdefault(key, Extent()).add(x))
    choose: Method = minmax
    histograms = {key: HistogramCounter(extent) for key, extent in extents.items()}
    if method in METHODS and method != "minmax":
        choose = METHODS[method]
        observed.run(batches, lambda key, x: histograms[key].add(x))
    ranges = {}
    for key, extent in extents.items():
        low, high = choose(histograms[key].result())
        block = network.blocks[key.block]
        source: Source = "routed" if taken.get((key.block, key.option), 0) else "reached"
        if method == "checkpoint" and key.tensor in CONV_INPUTS:
            low, high = saturation(block, key.tensor)
            source = "checkpoint"
        ranges[key] = CalibratedRange(low, high, source, extent.samples)
    return share_outputs(network.architecture, ranges)


def from_checkpoint(network: DFSNetwork, options: Sequence[int]) -> dict[TensorKey, CalibratedRange]:
    """Ranges without data: the checkpoint's own, and batch statistics for the tensors that it has none for.

    A normalised output has mean ``bias`` and standard deviation ``|weight|`` in each channel; six deviations are taken
    in ("Data-Free Quantization", Nagel et al. 2019, Section 4.2). A block's output is what the next blocks' first
    convolutions saw, with headroom, since a checkpoint's range is the mean over samples of each sample's greatest.
    """
    groups = group_of(network.architecture)
    ranges = {}
    for block in network.blocks[1:]:
        index = block.shape.index
        readers = [
            b for b in network.blocks[1:] if b.shape.index > index and groups[b.shape.index - 1] == groups[index]
        ]
        tensors: dict[TensorName, tuple[float, float]] = {
            "conv1": saturation(block, "conv1"),
            "conv2": saturation(block, "conv2"),
        }
        tensors["conv2_out"] = _statistics(block.norm2)
        top = tensors["conv2_out"][1]
        if block.projection is not None:
            tensors["projection"] = saturation(block, "projection")
            tensors["projection_out"] = _statistics(block.projection.norm)
            top += max(tensors["projection_out"][1], 0.0)
        else:
            top += tensors["conv1"][1]
        seen = max((saturation(reader, "conv1")[1] for reader in readers), default=top)
        tensors["output"] = (0.0, min(_HEADROOM * seen, top) if readers else top)
        for option in options:
            for tensor, (low, high) in tensors.items():
                source: Source = "checkpoint" if tensor in CONV_INPUTS else "statistics"
                ranges[TensorKey(index, option, tensor)] = CalibratedRange(low, high, source, 0)
    return share_outputs(network.architecture, ranges)


_HEADROOM = 1.5
_DEVIATIONS = 6.0


def saturation(block: BasicBlock, tensor: TensorName) -> tuple[float, float]:
    """The interval to which the checkpoint clamps a convolution's input: ``conv1``, ``conv2`` or ``projection``."""
    conv = _convolution(block, tensor)
    return float(conv.low), float(conv.high)


def share_outputs(architecture: Architecture, ranges: Ranges) -> dict[TensorKey, CalibratedRange]:
    """Gives the outputs of a group's blocks the widest interval among them."""
    groups = group_of(architecture)
    widest: dict[int, float] = {}
    for key, value in ranges.items():
        if key.tensor == "output":
            group = groups[key.block]
            widest[group] = max(widest.get(group, 0.0), value.high)
    return {
        key: CalibratedRange(0.0, widest[groups[key.block]], value.source, value.samples)
        if key.tensor == "output"
        else value
        for key, value in ranges.items()
    }


def _statistics(norm: nn.BatchNorm2d) -> tuple[float, float]:
    with torch.no_grad():
        spread = _DEVIATIONS * norm.weight.abs()
        return float((norm.bias - spread).amin()), float((norm.bias + spread).amax())


def _convolution(block: BasicBlock, tensor: TensorName) -> QuantizedConv2d:
    if tensor == "projection":
        assert block.projection is not None  # noqa: S101 (only asked of blocks that have one)
        return block.projection.conv
    return block.conv1 if tensor == "conv1" else block.conv2


def _count_taken(network: DFSNetwork, batches: Batches) -> dict[tuple[int, int], int]:
    taken: dict[tuple[int, int], int] = {}

    def count(block: int, option: int, rows: Tensor, features: Tensor) -> None:
        taken[block, option] = taken.get((block, option), 0) + len(rows)

    for x in batches():
        network.route(x, observer=count)
    return taken


class _Observer:
    """Hooks the tensors of gated blocks while the reference routes, and names them by block and option."""

    def __init__(self, network: DFSNetwork, options: Sequence[int], taken: Mapping[tuple[int, int], int]) -> None:
        self._network = network
        self._options = options
        self._taken = taken
        self._current: tuple[int, int] | None = None

    def run(self, batches: Batches, sink: Callable[[TensorKey, Tensor], None]) -> None:
        with ExitStack() as stack:
            for block in self._network.blocks[1:]:
                for handle in self._hooks(block, sink):
                    stack.callback(handle.remove)
            for x in batches():
                self._network.route(x, observer=self._before_group)

    def _before_group(self, block: int, option: int, rows: Tensor, features: Tensor) -> None:
        # Options that the gate never takes here are measured on all that reaches the block, a group at a time.
        for other in self._options:
            if not self._taken.get((block, other)):
                self._current = (block, other)
                run_option(self._network.blocks[block], features, self._network.options[other])
        self._current = (block, option) if option in self._options else None

    def _hooks(self, block: BasicBlock, sink: Callable[[TensorKey, Tensor], None]) -> Iterator[Any]:
        index = block.shape.index

        def emit(tensor: TensorName, x: Tensor) -> None:
            if self._current is not None and self._current[0] == index:
                sink(TensorKey(index, self._current[1], tensor), x.detach())

        def input_hook(tensor: TensorName) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            low, high = saturation(block, tensor)

            def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                emit(tensor, inputs[0].clamp(low, high) if high > low else inputs[0])

            return hook

        def output_hook(tensor: TensorName) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
                emit(tensor, output)

            return hook

        yield block.conv1.register_forward_pre_hook(input_hook("conv1"))
        yield block.conv2.register_forward_pre_hook(input_hook("conv2"))
        yield block.norm2.register_forward_hook(output_hook("conv2_out"))
        yield block.register_forward_hook(output_hook("output"))
        if block.projection is not None:
            yield block.projection.conv.register_forward_pre_hook(input_hook("projection"))
            yield block.projection.norm.register_forward_hook(output_hook("projection_out"))
