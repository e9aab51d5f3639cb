"""Splitting a trained network into the pieces that become engines, with batch normalisation folded.

A piece is plain NumPy: what a convolution multiplies by and adds, and the range over which its option saturates its
input. An option's weights are those that the option computes with: rounded to its grid first, folded after.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dfs_deploy.models import BasicBlock, DFSNetwork, QuantizedConv2d, fake_quantize_weight
from dfs_deploy.network import Block
from dfs_deploy.options import FULL_BITS, Option

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Range:
    """An interval of values, ``low`` to ``high``."""

    low: float
    high: float

    def including_zero(self) -> Range:
        """The least interval that holds this one and zero, which padding needs to be exact."""
        return Range(min(self.low, 0.0), max(self.high, 0.0))


@dataclass(frozen=True, eq=False)
class ConvPart:
    """A convolution with its normalisation folded in.

    Attributes:
        weight: (out, in, k, k) float32.
        bias: (out,) float32.
        stride: 1 or 2.
        saturates: the interval to which the option clamps the input, or ``None`` where it does not.
    """

    weight: Array
    bias: Array
    stride: int
    saturates: Range | None = None

    @property
    def padding(self) -> int:
        """Zeros added on each side: what keeps the size at stride 1."""
        return int(self.weight.shape[2]) // 2


@dataclass(frozen=True)
class BlockPart:
    """One residual block as one option computes it."""

    shape: Block
    conv1: ConvPart
    conv2: ConvPart
    projection: ConvPart | None


@dataclass(frozen=True, eq=False)
class GatePart:
    """The gates' weights, the embedding folded into the LSTM's input weights.

    With ``p`` the pooled features of block i and ``h`` the hidden state, the LSTM's four gates, in torch's order
    (input, forget, cell, output), are ``input_weight[i] @ p + recurrent_weight @ h + bias[i]``.

    Attributes:
        input_weight: a (4 * hidden, channels) float32 array for each block but the last.
        bias: (blocks - 1, 4 * hidden) float32.
        recurrent_weight: (4 * hidden, hidden) float32.
        projection_weight: (options, hidden) float32.
        projection_bias: (options,) float32.
    """

    input_weight: tuple[Array, ...]
    bias: Array
    recurrent_weight: Array
    projection_weight: Array
    projection_bias: Array


@dataclass(frozen=True, eq=False)
class HeadPart:
    """The classifier: ``weight @ mean(features) + bias``; (classes, channels) and (classes,) float32."""

    weight: Array
    bias: Array


def split_conv(conv: QuantizedConv2d, norm: nn.BatchNorm2d, bits: int = FULL_BITS) -> ConvPart:
    """Folds a normalisation into a convolution as it computes at a bitwidth.

    The folding is done in float64, so that an FP32 engine differs from the reference by its own arithmetic alone.
    """
    with torch.no_grad():
        weight = fake_quantize_weight(conv.weight, bits).double()
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None and var is not None  # noqa: S101 (BatchNorm2d types them as optional)
        scale = norm.weight.double() / torch.sqrt(var.double() + norm.eps)
        folded = weight * scale[:, None, None, None]
        bias = norm.bias.double() - mean.double() * scale
    saturates = Range(float(conv.low), float(conv.high)) if bits < FULL_BITS else None
    return ConvPart(folded.float().numpy(), bias.float().numpy(), conv.stride, saturates)


def split_stem(network: DFSNetwork) -> tuple[ConvPart, BlockPart]:
    """The first convolution and the first block: never gated, always in full precision, so one engine."""
    backbone = network.backbone
    return split_conv(backbone.stem_conv, backbone.stem_norm), split_block(network.blocks[0], Option(FULL_BITS))


def split_block(block: BasicBlock, option: Option) -> BlockPart:
    """A block as an option that runs it computes it."""
    projection = block.projection
    return BlockPart(
        shape=block.shape,
        conv1=split_conv(block.conv1, block.norm1, option.bits),
        conv2=split_conv(block.conv2, block.norm2, option.bits),
        projection=None if projection is None else split_conv(projection.conv, projection.norm, option.bits),
    )


def split_skip(block: BasicBlock) -> ConvPart | None:
    """What a skipped block computes: its projection in full precision, or nothing."""
    return None if block.projection is None else split_conv(block.projection.conv, block.projection.norm)


def split_gate(network: DFSNetwork) -> GatePart | None:
    """The gates, with each embedding folded into the LSTM's input weights (both are linear).

    Returns:
        The gates, or ``None`` where a static policy decides.
    """
    gate = network.gate
    if gate is None:
        return None
    with torch.no_grad():
        lstm_weight, bias = gate.lstm.weight_ih.double(), (gate.lstm.bias_ih + gate.lstm.bias_hh).double()
        linears = [embedding for embedding in gate.embeddings if isinstance(embedding, nn.Linear)]
        inputs = [(lstm_weight @ linear.weight.double()).float().numpy() for linear in linears]
        biases = [(lstm_weight @ linear.bias.double() + bias).float().numpy() for linear in linears]
        return GatePart(
            input_weight=tuple(inputs),
            bias=np.stack(biases) if biases else np.zeros((0, len(bias)), np.float32),
            recurrent_weight=gate.lstm.weight_hh.numpy().copy(),
            projection_weight=gate.projection.weight.numpy().copy(),
            projection_bias=gate.projection.bias.numpy().copy(),
        )


def split_head(network: DFSNetwork) -> HeadPart:
    """The classifier."""
    head = network.backbone.head
    with torch.no_grad():
        return HeadPart(head.weight.numpy().copy(), head.bias.numpy().copy())
