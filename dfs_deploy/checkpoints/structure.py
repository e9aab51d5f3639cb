"""Description of a network in a file against its graphs and tensors: every shape is computed anew, and compared.

No tensor is made for that, so a file that claims impossible sizes takes no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from torch import Tensor

from dfs_deploy.errors import CheckpointError
from dfs_deploy.models import BlockGraphs, Graph, NetworkGraphs, Node
from dfs_deploy.models.cifar import is_cifar
from dfs_deploy.models.graph import nonnegative, skip_is_free
from dfs_deploy.models.sizes import Size, multiply_adds, sizes_of
from dfs_deploy.network import Architecture, Block, GateShape, Shape, cifar_resnet, cifar_values
from dfs_deploy.options import Options


@dataclass(frozen=True)
class _Shapes:
    """Shapes between the parts of a network, without the batch.

    Attributes:
        features: output of the stem, then of each block.
        logits: output of the head.
    """

    features: tuple[Size, ...]
    logits: Size


def described(
    name: str,
    graphs: NetworkGraphs,
    tensors: Mapping[str, Tensor],
    image_shape: Shape,
    groups: Sequence[int],
    gate: GateShape,
) -> Architecture:
    """Description of a network that has only graphs and tensors.

    Args:
        name: name of the network.
        graphs: its graphs.
        tensors: its tensors by name.
        image_shape: channels, height and width of an input.
        groups: number of the quantisation grid of each block's output, the stem's first.
        gate: kind and sizes of its gate.

    Raises:
        CheckpointError: a layer does not fit its input, or the head gives no vector.
        UsageError: the network is larger than any may be.
    """
    computed = _shapes(graphs, tensors, image_shape)
    if len(computed.logits) != 1:
        raise CheckpointError(f"a checkpoint whose head gives {computed.logits}, expected (classes,); save it again")
    stem = Block(0, "stem", image_shape, _map(computed.features[0]), groups[0], None)
    blocks = [stem]
    for graph, shape, group in zip(graphs.blocks, computed.features[1:], groups[1:], strict=True):
        skip, before = graph.skip, blocks[-1].out_shape
        kind: Literal["free", "projection"] | None = None if skip is None else "free" if skip.identity else "projection"
        macs = multiply_adds(graph.branch, tensors, before)
        blocks.append(Block(len(blocks), graph.name, before, _map(shape), group, kind, macs=macs))
    return Architecture(name=name, image_shape=image_shape, classes=computed.logits[0], gate=gate, blocks=tuple(blocks))


def check_structure(
    architecture: Architecture, options: Options, graphs: NetworkGraphs, tensors: Mapping[str, Tensor]
) -> None:
    """Checks that graphs and tensors give the shapes and multiply-adds of a description, and skips what it says.

    Args:
        architecture: the description.
        options: options of a block.
        graphs: graphs that passed ``check_graphs``.
        tensors: the network's tensors by name.

    Raises:
        CheckpointError: a shape, a number or a skip differs, or a layer does not fit its input.
    """
    if len(graphs.blocks) != architecture.gated_blocks:
        raise CheckpointError(
            f"dfs-deploy checkpoint with graphs of {len(graphs.blocks)} blocks, expected {architecture.gated_blocks};"
            " save it again"
        )
    computed = _shapes(graphs, tensors, architecture.image_shape)
    described = [block.out_shape for block in architecture.blocks]
    for block, seen, wanted in zip(architecture.blocks, computed.features, described, strict=True):
        if seen != wanted:
            raise CheckpointError(
                f"dfs-deploy checkpoint whose block {block.index} gives {seen}, expected {wanted}; save it again"
            )
    if computed.logits != (architecture.classes,):
        raise CheckpointError(
            f"dfs-deploy checkpoint whose head gives {computed.logits}, expected ({architecture.classes},); save it"
            " again"
        )
    positive = nonnegative(graphs.stem)
    for block, graph in zip(architecture.blocks[1:], graphs.blocks, strict=True):
        if problem := _skip_problem(block, graph, positive):
            raise CheckpointError(f"dfs-deploy checkpoint whose block {block.index} {problem}; save it again")
        positive = nonnegative(graph.whole, positive) and (graph.skip is None or nonnegative(graph.skip, positive))
    decided = architecture.decided(options)
    for block in architecture.blocks:
        macs = _macs(block, graphs, tensors, _input(block, architecture))
        # A block that is not decided may leave out the shortcuts that were merged into it.
        if block.macs > macs or (block.index in decided and block.macs != macs):
            raise CheckpointError(
                f"dfs-deploy checkpoint whose block {block.index} has {block.macs:,} multiply-adds, expected {macs:,};"
                " save it again"
            )


def resized(
    architecture: Architecture, graphs: NetworkGraphs, tensors: Mapping[str, Tensor], image_shape: Shape
) -> Architecture:
    """Description of the same network for images of another shape.

    Args:
        architecture: a description that passed ``check_structure``.
        graphs: the network's graphs.
        tensors: its tensors by name.
        image_shape: channels, height and width.

    Raises:
        CheckpointError: the network is bound to the size of its images.
        UsageError: larger images than a network may have.
    """
    try:
        computed = _shapes(graphs, tensors, image_shape)
    except CheckpointError as error:
        raise _bound(architecture, image_shape, str(error)) from error
    if computed.logits != (architecture.classes,):
        raise _bound(architecture, image_shape, f"its head gives {computed.logits}")
    if is_cifar(graphs, architecture):
        return cifar_resnet(**{**cifar_values(architecture), "image_shape": image_shape})
    ins = (image_shape, *computed.features)
    blocks = []
    for block, taken, given in zip(architecture.blocks, ins, computed.features, strict=False):
        before, now = (_macs(block, graphs, tensors, shape) for shape in (_input(block, architecture), taken))
        macs = now if block.macs == before else min(block.macs, now)
        blocks.append(msgspec.structs.replace(block, in_shape=taken, out_shape=_map(given), macs=macs))
    return msgspec.structs.replace(architecture, image_shape=image_shape, blocks=tuple(blocks))


def fixed_layers(
    architecture: Architecture, graphs: NetworkGraphs, tensors: Mapping[str, Tensor], image_shape: Shape
) -> tuple[str, ...]:
    """Assumption about a network that shall take images of another shape than those for which it was traced.

    Graphs hold paddings, windows and slices as numbers. A module may have computed them from the size of its input, and
    would compute others now.

    Args:
        architecture: a description that passed ``check_structure``.
        graphs: the network's graphs.
        tensors: its tensors by name.
        image_shape: channels, height and width.

    Raises:
        CheckpointError: a layer pads or cuts one side of its map more than the other, as only the size could tell it,
            or the network is bound to its size in another way.
    """
    if is_cifar(graphs, architecture):
        return ()
    whole = graphs.whole
    try:
        sizes = [sizes_of(whole, tensors, shape) for shape in (architecture.image_shape, image_shape)]
    except CheckpointError as error:
        raise _bound(architecture, image_shape, str(error)) from error
    for node in whole.nodes:
        if any(_lopsided(node, size[node.inputs[0]]) for size in sizes):
            raise _bound(architecture, image_shape, f"{node.name} pads or cuts one side more than the other")
    _, height, width = architecture.image_shape
    return (f"paddings and windows of layers do not depend on the size of images, and stay as for {height}x{width}",)


def _lopsided(node: Node, size: Size) -> bool:
    """Whether a node pads or cuts rows or columns of its input of a size unequally on both sides."""
    if node.operator == "conv":
        top, left, bottom, right = node.numbers("padding")
        return (top, left) != (bottom, right)
    if node.operator == "pad":
        pads = node.numbers("pads")
        return pads[1:3] != pads[4:]
    if node.operator == "slice":
        starts, ends = node.numbers("starts")[1:], node.numbers("ends")[1:]
        return any(starts) or any(end < side for end, side in zip(ends, size[1:], strict=True))
    return False


def _bound(architecture: Architecture, image_shape: Shape, seen: str) -> CheckpointError:
    (_, *had), (_, *given) = architecture.image_shape, image_shape
    sizes = [f"{height}x{width}" for height, width in (given, had)]
    return CheckpointError(
        f"{architecture.name} cannot take images of {sizes[0]} pixels ({seen}); leave --input-size at {sizes[1]}"
    )


def _input(block: Block, architecture: Architecture) -> Shape:
    """Shape of what a block reads; the stem, as block 0, reads images."""
    return block.in_shape if block.index else architecture.image_shape


def _macs(block: Block, graphs: NetworkGraphs, tensors: Mapping[str, Tensor], shape: Size) -> int:
    """Multiply-adds of a block's branch, or of the stem, for an input of a shape."""
    return multiply_adds(graphs.blocks[block.index - 1].branch if block.index else graphs.stem, tensors, shape)


def _map(shape: Size) -> Shape:
    if len(shape) != 3:
        raise CheckpointError(f"a block that gives {shape}, expected channels, height and width; save it again")
    return shape[0], shape[1], shape[2]


def _shapes(graphs: NetworkGraphs, tensors: Mapping[str, Tensor], image_shape: Sequence[int]) -> _Shapes:
    features = [_output(graphs.stem, tensors, tuple(image_shape))]
    for block in graphs.blocks:
        taken = features[-1]
        features.append(_output(block.whole, tensors, taken))
        if block.skip is not None and (skipped := _output(block.skip, tensors, taken)) != features[-1]:
            raise CheckpointError(
                f"the block {block.name} gives {skipped} if it is skipped, expected {features[-1]}; save it again"
            )
    return _Shapes(tuple(features), _output(graphs.head, tensors, features[-1]))


def _output(graph: Graph, tensors: Mapping[str, Tensor], shape: Size) -> Size:
    return sizes_of(graph, tensors, shape)[graph.output]


def _skip_problem(block: Block, graphs: BlockGraphs, positive: bool) -> str | None:
    """What is wrong with how a block is skipped; ``positive`` says that its input cannot be negative."""
    if graphs.free and not skip_is_free(graphs, positive):
        return "passes its input on if it is skipped, and has layers that change it"
    skip = graphs.skip
    if block.skip is None:
        return None
    if skip is None:
        return "can be skipped and has no shortcut"
    if (block.skip == "free") != skip.identity:
        return f"has the skip {block.skip} and {'no layers' if skip.identity else 'layers'} that compute it"
    return None
