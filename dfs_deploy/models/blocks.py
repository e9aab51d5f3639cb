"""Residual blocks of any network, found in a trace of it and proved with random tensors.

A block computes ``after(branch(x) + shortcut(x))``. Nothing is assumed about a module from its name or class: its part
of the trace is split at its last addition, and the graphs that result must give what the module gives.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import torch
from torch import Tensor, nn

from dfs_deploy.errors import BlockError, InputError
from dfs_deploy.io.text import first_line
from dfs_deploy.models.graph import (
    INPUT,
    BlockGraphs,
    Evaluation,
    Graph,
    Node,
    named_tensors,
    nonnegative,
)
from dfs_deploy.models.plan import Kind, Piece, Plan, Row, Shape
from dfs_deploy.models.trace import OPAQUE, Call, Place, Trace, as_before, check_example, trace

TOLERANCE = 1e-5
"""Largest difference between a block and its graphs, relative to the largest value of the block's output."""

LINEAR = frozenset(
    ("conv", "batch_norm", "affine", "max_pool", "avg_pool", "global_avg_pool", "pad", "slice", "concat", "dropout")
)
"""Operators that a shortcut may have: none of them is an activation."""

Named = type[nn.Module] | str | re.Pattern[str] | Collection[type[nn.Module]] | Sequence[str]
"""Modules to take for blocks: classes, a regular expression of qualified names, or a list of qualified names."""


def find_blocks(net: nn.Module, example: Tensor, blocks: Named | None = None) -> Plan:
    """Finds the residual blocks of a network, and proves them.

    The network runs on the example once to be traced. Then each block is computed alone, by the module and by the
    graphs that were found, on random tensors; and so is the whole network. Weights, training flags, buffers, hooks and
    the state of the random numbers are as before afterwards.

    Args:
        net: the network, on any device other than ``meta``.
        example: (N, C, H, W) float32, a batch of images of the size that the network will see.
        blocks: which modules are blocks: classes, a regular expression that matches the whole of a qualified name, or
            a list of qualified names. Each must be proved. ``None`` takes the modules that add their input, or a
            projection of it, to what they compute, and the other modules of the same classes.

    Returns:
        The plan. A module that was taken for a block and could not be proved is in it with the reason.

    Raises:
        InputError: the example does not fit the network, or the network's output is not (N, classes).
        BlockError: there is no block that can be proved, or one of ``blocks`` is missing or cannot be proved.
    """
    check_example(example)
    traced = trace(net, example)
    if traced.output is None or len(traced.steps) == 0 or not re.fullmatch(r"\(\d+,\)", traced.result):
        raise InputError(
            f"{type(net).__name__} gives {traced.result} per image, expected one tensor (N, classes); give a classifier"
            " that returns its logits alone"
        )
    if example.is_meta:
        raise InputError("an example without values (device meta), by which no block can be proved; give images")
    chain = _Chain(traced, net)
    named = blocks is not None
    wanted = chain.named(blocks) if blocks is not None else chain.automatic()
    devices = sorted({tensor.device.index or 0 for tensor in named_tensors(net).values() if tensor.is_cuda})
    with torch.random.fork_rng(devices), torch.no_grad(), as_before(net):
        prover = _Prover(net, example)
        links: list[_Link] = []
        refused: list[tuple[Call, str]] = []
        for call in wanted:
            if any(link.call.start <= call.start and call.stop <= link.call.stop for link in links):
                continue  # inside a block that was proved
            try:
                link = chain.split(call)
                prover.prove(link, chain.shape(link.source))
            except _RefusedError as error:
                if named:
                    raise BlockError(f"{_title(call)} is no block that can be proved: it {error}") from None
                refused.append((call, str(error)))
            else:
                links.append(link)
        if not links:
            call, reason = refused[0]
            raise BlockError(
                f"none of {len(refused)} modules that add to their input is a block that can be proved: {_title(call)}"
                f" {reason}"
            )
        return _plan(chain, prover, links, refused)


class _RefusedError(Exception):
    """A module is no block; the message says why, after the module's name."""


@dataclass(frozen=True)
class _Link:
    """A module that was split at its addition.

    Attributes:
        call: the module's call.
        graphs: what it computes, after ``prefix``.
        prefix: what branch and shortcut both read, computed before the block.
        steps: positions of its steps in the trace.
        prefix_steps: positions of those of the prefix.
        source: value that the module reads.
        input: value that the block reads: ``source``, or what the prefix gives.
        output: value that it gives.
    """

    call: Call
    graphs: BlockGraphs
    prefix: Graph
    steps: tuple[int, ...]
    prefix_steps: tuple[int, ...]
    source: str
    input: str
    output: str


def _title(call: Call) -> str:
    return f"{call.name} ({type(call.module).__name__})"


def _place_of(call: Call) -> tuple[str, str]:
    """Place of a module in its network, up to numbers, and the Python module that defines its class."""
    return re.sub(r"\d+", "#", call.name), type(call.module).__module__


class _Chain:
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
            _RefusedError: it is no map.
        """
        shape = self.shape(value)
        if len(shape) != 3:
            raise _RefusedError(f"works on tensors {shape}, expected (channels, height, width)")
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

    def row(self, name: str, kind: Kind, steps: Sequence[int], shapes: tuple[Shape, Shape], **more: Any) -> Row:
        """A row of the plan; ``shapes`` are those of its input and output."""
        macs, total = self.macs(steps), self.macs(self.live)
        share = macs / total if total else 0.0
        values = {"class_name": "", **more}
        return Row(name=name, kind=kind, in_shape=shapes[0], out_shape=shapes[1], macs=macs, share=share, **values)

    def problem(self, links: Sequence[_Link]) -> str | None:
        """Reason why what lies around the blocks cannot be computed by graphs; ``None`` if it can."""
        proved = {self.trace.calls.index(link.call) for link in links}
        for reading in self.trace.readings:
            if proved.isdisjoint(reading.calls):
                where = reading.module or "the network's own forward"
                return f"a path in {where} depends on data ({reading.function}); compute both ways, or leave it out"
        for index in self.live:
            step = self.steps[index]
            if step.problem and proved.isdisjoint(step.calls):
                where = step.module or "the network's own forward"
                return f"{where}, which always runs, {step.problem}, which the closed set of operators lacks"
        return None

    def _owners(self) -> dict[int, list[int]]:
        """Positions of the residual additions that each call makes, by position of the call."""
        owners: dict[int, list[int]] = {}
        for index in self.live:
            step = self.steps[index]
            if step.node.operator != "add" or len({self.shape(name) for name in step.node.inputs}) != 1:
                continue
            for position in reversed(step.calls):
                call = self.trace.calls[position]
                steps = self.inside(call)
                entering = self.entering(steps)
                if len(entering) == 1 and all(
                    name == entering[0]
                    or any(entering[0] in self.steps[at].node.inputs for at in self.above(name, steps))
                    for name in step.node.inputs
                ):
                    owners.setdefault(position, []).append(index)
                    break
        return owners

    def automatic(self) -> list[Call]:
        """Calls of the modules that own a residual addition, and of those beside them that differ by having none.

        These are the other modules of the same classes, and those in the same place (``blocks.3.0`` beside
        ``blocks.3.1``) whose classes come from the same file, if they have two convolutions or more.

        Raises:
            BlockError: there is none.
        """
        owners = [self.trace.calls[position] for position in self.owners if position]
        if not owners:
            own = "the network's own forward adds; give each block a module of its own" if self.owners else "none adds"
            raise BlockError(
                f"{type(self.net).__name__} has no residual block: no module of it adds its input, or a projection of"
                f" it, to what it computes ({own})"
            )
        likely = {type(call.module) for call in owners}
        places = {_place_of(call) for call in owners}
        around = {position for call in owners for position in call.parents}
        found: dict[str, Call] = {}
        for position, call in enumerate(self.trace.calls[1:], start=1):
            like = type(call.module) in likely or (_place_of(call) in places and self._convolutions(call) > 1)
            if position in self.owners or (like and position not in around):
                found.setdefault(call.name, call)
        return list(found.values())

    def _convolutions(self, call: Call) -> int:
        return sum(self.steps[index].node.operator == "conv" for index in self.inside(call))

    def named(self, blocks: Named) -> list[Call]:
        """Calls of the modules that a caller named.

        Raises:
            BlockError: a name, a class or an expression fits no module, a module never runs, or one is inside another.
        """
        modules = dict(self.net.named_modules())
        names = list(dict.fromkeys(_named(blocks, modules, type(self.net).__name__)))
        for outer, inner in itertools.permutations(names, 2):
            if inner.startswith(f"{outer}."):
                raise BlockError(f"blocks {outer} and {inner}: one is inside the other; name only one of them")
        calls = {call.name: call for call in self.trace.calls}
        if idle := [name for name in names if name not in calls]:
            raise BlockError(f"block {idle[0]} does not run on the example; leave it out of blocks")
        return sorted((calls[name] for name in names), key=lambda call: call.start)

    def split(self, call: Call) -> _Link:
        """Splits a module at its addition.

        Raises:
            _RefusedError: it is no block.
        """
        steps = self.inside(call)
        source = self._source(call, steps)
        output = self._result(call, steps, source)
        position = self.trace.calls.index(call)
        if position not in self.owners:
            graphs = BlockGraphs(call.name, self.graph(steps, source, output), None)
            return _Link(call, graphs, Graph(), tuple(steps), (), source, source, output)
        addition = self.owners[position][-1]
        before = self.above(self.steps[addition].node.name, steps) - {addition}
        sum_name = self.steps[addition].node.name
        after = [index for index in steps if index != addition and index not in before]
        if around := [name for name in self.entering(after) if name != sum_name]:
            raise _RefusedError(f"reads {around[0]} again after its last addition")
        left, right = self.steps[addition].node.inputs
        if left == right:
            raise _RefusedError(f"adds {left} to itself")
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
        return _Link(call, graphs, prefix, tuple(steps), tuple(sorted(shared)), source, start, output)

    def _source(self, call: Call, steps: Sequence[int]) -> str:
        """The one value that a module reads."""
        if self.times[call.name] > 1:
            raise _RefusedError(
                f"is called {self.times[call.name]} times, expected once; give each place its own module"
            )
        position = self.trace.calls.index(call)
        for reading in self.trace.readings:
            if position in reading.calls:
                where = f" in {reading.module}" if reading.module != call.name else ""
                raise _RefusedError(
                    f"has a path that depends on data ({reading.function}{where}); compute both ways, or leave it out"
                )
        places = [part.value for part in (*call.arguments, *call.keywords.values()) if isinstance(part, Place)]
        entering = list(dict.fromkeys((*self.entering(steps), *places)))
        if len(entering) != 1:
            names = " and ".join(entering) or "none"
            raise _RefusedError(f"reads {len(entering)} tensors ({names}), expected one")
        if not places:
            raise _RefusedError(f"reads {entering[0]}, which is not among its arguments; pass it as one")
        if problem := next((self.steps[index] for index in steps if self.steps[index].problem), None):
            where = f" (in {problem.module})" if problem.module != call.name else ""
            raise _RefusedError(f"{problem.problem}{where}, which the closed set of operators lacks")
        self._alone(call.start, entering[0])
        return entering[0]

    def _result(self, call: Call, steps: Sequence[int], source: str) -> str:
        """The one value that a module gives."""
        if call.result is None:
            raise _RefusedError("gives something other than one tensor")
        if call.result == source or not steps:
            raise _RefusedError("gives its input back")
        for index in steps:
            name = self.steps[index].node.name
            later = [reader for reader in self.readers[name] if reader >= call.stop]
            if later and name != call.result:
                raise _RefusedError(f"has {name} inside, which {self._reader(later[0])} reads too")
        self._alone(call.stop, call.result)
        self.map(source)
        self.map(call.result)
        return call.result

    def _alone(self, cut: int, value: str) -> None:
        """Checks that nothing but one value passes a cut between steps: blocks form a chain."""
        for name, readers in self.readers.items():
            if name != value and self.place[name] < cut and (later := [reader for reader in readers if reader >= cut]):
                raise _RefusedError(f"is no link of a chain: {self._reader(later[0])} reads {name} around it")

    def _reader(self, index: int) -> str:
        return "the network's result" if index == len(self.steps) else self.steps[index].node.name

    def _joint(self, shared: set[int], parts: Mapping[str, set[int]], source: str) -> str:
        """The value up to which branch and shortcut are the same."""
        names = {self.steps[index].node.name for index in shared}
        read = {name for part in parts.values() for index in part - shared for name in self.steps[index].node.inputs}
        joints = sorted(((read | set(parts)) & names) | (read & {source}))  # where other steps enter the shared ones
        weighty = [self.steps[index].node.name for index in sorted(shared) if self.macs([index])]
        if len(joints) != 1 or weighty:
            both = weighty or joints
            raise _RefusedError(f"has an addition whose operands share {' and '.join(both)}, expected its input alone")
        self.map(joints[0])
        return joints[0]

    def _shortcut(self, parts: Mapping[str, set[int]], start: str) -> str:
        """Which operand of the addition is the shortcut."""
        if start in parts:
            return start
        linear = [name for name, part in parts.items() if all(self.steps[at].node.operator in LINEAR for at in part)]
        if not linear:
            raise _RefusedError("adds two values that both have activations, so neither is a shortcut")
        macs = {name: self.macs(parts[name]) for name in linear}
        least = min(linear, key=lambda name: macs[name])
        if len(linear) == 2 and macs[linear[0]] == macs[linear[1]]:
            raise _RefusedError("adds two values that cost the same and have no activation, so neither is a shortcut")
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


def _named(blocks: Named, modules: Mapping[str, nn.Module], network: str) -> Iterator[str]:
    """Qualified names of the modules that a caller named."""
    names = [name for name in modules if name]
    if isinstance(blocks, str | re.Pattern):
        try:
            pattern = re.compile(blocks)
        except re.error as error:
            raise BlockError(f"blocks {blocks!r} is no regular expression ({first_line(error)})") from error
        found = [name for name in names if pattern.fullmatch(name)]
        if not found:
            near = difflib.get_close_matches(pattern.pattern, names, 1) or names[:1]
            raise BlockError(
                f"no module of {network} has a name that matches all of {pattern.pattern!r}; it has such as {near[0]}"
            )
        yield from found
        return
    for given in [blocks] if isinstance(blocks, type) else blocks:
        if isinstance(given, str):
            if given not in names:
                near = difflib.get_close_matches(given, names, 1) or names[:1]
                raise BlockError(f"{network} has no module {given!r}, the nearest is {near[0]}; correct blocks")
            yield given
        elif isinstance(given, type):
            found = [name for name in names if isinstance(modules[name], given)]
            if not found:
                raise BlockError(f"{network} has no module of class {given.__name__}; correct blocks")
            yield from found
        else:
            raise BlockError(
                f"blocks with {type(given).__name__} {given!r}, expected classes, a regular expression, or names"
            )


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


class _Prover:
    """Comparison of modules with graphs, on random tensors.

    Args:
        net: the network.
        example: (N, C, H, W) float32.
    """

    def __init__(self, net: nn.Module, example: Tensor) -> None:
        self.net = net
        self.example = example
        self.tensors: dict[str, Tensor] = named_tensors(net)
        self.evaluation = Evaluation(self.tensors)
        self._generator = torch.Generator().manual_seed(0)

    def draws(self, shape: Shape) -> Iterator[Tensor]:
        """Random tensors: of both signs, then a batch of three kinds, then of values below zero."""

        def normal(count: int) -> Tensor:
            return torch.randn((count, *shape), generator=self._generator)

        yield normal(1).to(self.example)
        mixed = normal(3)
        mixed[0].abs_()
        mixed[1].mul_(4.0)
        mixed[2].abs_().neg_()
        yield mixed.to(self.example)
        yield normal(1).abs_().neg_().to(self.example)

    def prove(self, link: _Link, shape: Shape) -> None:
        """Compares a module with its graphs on inputs of a shape, without the batch.

        Raises:
            _RefusedError: they differ.
        """
        call = link.call
        graph = link.prefix.then(link.graphs.whole)
        for x in self.draws(shape):
            arguments = [x.clone() if isinstance(part, Place) else part for part in call.arguments]
            keywords = {key: x.clone() if isinstance(part, Place) else part for key, part in call.keywords.items()}
            try:
                expected = call.module(*arguments, **keywords)
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                raise _RefusedError(f"fails on a batch of {len(x)} random tensors ({first_line(error)})") from error
            if problem := _difference(expected, self.evaluation.run(graph, x)):
                raise _RefusedError(f"{problem} on a batch of {len(x)} random tensors")

    def whole(self, graph: Graph) -> str | None:
        """Reason why a graph is not the network; ``None`` if it is."""
        images = self.example[:1]
        for x in (images, *self.draws(tuple(images.shape[1:]))):
            if problem := _difference(self.net(x.clone()), self.evaluation.run(graph, x)):
                return f"put together again, it {problem}"
        return None

    def idle(self, graphs: BlockGraphs, given: bool) -> bool:
        """Whether a skip of a block passes its input on untouched; ``given`` if that is never below zero."""
        if graphs.shortcut is None or not graphs.shortcut.identity:
            return False
        return graphs.after.identity or (given and [node.operator for node in graphs.after.nodes] == ["relu"])


def _difference(expected: object, given: Tensor) -> str | None:
    """Difference between what a module and its graphs give, in words; ``None`` within the tolerance."""
    if not isinstance(expected, Tensor):
        return f"gives a {type(expected).__name__}, expected one tensor,"
    if expected.shape != given.shape:
        return f"gives {tuple(expected.shape)} where its operations give {tuple(given.shape)}"
    largest = float(expected.abs().max())
    if not math.isfinite(largest):
        return "gives values that are not finite"
    error = float((expected - given).abs().max())
    if not error <= TOLERANCE * largest:
        return f"differs from its operations by {error:.3g} (values up to {largest:.3g})"
    return None


def _plan(chain: _Chain, prover: _Prover, links: Sequence[_Link], refused: Sequence[tuple[Call, str]]) -> Plan:
    """The plan of a network whose blocks were proved."""
    pieces: list[Piece] = []
    rows: list[tuple[int, Row]] = [(call.start, _refused_row(chain, call, reason)) for call, reason in refused]
    value, stop, positive = INPUT, 0, False
    stem = Graph()
    for link in links:
        steps = [*(index for index in chain.live if stop <= index < link.call.start), *link.prefix_steps]
        graph = chain.graph(steps, value, link.input)
        shapes = (chain.map(value), chain.map(link.input))
        if not pieces:
            stem = graph
            rows.append((-1, chain.row("stem", "stem", steps, shapes)))
        elif not graph.identity:
            name = _piece_name(
                chain, steps, {piece.graphs.name for piece in pieces} | {one.graphs.name for one in links}
            )
            pieces.append(Piece(BlockGraphs(name, graph, None), False, *shapes, chain.macs(steps)))
            rows.append((stop, chain.row(name, "between", steps, shapes)))
        positive = _positive(graph, positive)
        graphs = msgspec.structs.replace(link.graphs, free=_idle(link.graphs, positive))
        inner = [chain.place[node.name] for node in graphs.branch.nodes]
        shapes = (shapes[1], chain.map(link.output))
        piece = Piece(graphs, True, *shapes, chain.macs(inner))
        pieces.append(piece)
        rows.append((link.call.start, _block_row(chain, link, piece, inner)))
        positive = _positive(graphs.whole, positive) and (graphs.skip is None or _positive(graphs.skip, positive))
        value, stop = link.output, link.call.stop
    steps = [index for index in chain.live if index >= stop]
    head = chain.graph(steps, value, chain.output, exact=False)
    rows.append((len(chain.steps), chain.row("head", "head", steps, (chain.shape(value), chain.shape(chain.output)))))
    problem = chain.problem(links)
    if problem is None:
        whole = stem
        for piece in pieces:
            whole = whole.then(piece.graphs.whole)
        problem = prover.whole(whole.then(head))
    if problem is not None:
        stem, head, pieces = Graph(), Graph(), []
    read = {name for graph in (stem, *(piece.graphs.whole for piece in pieces), head) for name in graph.tensors}
    return Plan(
        network=type(chain.net).__name__,
        image_shape=chain.map(INPUT),
        classes=chain.shape(chain.output)[0],
        multiply_adds=chain.macs(chain.live),
        stem=stem,
        pieces=tuple(pieces),
        head=head,
        tensors={name: tuple(tensor.shape) for name, tensor in prover.tensors.items() if name in read},
        problem=problem,
        _rows=tuple(row for _, row in sorted(rows, key=lambda pair: pair[0])),
    )


def _positive(graph: Graph, given: bool) -> bool:
    """Whether no value that a graph gives can be below zero; not if it has an operation that the closed set lacks."""
    return all(node.operator != OPAQUE for node in graph.nodes) and nonnegative(graph, given)


def _idle(graphs: BlockGraphs, positive: bool) -> bool:
    """Whether a skip of a block passes its input on untouched; ``positive`` if that is never below zero."""
    if graphs.shortcut is None or not graphs.shortcut.identity:
        return False
    return graphs.after.identity or (positive and [node.operator for node in graphs.after.nodes] == ["relu"])


def _block_row(chain: _Chain, link: _Link, piece: Piece, steps: Sequence[int]) -> Row:
    graphs = piece.graphs
    shared = ", ".join(node.name for node in link.prefix.nodes)
    return chain.row(
        graphs.name,
        "block",
        steps,
        (piece.in_shape, piece.out_shape),
        class_name=type(link.call.module).__name__,
        shortcut=_shortcut_words(graphs.shortcut),
        after=_operators(graphs.after),
        skip=piece.skip,
        reason=f"starts after {shared}, which its shortcut reads too" if shared else None,
    )


def _refused_row(chain: _Chain, call: Call, reason: str) -> Row:
    steps = chain.inside(call)
    entering = chain.entering(steps)
    shapes = (
        chain.shape(entering[0]) if len(entering) == 1 else (),
        () if call.result is None else chain.shape(call.result),
    )
    return chain.row(call.name, "refused", steps, shapes, class_name=type(call.module).__name__, reason=reason)


def _shortcut_words(shortcut: Graph | None) -> str:
    if shortcut is None:
        return "none"
    if shortcut.identity:
        return "identity"
    return "projection" if any(node.operator == "conv" for node in shortcut.nodes) else _operators(shortcut)


def _operators(graph: Graph) -> str:
    return "+".join(node.operator for node in graph.nodes) or "none"


def _piece_name(chain: _Chain, steps: Sequence[int], taken: Collection[str]) -> str:
    """Name of what always runs between two blocks: of the innermost module around it, or of its first operation."""
    paths = [chain.steps[index].module.split(".") for index in steps]
    common = ".".join(
        part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, zip(*paths, strict=False))
    )
    name = common or chain.steps[steps[0]].node.name
    candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)
