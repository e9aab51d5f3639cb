"""Two networks on the same images: the difference of their accuracies, with an interval that uses the pairing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NORMAL = 1.96
"""Standard errors on each side of a normal 95 % interval."""


class Interval(msgspec.Struct, frozen=True):
    """Estimate, and the interval that holds the true value with 95 % confidence.

    Attributes:
        value: estimate.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"interval from low {self.low:g} to high {self.high:g}")

    @property
    def standard_error(self) -> float:
        """Standard error of the estimate, by the interval's width."""
        return (self.high - self.low) / (2.0 * _NORMAL)

    @property
    def uncertainty(self) -> float:
        """Distance of the farther end from the estimate, as a share of the estimate."""
        return max(self.high - self.value, self.value - self.low) / abs(self.value)


def share_difference(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> Interval:
    """Share of true values in one array less that in another, on the same inputs.

    Args:
        ours: (N,) whether one answered rightly.
        theirs: (N,) whether the other did; the same array for one thing and itself, which differ by exactly nothing.

    Returns:
        The difference, -1 to 1, with the adjusted interval for paired proportions of Agresti and Min ("Simple improved
        confidence intervals for comparing matched proportions", Statistics in Medicine 24, 2005): the normal interval
        after half an input is added to each of the four outcomes of a pair. Inputs on which the two disagree count
        most; a few inputs on which they never disagree do not show that they never would.
    """
    count = len(ours)
    wins, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    value = (wins - losses) / count
    if ours is theirs:
        return Interval(value, value, value)
    adjusted = (wins - losses) / (count + 2)
    error = _NORMAL * math.sqrt((wins + losses + 1) / (count + 2) - adjusted**2) / math.sqrt(count + 2)
    return Interval(value, max(adjusted - error, -1.0), min(adjusted + error, 1.0))


def safety_margin(change: Interval, allowed: float) -> float:
    """Margin by which a choice among several has to suffice, since one that just suffices often does so by luck.

    Args:
        change: difference of a choice to its reference, as ``share_difference`` gives it.
        allowed: share of right answers that the choice may lose, 0 to 1.

    Returns:
        One standard error of the difference (the rule of Breiman et al., Classification and Regression Trees, 1984,
        section 3.4.3), but no more than what may be lost, so that no choice has to be better than the reference.
    """
    return min(change.standard_error, allowed)
