"""RegNetY in the manner of torchvision: grouped convolutions, squeeze-and-excitation, a ReLU after the addition."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tests.networks.mobilenet import SqueezeExcitation


def conv_bn(channels: int, width: int, kernel: int, stride: int, groups: int, relu: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class ResBottleneckBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, group_width: int) -> None:
        super().__init__()
        projects = channels != width or stride != 1
        self.proj = conv_bn(channels, width, 1, stride, 1, relu=False) if projects else None
        self.f = nn.Sequential(
            OrderedDict(
                a=conv_bn(channels, width, 1, 1, 1),
                b=conv_bn(width, width, 3, stride, width // group_width),
                se=SqueezeExcitation(width, max(channels // 4, 1), nn.Sigmoid),
                c=conv_bn(width, width, 1, 1, 1, relu=False),
            )
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation((x if self.proj is None else self.proj(x)) + self.f(x))


class RegNetY(nn.Module):
    """A narrow RegNetY of three stages."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 2, 1)
        channels, stages = 8, OrderedDict[str, nn.Module]()
        for stage, (width, count) in enumerate(((16, 1), (24, 2), (32, 3)), start=1):
            blocks = OrderedDict[str, nn.Module]()
            for index in range(count):
                blocks[f"block{stage}-{index}"] = ResBottleneckBlock(channels, width, 2 if index == 0 else 1, 8)
                channels = width
            stages[f"block{stage}"] = nn.Sequential(blocks)
        self.trunk_output = nn.Sequential(stages)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.trunk_output(self.stem(x))).flatten(1))
