"""The shape of a network: what a checkpoint, a manifest and a runtime must agree on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dfs_deploy.errors import UsageError
from dfs_deploy.preprocessing import MAX_INPUT_VALUES

MAX_BLOCKS = 1000
"""Most residual blocks of a network; ResNet-1202 has 600."""

MAX_SIDE = 1024
"""Most pixels of an image's height or width."""

MAX_MAP = MAX_INPUT_VALUES
"""Most values of an image or feature map: 256 MiB in float32."""

_MAX_NUMBER = 1 << 20


@dataclass(frozen=True)
class BlockShape:
    """Where one residual block stands and what it takes and gives.

    Attributes:
        index: 0 for the first block, which is never gated.
        in_channels: channels of its input.
        out_channels: channels of its output.
        stride: 1, or 2 where a group after the first begins.
        in_size: height and width of its input, in pixels.
    """

    index: int
    in_channels: int
    out_channels: int
    stride: int
    in_size: tuple[int, int]

    @property
    def projects(self) -> bool:
        """Whether its shortcut is a 1x1 convolution, so that a skip costs that convolution."""
        return self.stride != 1 or self.in_channels != self.out_channels

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its input."""
        return (self.in_channels, *self.in_size)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its output."""
        return (self.out_channels, *self.out_size)

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of its output, in pixels."""
        height, width = self.in_size
        return (-(-height // self.stride), -(-width // self.stride))


@dataclass(frozen=True)
class Architecture:
    """A CIFAR-style residual network of basic blocks (He et al. 2016, Section 4.2) with a gate between blocks.

    Attributes:
        groups: blocks in each group; (n, n, n) is ResNet-(6n+2).
        widths: channels of each group.
        classes: outputs of the classifier.
        image_shape: channels, height and width of an input.
        gate_embedding: features that a gate's 1x1 convolution gives the LSTM.
        gate_hidden: hidden units of the LSTM.
    """

    groups: tuple[int, ...]
    widths: tuple[int, ...] = (16, 32, 64)
    classes: int = 10
    image_shape: tuple[int, int, int] = (3, 32, 32)
    gate_embedding: int = 10
    gate_hidden: int = 10

    def __post_init__(self) -> None:
        numbers = (*self.groups, *self.widths, self.classes, *self.image_shape, self.gate_embedding, self.gate_hidden)
        sound = all(type(number) is int and 0 < number <= _MAX_NUMBER for number in numbers)
        if not sound or not self.groups or len(self.groups) != len(self.widths) or len(self.image_shape) != 3:
            raise UsageError(
                f"impossible architecture {self}; every number must be positive and at most {_MAX_NUMBER:,}, with one"
                " width per group"
            )
        if sum(self.groups) > MAX_BLOCKS:
            raise UsageError(f"architecture of {sum(self.groups)} blocks, expected {MAX_BLOCKS} at most")
        if max(self.image_shape[1:]) > MAX_SIDE:
            height, width = self.image_shape[1:]
            raise UsageError(
                f"images of {height}x{width} pixels, expected at most {MAX_SIDE} on each side; resize them"
            )
        maps = (shape.out_channels * math.prod(shape.out_size) for shape in self.block_shapes())
        if (largest := max(math.prod(self.image_shape), *maps)) > MAX_MAP:
            raise UsageError(f"an image or feature map of {largest:,} values, expected at most {MAX_MAP:,}")

    @property
    def name(self) -> str:
        """``ResNet-20`` and the like; the layer count is two a block, the stem and the classifier."""
        return f"ResNet-{2 * sum(self.groups) + 2}"

    def beside(self, expected: Architecture) -> str:
        """What differs from another architecture: ``ResNet-14 on 16x16 images, expected ResNet-20 on 32x32 images``."""
        return f"{self._unlike(expected)}, expected {expected._unlike(self)}"

    def _unlike(self, other: Architecture) -> str:
        words = self.name
        if self.image_shape != other.image_shape:
            channels, *size = self.image_shape
            extent = "x".join(map(str, size))
            words += f" on {extent} images"
            if channels != other.image_shape[0]:
                words += f" of {channels} channels"
        if self.groups != other.groups and self.name == other.name:
            words += f" with groups of {_listed(self.groups)} blocks"
        if self.widths != other.widths:
            words += f" with {_listed(self.widths)} channels"
        if self.classes != other.classes:
            words += f" with {self.classes} classes"
        if (self.gate_embedding, self.gate_hidden) != (other.gate_embedding, other.gate_hidden):
            words += f" with a gate of {self.gate_embedding} features and {self.gate_hidden} hidden units"
        return words

    @property
    def gated_blocks(self) -> int:
        """Blocks that a gate decides over: all but the first."""
        return sum(self.groups) - 1

    def block_shapes(self) -> Iterator[BlockShape]:
        """Yields the blocks in the order in which they run."""
        channels, size = self.widths[0], self.image_shape[1:]
        index = 0
        for group, (count, width) in enumerate(zip(self.groups, self.widths, strict=True)):
            for position in range(count):
                shape = BlockShape(index, channels, width, 2 if group and not position else 1, size)
                yield shape
                channels, size, index = width, shape.out_size, index + 1


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
