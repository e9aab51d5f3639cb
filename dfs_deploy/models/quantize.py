"""Deterministic fake quantisation: float arithmetic on a grid of ``2 ** bits`` values.

The grid is per tensor and asymmetric, with a float offset, as the networks are trained (the scalable quantiser of
Banner et al. 2018, without its noise): zero is in general not on the grid. Rounding is half to even.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Quantizer = Literal["tensor", "channel"]
"""Grid of a quantised weight; see ``fake_quantize_weight``."""

_SMALLEST_STEP = 1e-8


def fake_quantize(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Rounds a tensor to ``2 ** bits`` evenly spaced values over a range, and clamps what lies outside.

    The gradient passes straight through, as in training with rounding.

    Args:
        x: float tensor of any shape.
        low: scalar or (1,), the least value of the grid.
        high: scalar or (1,), the greatest value of the grid.
        bits: 2 to 31.

    Returns:
        Tensor of the shape of ``x``; float32 for a format with fewer digits, which could not hold the grid.
    """
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    steps = 2.0**bits - 1.0
    # In float64, then rounded once: a step off by one float32 digit sends values at a tie to the other neighbour.
    step = high.double().sub(low.double()).div_(steps).clamp_min_(_SMALLEST_STEP).to(x.dtype)
    return _PassStraightThrough.apply(x, low, step, steps)  # type: ignore[no-any-return, no-untyped-call]


class _PassStraightThrough(torch.autograd.Function):
    """Rounding to a grid, whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, step: Tensor, steps: float) -> Tensor:
        return x.sub(low).div_(step).clamp_(0.0, steps).round_().mul_(step).add_(low)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*gradients, None, None, None)


def fake_quantize_weight(weight: Tensor, bits: int, quantizer: Quantizer = "tensor") -> Tensor:
    """Rounds a weight to a grid over its own range.

    The grid ``tensor`` reaches from the least to the greatest value; ``channel`` is symmetric about zero for each
    output channel, as inference engines have it.

    Args:
        weight: float tensor; its first axis counts output channels.
        bits: 2 to 31, or 32 for the weight as it is.
        quantizer: kind of the grid.

    Returns:
        Tensor of the shape of ``weight``.
    """
    if bits >= 32:
        return weight
    if quantizer == "tensor":
        return fake_quantize(weight, weight.detach().amin(), weight.detach().amax(), bits)
    limit = 2.0 ** (bits - 1) - 1.0
    with torch.no_grad():
        largest = weight.detach().abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
        step = largest.double().div_(limit).clamp_min_(_SMALLEST_STEP).to(weight.dtype)
        rounded = weight.div(step).round_().clamp_(-limit, limit).mul_(step)
    return weight + (rounded - weight).detach() if weight.requires_grad else rounded


def batch_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """The range of a batch: the mean over samples of each sample's least and greatest value.

    Args:
        x: (N, ...) float tensor.

    Returns:
        Two (1,) tensors.
    """
    axes = tuple(range(1, x.ndim))
    return x.detach().amin(axes).mean().reshape(1), x.detach().amax(axes).mean().reshape(1)
