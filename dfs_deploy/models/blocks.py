"""Residual blocks of any network, found in a trace of it and proved with random tensors.

A block computes ``after(branch(x) + shortcut(x))``. Nothing is assumed about a module from its name or class: its part
of the trace is split at its last addition, and the graphs that result must give what the module gives.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from dfs_deploy.errors import BlockError, InputError
from dfs_deploy.io.text import first_line
from dfs_deploy.models.chain import Chain, Link, RefusedError
from dfs_deploy.models.graph import INPUT, BlockGraphs, Graph, chained, nonnegative, skip_is_free
from dfs_deploy.models.plan import Kind, Piece, Plan, Row, operator_words, shortcut_words
from dfs_deploy.models.proof import Prover
from dfs_deploy.models.running import as_before
from dfs_deploy.models.trace import OPAQUE, Call, Shape, check_example, trace

Named = type[nn.Module] | str | re.Pattern[str] | Collection[type[nn.Module]] | Sequence[type[nn.Module] | str]
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
    chain = Chain(traced, net)
    named = blocks is not None
    wanted = _chosen(chain, blocks) if blocks is not None else _automatic(chain)
    with torch.no_grad(), as_before(net):
        prover = Prover(net, example)
        links: list[Link] = []
        refused: list[tuple[Call, str]] = []
        for call in wanted:
            if any(link.call.start <= call.start and call.stop <= link.call.stop for link in links):
                continue  # inside a block that was proved
            try:
                link = chain.split(call)
                prover.prove(link, chain.shape(link.source))
            except RefusedError as error:
                if named:
                    raise BlockError(f"{_title(call)} is no block that can be proved: it {error}") from None
                refused.append((call, str(error)))
            else:
                links.append(link)
        if not links:
            call, reason = refused[0]
            others = f" (and {len(refused) - 1} more are none)" if len(refused) > 1 else ""
            raise BlockError(f"{_title(call)} is no block that can be proved: it {reason}{others}")
        return _plan(chain, prover, links, refused)


def _title(call: Call) -> str:
    return f"{call.name} ({type(call.module).__name__})"


def _place_of(call: Call) -> tuple[str, str]:
    """Place of a module in its network, up to numbers, and the Python module that defines its class."""
    return re.sub(r"\d+", "#", call.name), type(call.module).__module__


def _automatic(chain: Chain) -> list[Call]:
    """Calls of the modules that own a residual addition, and of those beside them that differ by having none.

    These are the other modules of the same classes, and those in the same place (``blocks.3.0`` beside
    ``blocks.3.1``) whose classes come from the same file, if they have two convolutions or more.

    Raises:
        BlockError: there is none.
    """
    owners = [chain.trace.calls[position] for position in chain.owners if position]
    if not owners:
        why = (
            "its additions are in the network's own forward; give each block a module of its own"
            if chain.owners
            else "none of its modules adds its input, or a projection of it, to what it computes; name modules in"
            " blocks to choose their bits"
        )
        raise BlockError(f"{type(chain.net).__name__} has no residual block: {why}")
    likely = {type(call.module) for call in owners}
    places = {_place_of(call) for call in owners}
    around = {position for call in owners for position in call.parents}
    found: dict[str, Call] = {}
    for position, call in enumerate(chain.trace.calls[1:], start=1):
        like = type(call.module) in likely or (_place_of(call) in places and _convolutions(chain, call) > 1)
        if position in chain.owners or (like and position not in around):
            found.setdefault(call.name, call)
    return list(found.values())


def _convolutions(chain: Chain, call: Call) -> int:
    return sum(chain.steps[index].node.operator == "conv" for index in chain.inside(call))


def _chosen(chain: Chain, blocks: Named) -> list[Call]:
    """Calls of the modules that a caller named.

    Raises:
        BlockError: a name, a class or an expression fits no module, a module never runs, or one is inside another.
    """
    modules = dict(chain.net.named_modules())
    names = list(dict.fromkeys(_named(blocks, modules, type(chain.net).__name__)))
    if not names:
        raise BlockError("blocks is empty, expected classes, a regular expression, or names; None finds them")
    for outer, inner in itertools.permutations(names, 2):
        if inner.startswith(f"{outer}."):
            raise BlockError(f"blocks {outer} and {inner}: one is inside the other; name only one of them")
    calls = {call.name: call for call in chain.trace.calls}
    if idle := [name for name in names if name not in calls]:
        raise BlockError(f"block {idle[0]} does not run on the example; leave it out of blocks")
    return sorted((calls[name] for name in names), key=lambda call: call.start)


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
            classes = ", ".join(sorted({type(modules[name]).__name__ for name in names})[:8])
            raise BlockError(
                f"no module of {network} has a name that matches all of {pattern.pattern!r}, or a class of that name;"
                f" it has names such as {near[0]}, and classes {classes}"
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


def _problem(chain: Chain, links: Sequence[Link]) -> str | None:
    """Reason why what lies around the blocks cannot be computed by graphs; ``None`` if it can."""
    proved = {chain.trace.calls.index(link.call) for link in links}
    for reading in chain.trace.readings:
        if proved.isdisjoint(reading.calls):
            where = reading.module or "the network's own forward"
            return f"a path in {where} depends on data ({reading.function}); compute both ways, or leave it out"
    for index in chain.live:
        step = chain.steps[index]
        if step.problem and proved.isdisjoint(step.calls):
            where = step.module or "the network's own forward"
            return f"{where}, which always runs, {step.problem}"
    return None


def _row(chain: Chain, name: str, kind: Kind, steps: Sequence[int], shapes: tuple[Shape, Shape], **more: Any) -> Row:
    """A row of the plan; ``shapes`` are those of its input and output."""
    macs, total = chain.macs(steps), chain.macs(chain.live)
    share = macs / total if total else 0.0
    values = {"class_name": "", **more}
    return Row(name=name, kind=kind, in_shape=shapes[0], out_shape=shapes[1], macs=macs, share=share, **values)


def _plan(chain: Chain, prover: Prover, links: Sequence[Link], refused: Sequence[tuple[Call, str]]) -> Plan:
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
            rows.append((-1, _row(chain, "stem", "stem", steps, shapes)))
        elif not graph.identity:
            name = _piece_name(
                chain, steps, {piece.graphs.name for piece in pieces} | {one.graphs.name for one in links}
            )
            pieces.append(Piece(BlockGraphs(name, graph, None), False, *shapes, chain.macs(steps)))
            rows.append((stop, _row(chain, name, "between", steps, shapes)))
        positive = _positive(graph, positive)
        graphs = msgspec.structs.replace(link.graphs, free=skip_is_free(link.graphs, positive))
        inner = [chain.place[node.name] for node in graphs.branch.nodes]
        shapes = (shapes[1], chain.map(link.output))
        piece = Piece(graphs, True, *shapes, chain.macs(inner))
        pieces.append(piece)
        rows.append((link.call.start, _block_row(chain, link, piece, inner)))
        positive = _positive(graphs.whole, positive) and (graphs.skip is None or _positive(graphs.skip, positive))
        value, stop = link.output, link.call.stop
    steps = [index for index in chain.live if index >= stop]
    head = chain.graph(steps, value, chain.output, exact=False)
    rows.append((len(chain.steps), _row(chain, "head", "head", steps, (chain.shape(value), chain.shape(chain.output)))))
    problem = _problem(chain, links)
    if problem is None:
        problem = prover.whole(chained([stem, *(piece.graphs.whole for piece in pieces), head]))
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


def _block_row(chain: Chain, link: Link, piece: Piece, steps: Sequence[int]) -> Row:
    graphs = piece.graphs
    shared = ", ".join(node.name for node in link.prefix.nodes)
    return _row(
        chain,
        graphs.name,
        "block",
        steps,
        (piece.in_shape, piece.out_shape),
        class_name=type(link.call.module).__name__,
        shortcut=shortcut_words(graphs.shortcut),
        after=operator_words(graphs.after),
        skip=piece.skip,
        reason=f"starts after {shared}, which its shortcut reads too" if shared else None,
    )


def _refused_row(chain: Chain, call: Call, reason: str) -> Row:
    steps = chain.inside(call)
    entering = chain.entering(steps)
    shapes = (
        chain.shape(entering[0]) if len(entering) == 1 else (),
        () if call.result is None else chain.shape(call.result),
    )
    return _row(chain, call.name, "refused", steps, shapes, class_name=type(call.module).__name__, reason=reason)


def _piece_name(chain: Chain, steps: Sequence[int], taken: Collection[str]) -> str:
    """Name of what always runs between two blocks: of the innermost module around it, or of its first operation."""
    paths = [chain.steps[index].module.split(".") for index in steps]
    common = ".".join(
        part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, zip(*paths, strict=False))
    )
    first = chain.steps[steps[0]].node.name
    candidates = itertools.chain([common or first, first], (f"{first}_{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)
