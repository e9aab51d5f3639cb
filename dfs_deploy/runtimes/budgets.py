"""One network at many operating points: a bias on the gate's scores in proportion to what each option costs.

Taking ``bias * cost`` from an option's score puts a price on computation: the more an option costs at a block, the more
the gate must prefer it. Calibration finds the price that holds a budget.
"""

from __future__ import annotations

import math
import numbers

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import UsageError
from dfs_deploy.network import Architecture
from dfs_deploy.options import Options
from dfs_deploy.runtimes.gate import MASKED

GREATEST_BIAS = 1e6
"""Greatest bias: beyond it, scores in float32 lose every digit."""


def score_offset(bias: float, architecture: Architecture, options: Options) -> NDArray[np.float32]:
    """Offset of the gate's scores for a bias, with the options masked that a block may not run.

    Args:
        bias: price of computation, at most ``GREATEST_BIAS`` in size; 0 for the masks alone.
        architecture: network whose gate it is.
        options: options that the gate chooses from.

    Returns:
        (gates, options) float32: for the block after gate ``i``, ``-bias * cost * weight[i]``, or ``MASKED``.

    Raises:
        UsageError: the bias is not finite, or too large.
    """
    if not math.isfinite(bias) or abs(bias) > GREATEST_BIAS:
        raise UsageError(f"a bias of {bias} on the gate's scores, expected {-GREATEST_BIAS:g} to {GREATEST_BIAS:g}")
    price = -bias * np.outer(architecture.weights(options), options.costs)
    return np.where(architecture.allowed(options), price, MASKED).astype(np.float32)


def bias_for(budget: float, bundle: Bundle) -> float:
    """Finds the bias for a budget, calibrated or interpolated between two calibrated ones.

    The bias never rises with the budget.

    Args:
        budget: mean computation, as a share of running every decided block in full precision.
        bundle: bundle with calibrated budgets.

    Raises:
        UsageError: the bundle has no budgets, or this one lies outside them.
    """
    if not isinstance(budget, numbers.Real):
        raise UsageError(f"budget {budget!r}, expected a number, 0 to 1")
    points = bundle.manifest.budgets
    if bundle.manifest.policy is not None:
        raise UsageError(f"{bundle.path} has a static policy, which always computes the same; leave out the budget")
    if not points:
        raise UsageError(
            f"{bundle.path} was calibrated for no budget; export with --budgets 0.1,0.2,0.4 and --calibration-data"
        )
    budgets = [point.budget for point in points]
    if budget > 1.0:
        raise UsageError(f"budget {budget:g}, expected a share, 0 to 1: 0.3 is 30 % computation")
    if not budgets[0] <= budget <= budgets[-1]:  # NaN as well
        known = f"{budgets[0]:g} to {budgets[-1]:g}" if len(budgets) > 1 else f"only {budgets[0]:g}"
        raise UsageError(
            f"budget {budget:g}, {bundle.path} was calibrated for {known}; choose from that, or export with --budgets"
        )
    return float(np.interp(budget, budgets, [point.bias for point in points]))
