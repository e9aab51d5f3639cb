"""A small residual network in plain PyTorch, for pictures of 48x48 pixels: six blocks at one resolution."""

from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions, and a shortcut around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the same shape."""
        y = self.relu(self.bn1(self.conv1(x)))
        z: Tensor = self.relu(x + self.bn2(self.conv2(y)))
        return z


class Network(nn.Module):
    """A convolution of patches of 3x3 pixels, blocks, and the mean over all positions."""

    def __init__(self, blocks: int, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride=3, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential(*[Block(channels) for _ in range(blocks)])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, 3, H, W) to logits (N, classes)."""
        x = self.blocks(self.relu(self.bn(self.stem(x))))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def six_blocks(classes: int = 10) -> Network:
    """Gives the network with random weights."""
    return Network(6, 32, classes)
