"""The plan of a network: which of its modules are blocks, what each may do, and why the others are none."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from dfs_deploy.errors import BlockError, OptionError
from dfs_deploy.io.json_files import LONGEST_NAME
from dfs_deploy.models.graph import BlockGraphs, Graph, NetworkGraphs, chained, named_tensors
from dfs_deploy.models.proof import Prover
from dfs_deploy.models.quantize import Quantizer
from dfs_deploy.models.running import as_before
from dfs_deploy.network import Architecture, Block, GateShape
from dfs_deploy.options import Option, Options, option_names

WIDTH = 120
"""Most columns of a printed plan."""

Shape = tuple[int, ...]
Skip = Literal["free", "projection"]
Kind = Literal["stem", "block", "between", "head", "refused"]


@dataclass(frozen=True)
class Row:
    """A block, or something else of a network.

    Attributes:
        name: qualified name of the module; for what is no single module, a word or the name of its first operation.
        class_name: name of its class; empty for what is no single module.
        kind: ``block``; ``stem``, ``between`` and ``head`` for what always runs around the blocks; ``refused`` for a
            module that was taken for a block and could not be proved.
        shortcut: ``none``, ``identity``, ``projection`` (with a convolution), or its operators; empty if it is no
            block.
        after: operators that follow the addition, or ``none``; empty if it is no block.
        skip: ``free`` if a skip passes the input on untouched, ``projection`` if it computes the shortcut and what
            follows the addition, ``None`` if it cannot be skipped.
        in_shape: shape of its input, without the batch.
        out_shape: shape of its output, without the batch.
        macs: multiply-adds for one image: of a block's branch, or of all of anything else.
        share: ``macs`` over the multiply-adds of the network.
        options: names of the options that it may run; ``None`` for all that are possible.
        reason: why it is no block, or why it is shorter than its module; ``None`` for all other blocks.
    """

    name: str
    class_name: str
    kind: Kind
    shortcut: str = ""
    after: str = ""
    skip: Skip | None = None
    in_shape: Shape = ()
    out_shape: Shape = ()
    macs: int = 0
    share: float = 0.0
    options: tuple[str, ...] | None = None
    reason: str | None = None

    @property
    def skippable(self) -> bool:
        """Whether it can be skipped."""
        return self.skip is not None


@dataclass(frozen=True)
class Piece:
    """A link of the chain between stem and head: a proved block, or what always runs between two of them.

    Attributes:
        graphs: its graphs; without a shortcut for what always runs.
        is_block: whether it is a proved block.
        in_shape: channels, height and width of its input.
        out_shape: likewise of its output.
        macs: multiply-adds of its branch for one image.
    """

    graphs: BlockGraphs
    is_block: bool
    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    macs: int

    @property
    def skip(self) -> Skip | None:
        """How a skip computes; ``None`` if it cannot be skipped."""
        if self.graphs.shortcut is None:
            return None
        return "free" if self.graphs.free else "projection"


@dataclass(frozen=True, eq=False)
class Plan:
    """The blocks of a network, and what each may do.

    Printed, it is a table. ``plan["layer1.*"].options = "full"`` sets what some of its blocks may do.

    Attributes:
        network: name of the network's class.
        image_shape: channels, height and width of an image.
        classes: number of logits.
        multiply_adds: multiply-adds of the network for one image.
        stem: from images to the first piece.
        pieces: chain of blocks and of what always runs between them.
        head: from the last piece to logits.
        tensors: shapes of the tensors that the graphs read, by name.
        problem: reason why the network cannot be adapted although it has proved blocks; ``None`` if it can.
    """

    network: str
    image_shape: tuple[int, int, int]
    classes: int
    multiply_adds: int
    stem: Graph
    pieces: tuple[Piece, ...]
    head: Graph
    tensors: Mapping[str, Shape]
    problem: str | None
    _rows: tuple[Row, ...] = field(repr=False)
    _chosen: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Blocks and everything else, in the order in which they run."""
        return tuple(dataclasses.replace(row, options=self._chosen.get(row.name)) for row in self._rows)

    @property
    def blocks(self) -> tuple[Row, ...]:
        """The proved blocks."""
        return tuple(row for row in self.rows if row.kind == "block")

    def __getitem__(self, glob: str) -> Selection:
        """Blocks whose names match a glob such as ``layer1.*``.

        Raises:
            BlockError: no block matches.
        """
        names = tuple(row.name for row in self.blocks if fnmatchcase(row.name, glob))
        if not names:
            others = [row for row in self._rows if row.kind == "refused" and fnmatchcase(row.name, glob)]
            if others:
                raise BlockError(f"{others[0].name} is no block: it {others[0].reason}")
            near = difflib.get_close_matches(glob, [row.name for row in self.blocks], 1) or [self.blocks[0].name]
            raise BlockError(f"no block matches {glob!r}; the plan has {len(self.blocks)}, such as {near[0]}")
        return Selection(self, names)

    def check(self, net: nn.Module) -> None:
        """Checks that the plan is of a network: its graphs give what the network gives for a random image.

        Raises:
            BlockError: a tensor is missing or has another shape, or the network computes something else.
        """
        theirs = named_tensors(net)
        for name, shape in self.tensors.items():
            seen = f"shape {tuple(theirs[name].shape)}" if name in theirs else "no such tensor"
            if seen != f"shape {shape}":
                raise BlockError(
                    f"a plan of another network: {name} should have shape {shape}, and {type(net).__name__} has {seen};"
                    " find its blocks again"
                )
        if self.problem is not None:
            return
        graph = chained([self.stem, *(piece.graphs.whole for piece in self.pieces), self.head])
        image = torch.randn((1, *self.image_shape), generator=torch.Generator().manual_seed(0))
        image = image.to(next((tensor for tensor in theirs.values() if tensor.is_floating_point()), image))
        with torch.no_grad(), as_before(net):
            problem = Prover(net, image).same(graph, image)
        if problem is not None:
            raise BlockError(f"a plan of another network: {type(net).__name__} {problem}; find its blocks again")

    def as_json(self) -> dict[str, Any]:
        """Plain values: the network and its rows."""
        return {
            "network": self.network,
            "image_shape": list(self.image_shape),
            "classes": self.classes,
            "multiply_adds": self.multiply_adds,
            "problem": self.problem,
            "rows": [{**dataclasses.asdict(row), "skippable": row.skippable} for row in self.rows],
        }

    def __str__(self) -> str:
        found = self.blocks
        free, computing = (sum(row.skip == kind for row in found) for kind in ("free", "projection"))
        lines = [
            f"{self.network}: {len(found)} block{'s' * (len(found) != 1)}, {free} free to skip"
            f"{f', {computing} more with a skip that computes' if computing else ''};"
            f" {self.multiply_adds / 1e6:,.1f} million multiply-adds per image",
            *_table(self.rows),
        ]
        for row in self.rows:
            if row.reason:
                lines += _wrapped(f"{row.name} ({row.class_name}): {row.reason}")
        if self.problem:
            lines += _wrapped(f"It cannot be adapted: {self.problem}")
        return "\n".join(lines)


class Selection:
    """Some blocks of a plan.

    Args:
        plan: the plan.
        names: names of the blocks.
    """

    def __init__(self, plan: Plan, names: tuple[str, ...]) -> None:
        self.plan = plan
        self.names = names

    @property
    def rows(self) -> tuple[Row, ...]:
        """Their rows."""
        return tuple(row for row in self.plan.blocks if row.name in self.names)

    @property
    def options(self) -> tuple[str, ...] | None:
        """Names of the options that they may run; ``None`` for all that are possible.

        A block that cannot be skipped gets those of them that are not ``skip``, as it does of the network's.

        Raises:
            BlockError: on reading, if they differ.
            OptionError: on setting, if a word is no option, or nothing is left for a block that cannot be skipped.
        """
        different = {row.options for row in self.rows}
        if len(different) > 1:
            raise BlockError(f"{len(self.names)} blocks with different options; read those of one at a time")
        return different.pop()

    @options.setter
    def options(self, given: str | Iterable[object] | None) -> None:
        if given is None:
            for name in self.names:
                self.plan._chosen.pop(name, None)
            return
        names = option_names(given)
        chosen = {row.name: tuple(name for name in names if name != "skip" or row.skippable) for row in self.rows}
        if stuck := [name for name, left in chosen.items() if not left]:
            raise OptionError(f"block {stuck[0]} has no shortcut and cannot be skipped; give it a bitwidth")
        self.plan._chosen.update(chosen)


def shortcut_words(shortcut: Graph | None) -> str:
    """A shortcut in a word or its operators, as in ``Row.shortcut``."""
    if shortcut is None:
        return "none"
    if shortcut.identity:
        return "identity"
    return "projection" if any(node.operator == "conv" for node in shortcut.nodes) else operator_words(shortcut)


def operator_words(graph: Graph) -> str:
    """Operators of a graph, in order, or ``none``."""
    return "+".join(node.operator for node in graph.nodes) or "none"


_COLUMNS = ("name", "class", "shortcut", "after", "skip", "output", "MMACs", "share", "options")
_NUMBERS = ("MMACs", "share")
_SEPARATOR = "  "


def _table(rows: Sequence[Row]) -> list[str]:
    cells = [_cells(row) for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in cells)) for name in _COLUMNS}
    for name, least in (("class", 12), ("name", 24), ("shortcut", 10), ("after", 8), ("options", 12), ("class", 4)):
        excess = sum(widths.values()) + len(_SEPARATOR) * (len(_COLUMNS) - 1) - WIDTH
        widths[name] = min(widths[name], max(least, widths[name] - max(excess, 0)))
    lines = [dict(zip(_COLUMNS, _COLUMNS, strict=True)), *cells]
    return [
        _SEPARATOR.join(_fitted(line[name], widths[name], name in _NUMBERS) for name in _COLUMNS).rstrip()
        for line in lines
    ]


def _cells(row: Row) -> dict[str, str]:
    options = "all" if row.options is None else ",".join(row.options)
    values = (
        row.name,
        row.class_name,
        row.shortcut,
        row.after,
        {"free": "free", "projection": "computes", None: "no"}[row.skip] if row.kind == "block" else "",
        "x".join(map(str, row.out_shape)),
        f"{row.macs / 1e6:,.1f}",
        f"{100 * row.share:.1f}%",
        options if row.kind == "block" else "no block" if row.kind == "refused" else "always runs",
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _fitted(text: str, width: int, right: bool) -> str:
    if len(text) > width:
        text = f"{text[: (width - 1) // 3]}…{text[len(text) - (width - 1 - (width - 1) // 3) :]}"
    return text.rjust(width) if right else text.ljust(width)


def _wrapped(text: str) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > WIDTH:
            yield line
            line = "   "
        line = f"{line} {word}" if line else word
    yield line


@dataclass(frozen=True)
class Arrangement:
    """A plan's network with its options, ready to be made adaptive.

    Attributes:
        graphs: stem, blocks that are decided or fixed, and head.
        architecture: their description, the stem first.
    """

    graphs: NetworkGraphs
    architecture: Architecture


@dataclass(frozen=True)
class _Run:
    """A piece with what it may do: ``choices`` of one option is fixed."""

    piece: Piece
    choices: tuple[Option, ...]
    asked: bool

    @property
    def decided(self) -> bool:
        return len(self.choices) > 1


def arrange(
    plan: Plan, options: Options, always: int, gate: GateShape, quantizer: Quantizer = "channel"
) -> Arrangement:
    """Decides which blocks the gate decides about, and merges what always runs.

    What runs before the first decided block is the stem, what runs after the last one the head: both compute in
    ``always`` bits, except for a block for which the plan asks for another single option. What always runs between
    decided blocks is merged as far as its option is the same. A block whose only option is ``skip`` is left out.

    Args:
        plan: the plan.
        options: options of the network.
        always: bits in which stem, head and skips compute.
        gate: kind and sizes of the gate.
        quantizer: grid of quantised weights.

    Raises:
        BlockError: the network cannot be adapted, or no block has two options.
        OptionError: the plan names an option that the network lacks.
    """
    if plan.problem is not None:
        raise BlockError(f"{plan.network} cannot be adapted: {plan.problem}")
    runs = [_run(plan, piece, options, always) for piece in plan.pieces]
    if not any(run.decided for run in runs):
        raise BlockError(
            f"no block of {plan.network} has two of the options {options}, so nothing is decided; give a block two,"
            " such as skip and full"
        )
    kept = [index for index, run in enumerate(runs) if run.decided or (run.asked and run.choices[0].bits != always)]
    first, last = kept[0], kept[-1] + 1
    stem, head = plan.stem, plan.head
    for run in runs[:first]:
        stem = stem.then(run.piece.graphs.whole)
    for run in reversed(runs[last:]):
        head = run.piece.graphs.whole.then(head)
    links = list(_merged(runs[first:last]))
    macs = plan.rows[0].macs + sum(run.piece.macs for run in runs[:first])
    described = [Block(0, "stem", plan.image_shape, runs[first].piece.in_shape, 1, None, None, macs)]
    for link in links:
        piece, names = link.piece, tuple(option.name for option in link.choices)
        skip = piece.skip if "skip" in names else None
        group = described[-1].group + (skip != "free")
        described.append(
            Block(
                index=len(described),
                name=piece.graphs.name,
                in_shape=piece.in_shape,
                out_shape=piece.out_shape,
                group=group,
                skip=skip,
                options=names if link.asked or not link.decided else None,
                macs=piece.macs,
            )
        )
    architecture = Architecture(
        name=plan.network, image_shape=plan.image_shape, classes=plan.classes, gate=gate, blocks=tuple(described)
    )
    graphs = tuple(link.piece.graphs for link in links)
    return Arrangement(NetworkGraphs(stem, graphs, head, quantizer, always), architecture)


def _run(plan: Plan, piece: Piece, options: Options, always: int) -> _Run:
    """A piece with those of the options that it may run."""
    name = piece.graphs.name
    fixed = next((option for option in options if option.bits == always), max(options, key=lambda option: option.bits))
    if not piece.is_block:
        return _Run(piece, (fixed,), asked=False)
    asked = plan._chosen.get(name)
    if unknown := set(asked or ()) - set(options.names):
        raise OptionError(f"block {name} with option {unknown.pop()!r}, expected some of the network's: {options}")
    choices = tuple(
        option
        for option in options
        if (asked is None or option.name in asked) and not (option.skips and piece.skip is None)
    )
    if [option.skips for option in choices] == [True]:
        skipped = BlockGraphs(name, piece.graphs.skip or Graph(), None)
        return _Run(dataclasses.replace(piece, graphs=skipped, is_block=False, macs=0), (fixed,), asked=False)
    return _Run(piece, choices, asked is not None)


def _merged(runs: Iterable[_Run]) -> Iterator[_Run]:
    """Runs, those side by side that are fixed on the same option as one; what does nothing is left out."""
    together: list[_Run] = []
    for run in [*runs, None]:
        if run is not None and not run.decided and not (together and together[0].choices != run.choices):
            together.append(run)
            continue
        computing = [one for one in together if not one.piece.graphs.whole.identity]
        if len(computing) == 1:
            yield computing[0]
        elif computing:
            yield _joined(computing)
        together = []
        if run is not None and run.decided:
            yield run
        elif run is not None:
            together.append(run)


def _joined(runs: Sequence[_Run]) -> _Run:
    whole = chained(run.piece.graphs.whole for run in runs)
    first, last = runs[0].piece, runs[-1].piece
    name = f"{first.graphs.name}-{last.graphs.name}"
    if len(name) > LONGEST_NAME:
        name = f"{first.graphs.name}-..."
    graphs = BlockGraphs(name, whole, None)
    macs = sum(run.piece.macs for run in runs)
    return _Run(Piece(graphs, False, first.in_shape, last.out_shape, macs), runs[0].choices, asked=False)
