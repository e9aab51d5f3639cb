"""CIFAR networks of the DFS release and of SkipNet: three groups of basic blocks under the same names of tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dfs_deploy.checkpoints.groups import GATE_WEIGHT, NORM, block_counts, gate_state, numbered_blocks
from dfs_deploy.checkpoints.tensors import TensorReader, fill, without_values
from dfs_deploy.errors import CheckpointError, UsageError
from dfs_deploy.models import DFSNetwork, cifar_network
from dfs_deploy.network import Architecture, cifar_resnet
from dfs_deploy.options import Options


def read_architecture(keys: Iterable[str], reader: TensorReader, size: tuple[int, int]) -> Architecture:
    """Derives the architecture from the names of the blocks and the shapes of a few tensors.

    Args:
        keys: names of all tensors.
        reader: tensors of the checkpoint.
        size: height and width of images, which the tensors do not determine.

    Raises:
        CheckpointError: blocks are missing, there are not three groups, or images do not have three channels.
    """
    counts = block_counts(keys, 3)
    channels = reader.shape("conv1.weight", (None, 3, 3, 3))[0]
    try:
        return cifar_resnet(
            groups=counts,
            widths=(channels, 2 * channels, 4 * channels),
            classes=reader.shape("fc.weight", (None, 4 * channels))[0],
            image_shape=(3, *size),
            gate_embedding=reader.shape("group1_gate0.1.weight", (None, channels, 1, 1))[0],
            gate_hidden=reader.shape(GATE_WEIGHT, (None, None))[1],
        )
    except UsageError as error:
        raise CheckpointError(f"a checkpoint of an {error}") from error


class GroupsReader:
    """Copies tensors under the release's and SkipNet's names to ours.

    Args:
        reader: tensors of the checkpoint.
        architecture: result of ``read_architecture``.
        quantized: whether each convolution carries the range of its input.
    """

    def __init__(self, reader: TensorReader, architecture: Architecture, quantized: bool) -> None:
        self.reader = reader
        self.architecture = architecture
        self.state: dict[str, Tensor] = {}
        self._quantized = quantized
        self._ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def conv(self, ours: str, theirs: str, shape: tuple[int, int, int, int]) -> None:
        """Copies a convolution and, if the format has it, the range of its input."""
        self.state[f"net.{ours}.weight"] = self.reader.take(f"{theirs}.weight", shape)
        if self._quantized:
            names = (f"{theirs}.quantize_input.running_{end}" for end in ("min", "max"))
            low, high = (self.reader.take(name, (1,)) for name in names)
            self._ranges[ours] = low, high

    def norm(self, ours: str, theirs: str, channels: int) -> None:
        """Copies a batch normalisation without its count of batches, which is not used and may be missing."""
        for name in NORM:
            self.state[f"net.{ours}.{name}"] = self.reader.take(f"{theirs}.{name}", (channels,))

    def common(self, lstm: str, projection_conv: str, projection_norm: str) -> None:
        """Copies the tensors that both formats have, given the names in which they differ.

        Args:
            lstm: prefix of the LSTM's tensors.
            projection_conv: name, within a stride block, of its projection's convolution.
            projection_norm: name, within a stride block, of its projection's normalisation.
        """
        blocks = self.architecture.blocks
        first, last_width = blocks[0].in_channels, blocks[-1].out_channels
        self.conv("stem_conv", "conv1", (first, self.architecture.image_shape[0], 3, 3))
        self.norm("stem_norm", "bn1", first)
        for shape, group, position in numbered_blocks(self.architecture):
            theirs, ours = f"group{group}_layer{position}", f"blocks.{shape.index}"
            channels = shape.out_channels
            for i, inputs in ((1, shape.in_channels), (2, channels)):
                self.conv(f"{ours}.conv{i}", f"{theirs}.conv{i}", (channels, inputs, 3, 3))
                self.norm(f"{ours}.norm{i}", f"{theirs}.bn{i}", channels)
            if shape.projects:
                shortcut = (channels, shape.in_channels, 1, 1)
                self.conv(f"{ours}.projection.conv", f"{theirs}.{projection_conv}", shortcut)
                self.norm(f"{ours}.projection.norm", f"{theirs}.{projection_norm}", channels)
        self.state.update(gate_state(self.reader, self.architecture, lstm))
        classes = self.architecture.classes
        self.state["net.head.weight"] = self.reader.take("fc.weight", (classes, last_width))
        self.state["net.head.bias"] = self.reader.take("fc.bias", (classes,))

    def network(self, options: Options) -> DFSNetwork:
        """The network, with every tensor that was copied, and ranges of zero if the format has none."""
        self.reader.finish()
        network = without_values(lambda: cifar_network(self.architecture, options))
        zeros = (torch.zeros(1), torch.zeros(1))
        ends = zip(*(self._ranges.get(name, zeros) for name in network.ranges.names), strict=True)
        ranges = {f"ranges.{name}": torch.cat(values) for name, values in zip(("low", "high"), ends, strict=True)}
        return fill(network, {**self.state, **ranges})
