from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from dfs_deploy.models import NetworkOutput
from dfs_deploy.training.processes import Processes
from dfs_deploy.training.stages import joint_loss


def output(costs: torch.Tensor, blocks: int = 5) -> NetworkOutput:
    n = len(costs)
    logits = torch.linspace(-1.0, 1.0, 3 * n).view(n, 3).requires_grad_()
    return NetworkOutput(logits, torch.zeros(n, blocks, dtype=torch.int64), torch.zeros(n, blocks, 2), costs)


@given(
    costs=st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=8),
    target=st.floats(0.0, 100.0),
    alpha=st.floats(1e-7, 1.0),
)
def test_the_sign_of_alpha_follows_the_batch(costs: list[float], target: float, alpha: float) -> None:
    """Section 3: positive where the batch is above the target, negative elsewhere; the cost counts blocks."""
    made = output(torch.tensor(costs, requires_grad=True))
    labels = torch.zeros(len(costs), dtype=torch.int64)
    loss = joint_loss(made, labels, target, alpha, "dynamic", Processes())
    above = float(loss.percentage) > target
    assert float(loss.alpha) == pytest.approx(alpha if above else -alpha)
    assert float(loss.percentage) == pytest.approx(100.0 * sum(costs) / len(costs), abs=1e-3)
    assert float(loss.cost) == pytest.approx(5 * sum(costs), rel=1e-4, abs=1e-4)
    wanted = functional.cross_entropy(made.logits, labels) + loss.alpha * loss.cost
    torch.testing.assert_close(loss.total, wanted)


@pytest.mark.parametrize("cost", [0.1, 0.9])
def test_a_constant_sign_stays_positive(cost: float) -> None:
    made = output(torch.full((4,), cost, requires_grad=True))
    loss = joint_loss(made, torch.zeros(4, dtype=torch.int64), 50.0, 0.5, "constant", Processes())
    assert float(loss.alpha) == 0.5


@pytest.mark.parametrize(("cost", "direction"), [(0.9, 1.0), (0.1, -1.0)])
def test_the_gradient_leads_to_the_target(cost: float, direction: float) -> None:
    costs = torch.full((4,), cost, requires_grad=True)
    joint_loss(output(costs), torch.zeros(4, dtype=torch.int64), 50.0, 0.5, "dynamic", Processes()).total.backward()
    assert costs.grad is not None
    # d total / d cost of a sample = alpha * blocks, whatever the batch.
    torch.testing.assert_close(costs.grad, torch.full((4,), direction * 0.5 * 5))
