"""The network as it will be deployed, differentiable: INT8 blocks compute what their engines for ONNX Runtime compute.

Training rounds per tensor on an asymmetric grid (models/quantize.py); an engine folds the normalisation, rounds weights
symmetrically for each output channel, and keeps activations in uint8 on calibrated grids (exporters/quantized.py).
Training the last steps in the engine's arithmetic leaves the network where export loses nothing. Gradients pass
straight through every rounding, and stop where a value is clamped.

What is simulated: options of up to 8 bits as INT8 engines, both for features that arrive in float32 and for those in
uint8; other quantised options with rounded weights and clamped inputs, as FP16 and FP32 engines serve them. What is
not: the rounding of biases to 32 bits, and float16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.calibration import CalibratedRange, Range, TensorKey, block_ranges, calibrate
from dfs_deploy.exporters.int8 import UINT8_MAX, BlockRanges, Grid, output_grid
from dfs_deploy.models import BasicBlock, DFSNetwork, NetworkOutput, QuantizedConv2d, decide, run_option
from dfs_deploy.models.quantize import fake_quantize_weight
from dfs_deploy.options import PRECISIONS, Option, engine_precision
from dfs_deploy.training.forward import joint_forward

INT8_LIMIT = 127
"""Greatest level of a weight, both ways."""

Ranges = Mapping[TensorKey, CalibratedRange]


def int8_options(network: DFSNetwork) -> list[int]:
    """Indices of the options that INT8 engines serve, among those that some block may run."""
    possible = {option for index in range(1, len(network.blocks)) for option in network.options_of(index)}
    return [
        index
        for index, option in enumerate(network.options)
        if option in possible and engine_precision(option, PRECISIONS) == "int8"
    ]


def calibrate_deployed(
    network: DFSNetwork, batches: Callable[[], Iterator[Tensor]]
) -> dict[TensorKey, CalibratedRange]:
    """Calibrates as ``dfs-deploy export`` does with its defaults: ``minmax`` over what the gate sends to each block.

    Args:
        network: its mode is restored afterwards.
        batches: called once a pass; yields (N, C, H, W) float32, normalised, the same each time.

    Returns:
        An interval for each tensor that an INT8 engine rounds; see :func:`dfs_deploy.calibration.calibrate`.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        return calibrate(network, int8_options(network), batches, "minmax")
    finally:
        for module, mode in modes:
            module.training = mode


def plain_ranges(ranges: Ranges) -> list[tuple[object, ...]]:
    """Ranges as plain values, which :func:`read_ranges` takes."""
    return [(*astuple(key), *astuple(value)) for key, value in sorted(ranges.items())]


def read_ranges(plain: Sequence[tuple[Any, ...]]) -> dict[TensorKey, CalibratedRange]:
    """Ranges from plain values."""
    return {TensorKey(*values[:3]): CalibratedRange(*values[3:]) for values in plain}


def widest_ranges(parts: Sequence[Ranges]) -> dict[TensorKey, CalibratedRange]:
    """One interval for each tensor that holds those of all parts, each measured on other images."""
    merged: dict[TensorKey, CalibratedRange] = {}
    for key in sorted({key for part in parts for key in part}):
        found = [part[key] for part in parts if key in part]
        routed = [value for value in found if value.source == "routed"] or found
        low, high = min(value.low for value in routed), max(value.high for value in routed)
        merged[key] = CalibratedRange(low, high, routed[0].source, sum(value.samples for value in routed))
    return merged


def deployed_forward(network: DFSNetwork, x: Tensor, ranges: Ranges) -> NetworkOutput:
    """Runs the network in its engines' arithmetic; the softmax carries the gate's gradient (Section 3).

    Args:
        network: its normalisation is folded by its running statistics, whatever its mode.
        x: (N, C, H, W) float32, normalised.
        ranges: as :func:`calibrate_deployed` gives them.

    Returns:
        The output; ``path`` is the hard choice.
    """
    first, *gated = network.blocks
    options, policy = network.options, network.policy
    int8 = int8_options(network)
    features = first(network.backbone.stem(x))
    in_uint8 = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    grid: Grid | None = None
    state = None if network.gate is None else network.gate.initial_state(features)
    costs = torch.tensor(options.costs, device=x.device)
    scores, path, cost = [], [], []
    for index, block in enumerate(gated):
        if network.gate is not None and state is not None:
            score, state = network.gate(index, features, state)
            choice = decide(score)
            soft = functional.softmax(score, 1)
        else:
            score = soft = x.new_zeros(len(x), len(options))
            choice = torch.full((len(x),), policy[index] if policy else 0, device=x.device)
        # The difference first: it is exactly zero, so the weights are exactly one-hot.
        weight = functional.one_hot(choice, len(options)).to(soft.dtype) + (soft - soft.detach())
        outputs = []
        for k, option in enumerate(options):
            if option not in network.options_of(block.shape.index):
                continue
            if k in int8:
                own = block_ranges(ranges, block.shape.index, k)
                y = _by_form(block, features, in_uint8, grid, option, own)
            else:
                y = run_option(block, features, option, round_inputs=False)
            outputs.append(weight[:, k, None, None, None] * y)
        features = torch.stack(outputs).sum(0)
        in_uint8, grid = _forms(network, block, choice, in_uint8, grid, int8, ranges)
        scores.append(score)
        path.append(choice)
        cost.append((weight * costs).sum(1))
    n = len(x)
    return NetworkOutput(
        logits=network.backbone.classify(features),
        path=torch.stack(path, 1) if path else x.new_zeros((n, 0), dtype=torch.int64),
        scores=torch.stack(scores, 1) if scores else x.new_zeros((n, 0, len(options))),
        expected_cost=torch.stack(cost, 1).mean(1) if cost else x.new_ones(n),
    )


def in_both_arithmetics(network: DFSNetwork, x: Tensor, ranges: Ranges) -> NetworkOutput:
    """Runs the first half of a batch in the engines' arithmetic and the rest in that of training.

    What is trained in one alone drifts away in the other, and ``dfs-deploy verify`` compares the two: decisions then
    come to differ that were the same before.

    Args:
        network: in evaluation mode.
        x: (N, C, H, W) float32, normalised, in random order.
        ranges: as :func:`calibrate_deployed` gives them.

    Returns:
        The output of both halves, in the order of ``x``.
    """
    half = len(x) // 2
    parts = [deployed_forward(network, x[:half], ranges), joint_forward(network, x[half:])]
    return NetworkOutput(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(NetworkOutput)))


def _forms(
    network: DFSNetwork,
    block: BasicBlock,
    choice: Tensor,
    in_uint8: Tensor,
    grid: Grid | None,
    int8: list[int],
    ranges: Ranges,
) -> tuple[Tensor, Grid | None]:
    """Which samples are in uint8 after a block, and on which grid: INT8 engines leave it, a free skip passes it on."""
    ran_int8 = torch.zeros_like(in_uint8)
    for k in int8:
        ran_int8 |= choice == k
        key = TensorKey(block.shape.index, k, "output")
        if key in ranges:
            grid = Grid.uint8(Range(0.0, ranges[key].high))
    if block.projection is not None:
        return ran_int8, grid
    skips = torch.tensor([option.skips for option in network.options], device=choice.device)[choice]
    return ran_int8 | (in_uint8 & skips), grid


def _by_form(
    block: BasicBlock, features: Tensor, in_uint8: Tensor, grid: Grid | None, option: Option, ranges: BlockRanges
) -> Tensor:
    """An INT8 option over samples in either form."""
    if grid is None or not bool(in_uint8.any()):
        return int8_block(block, features, option, ranges, None)
    if bool(in_uint8.all()):
        return int8_block(block, features, option, ranges, grid)
    rows = [torch.nonzero(flag).flatten() for flag in (~in_uint8, in_uint8)]
    parts = [int8_block(block, features[r], option, ranges, g) for r, g in zip(rows, (None, grid), strict=True)]
    return torch.cat(parts)[torch.argsort(torch.cat(rows))]


def int8_block(block: BasicBlock, features: Tensor, option: Option, ranges: BlockRanges, grid: Grid | None) -> Tensor:
    """One block as its INT8 engine for ONNX Runtime computes it.

    Args:
        block: the block; its normalisation is folded.
        features: (N, C, H, W) float32.
        option: of up to 8 bits.
        ranges: calibrated intervals of the block at the option.
        grid: on which the features lie, where they arrive in uint8; ``None`` for float32.

    Returns:
        (N, C', H', W') float32, on the grid of ``ranges.output``.
    """

    def convolve(conv: QuantizedConv2d, norm: nn.BatchNorm2d, calibrated: Range) -> Tensor:
        interval = _clamped(calibrated, conv)
        own = Grid.uint8(interval) if grid is None else grid
        return _convolve(conv, norm, _round(features, own, interval), option.bits)

    hidden = Grid.uint8(Range(0.0, ranges["conv2"].high))
    y = _round(convolve(block.conv1, block.norm1, ranges["conv1"]), hidden, Range(0.0, ranges["conv2"].high))
    y = _round(y, hidden, _clamped(ranges["conv2"], block.conv2))
    y = _round(_convolve(block.conv2, block.norm2, y, option.bits), Grid.uint8(ranges["conv2_out"]))
    shortcut = features
    if block.projection is not None:
        shortcut = convolve(block.projection.conv, block.projection.norm, ranges["projection"])
        shortcut = _round(shortcut, Grid.uint8(ranges["projection_out"]))
    return _round(y + shortcut, output_grid(ranges))


def _convolve(conv: QuantizedConv2d, norm: nn.BatchNorm2d, x: Tensor, bits: int) -> Tensor:
    """Convolution and folded normalisation, weights rounded to the option's grid, then to int8 by output channel."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101 (BatchNorm2d types them optional)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = fake_quantize_weight(conv.weight, bits) * scale[:, None, None, None]
    bias = norm.bias - norm.running_mean * scale
    with torch.no_grad():
        largest = weight.abs().amax((1, 2, 3), keepdim=True)
        step = torch.where(largest > 0, largest, 1.0) / INT8_LIMIT
        rounded = (weight / step).round().clamp(-INT8_LIMIT, INT8_LIMIT) * step
    weight = weight + (rounded - weight).detach()
    return functional.conv2d(x, weight, bias, stride=conv.stride, padding=conv.padding)


def _round(x: Tensor, grid: Grid, interval: Range | None = None) -> Tensor:
    """Rounds to a uint8 grid and clamps to it, or to an interval of it; the gradient stops where it clamps."""
    low, high = 0, UINT8_MAX
    if interval is not None:
        low, high = (round(end / grid.scale) + grid.zero_point for end in (interval.low, interval.high))
        low, high = max(low, 0), min(high, UINT8_MAX)
    with torch.no_grad():
        levels = (x / grid.scale).round() + grid.zero_point
        rounded = (levels.clamp(low, high) - grid.zero_point) * grid.scale
    ends = [(level - grid.zero_point) * grid.scale for level in (low, high)]
    kept = x.clamp(*ends)
    return kept + (rounded - kept).detach()


def _clamped(interval: Range, conv: QuantizedConv2d) -> Range:
    """As :func:`dfs_deploy.exporters.int8.clamped`, for a convolution that an option of up to 8 bits runs."""
    return Range(interval.low if interval.low < 0.0 else max(float(conv.low), 0.0), max(interval.high, 0.0))
