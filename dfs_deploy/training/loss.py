"""The loss of joint training: accuracy, and computation with a sign that follows the target (Section 3, Equation 2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dfs_deploy.models import NetworkOutput
from dfs_deploy.training.processes import Processes
from dfs_deploy.training.recipe import AlphaSign


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of a batch and its terms; all are scalars, over the batches of all processes but for ``total``.

    Attributes:
        total: what this process differentiates.
        accuracy_loss: mean cross entropy, L of Equation 2.
        cost: E of Equation 2, summed over samples and gated blocks, in full-precision blocks.
        percentage: computation percentage of the batch.
        alpha: weight of the cost, with its sign.
    """

    total: Tensor
    accuracy_loss: Tensor
    cost: Tensor
    percentage: Tensor
    alpha: Tensor


def with_costs(output: NetworkOutput, costs: Tensor) -> NetworkOutput:
    """The output with its cost counted by other costs than ``(bits / 32) ** 2``; its gradient is the softmax's.

    Args:
        output: of a forward.
        costs: (gated blocks, options) float32, in full-precision blocks.
    """
    soft = functional.softmax(output.scores, 2)
    chosen = costs.expand(len(output.path), -1, -1).gather(2, output.path.unsqueeze(2)).squeeze(2)
    # The difference first: it is exactly zero, so the cost is exactly that of the choice.
    cost = chosen + ((soft - soft.detach()) * costs).sum(2)
    return dataclasses.replace(output, expected_cost=cost.mean(1))


def joint_loss(
    output: NetworkOutput,
    labels: Tensor,
    target: float,
    alpha: float,
    alpha_sign: AlphaSign,
    processes: Processes,
) -> Loss:
    """Equation 2: cross entropy + alpha * cost.

    Args:
        output: of a forward over this process's share of the batch.
        labels: (n,) int64.
        target: computation percentage; alpha is positive where the batch is above it, and negative elsewhere.
        alpha: absolute weight.
        alpha_sign: whether the sign follows the batch, or stays positive.
        processes: the others, whose shares count for the sign.
    """
    gated = output.path.shape[1]
    samples = len(labels) * processes.count
    accuracy_loss = functional.cross_entropy(output.logits.float(), labels)
    mean_cost = output.expected_cost.mean()
    seen = torch.stack([accuracy_loss.detach(), mean_cost.detach()])
    processes.average([seen])
    percentage = 100.0 * seen[1]
    sign = torch.where(percentage > target, 1.0, -1.0) if alpha_sign == "dynamic" else torch.ones_like(percentage)
    # Gradients are averaged over the processes, so each may take its own share as if it were the whole batch.
    scale = samples * gated
    return Loss(
        total=accuracy_loss + sign * alpha * scale * mean_cost,
        accuracy_loss=seen[0],
        cost=scale * seen[1],
        percentage=percentage,
        alpha=sign * alpha,
    )
