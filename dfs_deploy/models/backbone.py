"""The residual backbone: convolutions that can be quantised, basic blocks, stem and classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.models.quantize import batch_range, fake_quantize, fake_quantize_weight
from dfs_deploy.network import Architecture, Block, cifar_values
from dfs_deploy.options import FULL_BITS

RANGE_MOMENTUM = 0.1
"""Share of the newest batch in a convolution's running input range."""


class QuantizedConv2d(nn.Module):
    """A convolution without bias whose input and weight are fake-quantised on request.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: 1 or 3; padded so that stride 1 keeps the size.
        stride: 1 or 2.

    Attributes:
        low: (1,) float32 buffer, least value of the input's range.
        high: (1,) float32 buffer, its greatest value. Both zero: never quantised, so no range.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = kernel_size // 2
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.zeros(1))
        self.register_buffer("high", torch.zeros(1))

    @property
    def has_range(self) -> bool:
        """Whether the input's range was ever recorded."""
        return bool(self.high > self.low)

    def forward(self, x: Tensor, bits: int = FULL_BITS, round_input: bool = True) -> Tensor:
        """Convolves; below 32 bits, input and weight are rounded first.

        In training mode a quantised pass also moves the running range toward the batch's.

        Args:
            x: (N, in_channels, H, W) float32.
            bits: 2 to 32.
            round_input: whether the input is rounded; if not, it is still clamped to its range, and the weight rounded.

        Returns:
            (N, out_channels, H / stride, W / stride) float32.
        """
        if bits < FULL_BITS and self.training:
            self.follow_range(x)
        return self.convolve(x, bits, round_input)

    def convolve(self, x: Tensor, bits: int, round_input: bool = True) -> Tensor:
        """Convolves as ``forward``, and leaves the running range as it is."""
        if bits < FULL_BITS:
            x = fake_quantize(x, self.low, self.high, bits) if round_input else x.clamp(self.low, self.high)
        weight = fake_quantize_weight(self.weight, bits)
        return functional.conv2d(x, weight, stride=self.stride, padding=self.padding)

    def follow_range(self, x: Tensor) -> None:
        """Moves the running range toward that of a batch of inputs; the first batch sets it."""
        low, high = batch_range(x)
        momentum = RANGE_MOMENTUM if self.has_range else 1.0
        self.low.lerp_(low.to(self.low.dtype), momentum)
        self.high.lerp_(high.to(self.high.dtype), momentum)


def _stride(shape: Block) -> int:
    (_, *before), (_, *after) = shape.in_shape, shape.out_shape
    return max(-(-size // left) for size, left in zip(before, after, strict=True))


class Projection(nn.Module):
    """The shortcut of a block that changes shape: a strided 1x1 convolution and its normalisation."""

    def __init__(self, shape: Block) -> None:
        super().__init__()
        self.conv = QuantizedConv2d(shape.in_channels, shape.out_channels, 1, _stride(shape))
        self.norm = nn.BatchNorm2d(shape.out_channels)

    def forward(self, x: Tensor, bits: int = FULL_BITS, round_input: bool = True) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), without activation."""
        result: Tensor = self.norm(self.conv(x, bits, round_input))
        return result


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: ``relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x))``."""

    def __init__(self, shape: Block) -> None:
        super().__init__()
        self.shape = shape
        self.conv1 = QuantizedConv2d(shape.in_channels, shape.out_channels, 3, _stride(shape))
        self.norm1 = nn.BatchNorm2d(shape.out_channels)
        self.conv2 = QuantizedConv2d(shape.out_channels, shape.out_channels, 3, 1)
        self.norm2 = nn.BatchNorm2d(shape.out_channels)
        self.projection = Projection(shape) if shape.projects else None

    @property
    def convolutions(self) -> dict[str, tuple[QuantizedConv2d, nn.BatchNorm2d]]:
        """Each convolution and its normalisation: ``conv1``, ``conv2``, and ``projection`` if the block has one."""
        found = {"conv1": (self.conv1, self.norm1), "conv2": (self.conv2, self.norm2)}
        if self.projection is not None:
            found["projection"] = (self.projection.conv, self.projection.norm)
        return found

    def forward(self, x: Tensor, bits: int = FULL_BITS, round_inputs: bool = True) -> Tensor:
        """Runs the block in a bitwidth; its projection is quantised along with it.

        Args:
            x: (N, in_channels, H, W) float32.
            bits: 2 to 32.
            round_inputs: whether the convolutions round their inputs; if not, they still clamp them. What is left is
                what an engine of any arithmetic must come close to.

        Returns:
            (N, out_channels, H / stride, W / stride) float32, not negative.
        """
        shortcut = x if self.projection is None else self.projection(x, bits, round_inputs)
        y = functional.relu(self.norm1(self.conv1(x, bits, round_inputs)))
        return functional.relu(self.norm2(self.conv2(y, bits, round_inputs)) + shortcut)

    def skip(self, x: Tensor) -> Tensor:
        """Output of a skipped block: its input, or the projection's output in full precision, without relu."""
        if self.projection is None:
            return x
        result: Tensor = self.projection(x)
        return result


class Backbone(nn.Module):
    """Stem, residual blocks and classifier of a CIFAR ResNet-(6n+2)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        cifar_values(architecture)  # raises UsageError for blocks of another kind
        first, last = architecture.blocks[0].in_channels, architecture.blocks[-1].out_channels
        self.stem_conv = QuantizedConv2d(architecture.image_shape[0], first, 3, 1)
        self.stem_norm = nn.BatchNorm2d(first)
        self.blocks = nn.ModuleList(BasicBlock(block) for block in architecture.blocks)
        self.head = nn.Linear(last, architecture.classes)

    def stem(self, x: Tensor) -> Tensor:
        """Maps normalised images (N, C, H, W) to the first block's input (N, C', H, W)."""
        return functional.relu(self.stem_norm(self.stem_conv(x)))

    def classify(self, features: Tensor) -> Tensor:
        """Maps the last features (N, C, H, W) to logits (N, classes)."""
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits

    def forward(self, x: Tensor, bits: int = FULL_BITS) -> Tensor:
        """The static network: images (N, C, H, W) to logits (N, classes), all but the first block in one bitwidth."""
        features = self.stem(x)
        for index, block in enumerate(self.blocks):
            features = block(features, bits if index else FULL_BITS)
        return self.classify(features)
