"""CIFAR ResNets whose shortcuts have no weights (He et al. 2016, Section 4.2, option A), as most trained ones are."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class OptionABlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes, the shortcut takes every second pixel and adds channels of zeros.

    Args:
        inputs: channels of its input.
        outputs: channels of its output.
        stride: step of its first convolution, 1 or 2.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, inputs, H, W) to (N, outputs, H / stride, W / stride), not negative."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.added:
            before = self.added // 2
            x = functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before), "constant", 0.0
            )
        return functional.relu(y + x)


class OptionAResNet(nn.Module):
    """A CIFAR ResNet-(6n+2) with names of tensors as trained ones have them: ``layer1.0.conv1``, ``linear``.

    Args:
        blocks: blocks in each of the three groups.
        classes: number of logits.
        width: channels of the first group; each later group has twice as many.
    """

    def __init__(self, blocks: int, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _group(width, width, blocks)
        self.layer2 = _group(width, 2 * width, blocks)
        self.layer3 = _group(2 * width, 4 * width, blocks)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, 3, H, W) to logits (N, classes)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _group(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    first = OptionABlock(inputs, outputs, 1 if inputs == outputs else 2)
    return nn.Sequential(first, *(OptionABlock(outputs, outputs, 1) for _ in range(blocks - 1)))
