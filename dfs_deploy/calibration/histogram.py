"""Streaming statistics of a tensor, in memory that does not grow with the number of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

BINS = 2048


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often a tensor took which values.

    Attributes:
        low: least value.
        high: greatest value.
        counts: (bins,) int64, evenly over ``low`` to ``high``.
    """

    low: float
    high: float
    counts: NDArray[np.int64]

    @property
    def edges(self) -> NDArray[np.float64]:
        """(bins + 1,) bounds of the bins."""
        return np.linspace(self.low, self.high, len(self.counts) + 1)

    @property
    def centers(self) -> NDArray[np.float64]:
        """(bins,) middles of the bins."""
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2


class Extent:
    """First pass: the least and the greatest value, and how many samples were seen."""

    def __init__(self) -> None:
        self.low, self.high, self.samples = np.inf, -np.inf, 0

    def add(self, x: Tensor) -> None:
        """Takes in a batch, (N, ...)."""
        self.low = float(np.minimum(self.low, float(x.amin())))  # keeps NaN, which min and max lose
        self.high = float(np.maximum(self.high, float(x.amax())))
        self.samples += x.shape[0]


class HistogramCounter:
    """Second pass: counts over the extent that the first pass found."""

    def __init__(self, extent: Extent) -> None:
        self._extent = extent
        self._counts = np.zeros(BINS, np.int64)

    def add(self, x: Tensor) -> None:
        """Takes in a batch, (N, ...)."""
        if self._extent.low == self._extent.high:
            self._counts[0] += x.numel()
            return
        # In double precision, or the bins between two neighbouring float32 values would have no width.
        values = x.numpy().ravel().astype(np.float64)
        self._counts += np.histogram(values, BINS, (self._extent.low, self._extent.high))[0]

    def result(self) -> Histogram:
        """What was counted."""
        return Histogram(self._extent.low, self._extent.high, self._counts)
