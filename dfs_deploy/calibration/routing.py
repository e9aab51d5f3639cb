"""Ranges from what the gate really sends to each block at each option, through the blocks as they ran before it.

A static calibration of the whole network sees another distribution. Data streams through the routed reference two or
three times: to count the samples that each option gets, for the least and greatest value of each tensor, and, if the
method wants one, for its histogram.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dfs_deploy.calibration.methods import METHODS, Histogram, MinMax, minmax
from dfs_deploy.errors import CheckpointError
from dfs_deploy.models import DFSNetwork, Graph, NetworkBlock, run_option
from dfs_deploy.models.cifar import is_cifar
from dfs_deploy.models.graph import INPUT, OUTPUT
from dfs_deploy.network import Architecture
from dfs_deploy.options import FULL_BITS

STATIC = -1
"""Option index under which the ranges of the static network are kept."""

ALWAYS = -2
"""Option index of whatever computes in the network's own bitwidth: the stem, the head, and skipped blocks."""

_MOST_INT8_BITS = 8

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
    """A value inside a block at an option.

    Attributes:
        block: index of the block; 0 is the stem, and the head comes after the last block.
        option: index of the option; ``ALWAYS`` or ``STATIC``.
        tensor: name of a value of the block's graph: ``input``, a node, or ``output`` for what the block gives. The
            range under ``output`` is the group's, that of the node which gives it is its own.
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
    """Measures every value that an INT8 engine may round.

    A value that only quantised layers read is taken as they see it: clamped to the checkpoint's ranges, which are part
    of what the network computes. So no method widens those.

    Args:
        network: the reference, in evaluation mode.
        options: indices of the options that INT8 engines run.
        batches: the calibration data.
        method: ``minmax``, ``percentile``, ``entropy`` or ``mse``; or ``checkpoint``, which keeps the checkpoint's
            range of what only quantised layers read, and takes the least and greatest value of everything else.

    Returns:
        An interval for each value of each gated block at each of ``options`` that it may run; and, if the network
        always computes in 8 bits or fewer, for those of stem, head and skips under ``ALWAYS``. The outputs of a group
        share one, so that a skipped block can pass on a feature map as it is.
    """
    taken = _count_taken(network, batches)
    taps = _Taps(network)
    ranges = {}
    for key, found in _measure(functools.partial(_run_routed, network, options, taken, taps, batches), method).items():
        if not _was_taken(network, key, taken):
            found = replace(found, source="reached")
        if method == "checkpoint" and (own := taps.of(key.block, key.option).clamps.get(key.tensor)):
            found = CalibratedRange(own.low, own.high, "checkpoint", found.samples)
        ranges[key] = found
    return share_outputs(network.architecture, _with_outputs(taps, ranges))


def _count_taken(network: DFSNetwork, batches: Batches) -> Counter[tuple[int, int]]:
    """Number of samples that each block, by index, runs at each option, by index."""
    taken: Counter[tuple[int, int]] = Counter()
    for x in batches():
        network.route(x, lambda block, option, rows, features: taken.update({(block, option): len(rows)}))
    return taken


def _was_taken(network: DFSNetwork, key: TensorKey, taken: Counter[tuple[int, int]]) -> bool:
    """Whether any sample ran a key's block at its option of its own accord."""
    if not 0 < key.block < len(network.architecture.blocks):
        return True
    options = [k for k, option in enumerate(network.options) if option.skips] if key.option == ALWAYS else [key.option]
    return any(taken[key.block, k] for k in options)


def _run_routed(
    network: DFSNetwork,
    options: Sequence[int],
    taken: Counter[tuple[int, int]],
    taps: _Taps,
    batches: Batches,
    sink: Sink,
) -> None:
    """Streams data through the routed reference; the sink gets each value that is measured, by block and option."""
    always = network.graphs.always <= _MOST_INT8_BITS
    measured = {k: k for k in options if not network.options[k].skips}
    if always:
        measured |= {k: ALWAYS for k, option in enumerate(network.options) if option.skips}
    running: int | None = None

    def before_group(block: int, option: int, rows: Tensor, features: Tensor) -> None:
        # Options that the gate never takes here are measured on all that reaches the block, one group at a time.
        nonlocal running
        for other in _possible(network, block, measured):
            if not taken[block, other]:
                running = measured[other]
                run_option(network.block(block), features, network.options[other])
        running = measured.get(option)

    def emit(block: int, tensor: str, x: Tensor) -> None:
        ends = not 0 < block < len(network.architecture.blocks)
        option = (ALWAYS if always else None) if ends else running
        if option is not None:
            taps.of(block, option).emit(TensorKey(block, option, tensor), x, sink)

    with network.observed(emit):
        for x in batches():
            network.route(x, before_group)


def calibrate_static(network: DFSNetwork, batches: Batches, method: str) -> dict[TensorKey, CalibratedRange]:
    """Measures the values of the static network: every block in full precision for every sample, nothing clamped.

    Blocks that a static policy leaves out are no part of it. The static INT8 baseline is made from it, as by a user who
    has the static network only. Arguments are those of ``calibrate``; the intervals stand under the option ``STATIC``.
    """
    taps = _Taps(network)

    def run(sink: Sink) -> None:
        def emit(block: int, tensor: str, x: Tensor) -> None:
            taps.of(block, STATIC).emit(TensorKey(block, STATIC, tensor), x, sink)

        with network.observed(emit), torch.no_grad():
            for x in batches():
                network.static(x, skipped=network.left_out)

    found = {key: replace(value, source="reached") for key, value in _measure(run, method).items()}
    return _with_outputs(taps, found)


def _measure(run: Callable[[Sink], None], method: str) -> dict[TensorKey, CalibratedRange]:
    """Streams data once or twice, and chooses the interval of each value."""
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


@dataclass(frozen=True)
class _Part:
    """What is measured of one graph at one bitwidth.

    Attributes:
        values: names of the values that an engine may round.
        clamps: interval to which a value is clamped, since nobody but quantised layers reads it.
        output: name of the value that the graph gives.
    """

    values: frozenset[str]
    clamps: Mapping[str, Range]
    output: str

    def emit(self, key: TensorKey, x: Tensor, sink: Sink) -> None:
        """Hands a value on as an engine would round it."""
        if key.tensor in self.values:
            own = self.clamps.get(key.tensor)
            sink(key, x if own is None else x.clamp(own.low, own.high))


class _Taps:
    """What is measured of each block at each option."""

    def __init__(self, network: DFSNetwork) -> None:
        self._network = network
        self._parts: dict[tuple[int, int], _Part] = {}

    def of(self, block: int, option: int) -> _Part:
        """The part that a block, by index, runs at an option."""
        if (block, option) not in self._parts:
            graph = _graph(self._network, block, option)
            bits = FULL_BITS if option == STATIC else self._network.graphs.always
            if option >= 0:
                bits = self._network.options[option].bits
            self._parts[block, option] = _part(self._network, graph, bits)
        return self._parts[block, option]


def _graph(network: DFSNetwork, block: int, option: int) -> Graph:
    if block == 0:
        return network.graphs.stem
    if block == len(network.architecture.blocks):
        return network.graphs.head
    graphs = network.graphs.blocks[block - 1]
    skips = option == ALWAYS or (option == STATIC and block in network.left_out)
    return (graphs.skip or Graph()) if skips else graphs.whole


def _part(network: DFSNetwork, graph: Graph, bits: int) -> _Part:
    operators = {node.name: node.operator for node in graph.nodes}
    readers: dict[str, list[str | None]] = {INPUT: [], **{node.name: [] for node in graph.nodes}}
    for node in graph.nodes:
        saturates = bits < FULL_BITS and node.quantizable and network.ranges.known(node.name)
        for name in node.inputs:
            readers[name].append(node.name if saturates else None)
    readers[graph.output].append(None)
    clamps = {}
    for name, those in readers.items():
        known = [saturation(network, reader) for reader in those if reader is not None]
        if known and len(known) == len(those):
            clamps[name] = Range(min(each.low for each in known), max(each.high for each in known))
    folded = {
        node.inputs[0] for node in graph.nodes if node.operator == "batch_norm" and len(readers[node.inputs[0]]) == 1
    }
    hidden = {name for name in folded if operators.get(name) in ("conv", "linear")}
    hidden |= {name for name, operator in operators.items() if operator == "dropout"}
    return _Part(frozenset(readers) - (hidden - {graph.output}), clamps, graph.output)


def _with_outputs(taps: _Taps, ranges: Ranges) -> dict[TensorKey, CalibratedRange]:
    """Ranges with each block's ``output``: that of the node which gives it."""
    found = {key: value for key, value in ranges.items() if key.tensor != OUTPUT}
    for block, option in dict.fromkeys((key.block, key.option) for key in found):
        output = TensorKey(block, option, taps.of(block, option).output)
        found[TensorKey(block, option, OUTPUT)] = found[output]
    return found


def _possible(network: DFSNetwork, block: int, options: Iterable[int]) -> list[int]:
    """Those of the options that a block may run; a policy leaves each block one."""
    return [i for i in options if network.options[i] in network.options_of(block)]


def saturation(network: DFSNetwork, layer: str) -> CalibratedRange:
    """The interval to which the checkpoint clamps the input of a quantisable layer."""
    low, high = network.ranges.of(layer)
    return CalibratedRange(float(low), float(high), "checkpoint", 0)


def share_outputs(architecture: Architecture, ranges: Ranges) -> dict[TensorKey, CalibratedRange]:
    """Gives the outputs of a group's blocks, the stem's and skips' included, the widest interval among them, and zero.

    The head's output belongs to no group.
    """
    groups = [block.group for block in architecture.blocks]
    shared = {key: groups[key.block] for key in ranges if key.tensor == OUTPUT and key.block < len(groups)}
    widest: dict[int, Range] = {}
    for key, group in shared.items():
        value, before = ranges[key], widest.get(group, Range(0.0, 0.0))
        widest[group] = Range(min(before.low, value.low), max(before.high, value.high))
    return {
        key: replace(value, low=widest[shared[key]].low, high=widest[shared[key]].high) if key in shared else value
        for key, value in ranges.items()
    }


_HEADROOM = 1.5
_DEVIATIONS = 6.0


def from_checkpoint(network: DFSNetwork, options: Sequence[int]) -> dict[TensorKey, CalibratedRange]:
    """Ranges without data, of a CIFAR ResNet: the checkpoint's own, and batch statistics where it has none.

    A normalised value has mean ``bias`` and standard deviation ``|weight|`` in each channel; six deviations are taken
    in ("Data-Free Quantization", Nagel et al. 2019, Section 4.2). A block's output is what the next blocks' first
    convolutions saw, with headroom, because a checkpoint's range is the mean over samples of each sample's greatest. A
    shortcut is whatever may reach the block: what its first convolution saw, an output of its group, or what enters the
    group without being one.

    The values and the arguments are those of ``calibrate``.

    Raises:
        CheckpointError: another network, whose ranges only data can tell.
    """
    possible = {block.shape.index: _possible(network, block.shape.index, options) for block in network.blocks}
    if not any(possible.values()):
        return {}
    if not is_cifar(network.graphs, network.architecture):
        raise CheckpointError(
            f"{network.architecture.name} carries no range for the outputs of its blocks, which INT8 engines need; give"
            " --calibration-data, with images as the network was trained on"
        )
    ranges: dict[TensorKey, CalibratedRange] = {}
    for block in network.blocks:
        values = _without_data(network, block)
        for option in possible[block.shape.index]:
            ranges |= {TensorKey(block.shape.index, option, tensor): value for tensor, value in values.items()}
    ranges = share_outputs(network.architecture, ranges)
    return ranges | _shortcuts(network, possible, ranges)


def _without_data(network: DFSNetwork, block: NetworkBlock) -> dict[str, CalibratedRange]:
    """Ranges of the values of a block, except for an input that is its shortcut."""
    name, index, group = block.graphs.name, block.shape.index, block.shape.group
    first, second = saturation(network, f"{name}.conv1"), saturation(network, f"{name}.conv2")
    branch = _statistics(network, f"{name}.norm2")
    shortcut: Range = first
    found = {INPUT: first, f"{name}.norm1": _statistics(network, f"{name}.norm1"), f"{name}.conv1.relu": second}
    if block.shape.projects:
        own, shortcut = saturation(network, f"{name}.projection.conv"), _statistics(network, f"{name}.projection.norm")
        found[INPUT] = replace(first, low=min(first.low, own.low), high=max(first.high, own.high))
        found[f"{name}.projection.norm"] = shortcut
    top = branch.high + (max(shortcut.high, 0.0) if block.shape.projects else shortcut.high)
    readers = [
        saturation(network, f"{later.graphs.name}.conv1").high
        for later in network.blocks[index:]
        if network.architecture.blocks[later.shape.index - 1].group == group
        and any(option.quantized for option in network.options_of(later.shape.index))
    ]
    high = min(_HEADROOM * max(readers), top) if readers else top
    output = CalibratedRange(0.0, high, "statistics", 0)
    addition = replace(branch, low=branch.low + min(shortcut.low, 0.0), high=top)
    return {**found, f"{name}.norm2": branch, f"{name}.addition": addition, f"{name}.relu": output, OUTPUT: output}


def _shortcuts(
    network: DFSNetwork, possible: Mapping[int, Sequence[int]], ranges: Ranges
) -> dict[TensorKey, CalibratedRange]:
    """Ranges of the inputs that are shortcuts."""
    found = {}
    first = ("stem_norm", *(node.name for node in network.graphs.stem.nodes if node.name.endswith(".norm2")))
    entering = Range(0.0, sum(max(_statistics(network, norm).high, 0.0) for norm in first))
    for block in network.blocks:
        index, name = block.shape.index, block.graphs.name
        if block.shape.projects:
            entering = _statistics(network, f"{name}.projection.norm")
            continue
        own = saturation(network, f"{name}.conv1")
        for option in possible[index]:
            low = min(_HEADROOM * own.low, entering.low)
            high = max(_HEADROOM * own.high, entering.high, ranges[TensorKey(index, option, OUTPUT)].high)
            found[TensorKey(index, option, INPUT)] = CalibratedRange(low, high, "statistics", 0)
    return found


def _statistics(network: DFSNetwork, norm: str) -> CalibratedRange:
    """Range of a normalised value, by the name of its normalisation."""
    weight, bias = (network.net.get_parameter(f"{norm}.{role}").detach() for role in ("weight", "bias"))
    spread = _DEVIATIONS * weight.abs()
    return CalibratedRange(float((bias - spread).amin()), float((bias + spread).amax()), "statistics", 0)
