"""EfficientNet-Lite in the manner of its ports to PyTorch: convolutions pad as TensorFlow's "same" does.

How much they pad follows from the shape of the input, in Python, and more after than before where the stride is 2. A
block's forward takes a second argument that is constant in evaluation mode.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional


class Conv2dSame(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same" does."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(reversed(x.shape[2:]), reversed(self.kernel_size), self.stride, strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        x = functional.pad(x, pads)
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class MBConvBlock(nn.Module):
    def __init__(self, channels: int, width: int, kernel: int, stride: int, ratio: int) -> None:
        super().__init__()
        hidden = channels * ratio
        self.shortcut = stride == 1 and channels == width
        self.expands = ratio != 1
        if self.expands:
            self._expand_conv = Conv2dSame(channels, hidden, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(hidden, momentum=0.01, eps=1e-3)
        self._depthwise_conv = Conv2dSame(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = nn.BatchNorm2d(hidden, momentum=0.01, eps=1e-3)
        self._project_conv = Conv2dSame(hidden, width, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(width, momentum=0.01, eps=1e-3)
        self._relu = nn.ReLU6()

    def forward(self, inputs: Tensor, drop_connect_rate: float | None = None) -> Tensor:
        x = inputs
        if self.expands:
            x = self._relu(self._bn0(self._expand_conv(inputs)))
        x = self._relu(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        if self.shortcut:
            if drop_connect_rate and self.training:
                x = functional.dropout(x, drop_connect_rate)
            x = x + inputs
        return x


class EfficientNetLite(nn.Module):
    """A narrow EfficientNet-Lite."""

    # expansion, channels, blocks, stride, kernel
    settings = ((1, 8, 1, 1, 3), (4, 12, 2, 2, 3), (4, 16, 3, 2, 5), (4, 24, 1, 1, 5))

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self._conv_stem = Conv2dSame(3, 12, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(12, momentum=0.01, eps=1e-3)
        blocks, channels = [], 12
        for ratio, width, count, stride, kernel in self.settings:
            for index in range(count):
                blocks.append(MBConvBlock(channels, width, kernel, stride if index == 0 else 1, ratio))
                channels = width
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = Conv2dSame(channels, 32, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(32, momentum=0.01, eps=1e-3)
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(0.2)
        self._fc = nn.Linear(32, classes)
        self._relu = nn.ReLU6()

    def forward(self, inputs: Tensor) -> Tensor:
        x = self._relu(self._bn0(self._conv_stem(inputs)))
        for index, block in enumerate(self._blocks):
            x = block(x, drop_connect_rate=0.2 * index / len(self._blocks))
        x = self._relu(self._bn1(self._conv_head(x)))
        x = self._avg_pooling(x).view(inputs.size(0), -1)
        return self._fc(self._dropout(x))
