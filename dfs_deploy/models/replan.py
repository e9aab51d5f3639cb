"""Plan of a network that decides already, from its graphs: of a checkpoint's, as a rule."""

from __future__ import annotations

from dataclasses import replace

from dfs_deploy.models.graph import BlockGraphs, Graph, named_tensors
from dfs_deploy.models.network import DFSNetwork
from dfs_deploy.models.plan import Piece, Plan, Row, Shape, operator_words, shortcut_words
from dfs_deploy.models.sizes import multiply_adds
from dfs_deploy.network import Block


def plan_of(network: DFSNetwork) -> Plan:
    """The blocks of a network that decides, as ``find_blocks`` gives those of one that does not.

    Nothing is traced: these graphs are what the network computes. The classes of its modules are not known.

    Args:
        network: the network, on any device.
    """
    graphs, architecture = network.graphs, network.architecture
    tensors = named_tensors(network.net)

    def macs(graph: Graph, shape: Shape) -> int:
        return multiply_adds(graph, tensors, shape)

    pieces = tuple(
        Piece(part, _is_block(network, shape, part), shape.in_shape, shape.out_shape, macs(part.branch, shape.in_shape))
        for shape, part in zip(architecture.blocks[1:], graphs.blocks, strict=True)
    )
    first, last = architecture.blocks[0].out_shape, architecture.blocks[-1].out_shape
    stem = Row("stem", "", "stem", in_shape=architecture.image_shape, out_shape=first)
    head = Row("head", "", "head", in_shape=last, out_shape=(architecture.classes,))
    rows = [
        replace(stem, macs=macs(graphs.stem, architecture.image_shape)),
        *map(_row, pieces),
        replace(head, macs=macs(graphs.head, last)),
    ]
    total = macs(graphs.whole, architecture.image_shape)
    shares = (row.macs / total if total else 0.0 for row in rows)
    return Plan(
        network=architecture.name,
        image_shape=architecture.image_shape,
        classes=architecture.classes,
        multiply_adds=total,
        stem=graphs.stem,
        pieces=pieces,
        head=graphs.head,
        tensors={name: tuple(tensors[name].shape) for part in graphs.parts for name in part.tensors},
        problem=None,
        _rows=tuple(replace(row, share=share) for row, share in zip(rows, shares, strict=True)),
        _chosen={
            part.name: tuple(option.name for option in shape.choices(network.options))
            for shape, part in zip(architecture.blocks[1:], graphs.blocks, strict=True)
            if shape.options is not None
        },
    )


def _is_block(network: DFSNetwork, shape: Block, graphs: BlockGraphs) -> bool:
    return graphs.shortcut is not None or len(shape.choices(network.options)) > 1


def _row(piece: Piece) -> Row:
    graphs = piece.graphs
    row = Row(graphs.name, "", "between", in_shape=piece.in_shape, out_shape=piece.out_shape, macs=piece.macs)
    if not piece.is_block:
        return row
    shortcut, after = shortcut_words(graphs.shortcut), operator_words(graphs.after)
    return replace(row, kind="block", shortcut=shortcut, after=after, skip=piece.skip)
