"""Steering on a gate that is nothing but scores: what it reaches, from where, and with which options."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dfs_deploy.models import NetworkOutput
from dfs_deploy.models.network import MASKED, expected_cost
from dfs_deploy.options import Options
from dfs_deploy.training.recipe import Recipe
from dfs_deploy.training.steering import INTEGRAL, MOST_INTEGRAL, PROPORTIONAL, Steering, Trim, pressed

STEPS = 600


def recipe(target: float, options: str = "skip,8,16,full", **changes: object) -> Recipe:
    return Recipe(
        options=Options.parse(options),
        target=target,
        **{"alpha": 1.0, "alpha_sign": "controlled", "joint_steps": STEPS, **changes},  # type: ignore[arg-type]
    )


def output(scores: Tensor, costs: Tensor) -> NetworkOutput:
    path = scores.detach().argmax(2)
    return NetworkOutput(torch.zeros(len(scores), 2), path, scores, expected_cost(scores, path, costs))


def costs_of(options: str, blocks: int) -> Tensor:
    return torch.tensor(Options.parse(options).costs).repeat(blocks, 1)


@pytest.mark.parametrize(
    ("options", "share", "gap"),
    [
        *(("skip,8", share, 30.0) for share in (0.4, 0.75)),
        *(("skip,full", share, 30.0) for share in (0.4, 0.75)),
        *(("skip,8,16,full", share, 30.0) for share in (0.4, 0.75)),
        ("skip,full", 0.5, 1.0),
    ],
)
def test_the_target_is_reached_from_any_scores_with_any_options_by_one_alpha(
    options: str, share: float, gap: float
) -> None:
    """The gate learns biases only; a force that wants the dearest options stands for the accuracy loss."""
    torch.manual_seed(0)
    blocks, costs = 6, costs_of(options, 6)
    dearest = float(costs.max())
    asked = recipe(100.0 * share * dearest, options, descent=0.5)
    steering = Steering(asked, dearest)
    biases = torch.zeros(blocks, costs.shape[1])
    biases[:, costs[0].argmax()] = gap  # at 30 the softmax of the others is 0 but for 1e-13
    biases.requires_grad_()
    optimizer = torch.optim.Adam([biases], 0.1)
    ends = []
    for step in range(STEPS):
        made = output(biases + torch.randn(64, blocks, costs.shape[1]), costs)
        percentage = 100.0 * made.expected_cost.detach().mean()
        _, alpha = steering.weigh(step, percentage)
        optimizer.zero_grad()
        ((alpha - 0.5) * steering.cost(made, costs)).backward()
        optimizer.step()
        ends.append(float(percentage))
    assert sum(ends[-100:]) / 100 == pytest.approx(asked.target, abs=2.0 * dearest)


def test_alpha_is_bounded_and_turns_when_the_target_is_passed() -> None:
    steering = Steering(recipe(40.0), 1.0)
    most = MOST_INTEGRAL + PROPORTIONAL
    weights = [float(steering.weigh(step, torch.tensor(100.0))[1]) for step in range(2000)]
    assert weights == sorted(weights)
    assert MOST_INTEGRAL < weights[-1] <= most
    back = [float(steering.weigh(step, torch.tensor(0.0))[1]) for step in range(2000)]
    assert back[0] < weights[-1] - PROPORTIONAL
    assert back[-1] == pytest.approx(-MOST_INTEGRAL - 0.4 * PROPORTIONAL)
    assert next(step for step, weight in enumerate(back) if weight < 0.0) < MOST_INTEGRAL / (0.4 * INTEGRAL)


def test_alpha_is_the_factor_of_both_gains() -> None:
    seen = [torch.tensor(value) for value in (90.0, 70.0, 30.0)]
    one, two = (Steering(recipe(40.0, alpha=alpha), 1.0) for alpha in (1.0, 2.0))
    for step, percentage in enumerate(seen):
        torch.testing.assert_close(2.0 * one.weigh(step, percentage)[1], two.weigh(step, percentage)[1])


@given(
    seen=st.lists(st.floats(0.0, 100.0, width=32), min_size=2, max_size=20),
    descent=st.floats(0.0, 1.0),
    sign=st.sampled_from(["dynamic", "constant", "controlled"]),
    data=st.data(),
)
def test_saved_steering_goes_on_to_the_bit(seen: list[float], descent: float, sign: str, data: st.DataObject) -> None:
    stop = data.draw(st.integers(1, len(seen) - 1))
    asked = recipe(40.0, alpha_sign=sign, descent=descent, joint_steps=len(seen))
    whole, first = Steering(asked, 1.0), Steering(asked, 1.0)
    wanted = [tuple(map(float, whole.weigh(step, torch.tensor(value)))) for step, value in enumerate(seen)]
    for step, value in enumerate(seen[:stop]):
        first.weigh(step, torch.tensor(value))
    second = Steering(asked, 1.0, first.values())
    assert second.values() == first.values()
    for step, value in enumerate(seen[stop:], start=stop):
        assert tuple(map(float, second.weigh(step, torch.tensor(value)))) == wanted[step]


def test_the_target_descends_in_a_straight_line_from_the_first_cost() -> None:
    steering = Steering(recipe(40.0, joint_steps=100, descent=0.5), 1.0)
    targets = [float(steering.weigh(step, torch.tensor(80.0 - step))[0]) for step in range(100)]
    assert targets[0] == 80.0
    assert targets[25] == pytest.approx(60.0)
    assert targets[50:] == [40.0] * 50
    falls = [before - after for before, after in itertools.pairwise(targets[:51])]
    assert falls == pytest.approx([0.8] * 50, abs=1e-4)


def test_the_paper_asks_for_the_target_at_once() -> None:
    steering = Steering(Recipe(), 1.0)
    target, alpha = steering.weigh(0, torch.tensor(100.0))
    assert (float(target), float(alpha)) == (40.0, pytest.approx(5e-6))


def test_no_score_escapes_the_cost_and_what_a_block_may_not_run_stays_out() -> None:
    costs = costs_of("skip,8,full", 2)
    scores = torch.zeros(3, 2, 3)
    scores[..., 2] = 1000.0
    scores[:, 0, 1] = MASKED
    scores.requires_grad_()
    made = output(scores, costs)
    cost = pressed(made, costs)
    assert cost.item() == made.expected_cost.mean().item() == 1.0
    (gradient,) = torch.autograd.grad(cost, scores)
    assert (gradient[..., 2] > 1e-3).all()
    assert (gradient[..., 0] < -1e-3).all()
    assert (gradient[:, 0, 1] == 0.0).all()
    torch.testing.assert_close(gradient.sum(2), torch.zeros(3, 2))


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    options=st.sampled_from(["skip,8", "skip,full", "8,16,full", "skip,8,16,full"]),
    share=st.floats(0.0, 1.0),
    scale=st.sampled_from([0.01, 1.0, 100.0]),
)
def test_the_biases_bring_a_batch_to_its_target(seed: int, options: str, share: float, scale: float) -> None:
    random = torch.Generator().manual_seed(seed)
    samples, blocks, costs = 40, 5, costs_of(options, 5)
    scores = scale * torch.randn(samples, blocks, costs.shape[1], generator=random)
    scores[:, 0, 1] = MASKED
    may = costs.clone()
    may[0, 1] = costs[0, 0]
    low, high = float(may.amin(1).mean()), float(may.amax(1).mean())
    target = 100.0 * (low + share * (high - low))
    shift = Trim(costs, float(costs.max())).shift(scores, torch.tensor(target), 0)
    moved = scores + shift
    choice = moved.argmax(2)
    assert (choice[:, 0] != 1).all()
    reached = float(costs.expand(samples, -1, -1).gather(2, choice.unsqueeze(2)).mean())
    one_choice = 1.0 / (samples * blocks)
    assert reached == pytest.approx(target / 100.0, abs=1.01 * one_choice * float(costs.max()) + 1e-6)


def reached_by(scores: Tensor, costs: Tensor) -> float:
    choice = scores.argmax(2, keepdim=True)
    return 100.0 * float(costs.double().expand(len(scores), -1, -1).gather(2, choice).mean())


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    end=st.sampled_from(["least", "dearest", "beyond"]),
    kind=st.sampled_from(["alike", "measured", "turned", "nearly equal"]),
)
def test_at_an_end_of_the_reach_biases_stay_where_they_are_enough(seed: int, end: str, kind: str) -> None:
    """Settled steps with a new batch each, as in training; blocks may have another order of costs than their mean."""
    random = torch.Generator().manual_seed(seed)
    blocks = 6
    costs = costs_of("skip,8,full", blocks)
    if kind != "alike":
        costs = costs * (0.7 + 0.6 * torch.rand(blocks, 3, generator=random))
    if kind == "turned":
        costs[0] = costs[0].flip(0)
    if kind == "nearly equal":
        costs[:, 0] = costs[:, 1] + 1e-6 * torch.randn(blocks, generator=random)
    dearest = float(costs.amax(1).mean())
    ends = {"least": float(costs.amin(1).mean()), "dearest": dearest, "beyond": 1.1 * dearest}
    trim, target = Trim(costs, dearest), torch.tensor(100.0 * ends[end])
    bias, sizes = torch.zeros(3), []
    for settled in range(40):
        batch = torch.randn(40, blocks, 3, generator=random) + bias
        bias = bias + trim.shift(batch, target, settled)
        sizes.append(float(bias.max() - bias.min()))
    assert math.isfinite(sizes[-1])
    assert sizes[-1] <= 1.5 * sizes[19] + 1.0, "noise of batches has settled: nothing grows"
    fresh = torch.randn(400, blocks, 3, generator=random)
    along = costs.mean(0) / dearest
    reach = [reached_by(fresh - multiple * along, costs) for multiple in torch.linspace(-200.0, 200.0, 401)]
    nearest = min(abs(each - float(target)) for each in reach)
    assert abs(reached_by(fresh + bias, costs) - float(target)) <= nearest + 2.0 * dearest


def test_a_batch_at_an_end_of_the_reach_moves_no_bias() -> None:
    costs = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)).sort(1).values
    scores = torch.zeros(40, 7, 3)
    for choice, end in ((0, costs.amin(1)), (2, costs.amax(1))):
        there = scores.clone()
        there[..., choice] = 1.0
        shift = Trim(costs, float(costs.amax(1).mean())).shift(there, torch.tensor(100.0 * float(end.mean())), 0)
        assert shift.abs().max() == 0.0


def test_a_batch_at_its_target_moves_no_bias() -> None:
    scores = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    trim = Trim(costs_of("skip,full", 1), 1.0)
    assert trim.shift(scores, torch.tensor(50.0), 0).tolist() == [0.0, 0.0]
    first, later = (trim.shift(scores, torch.tensor(0.0), settled).abs().max() for settled in (0, 9))
    assert float(later) == pytest.approx(0.1 * float(first))


def test_a_network_without_a_choice_has_no_bias_to_move() -> None:
    costs = torch.zeros(0, 2)
    assert Trim(costs, 1.0).shift(torch.zeros(4, 0, 2), torch.tensor(100.0), 0).tolist() == [0.0, 0.0]
