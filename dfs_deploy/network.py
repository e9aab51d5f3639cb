"""Description of a network: its blocks, their shapes, and what each may do.

A checkpoint, a manifest and a runtime share it, so the types here are also the records that ``manifest.json`` holds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from dfs_deploy.errors import UsageError
from dfs_deploy.io.json_files import Name
from dfs_deploy.options import Option
from dfs_deploy.preprocessing import MAX_INPUT_VALUES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_BLOCKS = 1000
"""Most residual blocks of a network; ResNet-1202 has 600."""

MAX_SIDE = 1024
"""Most pixels of an image's height or width."""

MAX_MAP = MAX_INPUT_VALUES
"""Most values of an image or feature map: 256 MiB in float32."""

MAX_MACS = 1 << 53
"""Most multiply-adds of a block."""

_MAX_NUMBER = 1 << 16
_MAX_GATE = 1 << 12

Number = Annotated[int, Meta(ge=1, le=_MAX_NUMBER)]
GateSize = Annotated[int, Meta(ge=1, le=_MAX_GATE)]

Shape = tuple[Number, Number, Number]
"""Channels, height and width."""


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One residual block: its position in the network, its shapes, and what it may do.

    Attributes:
        index: position in the network; 0 for the first block, which always runs in full precision.
        name: name in messages and checkpoints, such as ``layer2.0``.
        in_shape: channels, height and width of its input.
        out_shape: channels, height and width of its output.
        group: number of the quantisation grid of its output, from 1. A block that can be skipped for free has the
            group of the block before, because a skip passes those features on untouched.
        skip: ``free`` if a skip passes the input on, ``projection`` if a skip runs the layers of the shortcut, and
            ``None`` if the block cannot be skipped.
        options: names of the options that it may run, or ``None`` for all of the network's.
        macs: multiply-adds of its branch for one image; 1 in every block of a description that does not know them.
    """

    index: Annotated[int, Meta(ge=0, lt=MAX_BLOCKS)]
    name: Name
    in_shape: Shape
    out_shape: Shape
    group: Number
    skip: Literal["free", "projection"] | None
    options: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=33)] | None = None
    macs: Annotated[int, Meta(ge=0, le=MAX_MACS)] = 1

    @property
    def in_channels(self) -> int:
        """Channels of its input."""
        return self.in_shape[0]

    @property
    def out_channels(self) -> int:
        """Channels of its output."""
        return self.out_shape[0]

    @property
    def projects(self) -> bool:
        """Whether a skip runs the layers of its shortcut."""
        return self.skip == "projection"

    def choices(self, options: Iterable[Option]) -> tuple[Option, ...]:
        """Those of the options that the block may run."""
        return tuple(
            option
            for option in options
            if (self.options is None or option.name in self.options) and not (option.skips and self.skip is None)
        )

    def fixed(self, options: Iterable[Option]) -> bool:
        """Whether it may run one of the options only, so that no gate decides about it."""
        return len(self.choices(options)) == 1


class GateShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Kind and sizes of the gate that chooses an option for each block.

    Attributes:
        embedding: features that the gate's 1x1 convolution gives the LSTM; a stateless gate ignores it.
        hidden: hidden units of the LSTM, or of each stateless gate.
        kind: ``lstm``, one LSTM that steps from block to block (Fractional Skipping, Section 3); or ``stateless``, for
            each block a gate of its own, two layers that see its input alone (ConvNet-AIG, ECCV 2018, Section 3.1).
    """

    embedding: GateSize
    hidden: GateSize
    kind: Literal["lstm", "stateless"] = "lstm"


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A chain of residual blocks between stem and classifier, with a gate that chooses what each block does.

    Attributes:
        name: name in messages and reports, such as ``ResNet-20``.
        image_shape: channels, height and width of an input.
        classes: outputs of the classifier.
        gate: the gate's kind and sizes; a network with a static policy has no gate and ignores them.
        blocks: the blocks in the order in which they run.

    Raises:
        UsageError: a number out of bounds, or blocks that do not form a chain.
    """

    name: Name
    image_shape: Shape
    classes: Number
    gate: GateShape
    blocks: Annotated[tuple[Block, ...], Meta(min_length=1, max_length=MAX_BLOCKS)]

    def __post_init__(self) -> None:
        if not 1 <= len(self.blocks) <= MAX_BLOCKS:
            raise UsageError(f"network of {len(self.blocks):,} blocks, expected 1 to {MAX_BLOCKS}")
        maps = [self.image_shape, *(shape for block in self.blocks for shape in (block.in_shape, block.out_shape))]
        numbers = itertools.chain((self.classes, self.gate.embedding, self.gate.hidden), *maps)
        if any(len(shape) != 3 for shape in maps) or not all(map(_is_size, numbers)):
            raise UsageError(
                f"impossible architecture {self.name}: every size must be a whole number from 1 to {_MAX_NUMBER:,}, and"
                " every shape have three"
            )
        if (widest := max(self.gate.embedding, self.gate.hidden)) > _MAX_GATE:
            raise UsageError(f"a gate of {widest:,} features, expected at most {_MAX_GATE:,}; make it narrower")
        if max(self.image_shape[1:]) > MAX_SIDE:
            height, width = self.image_shape[1:]
            raise UsageError(
                f"images of {height}x{width} pixels, expected at most {MAX_SIDE} on each side; resize them"
            )
        if (largest := max(map(math.prod, maps))) > MAX_MAP:
            raise UsageError(f"an image or feature map of {largest:,} values, expected at most {MAX_MAP:,}")
        for index, block in enumerate(self.blocks):
            before = self.blocks[index - 1] if index else None
            if problem := _misfit(index, block, before):
                raise UsageError(f"impossible architecture {self.name}: block {index} {problem}")

    @property
    def gated_blocks(self) -> int:
        """Number of blocks after the first: the columns of a path. The gate decides about those that are not fixed."""
        return len(self.blocks) - 1

    def decided(self, options: Iterable[Option]) -> tuple[int, ...]:
        """Indices of the blocks that may run several of the options, so that the gate decides about them."""
        given = tuple(options)
        return tuple(block.index for block in self.blocks[1:] if not block.fixed(given))

    def skippable(self, options: Iterable[Option]) -> tuple[int, ...]:
        """Indices of the decided blocks that may be skipped."""
        given = tuple(options)
        decided = set(self.decided(given))
        return tuple(
            block.index
            for block in self.blocks
            if block.index in decided and any(option.skips for option in block.choices(given))
        )

    def weights(self, options: Iterable[Option]) -> tuple[float, ...]:
        """Weight of each block after the first in the computation of a path.

        The definition of computation is a ratio of FLOPs (Fractional Skipping, Section 4, Metrics), so a decided block
        weighs its multiply-adds over their mean. A fixed block weighs nothing: it is the same on every path.

        Args:
            options: options of the network.
        """
        decided = set(self.decided(options))
        total = sum(block.macs for block in self.blocks if block.index in decided)
        if total == 0:  # nothing is known of the blocks, or none is decided
            return tuple(float(block.index in decided) for block in self.blocks[1:])
        return tuple(block.macs * len(decided) / total if block.index in decided else 0.0 for block in self.blocks[1:])

    def computation_range(self, options: Iterable[Option]) -> tuple[float, float]:
        """Least and greatest share of the computation that a path may take, 0 to 1; (1, 1) if nothing is decided."""
        given = tuple(options)
        costs = [[option.cost for option in block.choices(given)] for block in self.blocks[1:]]
        weights = self.weights(given)
        total = sum(weights)
        if total == 0.0:
            return 1.0, 1.0
        least, most = (
            sum(weight * end(each) for weight, each in zip(weights, costs, strict=True)) / total for end in (min, max)
        )
        return least, most

    def allowed(self, options: Iterable[Option]) -> NDArray[np.bool_]:
        """(blocks after the first, options) bool, whether a block may run an option."""
        import numpy as np

        given = tuple(options)
        rows = [[option in choices for option in given] for choices in (b.choices(given) for b in self.blocks[1:])]
        return np.array(rows, np.bool_).reshape(self.gated_blocks, len(given))

    def without_macs(self) -> Architecture:
        """The same network without multiply-adds, which older bundles do not record."""
        blocks = tuple(msgspec.structs.replace(block, macs=1) for block in self.blocks)
        return msgspec.structs.replace(self, blocks=blocks)

    def beside(self, expected: Architecture) -> str:
        """Differences in words: ``ResNet-14 on 16x16 images, expected ResNet-20 on 32x32 images``."""
        return f"{self._unlike(expected)}, expected {expected._unlike(self)}"

    def _unlike(self, other: Architecture) -> str:
        words = self.name
        if self.image_shape != other.image_shape:
            channels, height, width = self.image_shape
            words += f" on {height}x{width} images"
            if channels != other.image_shape[0]:
                words += f" of {channels} channels"
        elif self.name == other.name:
            words += self._unlike_blocks(other)
        if self.classes != other.classes:
            words += f" with {self.classes} classes"
        if self.gate.kind != other.gate.kind:
            words += f" with a gate of kind {self.gate.kind}"
        elif self.gate != other.gate:
            words += f" with a gate of {self.gate.embedding} features and {self.gate.hidden} hidden units"
        return words

    def _unlike_blocks(self, other: Architecture) -> str:
        if len(self.blocks) != len(other.blocks):
            return f" with {len(self.blocks)} blocks"
        for ours, theirs in zip(self.blocks, other.blocks, strict=True):
            compared = [name for name in Block.__struct_fields__ if name != "macs"]
            fields = (name for name in compared if getattr(ours, name) != getattr(theirs, name))
            if differing := ", ".join(f"{name} {getattr(ours, name)}" for name in fields):
                return f" whose block {ours.index} has {differing}"
        return ""


def _is_size(number: object) -> bool:
    return type(number) is int and 0 < number <= _MAX_NUMBER


def _misfit(index: int, block: Block, before: Block | None) -> str | None:
    """Reason why a block cannot follow the one before, or ``None``."""
    if block.index != index:
        return f"has index {block.index}"
    if before is None:
        return None if block.skip is None else "is the first, which always runs, and can be skipped"
    if block.in_shape != before.out_shape:
        return f"takes {block.in_shape}, and the block before gives {before.out_shape}"
    if block.skip == "free" and block.in_shape != block.out_shape:
        return f"can be skipped for free, and gives {block.out_shape} for {block.in_shape}"
    if block.skip == "free" and block.group != before.group:
        return f"can be skipped for free, and has group {block.group} after group {before.group}"
    return None


def cifar_resnet(
    groups: tuple[int, ...],
    widths: tuple[int, ...] = (16, 32, 64),
    classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    gate_embedding: int = 10,
    gate_hidden: int = 10,
) -> Architecture:
    """Describes a CIFAR-style residual network of basic blocks (He et al. 2016, Section 4.2) with an LSTM gate.

    The first block of each group after the first halves height and width.

    Args:
        groups: blocks in each group; (n, n, n) is ResNet-(6n+2).
        widths: channels of each group.
        classes: outputs of the classifier.
        image_shape: channels, height and width of an input.
        gate_embedding: features that the gate's 1x1 convolution gives the LSTM.
        gate_hidden: hidden units of the LSTM.

    Raises:
        UsageError: values that describe no network, or one without bounds.
    """
    sizes = (*groups, *widths, *image_shape)
    if not all(map(_is_size, sizes)) or not groups or len(groups) != len(widths) or len(image_shape) != 3:
        raise UsageError(
            f"impossible architecture with groups {groups}, widths {widths} and images {image_shape}; every number must"
            f" be positive and at most {_MAX_NUMBER:,}, with one width per group"
        )
    if sum(groups) > MAX_BLOCKS:
        raise UsageError(f"architecture of {sum(groups)} blocks, expected {MAX_BLOCKS} at most")
    blocks: list[Block] = []
    before = (widths[0], *image_shape[1:])
    for group, (count, width) in enumerate(zip(groups, widths, strict=True), start=1):
        for position in range(count):
            halves = group > 1 and position == 0
            _, height, columns = before
            after = (width, -(-height // 2), -(-columns // 2)) if halves else (width, height, columns)
            skip: Literal["free", "projection"] | None = "projection" if halves else "free" if blocks else None
            macs = 9 * math.prod(after) * (before[0] + width)  # of two 3x3 convolutions
            blocks.append(Block(len(blocks), f"layer{group}.{position}", before, after, group, skip, macs=macs))
            before = after
    return Architecture(
        name=f"ResNet-{2 * len(blocks) + 2}",  # two layers per block, the stem and the classifier
        image_shape=image_shape,
        classes=classes,
        gate=GateShape(gate_embedding, gate_hidden),
        blocks=tuple(blocks),
    )


def cifar_values(architecture: Architecture) -> dict[str, Any]:
    """The arguments of ``cifar_resnet`` that describe a network.

    Raises:
        UsageError: it is another kind of network.
    """
    groups = [list(blocks) for _, blocks in itertools.groupby(architecture.blocks, key=lambda block: block.group)]
    values: dict[str, Any] = {
        "groups": tuple(map(len, groups)),
        "widths": tuple(blocks[0].out_channels for blocks in groups),
        "classes": architecture.classes,
        "image_shape": architecture.image_shape,
        "gate_embedding": architecture.gate.embedding,
        "gate_hidden": architecture.gate.hidden,
    }
    if cifar_resnet(**values).without_macs() != architecture.without_macs():
        raise UsageError(f"{architecture.name} is no CIFAR ResNet of basic blocks")
    return values
