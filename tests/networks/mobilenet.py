"""MobileNetV2 and MobileNetV3-Small in the manner of torchvision: linear bottlenecks, some without a shortcut."""

from __future__ import annotations

from torch import Tensor, nn


def conv_bn(
    channels: int, width: int, kernel: int, stride: int, groups: int, activation: type[nn.Module] | None
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
    ]
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, ratio: int) -> None:
        super().__init__()
        hidden = channels * ratio
        self.use_res_connect = stride == 1 and channels == width
        layers: list[nn.Module] = []
        if ratio != 1:
            layers.append(conv_bn(channels, hidden, 1, 1, 1, nn.ReLU6))
        layers += [
            conv_bn(hidden, hidden, 3, stride, hidden, nn.ReLU6),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    """A narrow MobileNetV2."""

    # expansion, channels, blocks, stride
    settings = ((1, 8, 1, 1), (4, 8, 2, 2), (4, 12, 3, 2), (4, 16, 2, 1))

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        channels = 12
        features: list[nn.Module] = [conv_bn(3, channels, 3, 2, 1, nn.ReLU6)]
        for ratio, width, count, stride in self.settings:
            for index in range(count):
                features.append(InvertedResidual(channels, width, stride if index == 0 else 1, ratio))
                channels = width
        features.append(conv_bn(channels, 32, 1, 1, 1, nn.ReLU6))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        return self.classifier(x.flatten(1))


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, squeezed: int, scale: type[nn.Module] = nn.Hardsigmoid) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.ReLU()
        self.scale_activation = scale()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.activation(self.fc1(self.avgpool(x)))
        return self.scale_activation(self.fc2(scale)) * x


class InvertedResidualV3(nn.Module):
    def __init__(
        self, channels: int, kernel: int, hidden: int, width: int, use_se: bool, hard_swish: bool, stride: int
    ) -> None:
        super().__init__()
        activation = nn.Hardswish if hard_swish else nn.ReLU
        self.use_res_connect = stride == 1 and channels == width
        layers: list[nn.Module] = []
        if hidden != channels:
            layers.append(conv_bn(channels, hidden, 1, 1, 1, activation))
        layers.append(conv_bn(hidden, hidden, kernel, stride, hidden, activation))
        if use_se:
            layers.append(SqueezeExcitation(hidden, max(hidden // 4, 4)))
        layers.append(conv_bn(hidden, width, 1, 1, 1, None))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        if self.use_res_connect:
            result += x
        return result


class MobileNetV3(nn.Module):
    """A narrow MobileNetV3-Small."""

    # kernel, hidden, channels, squeeze-and-excitation, Hardswish, stride
    settings = (
        (3, 8, 8, True, False, 2),
        (3, 24, 12, False, False, 2),
        (3, 32, 12, False, False, 1),
        (5, 32, 16, True, True, 2),
        (5, 48, 16, True, True, 1),
        (5, 48, 16, True, True, 1),
    )

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        features: list[nn.Module] = [conv_bn(3, 8, 3, 2, 1, nn.Hardswish)]
        channels = 8
        for kernel, hidden, width, use_se, hard_swish, stride in self.settings:
            features.append(InvertedResidualV3(channels, kernel, hidden, width, use_se, hard_swish, stride))
            channels = width
        features.append(conv_bn(channels, 48, 1, 1, 1, nn.Hardswish))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(48, 32), nn.Hardswish(inplace=True), nn.Dropout(0.2, inplace=True), nn.Linear(32, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))
