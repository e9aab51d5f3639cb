"""The forward that joint training differentiates: one backward per sample, whatever the number of options.

Equation 1 mixes every option's output by the gate's weights. With the hard choice of Section 3 the weights are one-hot
in the forward, and the softmax only carries the gradient. For one sample and one block this means:

- The chosen option has weight 1: it needs a forward and a backward.
- An option that was not chosen has weight 0: nothing flows back through its output. The gate's gradient needs the
  output itself, so it needs a forward without a graph.

``DFSNetwork.forward`` pays a backward for each option of each sample; this forward pays it once. In evaluation mode
both give the same values and the same gradients. In training mode they differ in the batch that is normalised:

- There, each option of a block normalises the whole batch on its own, with the samples that chose another option, and
  the running statistics follow every one of them.
- Here, a block's normalisation sees what reaches it when deployed: the samples that run the block, each in its own
  bitwidth, as one batch. The running statistics follow that, by the share of the batch that ran. Options that were not
  chosen are normalised by the same statistics, as constants. If all samples choose one option, the forward and the
  gradient of the backbone are again those of ``DFSNetwork.forward``.
- Fewer than ``LEAST_ROWS`` samples are no batch: they are normalised by the running statistics, which then stay.

A convolution's running input range moves once per step: over all samples for a block's first convolution and its
projection, over the samples that run the block for its second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.models import BasicBlock, DFSNetwork, NetworkOutput, QuantizedConv2d
from dfs_deploy.models.network import Decision
from dfs_deploy.models.quantize import fake_quantize, fake_quantize_weight
from dfs_deploy.options import FULL_BITS, Options

LEAST_ROWS = 4
"""Fewest samples whose own batch statistics are used in training mode."""


class _Affine(NamedTuple):
    """A normalisation as constants: ``y * scale + shift``, each (C,) float32."""

    scale: Tensor
    shift: Tensor


class _Group(NamedTuple):
    """Consecutive samples of one option, in a batch that is sorted by option.

    Attributes:
        option: index of the option.
        bits: bitwidth of the option; 0 for a skip.
        start: first of the samples.
        stop: first after them.
    """

    option: int
    bits: int
    start: int
    stop: int


def joint_forward(network: DFSNetwork, x: Tensor) -> NetworkOutput:
    """Computes the hard choice of every block, with the softmax's gradient for the gate (Section 3).

    Args:
        network: with a gate, or with a policy, which is then followed. In training mode, in evaluation mode, or with
            only some modules in either.
        x: (N, C, H, W) float32, normalised.

    Returns:
        The output; ``path`` is the hard choice, and ``expected_cost`` carries a gradient to the gate.
    """
    if network.gate is None:
        return network(x)  # type: ignore[no-any-return]
    return network.unroll(x, lambda block, features, taken: _run_block(block, features, taken, network.options))


def _run_block(block: BasicBlock, x: Tensor, taken: Decision, options: Options) -> Tensor:
    """Runs one gated block, and gives the gate the outputs of the options that were not chosen."""
    # Skipping samples come first, so that those that run are consecutive.
    sequence = sorted(range(len(options)), key=lambda k: not options[k].skips)
    rank = taken.choice.new_tensor([sequence.index(k) for k in range(len(options))])[taken.choice]
    order = torch.argsort(rank, stable=True)
    stops = torch.bincount(rank, minlength=len(options)).cumsum(0).tolist()
    groups = [
        _Group(k, options[k].bits, start, stop) for k, start, stop in zip(sequence, [0, *stops], stops, strict=False)
    ]
    rows = x.index_select(0, order)
    if any(option.quantized for option in options):
        _follow(block.conv1, rows)
        if block.projection is not None:
            _follow(block.projection.conv, rows)
    chosen = _Chosen(block, groups)
    result = chosen.run(rows)
    if torch.is_grad_enabled() and taken.scores.requires_grad:
        with torch.no_grad():
            outputs = {group.option: chosen.run_other(rows.detach(), result.detach(), group) for group in groups}
        soft = functional.softmax(taken.scores, 1).index_select(0, order)
        by_option = [outputs[k] for k in range(len(options))]
        result = _HardChoice.apply(result, soft, *by_option)  # type: ignore[no-untyped-call]
    return result.index_select(0, torch.argsort(order))


class _Chosen:
    """One block over samples sorted by option: the chosen options with a graph, the others without."""

    def __init__(self, block: BasicBlock, groups: Sequence[_Group]) -> None:
        self._block = block
        self._groups = groups
        self._affines: dict[nn.BatchNorm2d, _Affine] = {}
        self._moved_second_range = False

    def run(self, rows: Tensor) -> Tensor:
        """Gives (N, C', H', W'), each sample in its own option."""
        block = self._block
        running = [group for group in self._groups if group.bits]
        first = running[0].start if running else len(rows)
        shortcut = rows
        if block.projection is not None:
            convolved = _convolve(block.projection.conv, rows, self._groups)
            shortcut = self._normalize(block.projection.norm, convolved, 1.0)
        if first == len(rows):
            return shortcut
        share = (len(rows) - first) / len(rows)
        y = functional.relu(self._normalize(block.norm1, _convolve(block.conv1, rows[first:], running), share))
        if any(group.bits < FULL_BITS for group in running):
            self._move_second_range(y)
        y = self._normalize(block.norm2, _convolve(block.conv2, y, running), share)
        ran = functional.relu(y + shortcut[first:])
        return ran if first == 0 else torch.cat([shortcut[:first], ran])

    def run_other(self, rows: Tensor, result: Tensor, group: _Group) -> Tensor:
        """Gives the output (N, C', H', W') of one option for all samples; those that chose it have it in ``result``."""
        if group.stop == group.start:
            return self._option(rows, group.bits)
        if group.stop - group.start == len(rows):
            return result
        output = self._option(torch.cat([rows[: group.start], rows[group.stop :]]), group.bits)
        return torch.cat([output[: group.start], result[group.start : group.stop], output[group.start :]])

    def _option(self, x: Tensor, bits: int) -> Tensor:
        block = self._block
        shortcut = x
        if block.projection is not None:
            shortcut = self._convolve_affine(block.projection.conv, block.projection.norm, x, bits or FULL_BITS)
        if not bits:
            return shortcut
        y = self._convolve_affine(block.conv1, block.norm1, x, bits).relu_()
        if bits < FULL_BITS:
            self._move_second_range(y)
        return self._convolve_affine(block.conv2, block.norm2, y, bits).add_(shortcut).relu_()

    def _move_second_range(self, y: Tensor) -> None:
        if not self._moved_second_range:
            _follow(self._block.conv2, y)
            self._moved_second_range = True

    def _normalize(self, norm: nn.BatchNorm2d, x: Tensor, share: float) -> Tensor:
        """Normalises the samples that run the block, (n, C, H, W), and keeps the normalisation as constants too.

        The running statistics move by ``share``, that of the samples in the batch, of their momentum.
        """
        if not norm.training or len(x) < LEAST_ROWS:
            return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        momentum = (0.1 if norm.momentum is None else norm.momentum) * share
        result, mean, inverse_std = torch.native_batch_norm(
            x, norm.weight, norm.bias, norm.running_mean, norm.running_var, True, momentum, norm.eps
        )
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        self._affines[norm] = _affine(norm, mean.detach(), inverse_std.detach())
        return result

    def _convolve_affine(self, conv: QuantizedConv2d, norm: nn.BatchNorm2d, x: Tensor, bits: int) -> Tensor:
        """Convolution and normalisation by constants in one: the scale goes into the weight. No gradient."""
        affine = self._affines.get(norm)
        if affine is None:
            mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
            affine = _affine(norm, mean, (variance + norm.eps).rsqrt())
        if bits < FULL_BITS:
            x = fake_quantize(x, conv.low, conv.high, bits)
        weight = fake_quantize_weight(conv.weight, bits) * affine.scale[:, None, None, None]
        if conv.weight.is_contiguous(memory_format=torch.channels_last):
            weight = weight.contiguous(memory_format=torch.channels_last)
        return functional.conv2d(x, weight, affine.shift, stride=conv.stride, padding=conv.padding)


class _HardChoice(torch.autograd.Function):
    """Passes the chosen features on; backward, gives the weight of each option its product with the gradient."""

    @staticmethod
    def forward(ctx: Any, chosen: Tensor, soft: Tensor, *outputs: Tensor) -> Tensor:
        ctx.save_for_backward(*outputs)
        return chosen.view_as(chosen)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        by_sample = gradient.permute(0, 2, 3, 1).flatten(1).unsqueeze(1)
        dots = [
            torch.bmm(by_sample, output.permute(0, 2, 3, 1).flatten(1).unsqueeze(2)).flatten()
            for output in ctx.saved_tensors
        ]
        return (gradient, torch.stack(dots, 1), *(None for _ in dots))


def _convolve(conv: QuantizedConv2d, x: Tensor, groups: Sequence[_Group]) -> Tensor:
    """Convolves consecutive groups of samples, each in its own bitwidth; a skipped group in full precision."""
    filled = [group for group in groups if group.stop > group.start]
    parts = torch.split(x, [group.stop - group.start for group in filled])
    outputs = [conv.convolve(part, group.bits or FULL_BITS) for part, group in zip(parts, filled, strict=True)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


@torch.no_grad()
def _affine(norm: nn.BatchNorm2d, mean: Tensor, inverse_std: Tensor) -> _Affine:
    scale = norm.weight * inverse_std
    return _Affine(scale, norm.bias - mean * scale)


@torch.no_grad()
def _follow(conv: QuantizedConv2d, x: Tensor) -> None:
    if conv.training:
        conv.follow_range(x.detach())
