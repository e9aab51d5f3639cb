"""Ranges from what the gate really sends to each block at each option, through the blocks as they ran before it.

A static calibration of the whole network sees another distribution. Data streams through the routed reference two or
three times: to count the samples that each option gets, for the least and greatest value of each tensor, and, if the
method wants one, for its histogram.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dfs_deploy.calibration.methods import METHODS, Histogram, MinMax, minmax
from dfs_deploy.errors import CheckpointError
from dfs_deploy.models import BasicBlock, DFSNetwork, run_option
from dfs_deploy.network import Architecture

STATIC = -1
"""Option index under which the ranges of the static network are kept."""

Source = Literal["routed", "reached", "checkpoint", "statistics"]


@dataclass(frozen=True)
class Range:
    """An interval of values, ``low`` to ``high``."""

    low: float
    high: float

    def including_zero(self) -> Range:
        """The least interval that holds this one and zero, which padding needs to be exact."""
        return Range(min(self.low, 0.0), max(self.high, 0.0))


@dataclass(frozen=True)
class CalibratedRange(Range):
    """An interval, its source, and the number of samples that it was measured on."""

    source: Source
    samples: int


@dataclass(frozen=True, order=True)
class TensorKey:
    """A tensor of a block at an option.

    Attributes:
        block: index of the block.
        option: index of the option.
        tensor: a convolution's input (``conv1``, ``conv2``, ``projection``); the normalised output of the branch or of
            the projection (``conv2_out``, ``projection_out``); the input of a block without a projection
            (``shortcut``); the block's ``output``; or, of block 0 and the static network, the ``images``.
    """

    block: int
    option: int
    tensor: str


Ranges = Mapping[TensorKey, CalibratedRange]
Sink = Callable[[TensorKey, Tensor], None]
Batches = Callable[[], Iterator[Tensor]]
"""Called once per pass; yields (N, C, H, W) float32, normalised, the same each time."""


def block_ranges(ranges: Ranges, block: int, option: int) -> dict[str, CalibratedRange]:
    """The ranges of one block at one option, by tensor; block and option are indices."""
    return {key.tensor: value for key, value in ranges.items() if (key.block, key.option) == (block, option)}


def calibrate(
    network: DFSNetwork, options: Sequence[int], batches: Batches, method: str
) -> dict[TensorKey, CalibratedRange]:
    """Measures every tensor that an INT8 engine rounds.

    A convolution's input is taken as its option sees it: clamped to the checkpoint's range, which is part of what the
    network computes. So no method widens that range.

    Args:
        network: the reference, in evaluation mode.
        options: indices of the options that INT8 engines run.
        batches: the calibration data.
        method: ``minmax``, ``percentile``, ``entropy`` or ``mse``; or ``checkpoint``, which keeps the checkpoint's
            range of a convolution's input and takes the least and greatest value of the other tensors.

    Returns:
        An interval for each tensor of each gated block at each of ``options``, or at the policy's option if the
        network has one. The outputs of a group's blocks share one, so that a skipped block can pass on a feature map as
        it is.
    """
    taken = _count_taken(network, batches)
    ranges = {}
    for key, found in _measure(functools.partial(_run_routed, network, options, taken, batches), method).items():
        if not taken[key.block, key.option]:
            found = replace(found, source="reached")
        if method == "checkpoint" and key.tensor in network.blocks[key.block].convolutions:
            found = replace(saturation(network.blocks[key.block], key.tensor), samples=found.samples)
        ranges[key] = found
    return share_outputs(network.architecture, ranges)


def _count_taken(network: DFSNetwork, batches: Batches) -> Counter[tuple[int, int]]:
    """Number of samples that each block, by index, runs at each option, by index."""
    taken: Counter[tuple[int, int]] = Counter()
    for x in batches():
        network.route(x, lambda block, option, rows, features: taken.update({(block, option): len(rows)}))
    return taken


def _run_routed(
    network: DFSNetwork, options: Sequence[int], taken: Counter[tuple[int, int]], batches: Batches, sink: Sink
) -> None:
    """Streams data through the routed reference; the sink gets each tensor of gated blocks by block and option."""
    running: tuple[int, int] | None = None

    def before_group(block: int, option: int, rows: Tensor, features: Tensor) -> None:
        # Options that the gate never takes here are measured on all that reaches the block, one group at a time.
        nonlocal running
        for other in _possible(network, block, options):
            if not taken[block, other]:
                running = (block, other)
                run_option(network.blocks[block], features, network.options[other])
        running = (block, option) if option in options else None

    def emit(block: int, tensor: str, x: Tensor) -> None:
        if running is not None and running[0] == block:
            sink(TensorKey(*running, tensor), x)

    with ExitStack() as stack:
        for block in network.blocks[1:]:
            _tap(block, functools.partial(emit, block.shape.index), True, stack)
        for x in batches():
            network.route(x, before_group)


def calibrate_static(network: DFSNetwork, batches: Batches, method: str) -> dict[TensorKey, CalibratedRange]:
    """Measures the tensors of the static network: every block in full precision for every sample, nothing clamped.

    The static INT8 baseline is made from it, as by a user who has the backbone only. Arguments are those of
    ``calibrate``; the intervals stand under the option ``STATIC``.
    """

    def run(sink: Sink) -> None:
        def emit(block: int, tensor: str, x: Tensor) -> None:
            sink(TensorKey(block, STATIC, tensor), x)

        with ExitStack() as stack, torch.no_grad():
            for block in network.blocks:
                _tap(block, functools.partial(emit, block.shape.index), False, stack)
            for x in batches():
                emit(0, "images", x)
                network.backbone(x)

    return {key: replace(found, source="reached") for key, found in _measure(run, method).items()}


def _measure(run: Callable[[Sink], None], method: str) -> dict[TensorKey, CalibratedRange]:
    """Streams data once or twice, and chooses the interval of each tensor."""
    ends: dict[TensorKey, MinMax] = {}
    run(lambda key, x: ends.setdefault(key, MinMax()).add(x))
    for key, seen in ends.items():
        if not (math.isfinite(seen.low) and math.isfinite(seen.high)):
            raise CheckpointError(
                f"the network's {key.tensor} at block {key.block} holds {seen.low:g} to {seen.high:g} on these data,"
                " expected finite values; check the checkpoint's weights and how it was trained"
            )
    choose = METHODS.get(method, minmax)
    if choose is minmax:
        return {key: CalibratedRange(seen.low, seen.high, "routed", seen.samples) for key, seen in ends.items()}
    histograms = {key: Histogram(seen.low, seen.high) for key, seen in ends.items()}
    run(lambda key, x: histograms[key].add(x))
    return {key: CalibratedRange(*choose(histograms[key]), "routed", seen.samples) for key, seen in ends.items()}


def _tap(block: BasicBlock, emit: Callable[[str, Tensor], None], clamp: bool, stack: ExitStack) -> None:
    """Hooks every tensor that an INT8 engine of a block rounds, until the stack is closed."""

    def on_input(tensor: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        own = saturation(block, tensor) if clamp and tensor in block.convolutions else None

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            emit(tensor, inputs[0].clamp(own.low, own.high) if own is not None and own.high > own.low else inputs[0])

        return hook

    def on_output(tensor: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        return lambda module, inputs, output: emit(tensor, output)

    for name, (conv, _) in block.convolutions.items():
        stack.callback(conv.register_forward_pre_hook(on_input(name)).remove)
    for name, norm in _rounded_outputs(block).items():
        stack.callback(norm.register_forward_hook(on_output(name)).remove)
    if block.projection is None:
        stack.callback(block.register_forward_pre_hook(on_input("shortcut")).remove)
    stack.callback(block.register_forward_hook(on_output("output")).remove)


def _rounded_outputs(block: BasicBlock) -> dict[str, nn.BatchNorm2d]:
    """The normalisations before the addition, whose outputs an INT8 engine rounds, by output: the branch's first."""
    norms = {name: norm for name, (_, norm) in block.convolutions.items()}
    projection = norms.pop("projection", None)
    last, norm = norms.popitem()
    return {f"{last}_out": norm} | ({} if projection is None else {"projection_out": projection})


def _possible(network: DFSNetwork, block: int, options: Sequence[int]) -> list[int]:
    """Those of the options that a block may run; a policy leaves each block one."""
    return [i for i in options if network.options[i] in network.options_of(block)]


def saturation(block: BasicBlock, tensor: str) -> CalibratedRange:
    """The interval to which the checkpoint clamps a convolution's input: ``conv1``, ``conv2`` or ``projection``."""
    conv, _ = block.convolutions[tensor]
    return CalibratedRange(float(conv.low), float(conv.high), "checkpoint", 0)


def share_outputs(architecture: Architecture, ranges: Ranges) -> dict[TensorKey, CalibratedRange]:
    """Gives the outputs of a group's blocks the widest interval among them."""
    groups = [block.group for block in architecture.blocks]
    widest: dict[int, float] = {}
    for key, value in ranges.items():
        if key.tensor == "output":
            group = groups[key.block]
            widest[group] = max(widest.get(group, 0.0), value.high)
    return {
        key: replace(value, low=0.0, high=widest[groups[key.block]]) if key.tensor == "output" else value
        for key, value in ranges.items()
    }


_HEADROOM = 1.5
_DEVIATIONS = 6.0


def from_checkpoint(network: DFSNetwork, options: Sequence[int]) -> dict[TensorKey, CalibratedRange]:
    """Ranges without data: the checkpoint's own, and batch statistics for the tensors that it has none for.

    A normalised output has mean ``bias`` and standard deviation ``|weight|`` in each channel; six deviations are taken
    in ("Data-Free Quantization", Nagel et al. 2019, Section 4.2). A block's output is what the next blocks' first
    convolutions saw, with headroom, because a checkpoint's range is the mean over samples of each sample's greatest. A
    shortcut is whatever may reach the block: what its first convolution saw, an output of its group, or what enters the
    group without being one.

    The tensors and the arguments are those of ``calibrate``.
    """
    ranges: dict[TensorKey, CalibratedRange] = {}
    for block in network.blocks[1:]:
        index = block.shape.index
        tensors = {name: saturation(block, name) for name in block.convolutions}
        outputs = {name: _statistics(norm) for name, norm in _rounded_outputs(block).items()}
        tensors |= outputs
        branch, *projected = outputs.values()
        top = branch.high + (max(projected[0].high, 0.0) if projected else tensors["conv1"].high)
        readers = [
            saturation(later, "conv1").high
            for later in network.blocks[index + 1 :]
            if network.blocks[later.shape.index - 1].shape.group == block.shape.group
            and any(option.quantized for option in network.options_of(later.shape.index))
        ]
        high = min(_HEADROOM * max(readers), top) if readers else top
        tensors["output"] = CalibratedRange(0.0, high, "statistics", 0)
        for option in _possible(network, index, options):
            ranges |= {TensorKey(index, option, tensor): value for tensor, value in tensors.items()}
    ranges = share_outputs(network.architecture, ranges)
    return ranges | _shortcuts(network, options, ranges)


def _shortcuts(network: DFSNetwork, options: Sequence[int], ranges: Ranges) -> dict[TensorKey, CalibratedRange]:
    found = {}
    first = (network.backbone.stem_norm, *_rounded_outputs(network.blocks[0]).values())
    entering = Range(0.0, sum(max(_statistics(norm).high, 0.0) for norm in first))
    for block in network.blocks[1:]:
        index = block.shape.index
        if block.projection is not None:
            entering = _statistics(block.projection.norm)
            continue
        own = saturation(block, "conv1")
        for option in _possible(network, index, options):
            key = TensorKey(index, option, "shortcut")
            low = min(_HEADROOM * own.low, entering.low)
            high = max(_HEADROOM * own.high, entering.high, ranges[TensorKey(index, option, "output")].high)
            found[key] = CalibratedRange(low, high, "statistics", 0)
    return found


def _statistics(norm: nn.BatchNorm2d) -> CalibratedRange:
    with torch.no_grad():
        spread = _DEVIATIONS * norm.weight.abs()
        low, high = float((norm.bias - spread).amin()), float((norm.bias + spread).amax())
    return CalibratedRange(low, high, "statistics", 0)
