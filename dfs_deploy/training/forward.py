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
  gradient of the network are again those of ``DFSNetwork.forward``.
- Fewer than ``LEAST_ROWS`` samples are no batch: they are normalised by the running statistics, which then stay.

A layer's running input range moves once per step: over all samples for layers that read a block's input, over the
samples that run the block for the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dfs_deploy.models import DFSNetwork, Evaluation, Graph, NetworkBlock, NetworkOutput, Node
from dfs_deploy.models.graph import INPUT
from dfs_deploy.models.network import Decision
from dfs_deploy.options import FULL_BITS

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
    return network.unroll(x, lambda block, features, taken: _run_block(network, block, features, taken))


def _run_block(network: DFSNetwork, block: NetworkBlock, x: Tensor, taken: Decision) -> Tensor:
    """Runs one gated block, and gives the gate the outputs of the options that were not chosen."""
    options, possible = network.options, network.options_of(block.shape.index)
    # Skipping samples come first, so that those that run are consecutive.
    sequence = sorted(range(len(options)), key=lambda k: not options[k].skips)
    rank = taken.choice.new_tensor([sequence.index(k) for k in range(len(options))])[taken.choice]
    order = torch.argsort(rank, stable=True)
    stops = torch.bincount(rank, minlength=len(options)).cumsum(0).tolist()
    groups = [
        _Group(k, options[k].bits, start, stop)
        for k, start, stop in zip(sequence, [0, *stops], stops, strict=False)
        if options[k] in possible
    ]
    rows = x.index_select(0, order)
    chosen = _Chosen(network, block, groups)
    result = chosen.run(rows)
    if len(possible) > 1 and torch.is_grad_enabled() and taken.scores.requires_grad:
        with torch.no_grad():
            outputs = {group.option: chosen.run_other(rows.detach(), result.detach(), group) for group in groups}
        soft = functional.softmax(taken.scores, 1).index_select(0, order)[:, sorted(outputs)]
        by_option = [outputs[k] for k in sorted(outputs)]
        result = _HardChoice.apply(result, soft, *by_option)  # type: ignore[no-untyped-call]
    return result.index_select(0, torch.argsort(order))


class _Chosen:
    """One block over samples sorted by option: the chosen options with a graph, the others without."""

    def __init__(self, network: DFSNetwork, block: NetworkBlock, groups: Sequence[_Group]) -> None:
        self._block = block
        self._groups = groups
        self._always = network.graphs.always
        self._base = network.evaluation()
        self._step = _Step()

    def run(self, rows: Tensor) -> Tensor:
        """Gives (N, C', H', W'), each sample in its own option."""
        graphs = self._block.graphs
        if any(0 < group.bits < FULL_BITS for group in self._groups):
            for node in self._block.whole.nodes:  # whatever reaches the block tells what its first layers may get
                if node.quantizable and node.inputs[0] == INPUT:
                    self._step.follow(self._base, node, rows)
        running = [group for group in self._groups if group.bits]
        first = running[0].start if running else len(rows)
        if graphs.free or graphs.shortcut is None:
            if first == len(rows):
                return rows
            ran = self._mix(self._block.whole, rows[first:], running, len(rows))
            return ran if first == 0 else torch.cat([rows[:first], ran])
        y = self._mix(graphs.shortcut, rows, self._groups, len(rows))
        skipped = y[:first]
        if first < len(rows):
            branch = self._mix(graphs.branch, rows[first:], running, len(rows))
            y = branch + y[first:]
            if not graphs.skip_after:
                y = self._mix(graphs.after, y, running, len(rows))
            y = y if first == 0 else torch.cat([skipped, y])
        return self._mix(graphs.after, y, self._groups, len(rows)) if graphs.skip_after else y

    def run_other(self, rows: Tensor, result: Tensor, group: _Group) -> Tensor:
        """Gives the output (N, C', H', W') of one option for all samples; those that chose it have it in ``result``."""
        if group.stop == group.start:
            return self._option(rows, group.bits)
        if group.stop - group.start == len(rows):
            return result
        output = self._option(torch.cat([rows[: group.start], rows[group.stop :]]), group.bits)
        return torch.cat([output[: group.start], result[group.start : group.stop], output[group.start :]])

    def _mix(self, graph: Graph, x: Tensor, groups: Sequence[_Group], batch: int) -> Tensor:
        parts = [(group.bits or self._always, group.stop - group.start) for group in groups]
        filled = [part for part in parts if part[1]]
        return _Mixed(**vars(self._base), parts=filled, share=len(x) / batch, step=self._step).run(graph, x)

    def _option(self, x: Tensor, bits: int) -> Tensor:
        graph = self._block.whole if bits else self._block.skipped
        if graph is None or graph.identity:
            return x
        base = {**vars(self._base), "bits": bits or self._always}
        return _Constant(**base, folded=_folded(graph), step=self._step).run(graph, x)


@dataclass(eq=False)
class _Step:
    """What happened in a block in one step.

    Attributes:
        affines: normalisations that took the batch's statistics, as constants, by the name of the node.
        moved: layers whose running range has moved.
    """

    affines: dict[str, _Affine] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)

    def follow(self, run: Evaluation, node: Node, x: Tensor) -> None:
        """Moves a layer's running range, the first time only."""
        if node.name not in self.moved:
            Evaluation.follow(run, node, x)
            self.moved.add(node.name)


@dataclass(kw_only=True, eq=False)
class _Mixed(Evaluation):
    """Groups of consecutive samples, each in its own bitwidth; normalisations see them as one batch.

    Args:
        parts: bitwidth and number of samples of each group.
        share: share of the batch that the samples are, by which running statistics follow.
        step: what happened in the block so far.
    """

    parts: Sequence[tuple[int, int]]
    share: float
    step: _Step

    def weighted(self, node: Node, x: Tensor) -> Tensor:
        parts = self.parts if node.quantizable else [(FULL_BITS, len(x))]
        if any(bits < FULL_BITS for bits, _ in parts):
            self.step.follow(self, node, x)
        outputs = []
        for (bits, _), rows in zip(parts, torch.split(x, [count for _, count in parts]), strict=True):
            self.bits = bits
            outputs.append(super().weighted(node, rows))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def follow(self, node: Node, x: Tensor) -> None:
        """Does nothing: ranges follow all groups together."""

    def batch_norm(self, node: Node, x: Tensor) -> Tensor:
        if not self.uses_batch(node):
            return super().batch_norm(node, x)
        mean, variance = self.tensors[node.tensors["mean"]], self.tensors[node.tensors["variance"]]
        weight, bias = self.tensor(node, "weight"), self.tensor(node, "bias")
        momentum, epsilon = node.number("momentum") * self.share, node.number("epsilon")
        if len(x) < LEAST_ROWS:
            return functional.batch_norm(x, mean, variance, weight, bias, eps=epsilon)
        result, now, inverse_std = torch.native_batch_norm(x, weight, bias, mean, variance, True, momentum, epsilon)
        self.step.affines[node.name] = _affine(weight, bias, now.detach(), inverse_std.detach())
        return result


@dataclass(kw_only=True, eq=False)
class _Constant(Evaluation):
    """One option without a gradient, normalised by constants: those of the chosen options, if there are any.

    Args:
        folded: normalisation of each layer that only it reads, by the layer's name: its scale goes into the weight.
        step: what happened in the block so far.
    """

    folded: Mapping[str, Node]
    step: _Step

    def follow(self, node: Node, x: Tensor) -> None:
        self.step.follow(self, node, x)

    def weighted(self, node: Node, x: Tensor) -> Tensor:
        norm = self.folded.get(node.name)
        if norm is None:
            return super().weighted(node, x)
        scale, shift = self._constants(norm)
        weight, bias = self.weight(node), self.tensor(node, "bias")
        scaled = weight * scale.reshape(-1, *(1 for _ in weight.shape[1:]))
        if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
            scaled = scaled.contiguous(memory_format=torch.channels_last)
        return self.multiply(node, self.rounded(node, x), scaled, shift if bias is None else bias * scale + shift)

    def batch_norm(self, node: Node, x: Tensor) -> Tensor:
        if self.folded.get(node.inputs[0]) is node:
            return x
        scale, shift = (value.reshape(-1, *(1 for _ in x.shape[2:])) for value in self._constants(node))
        return x * scale + shift

    def _constants(self, node: Node) -> _Affine:
        if (affine := self.step.affines.get(node.name)) is not None:
            return affine
        mean, variance = self.tensors[node.tensors["mean"]], self.tensors[node.tensors["variance"]]
        inverse_std = (variance + node.number("epsilon")).rsqrt()
        return _affine(self.tensor(node, "weight"), self.tensor(node, "bias"), mean, inverse_std)


def _folded(graph: Graph) -> dict[str, Node]:
    """Normalisations that are alone in reading a layer, by the layer's name."""
    layers = {node.name for node in graph.nodes if node.operator in ("conv", "linear")}
    readers = graph.readers()
    return {
        node.inputs[0]: node
        for node in graph.nodes
        if node.operator == "batch_norm" and node.inputs[0] in layers and readers[node.inputs[0]] == 1
    }


@torch.no_grad()
def _affine(weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse_std: Tensor) -> _Affine:
    scale = inverse_std if weight is None else weight * inverse_std
    return _Affine(scale, -mean * scale if bias is None else bias - mean * scale)


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
