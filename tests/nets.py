"""The shortest network of each kind of block, and the same with a gate whose images take different paths."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dfs_deploy.models import DFSNetwork, Plan, adapt, find_blocks
from tests.networks import BasicBlock
from tests.networks.mobilenet import InvertedResidualV3
from tests.networks.regnet import ResBottleneckBlock

Kind = Literal["basic", "bottleneck", "mobile", "preact"]

KINDS: tuple[Kind, ...] = ("basic", "bottleneck", "mobile", "preact")

SIZE = (12, 12)


class Classifier(nn.Module):
    """Stem, blocks in stages, and a classifier behind dropout."""

    def __init__(self, block: Callable[..., nn.Module], classes: int, width: int = 8) -> None:
        super().__init__()
        conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
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


def _basic(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, stride, downsample)


_BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "basic": _basic,
    "bottleneck": lambda inputs, outputs, stride=1: ResBottleneckBlock(inputs, outputs, stride, 4),
    "mobile": lambda inputs, outputs, stride=1: InvertedResidualV3(inputs, 3, 2 * inputs, outputs, True, True, stride),
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


@functools.cache
def _found(kind: Kind, classes: int, seed: int) -> tuple[nn.Module, Plan]:
    net = user_net(kind, classes, seed)
    return net, find_blocks(net, user_images(2))


def user_images(count: int, seed: int = 0) -> Tensor:
    """(count, 3, H, W) float32, normalised; each of another brightness and contrast."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, *SIZE, generator=generator)
    contrast, brightness = torch.rand(2, count, 1, 1, 1, generator=generator)
    return images * (0.5 + 1.5 * contrast) + 2.0 * (brightness - 0.5)


def adapted(kind: Kind, options: str = "skip,8,16,full", seed: int = 0, classes: int = 5, **choices: Any) -> DFSNetwork:
    """The same network, with a gate whose images take different paths."""
    net, plan = copy.deepcopy(_found(kind, classes, seed))
    network = adapt(net, plan, options, **choices)
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


def three_classes() -> nn.Module:
    """A network by name: ``tests.nets:three_classes``."""
    return user_net("mobile", 3)
