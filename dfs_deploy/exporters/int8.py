"""The arithmetic of an INT8 block, described once: the graphs of every runtime are written from this description.

The weights of an option are rounded to integers again, one scale per output channel; activations are rounded to grids
that calibration chose, and clamped where the option clamps. Which grids those are depends on the runtime:

- ONNX Runtime on a CPU is fast with uint8 activations, and runs a convolution in integers only if its input, weight,
  bias and output are all rounded. Clamping at zero is then the relu.
- TensorRT takes only int8 with zero point 0, one scale per tensor, no rounded bias, and at a residual addition a
  rounded shortcut and a convolution as it is, so that convolution, addition and relu become one kernel ("Working with
  Quantized Types", NVIDIA TensorRT documentation). ``dfs_deploy.exporters.tensorrt_lint`` holds every graph to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.calibration import Range
from dfs_deploy.exporters.split import BlockPart, ConvPart, Window
from dfs_deploy.network import Block

UINT8_MAX = 255
INT8_LIMIT = 127
INT32_LIMIT = 2**31 - 1

LEAST_SCALE = float(np.finfo(np.float32).tiny)
"""A GPU takes a smaller number for zero, and a scale must be positive."""

BlockRanges = Mapping[str, Range]
"""Calibrated intervals of one block at one option, by the tensors of ``TensorKey``."""


@dataclass(frozen=True)
class Grid:
    """Integers that stand for the values of a tensor: ``value = scale * (integer - zero_point)``.

    Attributes:
        scale: value of one step, exactly representable in float32.
        zero_point: integer that stands for zero.
        signed: whether the integers are int8; else they are uint8.
    """

    scale: float
    zero_point: int = 0
    signed: bool = False

    @classmethod
    def uint8(cls, interval: Range) -> Grid:
        """The 256 levels over an interval, moved so that zero is one of them."""
        interval = interval.including_zero()
        scale = max((interval.high - interval.low) / UINT8_MAX, LEAST_SCALE)
        return cls(float(np.float32(scale)), round(-interval.low / scale))

    @classmethod
    def int8(cls, interval: Range) -> Grid:
        """The levels over an interval that was widened to be symmetric about zero."""
        largest = max(abs(interval.low), abs(interval.high))
        return cls(float(np.float32(max(largest / INT8_LIMIT, LEAST_SCALE))), signed=True)

    def level(self, value: float) -> int:
        """The uint8 level nearest to a value."""
        return min(max(round(value / self.scale) + self.zero_point, 0), UINT8_MAX)

    def quantize(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Rounds values to their uint8 levels."""
        with np.errstate(over="ignore"):  # a tensor that was always zero has next to no scale
            levels = np.rint(values / self.scale) + self.zero_point
        rounded: NDArray[np.uint8] = np.clip(levels, 0, UINT8_MAX).astype(np.uint8)
        return rounded

    def dequantize(self, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The values of uint8 levels."""
        shifted: NDArray[np.float32] = levels.astype(np.float32) - np.float32(self.zero_point)
        return shifted * np.float32(self.scale)


@dataclass(frozen=True, eq=False)
class Int8Conv:
    """A convolution with integer weights.

    Attributes:
        takes: grid to which the input is rounded.
        clamp: interval to which the input is clamped; ``None`` if the ends of the grid do that.
        weight: (out, in, kernel, kernel) int8.
        weight_scale: (out,) float32, value of one step of a channel's weights.
        bias: (out,) int32 in steps of ``bias_scale``, or float32 if it is added to the dequantised sum.
        gives: grid to which the output is rounded; ``None`` if it stays float32.
        window: kernel, stride and padding.
    """

    takes: Grid
    clamp: Range | None
    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    bias: NDArray[np.int32] | NDArray[np.float32]
    gives: Grid | None
    window: Window

    @property
    def bias_scale(self) -> NDArray[np.float32]:
        """(out,) float32, value of one step of the products of input and weight."""
        return _product_scale(self.weight_scale, self.takes).astype(np.float32)

    @classmethod
    def for_onnxruntime(cls, part: ConvPart, bits: int, takes: Grid, clamp: Range | None, gives: Grid) -> Int8Conv:
        """A convolution in integers, uint8 in and uint8 out, with weights of 8 or 7 bits."""
        # The bias is counted in products of both scales and must fit 32 bits, also where a channel's weights or all
        # that was seen of the input are next to nothing; a coarser weight then loses nothing that shows.
        weight, scale = quantize_weight(part.weight, bits, np.abs(part.bias) / takes.scale / INT32_LIMIT)
        steps = np.rint(part.bias / _product_scale(scale, takes))
        bias = np.clip(steps, -INT32_LIMIT, INT32_LIMIT).astype(np.int32)
        return cls(takes, clamp, weight, scale, bias, gives, part.window)

    @classmethod
    def for_tensorrt(cls, part: ConvPart, takes: Grid, clamp: Range | None, gives: Grid | None = None) -> Int8Conv:
        """A convolution of int8 values whose sum gets a float32 bias."""
        weight, scale = quantize_weight(part.weight, 8, LEAST_SCALE)
        return cls(takes, clamp, weight, scale, part.bias, gives, part.window)


@dataclass(frozen=True, eq=False)
class Int8Block:
    """A residual block in INT8: ``relu(branch(x) + shortcut(x))``.

    Attributes:
        shape: sizes of the block's input and output.
        features: grid on which the features arrive; ``None`` if they arrive in float32.
        branch: convolutions in order; a relu follows each but the last.
        projection: convolution of the shortcut; ``None`` if the shortcut is the block's input.
        shortcut: grid to which an input that is the shortcut is rounded before the addition; ``None`` if it is added
            as it arrives. A projection's own ``gives`` says the same of its output.
        output: grid of the block's output; ``None`` if that is float32.
    """

    shape: Block
    features: Grid | None
    branch: tuple[Int8Conv, ...]
    projection: Int8Conv | None
    shortcut: Grid | None
    output: Grid | None

    @classmethod
    def for_onnxruntime(cls, part: BlockPart, ranges: BlockRanges, features: Grid | None, bits: int) -> Int8Block:
        """A block for ONNX Runtime, which ends in uint8, with weights of 8 or 7 bits.

        From float32 features the shortcut stays float32: the output of a skipped stride block is negative in parts,
        which the grid of a block's output cannot hold.
        """

        def taken(name: str, conv: ConvPart) -> tuple[Grid, Range | None]:
            interval = clamped(ranges[name], conv)
            if features is not None:
                return features, interval
            return Grid.uint8(interval), interval if interval.low > 0.0 else None

        first, *others = part.branch
        inputs = [taken("conv1", first)]
        for i, conv in enumerate(others, 2):
            name = f"conv{i}"  # a relu comes before it
            inputs.append((Grid.uint8(Range(0.0, ranges[name].high)), clamped(ranges[name], conv)))
        last = Grid.uint8(ranges[f"conv{len(part.branch)}_out"])
        outputs = [*(grid for grid, _ in inputs[1:]), last]
        branch = tuple(
            Int8Conv.for_onnxruntime(conv, bits, takes, clamp, gives)
            for conv, (takes, clamp), gives in zip(part.branch, inputs, outputs, strict=True)
        )
        projection = None
        if part.projection is not None:
            projected = Grid.uint8(ranges["projection_out"])
            taking = taken("projection", part.projection)
            projection = Int8Conv.for_onnxruntime(part.projection, bits, *taking, projected)
        return cls(part.shape, features, branch, projection, None, output_grid(ranges))

    @classmethod
    def for_tensorrt(cls, part: BlockPart, ranges: BlockRanges) -> Int8Block:
        """A block for TensorRT, with float32 features at both ends."""

        def taken(name: str, conv: ConvPart) -> tuple[Grid, Range | None]:
            # The output of a skipped stride block is negative in parts, and a symmetric grid would not saturate it
            # where the option does.
            interval = clamped(ranges[name], conv)
            return Grid.int8(interval), None if conv.saturates is None else interval

        first, *others = part.branch
        branch = [Int8Conv.for_tensorrt(first, *taken("conv1", first))]
        for i, conv in enumerate(others, 2):
            interval = clamped(ranges[f"conv{i}"], conv)
            # Below zero the relu before it clamps as the option does.
            clamp = interval if interval.low > 0.0 else None
            branch.append(Int8Conv.for_tensorrt(conv, Grid.int8(interval), clamp))
        projection = shortcut = None
        if part.projection is not None:
            projected = Grid.int8(ranges["projection_out"])
            projection = Int8Conv.for_tensorrt(part.projection, *taken("projection", part.projection), projected)
        else:
            shortcut = Grid.int8(ranges["shortcut"])
        return cls(part.shape, None, tuple(branch), projection, shortcut, None)


def output_grid(ranges: BlockRanges) -> Grid:
    """The uint8 grid of a block's output, which a relu keeps from being negative."""
    return Grid.uint8(Range(0.0, ranges["output"].high))


def clamped(interval: Range, part: ConvPart) -> Range:
    """The interval to which a convolution's input is clamped.

    A calibrated interval that leaves zero out only says what the data was; the grid holds zero in any case. A
    checkpoint's that lies above zero is part of what its option computes.
    """
    own = part.saturates.low if part.saturates is not None else 0.0
    return Range(interval.low if interval.low < 0.0 else max(own, 0.0), max(interval.high, 0.0))


def quantize_weight(
    weight: NDArray[np.float32], bits: int, least: NDArray[np.floating] | float = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds a weight to symmetric integers, with one scale per output channel.

    Args:
        weight: (out, in, kernel, kernel) float32.
        bits: 8, or 7 for CPUs whose 8-bit products saturate in 16 bits (x86 without VNNI).
        least: least scale of a channel; (out,) or one for all.

    Returns:
        (out, in, kernel, kernel) int8 and (out,) float32 scales.
    """
    limit = (1 << (bits - 1)) - 1
    largest = np.abs(weight).max(axis=(1, 2, 3)).astype(np.float64)
    scale = np.maximum(np.where(largest > 0, largest, 1.0) / limit, least).astype(np.float32)
    levels = np.rint(weight / scale[:, None, None, None].astype(np.float64))
    return np.clip(levels, -limit, limit).astype(np.int8), scale


def _product_scale(weight_scale: NDArray[np.float32], takes: Grid) -> NDArray[np.float64]:
    return weight_scale.astype(np.float64) * takes.scale
