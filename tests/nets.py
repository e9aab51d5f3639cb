"""Small networks as users write them: of every kind of block that real ones have. They know nothing of this package."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from dfs_deploy.models import DFSNetwork, adapt, find_blocks

Kind = Literal["basic", "bottleneck", "mobile", "preact"]

KINDS: tuple[Kind, ...] = ("basic", "bottleneck", "mobile", "preact")

SIZE = (12, 12)


class Basic(nn.Module):
    """Two 3x3 convolutions, as in ResNet-18: a relu follows the addition."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += shortcut
        return self.relu(y)


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, squeeze-and-excitation, 1x1, as in RegNetY; the shortcut of a stride block averages first."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        middle = outputs // 2
        self.a = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU())
        grouped = nn.Conv2d(middle, middle, 3, stride, 1, groups=2, bias=False)
        self.b = nn.Sequential(grouped, nn.BatchNorm2d(middle), nn.ReLU())
        self.excite = Excitation(middle, nn.Sigmoid())
        self.c = nn.Sequential(nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.project: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            pool = nn.AvgPool2d(stride, stride) if stride != 1 else nn.Identity()
            self.project = nn.Sequential(pool, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.project is None else self.project(x)
        return torch.relu(shortcut + self.c(self.excite(self.b(self.a(x)))))


class Excitation(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels: int, scale: nn.Module) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, 4, 1)
        self.fc2 = nn.Conv2d(4, channels, 1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(self.fc2(torch.relu(self.fc1(self.pool(x)))))


class Inverted(nn.Module):
    """An inverted residual, as in MobileNetV3: nothing follows the addition, so features are signed."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        middle = 2 * inputs
        self.use_res_connect = stride == 1 and inputs == outputs
        self.expand = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.Hardswish())
        depthwise = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(middle), nn.ReLU6())
        self.excite = Excitation(middle, nn.Hardsigmoid())
        self.reduce = nn.Sequential(nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(self.excite(self.depthwise(self.expand(x))))
        return x + y if self.use_res_connect else y


class Classifier(nn.Module):
    """Stem, blocks in stages, and a classifier behind dropout."""

    def __init__(self, block: type[nn.Module], classes: int, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.layer1 = nn.Sequential(block(width, width), block(width, width))
        self.layer2 = nn.Sequential(block(width, 2 * width, 2), block(2 * width, 2 * width))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.fc(self.dropout(torch.flatten(self.pool(x), 1)))


class PreActivation(nn.Module):
    """Normalisation before each convolution (He et al. 2016, "Identity Mappings"): the shortcut passes values as is."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))
        return y + self.shortcut(x)


_BLOCKS: dict[str, type[nn.Module]] = {
    "basic": Basic,
    "bottleneck": Bottleneck,
    "mobile": Inverted,
    "preact": PreActivation,
}


def user_net(kind: Kind, classes: int = 5, seed: int = 0) -> nn.Module:
    """A network in evaluation mode with the statistics of a trained one: values neither grow nor vanish."""
    torch.manual_seed(seed)
    net = Classifier(_BLOCKS[kind], classes)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
    net.train()
    with torch.no_grad():
        for _ in range(10):
            net(user_images(32))
    return net.eval()


def user_images(count: int, seed: int = 0) -> Tensor:
    """(count, 3, H, W) float32, normalised; each of another brightness and contrast."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, *SIZE, generator=generator)
    contrast, brightness = torch.rand(2, count, 1, 1, 1, generator=generator)
    return images * (0.5 + 1.5 * contrast) + 2.0 * (brightness - 0.5)


def adapted(kind: Kind, options: str = "skip,8,16,full", seed: int = 0, classes: int = 5, **choices: Any) -> DFSNetwork:
    """The same network, with a gate whose images take different paths."""
    net = user_net(kind, classes, seed)
    network = adapt(net, find_blocks(net, user_images(2)), options, **choices)
    spread_gate(network, seed)
    return network.eval()


@torch.no_grad()
def spread_gate(network: DFSNetwork, seed: int = 0) -> None:
    """Gives a gate random weights that outweigh its biases."""
    generator = torch.Generator().manual_seed(seed)
    assert network.gate is not None
    images = user_images(32, seed=seed + 1)
    features = network.stem(images)
    for block in network.blocks:
        if network.decided(block.shape.index):
            network.gate.standardize(block.shape.index - 1, features)
        features = block(features)
    for name, weight in network.gate.named_parameters():
        if "projection" in name or "score" in name:
            weight.copy_((0.3 if name.endswith("bias") else 2.0) * torch.randn(weight.shape, generator=generator))
