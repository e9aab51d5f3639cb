"""Small networks as users write them, in the manner of torchvision and of published code, with weights from a seed.

Each builder gives the network in evaluation mode. Parameter names are those of the original, so state dicts of the
originals have the same keys. ``FAMILIES`` has one network of each kind, with what ``find_blocks`` must find in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tests.networks.cifar import CifarResNetA
from tests.networks.efficientnet import EfficientNetLite
from tests.networks.mobilenet import MobileNetV2, MobileNetV3
from tests.networks.regnet import RegNetY
from tests.networks.resnet import BasicBlock, Bottleneck, ResNet


@dataclass(frozen=True)
class Family:
    """A kind of network.

    Attributes:
        build: makes a small one, with weights from a seed.
        pixels: height and width of its images.
        blocks: number of its blocks.
        identity: number of those whose shortcut is the identity.
        projection: number of those whose shortcut computes.
    """

    build: Callable[[], nn.Module]
    pixels: int
    blocks: int
    identity: int
    projection: int

    def images(self, count: int = 2) -> torch.Tensor:
        """(count, 3, pixels, pixels) float32, normally distributed."""
        return torch.randn((count, 3, self.pixels, self.pixels), generator=torch.Generator().manual_seed(7))


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network in evaluation mode, with weights from a seed and batch norms whose statistics matter."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor, middle: float, spread: float) -> None:
        tensor.copy_(middle + spread * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                draw(module.weight, 0.0, (2.0 / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    draw(module.bias, 0.0, 0.1)
            elif isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                draw(module.weight, 1.0, 0.2)
                draw(module.bias, 0.0, 0.2)
                draw(module.running_mean, 0.0, 0.2)
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return net.eval()


FAMILIES: dict[str, Family] = {
    "resnet18": Family(lambda: shaken(ResNet(BasicBlock, (2, 2, 2, 2))), 64, 8, 5, 3),
    "resnet50": Family(lambda: shaken(ResNet(Bottleneck, (1, 2, 3, 1))), 64, 7, 3, 4),
    "mobilenet_v2": Family(lambda: shaken(MobileNetV2()), 64, 8, 4, 0),
    "mobilenet_v3_small": Family(lambda: shaken(MobileNetV3()), 64, 6, 3, 0),
    "regnet_y": Family(lambda: shaken(RegNetY()), 64, 6, 3, 3),
    "efficientnet_lite": Family(lambda: shaken(EfficientNetLite()), 56, 7, 3, 0),
    "cifar_resnet": Family(lambda: shaken(CifarResNetA((2, 2, 2))), 32, 6, 4, 2),
}
"""One small network of each kind."""

__all__ = [
    "FAMILIES",
    "BasicBlock",
    "Bottleneck",
    "CifarResNetA",
    "EfficientNetLite",
    "Family",
    "MobileNetV2",
    "MobileNetV3",
    "RegNetY",
    "ResNet",
    "shaken",
]
