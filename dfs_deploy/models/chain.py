"""A trace as a chain: who reads what, and where a module splits into branch, shortcut and what follows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import msgspec
from torch import nn

from dfs_deploy.models.graph import INPUT, BlockGraphs, Graph, Node, named_tensors
from dfs_deploy.models.trace import Call, Place, Shape, Trace

LINEAR = frozenset(
    ("conv", "batch_norm", "affine", "max_pool", "avg_pool", "global_avg_pool", "pad", "slice", "concat", "dropout")
)
"""Operators that a shortcut may have: none of them is an activation."""


class RefusedError(Exception):
    """A module is no block; the message says why, after the module's name."""


@dataclass(frozen=True)
class Link:
    """A module that was split at its addition.

    Attributes:
        call: the module's call.
        graphs: graphs of the block, which follows ``prefix``.
        prefix: what branch and shortcut both read, computed before the block.
        prefix_steps: positions of those of the prefix.
        source: value that the module reads.
        input: value that the block reads: ``source``, or what the prefix gives.
        output: value that it gives.
    """

    call: Call
    graphs: BlockGraphs
    prefix: Graph
    prefix_steps: tuple[int, ...]
    source: str
    input: str
    output: str


class Chain:
    """A trace without what nobody reads, and who reads what."""

    def __init__(self, traced: Trace, net: nn.Module) -> None:
        self.trace = traced
        self.steps = traced.steps
        self.net = net
        self.place = {INPUT: -1, **{step.node.name: index for index, step in enumerate(self.steps)}}
        self.output = cast(str, traced.output)
        live = {self.output}
        for step in reversed(self.steps):
            if step.node.name in live:
                live.update(step.node.inputs)
        self.live = [index for index, step in enumerate(self.steps) if step.node.name in live]
        self.readers: dict[str, list[int]] = {name: [] for name in self.place}
        for index in self.live:
            for name in self.steps[index].node.inputs:
                self.readers[name].append(index)
        self.readers[self.output].append(len(self.steps))
        self.times = Counter(call.name for call in traced.calls)
        self._sizes = {name: math.prod(tensor.shape) for name, tensor in named_tensors(net).items()}
        self.owners = self._owners()

    def shape(self, value: str) -> Shape:
        """Shape of a value, without the batch."""
        return self.trace.shape if value == INPUT else self.steps[self.place[value]].shape

    def map(self, value: str) -> tuple[int, int, int]:
        """Channels, height and width of a value.

        Raises:
            RefusedError: it is no map.
        """
        shape = self.shape(value)
        if len(shape) != 3:
            raise RefusedError(f"works on tensors {shape}, expected (channels, height, width)")
        return shape

    def inside(self, call: Call) -> list[int]:
        """Positions of a call's steps."""
        return [index for index in self.live if call.start <= index < call.stop]

    def entering(self, steps: Sequence[int]) -> list[str]:
        """Values from before some steps that they read."""
        inside = {self.steps[index].node.name for index in steps}
        read = dict.fromkeys(name for index in steps for name in self.steps[index].node.inputs)
        return [name for name in read if name not in inside]

    def above(self, value: str, steps: Iterable[int]) -> set[int]:
        """Positions of those of some steps that a value is computed by."""
        allowed, found, left = set(steps), set[int](), [self.place[value]]
        while left:
            index = left.pop()
            if index in allowed and index not in found:
                found.add(index)
                left += [self.place[name] for name in self.steps[index].node.inputs]
        return found

    def macs(self, steps: Iterable[int]) -> int:
        """Multiply-adds of some steps for one image."""
        layers = (self.steps[index] for index in steps if self.steps[index].node.operator in ("conv", "linear"))
        return sum(math.prod(step.shape[1:]) * self._sizes[step.node.tensors["weight"]] for step in layers)

    def _owners(self) -> dict[int, list[int]]:
        """Positions of the residual additions that each call makes, by position of the call."""
        owners: dict[int, list[int]] = {}
        for index in self.live:
            step = self.steps[index]
            if step.node.operator != "add" or len({self.shape(name) for name in step.node.inputs}) != 1:
                continue
            position = next(position for position in reversed(step.calls) if self._enters(position, step.node.inputs))
            if not position and len(step.calls) > 1:
                position = step.calls[-1]  # its module reads several tensors
            owners.setdefault(position, []).append(index)
        return owners

    def _enters(self, position: int, operands: Sequence[str]) -> bool:
        """Whether a call reads one tensor, and operands inside it all come from that; the network's own call does."""
        steps = self.inside(self.trace.calls[position])
        entering = self.entering(steps)
        return not position or (
            len(entering) == 1
            and all(
                name == entering[0]
                or any(entering[0] in self.steps[index].node.inputs for index in self.above(name, steps))
                for name in operands
            )
        )

    def split(self, call: Call) -> Link:
        """Splits a module at its addition.

        Raises:
            RefusedError: it is no block.
        """
        steps = self.inside(call)
        source = self._source(call, steps)
        output = self._result(call, steps, source)
        position = self.trace.calls.index(call)
        if position not in self.owners:
            graphs = BlockGraphs(call.name, self.graph(steps, source, output), None)
            return Link(call, graphs, Graph(), (), source, source, output)
        addition = self.owners[position][-1]
        before = self.above(self.steps[addition].node.name, steps) - {addition}
        sum_name = self.steps[addition].node.name
        after = [index for index in steps if index != addition and index not in before]
        if around := [name for name in self.entering(after) if name != sum_name]:
            raise RefusedError(f"reads {around[0]} again after its last addition")
        left, right = self.steps[addition].node.inputs
        if left == right:
            raise RefusedError(f"adds {left} to itself")
        parts = {left: self.above(left, before), right: self.above(right, before)}
        shared = parts[left] & parts[right]
        start = self._joint(shared, parts, source) if shared else source
        parts = {name: part - shared for name, part in parts.items()}
        shortcut = self._shortcut(parts, start)
        branch = left if shortcut == right else right
        graphs = BlockGraphs(
            call.name,
            self.graph(sorted(parts[branch]), start, branch),
            self.graph(sorted(parts[shortcut]), start, shortcut),
            self.graph(after, sum_name, output),
        )
        prefix = self.graph(sorted(shared), source, start)
        return Link(call, graphs, prefix, tuple(sorted(shared)), source, start, output)

    def _source(self, call: Call, steps: Sequence[int]) -> str:
        """The one value that a module reads."""
        if self.times[call.name] > 1:
            raise RefusedError(
                f"is called {self.times[call.name]} times, expected once; give each place its own module"
            )
        position = self.trace.calls.index(call)
        for reading in self.trace.readings:
            if position in reading.calls:
                where = f" in {reading.module}" if reading.module != call.name else ""
                raise RefusedError(
                    f"has a path that depends on data ({reading.function}{where}); compute both ways, or leave it out"
                )
        places = [part.value for part in (*call.arguments, *call.keywords.values()) if isinstance(part, Place)]
        entering = list(dict.fromkeys((*self.entering(steps), *places)))
        if len(entering) != 1:
            names = " and ".join(entering) or "none"
            raise RefusedError(f"reads {len(entering)} tensors ({names}), expected one")
        if not places:
            raise RefusedError(f"reads {entering[0]}, which is not among its arguments; pass it as one")
        if problem := next((self.steps[index] for index in steps if self.steps[index].problem), None):
            where = f", in {problem.module}" if problem.module != call.name else ""
            raise RefusedError(f"{problem.problem}{where}")
        self._alone(call.start, entering[0])
        return entering[0]

    def _result(self, call: Call, steps: Sequence[int], source: str) -> str:
        """The one value that a module gives."""
        if call.result is None:
            raise RefusedError("gives something other than one tensor")
        if call.result == source or not steps:
            raise RefusedError("gives its input back")
        for index in steps:
            name = self.steps[index].node.name
            later = [reader for reader in self.readers[name] if reader >= call.stop]
            if later and name != call.result:
                raise RefusedError(f"has {name} inside, which {self._reader(later[0])} reads too")
        self._alone(call.stop, call.result)
        self.map(source)
        self.map(call.result)
        return call.result

    def _alone(self, cut: int, value: str) -> None:
        """Checks that nothing but one value passes a cut between steps: blocks form a chain."""
        for name, readers in self.readers.items():
            if name != value and self.place[name] < cut and (later := [reader for reader in readers if reader >= cut]):
                raise RefusedError(f"is no link of a chain: {self._reader(later[0])} reads {name} around it")

    def _reader(self, index: int) -> str:
        return "the network's result" if index == len(self.steps) else self.steps[index].node.name

    def _joint(self, shared: set[int], parts: Mapping[str, set[int]], source: str) -> str:
        """The value up to which branch and shortcut are the same."""
        names = {self.steps[index].node.name for index in shared}
        read = {name for part in parts.values() for index in part - shared for name in self.steps[index].node.inputs}
        joints = sorted(((read | set(parts)) & names) | (read & {source}))  # where other steps enter the shared ones
        weighty = [self.steps[index].node.name for index in sorted(shared) if self.macs([index])]
        if len(joints) != 1 or weighty:
            both = (weighty or joints)[:2]
            raise RefusedError(f"has an addition whose operands share {' and '.join(both)}, expected its input alone")
        self.map(joints[0])
        return joints[0]

    def _shortcut(self, parts: Mapping[str, set[int]], start: str) -> str:
        """Which operand of the addition is the shortcut."""
        if start in parts:
            return start
        linear = [name for name, part in parts.items() if all(self.steps[at].node.operator in LINEAR for at in part)]
        if not linear:
            raise RefusedError("adds two values that both have activations, so neither is a shortcut")
        macs = {name: self.macs(parts[name]) for name in linear}
        least = min(linear, key=lambda name: macs[name])
        if len(linear) == 2 and macs[linear[0]] == macs[linear[1]]:
            raise RefusedError("adds two values that cost the same and have no activation, so neither is a shortcut")
        return least

    def graph(self, steps: Sequence[int], source: str, output: str, exact: bool = True) -> Graph:
        """Graph of some steps, from one value to another.

        Args:
            steps: positions of the steps, in order.
            source: value that it reads.
            output: value that it gives.
            exact: whether layers on pooled maps are computed in float by every option.
        """
        nodes = []
        for index in steps:
            node = self.steps[index].node
            nodes.append(
                msgspec.structs.replace(node, inputs=tuple(INPUT if name == source else name for name in node.inputs))
            )
        graph = Graph(tuple(nodes), INPUT if output == source else output)
        graph = _with_padding(graph)
        return _with_exact(graph) if exact else graph


def _with_padding(graph: Graph) -> Graph:
    """A graph whose convolutions pad for themselves, in place of a node before them."""
    readers = graph.readers()
    pads = {
        node.name: node
        for node in graph.nodes
        if node.operator == "pad"
        and readers[node.name] == 1
        and node.numbers("pads")[0] == node.numbers("pads")[3] == 0
    }
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        pad = pads.get(node.inputs[0]) if node.operator == "conv" else None
        if pad is not None:
            _, top, left, _, bottom, right = pad.numbers("pads")
            total = tuple(map(sum, zip(node.numbers("padding"), (top, left, bottom, right), strict=True)))
            del nodes[pad.name]
            node = msgspec.structs.replace(node, inputs=pad.inputs, attributes={**node.attributes, "padding": total})
        nodes[node.name] = node
    return Graph(tuple(nodes.values()), graph.output)


def _with_exact(graph: Graph) -> Graph:
    """A graph whose layers on pooled maps, those of squeeze-and-excitation, are computed in float by every option."""
    pooled: set[str] = set()
    nodes = []
    for node in graph.nodes:
        if node.operator == "global_avg_pool" or all(name in pooled for name in node.inputs):
            pooled.add(node.name)
            if node.operator in ("conv", "linear"):
                node = msgspec.structs.replace(node, exact=True)
        nodes.append(node)
    return Graph(tuple(nodes), graph.output)
