"""CIFAR ResNets of basic blocks (He et al. 2016, Section 4.2) and their graphs, as DFS and SkipNet have them.

Such a network needs no tracing: its description says all. A skipped block that changes shape gives its projection's
output in full precision and without relu, as in the releases of both.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.errors import UsageError
from dfs_deploy.models.graph import INPUT, Attribute, BlockGraphs, Graph, NetworkGraphs, Node
from dfs_deploy.models.network import DFSNetwork
from dfs_deploy.network import Architecture, Block, cifar_values
from dfs_deploy.options import FULL_BITS, Options


def _stride(shape: Block) -> int:
    (_, *before), (_, *after) = shape.in_shape, shape.out_shape
    return max(-(-size // left) for size, left in zip(before, after, strict=True))


class HeConv2d(nn.Conv2d):
    """A convolution without bias, padded to keep the size at stride 1, with random weights after He et al. 2015."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=False)

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class Projection(nn.Module):
    """The shortcut of a block that changes shape: a strided 1x1 convolution and its normalisation."""

    def __init__(self, shape: Block) -> None:
        super().__init__()
        self.conv = HeConv2d(shape.in_channels, shape.out_channels, 1, _stride(shape))
        self.norm = nn.BatchNorm2d(shape.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), without activation."""
        result: Tensor = self.norm(self.conv(x))
        return result


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: ``relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x))``."""

    def __init__(self, shape: Block) -> None:
        super().__init__()
        self.conv1 = HeConv2d(shape.in_channels, shape.out_channels, 3, _stride(shape))
        self.norm1 = nn.BatchNorm2d(shape.out_channels)
        self.conv2 = HeConv2d(shape.out_channels, shape.out_channels, 3, 1)
        self.norm2 = nn.BatchNorm2d(shape.out_channels)
        self.projection = Projection(shape) if shape.projects else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), not negative."""
        shortcut = x if self.projection is None else self.projection(x)
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + shortcut)


class CifarResNet(nn.Module):
    """Stem, residual blocks and classifier of a CIFAR ResNet-(6n+2).

    Args:
        architecture: result of ``cifar_resnet``.

    Raises:
        UsageError: another kind of network.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        cifar_values(architecture)
        first, last = architecture.blocks[0].in_channels, architecture.blocks[-1].out_channels
        self.stem_conv = HeConv2d(architecture.image_shape[0], first, 3, 1)
        self.stem_norm = nn.BatchNorm2d(first)
        self.blocks = nn.ModuleList(BasicBlock(block) for block in architecture.blocks)
        self.head = nn.Linear(last, architecture.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, C, H, W) to logits (N, classes)."""
        features = functional.relu(self.stem_norm(self.stem_conv(x)))
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def cifar_network(
    architecture: Architecture, options: Options, policy: Sequence[int] | None = None, net: nn.Module | None = None
) -> DFSNetwork:
    """A CIFAR ResNet that decides, as the paper trains it.

    Args:
        architecture: result of ``cifar_resnet``.
        options: options of a gated block, in the order of the gate's scores.
        policy: option index of each gated block, for a network without a gate; ``None`` for one with a gate.
        net: the backbone; ``None`` for a new one.

    Raises:
        UsageError: another kind of network.
        OptionError: a policy of another length, or with an option that is not there.
    """
    net = CifarResNet(architecture) if net is None else net
    return DFSNetwork(net, cifar_graphs(architecture), architecture, options, policy)


def is_cifar(graphs: NetworkGraphs, architecture: Architecture) -> bool:
    """Whether graphs are those of a ``CifarResNet`` of an architecture."""
    try:
        cifar_values(architecture)
    except UsageError:
        return False
    return graphs == cifar_graphs(architecture)


def cifar_graphs(architecture: Architecture) -> NetworkGraphs:
    """Graphs of a ``CifarResNet``: the stem holds the first block, and all that always runs is in full precision."""
    first, *gated = (_block(shape) for shape in architecture.blocks)
    stem = Graph(tuple(conv_norm("stem_conv", "stem_norm", INPUT, 3, 1, relu=True)), "stem_conv.relu")
    head = Graph(
        (
            Node("head.pool", "global_avg_pool", (INPUT,)),
            Node("head.flatten", "flatten", ("head.pool",)),
            Node("head", "linear", ("head.flatten",), {"weight": "head.weight", "bias": "head.bias"}, exact=True),
        ),
        "head",
    )
    return NetworkGraphs(stem.then(first.whole), tuple(gated), head, "tensor", FULL_BITS)


def _block(shape: Block) -> BlockGraphs:
    name, stride = f"blocks.{shape.index}", _stride(shape)
    one = conv_norm(f"{name}.conv1", f"{name}.norm1", INPUT, 3, stride, relu=True)
    two = conv_norm(f"{name}.conv2", f"{name}.norm2", one[-1].name, 3, 1)
    shortcut = Graph()
    if shape.projects:
        nodes = conv_norm(f"{name}.projection.conv", f"{name}.projection.norm", INPUT, 1, stride)
        shortcut = Graph(tuple(nodes), nodes[-1].name)
    after = Graph((Node(f"{name}.relu", "relu", (INPUT,)),), f"{name}.relu")
    free = shape.skip != "projection"
    return BlockGraphs(name, Graph((*one, *two), two[-1].name), shortcut, after, skip_after=False, free=free)


def conv_norm(conv: str, norm: str, source: str, kernel: int, stride: int, relu: bool = False) -> list[Node]:
    """Nodes of a square convolution without bias and its normalisation, padded so that stride 1 keeps the size.

    Args:
        conv: name of the convolution, its node and its module.
        norm: name of the normalisation.
        source: value that the convolution reads.
        kernel: height and width of its window.
        stride: step in both directions.
        relu: whether a relu follows.
    """
    window: dict[str, Attribute] = {
        "stride": (stride, stride),
        "padding": (kernel // 2,) * 4,
        "dilation": (1, 1),
        "groups": 1,
    }
    roles = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
    nodes = [
        Node(conv, "conv", (source,), {"weight": f"{conv}.weight"}, window),
        Node(
            norm,
            "batch_norm",
            (conv,),
            {role: f"{norm}.{name}" for role, name in roles.items()},
            {"epsilon": 1e-5, "momentum": 0.1},
        ),
    ]
    return [*nodes, Node(f"{conv}.relu", "relu", (norm,))] if relu else nodes
