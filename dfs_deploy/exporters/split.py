"""The pieces of a trained network that become engines, with batch normalisation folded into convolutions.

A piece is plain NumPy: the numbers that a convolution multiplies by and adds, and the interval to which its option
clamps its input. An option's weights are those that the option computes with: rounded to its grid first, folded after.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dfs_deploy.calibration import Range
from dfs_deploy.models import BasicBlock, DFSNetwork, QuantizedConv2d, fake_quantize_weight
from dfs_deploy.network import Block
from dfs_deploy.options import FULL_BITS, Option

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """The window that a convolution slides over a map: the same numbers for height and width, the same on each side."""

    kernel: int
    stride: int
    padding: int


@dataclass(frozen=True, eq=False)
class ConvPart:
    """A convolution with its normalisation folded in.

    Attributes:
        weight: (out, in, kernel, kernel) float32.
        bias: (out,) float32.
        window: kernel, stride and padding.
        saturates: interval to which the option clamps the input; ``None`` if it does not.
    """

    weight: Array
    bias: Array
    window: Window
    saturates: Range | None = None


@dataclass(frozen=True, eq=False)
class BlockPart:
    """A residual block as one option computes it: ``relu(branch(x) + shortcut(x))``.

    Attributes:
        shape: sizes of the block's input and output.
        branch: convolutions in order; a relu follows each but the last.
        projection: convolution of the shortcut; ``None`` if the shortcut is the block's input.
    """

    shape: Block
    branch: tuple[ConvPart, ...]
    projection: ConvPart | None


@dataclass(frozen=True, eq=False)
class GatePart:
    """Weights of the gates, with the embedding folded into the LSTM's input weights.

    With ``p`` the pooled features of block i and ``h`` the hidden state, the LSTM's four gates, in torch's order
    (input, forget, cell, output), are ``input_weight[i] @ p + recurrent_weight @ h + bias[i]``.

    Attributes:
        input_weight: one (4 * hidden, channels) float32 array for each block but the last.
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

    The folding is done in float64, so that an FP32 engine differs from the reference only by its own arithmetic.
    """
    with torch.no_grad():
        weight = fake_quantize_weight(conv.weight, bits).double()
        mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        scale = norm.weight.double() / torch.sqrt(var.double() + norm.eps)
        folded = weight * scale[:, None, None, None]
        bias = norm.bias.double() - mean.double() * scale
    saturates = Range(float(conv.low), float(conv.high)) if bits < FULL_BITS else None
    window = Window(conv.weight.shape[2], conv.stride, conv.padding)
    return ConvPart(folded.float().numpy(), bias.float().numpy(), window, saturates)


def split_stem(network: DFSNetwork) -> tuple[ConvPart, BlockPart]:
    """The first convolution and the first block: never gated, always in full precision, so one engine."""
    backbone = network.backbone
    return split_conv(backbone.stem_conv, backbone.stem_norm), split_block(network.blocks[0], Option(FULL_BITS))


def split_block(block: BasicBlock, option: Option) -> BlockPart:
    """A block as an option that runs it computes it."""
    parts = {name: split_conv(conv, norm, option.bits) for name, (conv, norm) in block.convolutions.items()}
    projection = parts.pop("projection", None)
    return BlockPart(block.shape, tuple(parts.values()), projection)


def split_skip(block: BasicBlock) -> ConvPart | None:
    """The projection of a skipped block, in full precision; ``None`` if a skip computes nothing."""
    return None if block.projection is None else split_conv(block.projection.conv, block.projection.norm)


def split_gate(network: DFSNetwork) -> GatePart | None:
    """The gates, with each embedding folded into the LSTM's input weights (both are linear).

    Returns:
        The gates, or ``None`` if a static policy decides.
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
