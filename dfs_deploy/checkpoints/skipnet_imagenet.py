"""Recogniser of SkipNet's ImageNet networks with a recurrent gate (Wang et al. 2018): ResNet-18 to ResNet-152.

Four groups of basic or bottleneck blocks behind a 7x7 stem. The first block always runs, and a skipped block that
changes shape gives its projection's output without relu, as in SkipNet's code.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dfs_deploy.checkpoints.facts import CheckpointFacts, assumed_input
from dfs_deploy.checkpoints.groups import GATE_WEIGHT, aliases, block_counts, gate_state, two_scores
from dfs_deploy.checkpoints.registry import Checkpoint, recognizer
from dfs_deploy.checkpoints.skipnet import FORMAT, OPTIONS, check_skipnet_options
from dfs_deploy.checkpoints.structure import described
from dfs_deploy.checkpoints.tensors import STATISTICS, TensorReader, fill, without_values
from dfs_deploy.checkpoints.weights import RawCheckpoint
from dfs_deploy.errors import CheckpointError, UsageError
from dfs_deploy.models import BlockGraphs, DFSNetwork, Graph, NetworkGraphs, Node
from dfs_deploy.models.cifar import conv_norm
from dfs_deploy.models.graph import INPUT, Attribute, tensor_tree
from dfs_deploy.network import GateShape
from dfs_deploy.options import FULL_BITS, Options
from dfs_deploy.preprocessing import IMAGENET_INPUT

GROUPS = (1, 2, 3, 4)


def is_skipnet_imagenet(raw: RawCheckpoint) -> bool:
    """Whether the marker keys of an ImageNet SkipNet with a recurrent gate are present."""
    projection = raw.tensors.get(GATE_WEIGHT)
    return (
        "control.rnn.weight_ih_l0" in raw.tensors
        and projection is not None
        and (projection.ndim == 4 or any(key.startswith(("group4_", "group1_ds0")) for key in raw.tensors))
        and not any("quantize_input" in key for key in raw.tensors)
    )


@recognizer(is_skipnet_imagenet, marker=GATE_WEIGHT)
def load_skipnet_imagenet(raw: RawCheckpoint, options: Options | None, facts: CheckpointFacts) -> Checkpoint:
    """Reads a SkipNet for ImageNet, of any depth and width.

    Raises:
        CheckpointError: tensors are missing or have another shape, aliases differ, or other options were requested.
    """
    check_skipnet_options(options)
    reader = TensorReader(raw.tensors, "SkipNet", aliases(GROUPS))
    contract, assumptions = assumed_input(3, facts, "SkipNet's", IMAGENET_INPUT, "ImageNet")
    counts = block_counts(raw.tensors, len(GROUPS))
    backbone = _Backbone(reader, counts)
    channels = reader.shape("group1_gate0.1.weight", (None, None, 1, 1))
    gate = GateShape(_size(channels[0]), _size(reader.shape("control.rnn.weight_hh_l0", (None, None))[1]))
    groups = [group for group, count in zip(GROUPS, counts, strict=True) for _ in range(count)]
    layers = 2 + sum(counts) * (3 if backbone.bottleneck else 2)
    try:
        architecture = described(f"ResNet-{layers}", backbone.graphs, backbone.tensors, contract.shape, groups, gate)
    except UsageError as error:
        raise CheckpointError(f"a checkpoint of an {error}") from error
    state = {**gate_state(reader, architecture, "control.rnn"), **two_scores(reader, gate.hidden)}
    reader.finish()
    statistics = {name for name in backbone.tensors if name.endswith(STATISTICS)}
    net = tensor_tree(backbone.tensors, backbone.tensors.keys() - statistics)
    network = without_values(lambda: DFSNetwork(net, backbone.graphs, architecture, OPTIONS))
    count = len(network.ranges.names)
    ranges = {"ranges.low": torch.zeros(count), "ranges.high": torch.zeros(count)}
    own = {f"net.{name}": tensor for name, tensor in backbone.tensors.items()}
    return Checkpoint(fill(network, {**own, **ranges, **state}), contract, FORMAT, assumptions)


def _size(value: int) -> int:
    if not 1 <= value <= 1 << 12:
        raise CheckpointError(f"SkipNet checkpoint whose gate has {value} features, expected 1 to {1 << 12}")
    return value


class _Backbone:
    """Graphs and tensors of all but the gate; widths are those of the tensors.

    Args:
        reader: tensors of the checkpoint.
        counts: blocks in each group.

    Attributes:
        bottleneck: whether blocks have three convolutions.
        tensors: tensors under SkipNet's names.
        graphs: graphs of stem, blocks and head.
    """

    def __init__(self, reader: TensorReader, counts: Iterable[int]) -> None:
        self._reader = reader
        self.bottleneck = "group1_layer0.conv3.weight" in reader
        self.tensors: dict[str, Tensor] = {}
        stem, channels = self._conv("conv1", "bn1", INPUT, 3, 7, 2, relu=True)
        window: dict[str, Attribute] = {
            "kernel": (3, 3),
            "stride": (2, 2),
            "padding": (1, 1),
            "dilation": (1, 1),
            "ceil": 0,
        }
        pool = Node("maxpool", "max_pool", (stem[-1].name,), {}, window)
        blocks = []
        for group, count in enumerate(counts, start=1):
            for position in range(count):
                stride = 2 if group > 1 and position == 0 else 1
                block, channels = self._block(f"group{group}_layer{position}", channels, stride)
                blocks.append(block)
        first, *gated = blocks
        begin = Graph((*stem, pool), pool.name).then(first.whole)
        self._take("fc.weight", (None, channels))
        self._take("fc.bias", (len(self.tensors["fc.weight"]),))
        head = Graph(
            (
                Node("avgpool", "global_avg_pool", (INPUT,)),
                Node("flatten", "flatten", ("avgpool",)),
                Node("fc", "linear", ("flatten",), {"weight": "fc.weight", "bias": "fc.bias"}),
            ),
            "fc",
        )
        self.graphs = NetworkGraphs(begin, tuple(gated), head, "channel", FULL_BITS)

    def _take(self, key: str, shape: tuple[int | None, ...]) -> Tensor:
        self.tensors[key] = self._reader.take(key, shape)
        return self.tensors[key]

    def _conv(
        self, conv: str, norm: str, source: str, channels: int, kernel: int, stride: int, relu: bool = False
    ) -> tuple[list[Node], int]:
        """Nodes of a convolution and its normalisation, and the channels that they give."""
        width = len(self._take(f"{conv}.weight", (None, channels, kernel, kernel)))
        nodes = conv_norm(conv, norm, source, kernel, stride, relu)
        for node in nodes:
            for name in node.tensors.values():
                if name not in self.tensors:
                    self._take(name, (width,))
        return nodes, width

    def _block(self, name: str, channels: int, stride: int) -> tuple[BlockGraphs, int]:
        kernels = ((1, 1), (3, stride), (1, 1)) if self.bottleneck else ((3, stride), (3, 1))
        nodes: list[Node] = []
        width = channels
        for index, (kernel, step) in enumerate(kernels, start=1):
            source = nodes[-1].name if nodes else INPUT
            more, width = self._conv(
                f"{name}.conv{index}", f"{name}.bn{index}", source, width, kernel, step, relu=index < len(kernels)
            )
            nodes += more
        shortcut, projects = Graph(), f"{name}.downsample.0.weight" in self._reader
        if projects:
            projection, _ = self._conv(f"{name}.downsample.0", f"{name}.downsample.1", INPUT, channels, 1, stride)
            shortcut = Graph(tuple(projection), projection[-1].name)
        after = Graph((Node(f"{name}.relu", "relu", (INPUT,)),), f"{name}.relu")
        branch = Graph(tuple(nodes), nodes[-1].name)
        return BlockGraphs(name, branch, shortcut, after, skip_after=False, free=not projects), width
