"""One network at many operating points: a bias on the gate's scores in proportion to what each option costs.

Taking ``bias * cost`` from an option's score puts a price on computation: the more an option costs at a block, the more
the gate must prefer it. Calibration finds the price that holds a budget, or that keeps the accuracy of a reference.
"""

from __future__ import annotations

import math
import numbers

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import UsageError
from dfs_deploy.network import Architecture
from dfs_deploy.options import TRAINED, Budget, Options
from dfs_deploy.runtimes.gate import MASKED

GREATEST_BIAS = 1e6
"""Greatest bias: beyond it, scores in float32 lose every digit."""


Prices = NDArray[np.float64]
"""(blocks after the first, options) price of each option, not negative."""


def computation_prices(architecture: Architecture, options: Options) -> Prices:
    """Price of each option by its computation: its cost times the weight of the block."""
    return np.outer(architecture.weights(options), options.costs)


def score_offset(
    bias: float, architecture: Architecture, options: Options, prices: Prices | None = None
) -> NDArray[np.float32]:
    """Offset of the gate's scores for a bias, with the options masked that a block may not run.

    Args:
        bias: price of computation, at most ``GREATEST_BIAS`` in size; 0 for the masks alone.
        architecture: network whose gate it is.
        options: options that the gate chooses from.
        prices: price of each option; ``None`` for its computation.

    Returns:
        (gates, options) float32: for the block after gate ``i``, ``-bias * prices[i]``, or ``MASKED``.

    Raises:
        UsageError: the bias is not finite, or too large.
    """
    if not math.isfinite(bias) or abs(bias) > GREATEST_BIAS:
        raise UsageError(f"a bias of {bias} on the gate's scores, expected {-GREATEST_BIAS:g} to {GREATEST_BIAS:g}")
    offset = -bias * (computation_prices(architecture, options) if prices is None else prices)
    return np.where(architecture.allowed(options), offset, MASKED).astype(np.float32)


def setting_for(budget: Budget, bundle: Bundle) -> tuple[float, Prices | None]:
    """Finds the bias and the prices for a budget; prices are ``None`` for those of computation.

    Raises:
        UsageError: a number that the bundle was not calibrated for, or something else than a budget.
    """
    own = bundle.manifest.accuracy_budget
    if budget == TRAINED or (budget is None and own is None):
        return 0.0, None
    if budget is None and own is not None:
        return own.bias, None if own.prices is None else np.asarray(own.prices, np.float64)
    return bias_for(budget, bundle), None


def bias_for(budget: object, bundle: Bundle) -> float:
    """Finds the bias for a budget, calibrated or interpolated between two calibrated ones.

    The bias never rises with the budget.

    Args:
        budget: mean computation, as a share of running every decided block in full precision.
        bundle: bundle with calibrated budgets.

    Raises:
        UsageError: the bundle has no budgets, or this one lies outside them.
    """
    if not isinstance(budget, numbers.Real):
        raise UsageError(f"budget {budget!r}, expected a number, 0 to 1, or {TRAINED!r} for the gate as trained")
    share, points = float(budget), bundle.manifest.budgets
    if bundle.manifest.policy is not None:
        raise UsageError(f"{bundle.path} has a static policy, which always computes the same; leave out the budget")
    if not points:
        raise UsageError(
            f"{bundle.path} was calibrated for no budget; export with --budgets 0.1,0.2,0.4 and --calibration-data"
        )
    budgets = [point.budget for point in points]
    if share > 1.0:
        raise UsageError(f"budget {share:g}, expected a share, 0 to 1: 0.3 is 30 % computation")
    if not budgets[0] <= share <= budgets[-1]:  # NaN as well
        known = f"{budgets[0]:g} to {budgets[-1]:g}" if len(budgets) > 1 else f"only {budgets[0]:g}"
        raise UsageError(
            f"budget {share:g}, {bundle.path} was calibrated for {known}; choose from that, or export with --budgets"
        )
    return float(np.interp(share, budgets, [point.bias for point in points]))
