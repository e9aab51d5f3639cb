"""Steering of joint training: the target of each step, and the weight that the cost has in the loss to reach it.

The paper gives the cost a constant weight, alpha, whose sign follows each batch (Section 3). The size that reaches a
target depends on the options, the network and the data. ``controlled`` finds it: alpha is the output of a controller
with a proportional and an integral part, whose input is the error of the batch's cost as a share of the dearest path's.
Costs are shares there too, so the same gains do for every list of options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from dfs_deploy.models import NetworkOutput
from dfs_deploy.models.network import MASKED
from dfs_deploy.training.recipe import Recipe

PROPORTIONAL = 8.0
"""Gain of the error, times ``Recipe.alpha``."""

INTEGRAL = 0.1
"""Gain of the error's sum over the steps, times ``Recipe.alpha``."""

MOST_INTEGRAL = 20.0
"""Bound of the integral part either way, times ``Recipe.alpha``: it cannot wind up while nothing moves."""

_DOUBLINGS = 20
_HALVINGS = 24
_LEAST_PART = 0.03  # of a settled step in the trim

_LEAST_GAP = 1.0 / 1024.0
"""Difference of two options' mean costs, of the range of all, below which no bias is to tell them apart."""

_TOLERANCE = 1e-4
"""Cost, of the dearest path's, by which a batch may miss its target and no bias moves."""

_EVEN = 0.1
"""Share of the even distribution in the weights that the cost's gradient gives options: saturated scores move too."""


STEERED = ("begun", "integral")
"""Names of the values that a state holds of the steering."""


class Steering:
    """The steering of one run's joint stage; it goes on from saved values to the bit.

    Args:
        recipe: the run's recipe.
        dearest: cost of the dearest path, as a share of full computation.
        saved: what ``values`` gave when the run was saved; ``None`` at the beginning.
    """

    def __init__(self, recipe: Recipe, dearest: float, saved: Mapping[str, float] | None = None) -> None:
        self._recipe = recipe
        self._dearest = dearest or 1.0
        self._saved = dict(saved or {})
        self._begun: Tensor | None = None
        self._integral: Tensor | None = None

    def values(self) -> dict[str, float]:
        """What a state must hold of it; empty before the first step."""
        if self._begun is None or self._integral is None:
            return dict(self._saved)
        return dict(zip(STEERED, (self._begun.item(), self._integral.item()), strict=True))

    def cost(self, output: NetworkOutput, costs: Tensor) -> Tensor:
        """The mean cost of a batch as a share of the dearest path's, a scalar with the gradient of ``pressed``.

        Args:
            output: the output of a forward.
            costs: (gated blocks, options) float32, in full-precision blocks.
        """
        return pressed(output, costs) / self._dearest

    def weigh(self, step: int, percentage: Tensor) -> tuple[Tensor, Tensor]:
        """Decides about a step.

        Args:
            step: the step, from 0; each is asked for once, in order.
            percentage: scalar, computation percentage of the batch of all processes.

        Returns:
            The step's target, a computation percentage, and alpha with its sign, both scalars.
        """
        if self._begun is None or self._integral is None:
            self._begun = percentage.new_tensor(self._saved["begun"]) if self._saved else percentage.clone()
            self._integral = percentage.new_tensor(self._saved.get("integral", 0.0))
        recipe = self._recipe
        target = recipe.target + recipe.to_go(step) * (self._begun - recipe.target)
        if recipe.alpha_sign == "constant":
            return target, torch.full_like(percentage, recipe.alpha)
        if recipe.alpha_sign == "dynamic":
            return target, torch.where(percentage > target, recipe.alpha, -recipe.alpha)
        error = (percentage - target) / (100.0 * self._dearest)
        self._integral = (self._integral + INTEGRAL * error).clamp(-MOST_INTEGRAL, MOST_INTEGRAL)
        return target, recipe.alpha * (self._integral + PROPORTIONAL * error)


def pressed(output: NetworkOutput, costs: Tensor) -> Tensor:
    """The mean cost of a batch's hard choices, with a gradient that no score escapes.

    The gradient of a softmax vanishes for scores that are far apart, so that no alpha could move them. Here the
    gradient of each score is its option's cost beyond the mean, weighted by softmax and even distribution together.

    Args:
        output: the output of a forward.
        costs: (gated blocks, options) float32, in full-precision blocks.

    Returns:
        Scalar, in full-precision networks.
    """
    value = output.expected_cost.detach().mean()
    scores = output.scores
    if not scores.requires_grad:
        return value
    with torch.no_grad():
        possible = (scores > MASKED / 2).float()
        even = possible / possible.sum(2, keepdim=True)
        weights = torch.lerp(functional.softmax(scores.float(), 2), even, _EVEN)
        pull = weights * (costs - (weights * costs).sum(2, keepdim=True))
    carried = (scores * pull).sum(2).mean()
    # The difference first: it is exactly zero.
    return value + (carried - carried.detach())


class Trim:
    """The controller's second means, once statistics and ranges stay: the gate's biases.

    Learning rates have fallen by then, and images are no longer varied, so the cost moves a little and the loss could
    not bring it back. Each step finds the multiple of the options' costs that, taken from the scores of its batch,
    makes the batch cost its target, and takes a part of it from the biases: all of it at first, then less and less.

    Args:
        costs: (gated blocks, options) float32, in full-precision blocks.
        dearest: cost of the dearest path, as a share of full computation.
    """

    def __init__(self, costs: Tensor, dearest: float) -> None:
        self._costs = costs.double()  # a sum of many in float32 would miss a target at an end of the reach
        self._slope = costs.mean(0) / (dearest or 1.0)
        self._tolerance = _TOLERANCE * (dearest or 1.0)
        steps = self._slope.sort().values.diff()
        gap = torch.where(steps > 0.0, steps, math.inf).amin()
        self._gap = torch.where(gap.isfinite(), gap.clamp_min(_LEAST_GAP * steps.sum()), 1.0)

    @torch.no_grad()
    def shift(self, scores: Tensor, target: Tensor, settled: int) -> Tensor:
        """What to add to the gate's scores, (options,) float32.

        Costs differ from block to block, and what is added does not: a target near an end of the reach may be one that
        nothing brings a batch to. The least that comes as near as can be is taken then, and nothing once it is there.

        Args:
            scores: (N, gated blocks, options) of a batch.
            target: scalar, computation percentage to reach.
            settled: steps before this one in which statistics stayed.
        """
        if not scores.shape[1]:
            return scores.new_zeros(scores.shape[2])
        multiple = self._multiple(scores.float(), target.double() / 100.0)
        return -max(_LEAST_PART, 1.0 / (settled + 1)) * multiple * self._slope

    def _multiple(self, scores: Tensor, goal: Tensor) -> Tensor:
        """The multiple of the costs, nearest to 0, at which a batch's choices cost what they should; a scalar.

        The cost need not fall as the multiple rises, so multiples from 0 to the one that decides every choice are
        looked at first, and the first of them that comes as near as any is made as small as it can be.
        """
        impossible = scores <= MASKED / 2
        scores = scores.masked_fill(impossible, -math.inf)
        spread = scores.amax(2) - scores.masked_fill(impossible, math.inf).amin(2)
        sign = torch.where(self._cost(scores, spread.new_zeros(())) > goal, 1.0, -1.0).to(spread)
        far = sign * (spread.amax() + 1.0) / self._gap
        tried = torch.cat([far.new_zeros(1), far * 2.0 ** torch.arange(-_DOUBLINGS, 1).to(far)])
        costs = sign * torch.stack([self._cost(scores, multiple) for multiple in tried])
        enough = torch.maximum(sign * goal, costs.amin()) + self._tolerance
        first = (costs <= enough).int().argmax()
        near, far = tried[(first - 1).clamp_min(0)], tried[first]
        for _ in range(_HALVINGS):
            middle = 0.5 * (near + far)
            passed = sign * self._cost(scores, middle) <= enough
            near, far = torch.where(passed, near, middle), torch.where(passed, middle, far)
        return far

    def _cost(self, scores: Tensor, multiple: Tensor) -> Tensor:
        choice = (scores - multiple * self._slope).argmax(2, keepdim=True)
        return self._costs.expand(len(scores), -1, -1).gather(2, choice).mean()
