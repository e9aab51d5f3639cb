"""The stages of training: what each computes and minimises, and which parameters it moves (Section 3)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.models import DFSNetwork, NetworkOutput
from dfs_deploy.models.network import expected_cost
from dfs_deploy.training.forward import joint_forward
from dfs_deploy.training.processes import Processes
from dfs_deploy.training.recipe import Recipe, StageName


def stage_optimizers(network: DFSNetwork, stage: StageName, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The optimizers of a stage: one for the backbone if it learns, then one for the gate if it learns."""
    optimizers: list[torch.optim.Optimizer] = []
    if stage != "gate":
        rate = recipe.backbone_lr if stage == "backbone" else recipe.joint_lr
        optimizers.append(_sgd(network.net, rate, recipe))
    if stage != "backbone" and network.gate is not None:
        rate = recipe.gate_lr if stage == "gate" else recipe.joint_gate_lr
        adam = recipe.gate_optimizer == "adam"
        gate = network.gate
        optimizers.append(torch.optim.Adam(_learning(gate), rate) if adam else _sgd(gate, rate, recipe))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _sgd(module: nn.Module, rate: float, recipe: Recipe) -> torch.optim.Optimizer:
    momentum, decay, nesterov = recipe.momentum, recipe.weight_decay, recipe.nesterov
    return torch.optim.SGD(_learning(module), rate, momentum=momentum, weight_decay=decay, nesterov=nesterov)


def _learning(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def set_modes(network: DFSNetwork, stage: StageName, settled: bool) -> None:
    """Puts the modules in the mode of a stage.

    On the fixed backbone of the gate stage only the input ranges move, so that the quantised options compute something
    useful when joint training begins. Once a stage has ``settled``, normalisation and ranges stay as they are. Modules
    that the user froze stay in evaluation mode all the time.
    """
    network.train(stage != "gate" and not settled)
    if stage == "gate":
        network.ranges.train()
        if network.gate is not None:
            network.gate.train()


@contextlib.contextmanager
def learning(network: DFSNetwork, stage: StageName) -> Iterator[None]:
    """Keeps gradients away from the part that a stage leaves as it is."""
    fixed = {"backbone": network.gate, "gate": network.net}.get(stage)
    parameters = [] if fixed is None else _learning(fixed)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def stage_forward(network: DFSNetwork, stage: StageName, x: Tensor, drop: float = 0.0) -> NetworkOutput:
    """Computes a stage's forward: the backbone in full precision in stage 0, else the gate's hard choice.

    Args:
        network: the network.
        stage: the stage.
        x: (N, C, H, W) float32, normalised.
        drop: probability with which stage 0 skips the last block; see ``Recipe.drop``.
    """
    if stage != "backbone":
        return joint_forward(network, x)
    n, gated = len(x), network.architecture.gated_blocks
    return NetworkOutput(
        logits=network.static(x, skipped=_dropped(network, drop)),
        path=torch.zeros((n, gated), dtype=torch.int64, device=x.device),
        scores=x.new_zeros((n, gated, len(network.options))),
        expected_cost=x.new_ones(n),
    )


def _dropped(network: DFSNetwork, drop: float) -> set[int]:
    """Draws the blocks that a step skips: the later a block, the more often (Huang et al. 2016, Equation 4)."""
    if not drop:
        return set()
    count = len(network.blocks)
    draws = torch.rand(count).tolist()
    return {
        index
        for index, (block, draw) in enumerate(zip(network.blocks, draws, strict=True), start=1)
        if block.skipped is not None and draw < drop * index / count
    }


@torch.no_grad()
def standardize_gate(network: DFSNetwork, x: Tensor) -> None:
    """Scales the gate's embeddings so that over some images the LSTM sees mean 0 and deviation 1 in each feature.

    Args:
        network: with an untrained gate; put in evaluation mode. Without a gate, nothing happens.
        x: (N, C, H, W) float32, normalised, N at least 2.
    """
    network.eval()
    if network.gate is None:
        return
    features = network.stem(x)
    for block in network.blocks:
        if network.decided(block.shape.index):
            network.gate.standardize(block.shape.index - 1, features)
        features = block(features)


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of a batch and its terms, scalars over the batches of all processes except for ``total``.

    Attributes:
        total: the loss that this process differentiates.
        value: its mean over all processes.
        cost: E of Equation 2, summed over samples and gated blocks, in full-precision blocks.
        percentage: computation percentage of the batch.
        target: computation percentage that the batch is steered to.
        alpha: weight of the cost, with its sign.
    """

    total: Tensor
    value: Tensor
    cost: Tensor
    percentage: Tensor
    target: Tensor
    alpha: Tensor


def with_costs(output: NetworkOutput, costs: Tensor) -> NetworkOutput:
    """The output with its cost counted by costs (gated blocks, options) float32 other than ``(bits / 32) ** 2``."""
    return dataclasses.replace(output, expected_cost=expected_cost(output.scores, output.path, costs))


def accuracy_loss(logits: Tensor, labels: Tensor, taught: Tensor | None, recipe: Recipe) -> Tensor:
    """Mean cross entropy, L of Equation 2; with a teacher, its part is what its answers say (Hinton et al. 2015).

    Args:
        logits: (N, classes) float32.
        labels: (N,) int64.
        taught: (N, classes) float32, the teacher's logits; ``None`` without one.
        recipe: gives ``distill`` and ``temperature``.

    Returns:
        Scalar: ``(1 - distill) * cross entropy + distill * T ** 2 * KL(teacher / T || network / T)``.
    """
    by_labels = functional.cross_entropy(logits, labels)
    if taught is None:
        return by_labels
    theirs, ours = (functional.log_softmax(each / recipe.temperature, 1) for each in (taught, logits))
    by_teacher = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return (1.0 - recipe.distill) * by_labels + recipe.distill * recipe.temperature**2 * by_teacher


Weigh = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps the computation percentage of a batch to its target, a percentage, and alpha with its sign; all scalars."""


def joint_loss(output: NetworkOutput, accuracy: Tensor, cost: Tensor, weigh: Weigh, processes: Processes) -> Loss:
    """Computes Equation 2, accuracy loss + alpha * cost, over this process's share of the batch.

    Args:
        output: the forward's output.
        accuracy: the accuracy loss, a scalar.
        cost: the cost as it stands in the loss, a scalar: see ``summed_cost`` and ``Steering.cost``.
        weigh: decides about target and alpha by the percentage of the batch of all processes.
        processes: processes that share the batch.
    """
    seen = torch.stack([accuracy.detach(), cost.detach(), output.expected_cost.detach().mean()])
    processes.average([seen])
    target, alpha = weigh(percentage := 100.0 * seen[2])
    return Loss(
        total=accuracy + alpha * cost,
        value=seen[0] + alpha * seen[1],
        cost=_blocks(output, processes) * seen[2],
        percentage=percentage,
        target=target,
        alpha=alpha,
    )


def summed_cost(output: NetworkOutput, processes: Processes) -> Tensor:
    """E of Equation 2, a scalar: the cost summed over samples and gated blocks, in full-precision blocks.

    Gradients are averaged over the processes, so each takes its own share as if it were the whole batch.
    """
    return _blocks(output, processes) * output.expected_cost.mean()


def _blocks(output: NetworkOutput, processes: Processes) -> int:
    """Number of gated blocks that the batch of all processes meets."""
    return output.path.numel() * processes.count


def optimized(optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    """All parameters of some optimizers."""
    return [parameter for each in optimizers for group in each.param_groups for parameter in group["params"]]


def gradients(optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    """All gradients; zeros if the gate left a parameter out, so that the optimizers of all processes do the same."""
    found = []
    for parameter in optimized(optimizers):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        found.append(parameter.grad)
    return found
