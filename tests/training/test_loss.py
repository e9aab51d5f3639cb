from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from dfs_deploy.models import NetworkOutput
from dfs_deploy.training.processes import Processes
from dfs_deploy.training.recipe import Recipe
from dfs_deploy.training.stages import Loss, accuracy_loss, joint_loss, summed_cost
from dfs_deploy.training.steering import Steering


def output(costs: torch.Tensor, blocks: int = 5) -> NetworkOutput:
    n = len(costs)
    logits = torch.linspace(-1.0, 1.0, 3 * n).view(n, 3).requires_grad_()
    return NetworkOutput(logits, torch.zeros(n, blocks, dtype=torch.int64), torch.zeros(n, blocks, 2), costs)


def loss_of(made: NetworkOutput, labels: torch.Tensor, sign: str, target: float, alpha: float) -> Loss:
    recipe = Recipe(alpha_sign=sign, target=target, alpha=alpha)  # type: ignore[arg-type]
    steering = Steering(recipe, 1.0)
    accuracy = accuracy_loss(made.logits, labels, None, recipe)
    cost = summed_cost(made, Processes())
    return joint_loss(made, accuracy, cost, lambda seen: steering.weigh(0, seen), Processes())


@given(
    costs=st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=8),
    target=st.floats(1.0, 100.0),
    alpha=st.floats(1e-7, 1.0),
)
def test_the_sign_of_alpha_follows_the_batch(costs: list[float], target: float, alpha: float) -> None:
    """Section 3: positive where the batch is above the target, negative elsewhere; the cost counts blocks."""
    made = output(torch.tensor(costs, requires_grad=True))
    labels = torch.zeros(len(costs), dtype=torch.int64)
    loss = loss_of(made, labels, "dynamic", target, alpha)
    above = float(loss.percentage) > float(loss.target)
    assert float(loss.target) == pytest.approx(target)
    assert float(loss.alpha) == pytest.approx(alpha if above else -alpha)
    assert float(loss.percentage) == pytest.approx(100.0 * sum(costs) / len(costs), abs=1e-3)
    assert float(loss.cost) == pytest.approx(5 * sum(costs), rel=1e-4, abs=1e-4)
    wanted = functional.cross_entropy(made.logits, labels) + loss.alpha * loss.cost
    torch.testing.assert_close(loss.total, wanted)
    torch.testing.assert_close(loss.value, wanted)


@pytest.mark.parametrize("cost", [0.1, 0.9])
def test_a_constant_sign_stays_positive(cost: float) -> None:
    made = output(torch.full((4,), cost, requires_grad=True))
    loss = loss_of(made, torch.zeros(4, dtype=torch.int64), "constant", 50.0, 0.5)
    assert float(loss.alpha) == 0.5


@pytest.mark.parametrize(("cost", "direction"), [(0.9, 1.0), (0.1, -1.0)])
def test_the_gradient_leads_to_the_target(cost: float, direction: float) -> None:
    costs = torch.full((4,), cost, requires_grad=True)
    loss_of(output(costs), torch.zeros(4, dtype=torch.int64), "dynamic", 50.0, 0.5).total.backward()
    assert costs.grad is not None
    # d total / d cost of a sample = alpha * blocks, whatever the batch.
    torch.testing.assert_close(costs.grad, torch.full((4,), direction * 0.5 * 5))


@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 8.0))
def test_a_teacher_that_agrees_adds_nothing_and_another_its_divergence(seed: int, temperature: float) -> None:
    random = torch.Generator().manual_seed(seed)
    ours, theirs = torch.randn(2, 6, 4, generator=random)
    labels = torch.randint(0, 4, (6,), generator=random)
    by_labels = functional.cross_entropy(ours, labels)
    for part in (0.0, 0.3, 1.0):
        recipe = Recipe(distill=part, temperature=temperature)
        same = accuracy_loss(ours, labels, ours + 3.0, recipe)
        torch.testing.assert_close(same, (1.0 - part) * by_labels, rtol=1e-4, atol=1e-5)
        p, q = ((each / temperature).softmax(1) for each in (theirs, ours))
        divergence = (p * (p / q).log()).sum(1).mean()
        wanted = (1.0 - part) * by_labels + part * temperature**2 * divergence
        torch.testing.assert_close(accuracy_loss(ours, labels, theirs, recipe), wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(accuracy_loss(ours, labels, None, Recipe(distill=0.5)), by_labels)
