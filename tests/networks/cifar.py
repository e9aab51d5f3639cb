"""CIFAR ResNets as published: the shortcut of a block that halves its map is a slice with zeros beside (option A)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class BasicBlockA(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.margin = (width - channels) // 2 if stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.margin is None:
            out += x
        else:
            out += functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.margin, self.margin), "constant", 0)
        return functional.relu(out)


class CifarResNetA(nn.Module):
    """ResNet-(6n+2) for CIFAR with option A shortcuts, and the published names of parameters."""

    def __init__(self, depths: Sequence[int] = (3, 3, 3), width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for number, depth in enumerate(depths, start=1):
            after = width * 2 ** (number - 1)
            blocks = []
            for index in range(depth):
                blocks.append(BasicBlockA(channels, after, 2 if number > 1 and index == 0 else 1))
                channels = after
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = functional.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)
