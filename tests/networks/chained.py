"""The smallest network around given blocks, for what one block does or must not do."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    """``x + branch(x)``."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Chained(nn.Module):
    """A convolution, blocks of four channels, and a linear layer: 8x8 images of three channels to five classes."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def conv(groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution from four to four channels."""
    return nn.Conv2d(4, 4, 3, padding=1, groups=groups)
