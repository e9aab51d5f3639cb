"""Ranges from what the gate really sends to each block at each option, through the blocks as they ran before it.

A static calibration of the whole network sees another distribution. Data streams through the routed reference twice:
once for the extent of each tensor, once more for its histogram where the method wants one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dfs_deploy.calibration.histogram import Extent, HistogramCounter
from dfs_deploy.calibration.methods import METHODS, minmax
from dfs_deploy.errors import CheckpointError
from dfs_deploy.models import BasicBlock, DFSNetwork, QuantizedConv2d, run_option
from dfs_deploy.network import Architecture

TensorName = Literal["images", "conv1", "conv2", "projection", "conv2_out", "projection_out", "shortcut", "output"]
CONV_INPUTS: tuple[TensorName, ...] = ("conv1", "conv2", "projection")
STATIC = -1
"""The option index under which the static network's ranges are kept."""

Source = Literal["routed", "reached", "checkpoint", "statistics"]


@dataclass(frozen=True, order=True)
class TensorKey:
    """A tensor of a block at an option.

    Attributes:
        block: index of the block.
        option: index of the option.
        tensor: a convolution's input (``conv1``, ``conv2``, ``projection``), the normalised output of the second
            convolution or of the projection (``conv2_out``, ``projection_out``), of a block without a projection what
            it is given (``shortcut``), the block's ``output``; or, of block 0 and the static network, the ``images``.
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
Sink = Callable[[TensorKey, Tensor], None]
Batches = Callable[[], Iterator[Tensor]]
"""Called once a pass; yields (N, C, H, W) float32, normalised, the same each time."""


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
        An interval for each tensor of each gated block at each of ``options``, or at the policy's option where the
        network has one. The outputs of a group's blocks share one, so that a skipped block can pass on a feature map as
        it is.
    """
    taken = _count_taken(network, batches)
    observer = _RoutedObserver(network, options, taken)
    intervals = _measure(functools.partial(observer.run, batches), method)
    ranges = {}
    for key, (low, high, samples) in intervals.items():
        source: Source = "routed" if taken.get((key.block, key.option), 0) else "reached"
        if method == "checkpoint" and key.tensor in CONV_INPUTS:
            low, high = saturation(network.blocks[key.block], key.tensor)
            source = "checkpoint"
        ranges[key] = CalibratedRange(low, high, source, samples)
    return share_outputs(network.architecture, ranges)


def calibrate_static(network: DFSNetwork, batches: Batches, method: str) -> dict[TensorKey, CalibratedRange]:
    """Measures the tensors of the static network: every block in full precision for every sample, nothing clamped.

    It is what a user would quantise who has the backbone alone; the static INT8 baseline is made from it.

    Args:
        network: the reference, in evaluation mode.
        batches: the calibration data.
        method: name of a method, as for :func:`calibrate`; ``checkpoint`` measures by extent here.

    Returns:
        An interval for each tensor of each block, under the option :data:`STATIC`.
    """

    def run(sink: Sink) -> None:
        with ExitStack() as stack, torch.no_grad():
            for block in network.blocks:
                emit = functools.partial(_emit_static, sink, block.shape.index)
                for handle in _tap(block, emit, clamp=False):
                    stack.callback(handle.remove)
            for x in batches():
                sink(TensorKey(0, STATIC, "images"), x)
                network.backbone(x)

    intervals = _measure(run, method)
    return {key: CalibratedRange(low, high, "reached", samples) for key, (low, high, samples) in intervals.items()}


def _emit_static(sink: Sink, block: int, tensor: TensorName, x: Tensor) -> None:
    sink(TensorKey(block, STATIC, tensor), x)


def _measure(run: Callable[[Sink], None], method: str) -> dict[TensorKey, tuple[float, float, int]]:
    """Streams data once or twice, and chooses each tensor's interval; gives the samples seen with it."""
    extents: dict[TensorKey, Extent] = {}
    run(lambda key, x: extents.setdefault(key, Extent()).add(x))
    for key, extent in extents.items():
        if not (math.isfinite(extent.low) and math.isfinite(extent.high)):
            raise CheckpointError(
                f"the network's {key.tensor} at block {key.block} holds {extent.low:g} to {extent.high:g} on these"
                " data, expected finite values; check the checkpoint's weights and how it was trained"
            )
    choose = METHODS.get(method, minmax)
    if choose is minmax:
        return {key: (extent.low, extent.high, extent.samples) for key, extent in extents.items()}
    histograms = {key: HistogramCounter(extent) for key, extent in extents.items()}
    run(lambda key, x: histograms[key].add(x))
    return {key: (*choose(histograms[key].result()), extent.samples) for key, extent in extents.items()}


def from_checkpoint(network: DFSNetwork, options: Sequence[int]) -> dict[TensorKey, CalibratedRange]:
    """Ranges without data: the checkpoint's own, and batch statistics for the tensors that it has none for.

    A normalised output has mean ``bias`` and standard deviation ``|weight|`` in each channel; six deviations are taken
    in ("Data-Free Quantization", Nagel et al. 2019, Section 4.2). A block's output is what the next blocks' first
    convolutions saw, with headroom, since a checkpoint's range is the mean over samples of each sample's greatest. A
    shortcut is whatever may reach the block: what its first convolution saw, an output of its group, or what enters the
    group without being one.
    """
    ranges = {}
    for block in network.blocks[1:]:
        index = block.shape.index
        served = _served(network, index, options)
        if not served:
            continue
        readers = [
            b
            for b in network.blocks[1:]
            if b.shape.index > index
            and network.blocks[b.shape.index - 1].shape.group == block.shape.group
            and any(option.quantized for option in network.options_of(b.shape.index))
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
        for option in served:
            for tensor, (low, high) in tensors.items():
                source: Source = "checkpoint" if tensor in CONV_INPUTS else "statistics"
                ranges[TensorKey(index, option, tensor)] = CalibratedRange(low, high, source, 0)
    ranges = share_outputs(network.architecture, ranges)
    return ranges | _shortcuts(network, options, ranges)


def _shortcuts(network: DFSNetwork, options: Sequence[int], ranges: Ranges) -> dict[TensorKey, CalibratedRange]:
    found = {}
    entering = (0.0, 0.0)
    for block in network.blocks:
        index = block.shape.index
        if block.projection is not None:
            entering = _statistics(block.projection.norm)
        elif index == 0:
            entering = (0.0, sum(max(_statistics(n)[1], 0.0) for n in (network.backbone.stem_norm, block.norm2)))
        else:
            low, high = (_HEADROOM * end for end in saturation(block, "conv1"))
            for option in _served(network, index, options):
                top = ranges[TensorKey(index, option, "output")].high
                key = TensorKey(index, option, "shortcut")
                found[key] = CalibratedRange(min(low, entering[0]), max(high, entering[1], top), "statistics", 0)
    return found


def _served(network: DFSNetwork, block: int, options: Sequence[int]) -> list[int]:
    """Those of the options that a block may run; a policy leaves each block one."""
    return [i for i in options if network.options[i] in network.options_of(block)]


_HEADROOM = 1.5
_DEVIATIONS = 6.0


def saturation(block: BasicBlock, tensor: TensorName) -> tuple[float, float]:
    """The interval to which the checkpoint clamps a convolution's input: ``conv1``, ``conv2`` or ``projection``."""
    conv = _convolution(block, tensor)
    return float(conv.low), float(conv.high)


def share_outputs(architecture: Architecture, ranges: Ranges) -> dict[TensorKey, CalibratedRange]:
    """Gives the outputs of a group's blocks the widest interval among them."""
    groups = [block.group for block in architecture.blocks]
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


class _RoutedObserver:
    """Names the tensors of gated blocks by block and option while the reference routes."""

    def __init__(self, network: DFSNetwork, options: Sequence[int], taken: Mapping[tuple[int, int], int]) -> None:
        self._network = network
        self._options = options
        self._taken = taken
        self._current: tuple[int, int] | None = None

    def run(self, batches: Batches, sink: Sink) -> None:
        with ExitStack() as stack:
            for block in self._network.blocks[1:]:
                emit = functools.partial(self._emit, sink, block.shape.index)
                for handle in _tap(block, emit, clamp=True):
                    stack.callback(handle.remove)
            for x in batches():
                self._network.route(x, observer=self._before_group)

    def _before_group(self, block: int, option: int, rows: Tensor, features: Tensor) -> None:
        # Options that the gate never takes here are measured on all that reaches the block, a group at a time.
        possible = self._network.options_of(block)
        for other in self._options:
            if not self._taken.get((block, other)) and self._network.options[other] in possible:
                self._current = (block, other)
                run_option(self._network.blocks[block], features, self._network.options[other])
        self._current = (block, option) if option in self._options else None

    def _emit(self, sink: Sink, block: int, tensor: TensorName, x: Tensor) -> None:
        if self._current is not None and self._current[0] == block:
            sink(TensorKey(block, self._current[1], tensor), x)


def _tap(block: BasicBlock, emit: Callable[[TensorName, Tensor], None], clamp: bool) -> Iterator[Any]:
    """Hooks every tensor that an INT8 engine of a block rounds; yields the hooks' handles."""

    def on_input(tensor: TensorName) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        low, high = saturation(block, tensor)

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            emit(tensor, inputs[0].clamp(low, high) if clamp and high > low else inputs[0])

        return hook

    def on_output(tensor: TensorName) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            emit(tensor, output)

        return hook

    def on_features(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        emit("shortcut", inputs[0])

    yield block.conv1.register_forward_pre_hook(on_input("conv1"))
    yield block.conv2.register_forward_pre_hook(on_input("conv2"))
    yield block.norm2.register_forward_hook(on_output("conv2_out"))
    yield block.register_forward_hook(on_output("output"))
    if block.projection is not None:
        yield block.projection.conv.register_forward_pre_hook(on_input("projection"))
        yield block.projection.norm.register_forward_hook(on_output("projection_out"))
    else:
        yield block.register_forward_pre_hook(on_features)
