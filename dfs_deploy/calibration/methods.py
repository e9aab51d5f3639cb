"""From the values of a tensor to the interval that INT8 covers, in memory that does not grow with the samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

BINS = 2048
LEVELS = 256
MOST_COUNTED = 1 << 22
"""Most values of a batch that a histogram counts: those of 64 CIFAR images, or of five at 224 pixels."""

PERCENTILE = 99.99
"""Share of the values, in percent, that the percentile method keeps inside."""

_SHARES = np.linspace(0.2, 1.0, 81)
"""Shares of the observed interval that the searching methods try."""


class MinMax:
    """First pass over a tensor: its least and greatest value, and the number of samples."""

    def __init__(self) -> None:
        self.low, self.high, self.samples = np.inf, -np.inf, 0

    def add(self, x: Tensor) -> None:
        """Takes in a batch, (N, ...)."""
        low, high = x.aminmax()
        self.low = float(np.minimum(self.low, float(low)))  # keeps NaN, which min and max lose
        self.high = float(np.maximum(self.high, float(high)))
        self.samples += x.shape[0]


class Histogram:
    """Second pass over a tensor: counts of its values between the least and the greatest.

    Args:
        low: least value, as the first pass found it.
        high: greatest value.
        counts: (bins,) int64, evenly over ``low`` to ``high``; ``None`` for nothing counted yet.
    """

    def __init__(self, low: float, high: float, counts: NDArray[np.int64] | None = None) -> None:
        self.low, self.high = low, high
        self.counts = np.zeros(BINS, np.int64) if counts is None else counts

    def add(self, x: Tensor) -> None:
        """Takes in a batch, (N, ...); of more than ``MOST_COUNTED`` values an even sample.

        Each value of the sample stands for those beside it, so it does not matter how data are split into batches.
        """
        if self.low == self.high:
            self.counts[0] += x.numel()
            return
        flat = x.reshape(-1)
        # An odd stride does not fall into step with rows, columns and channels, whose numbers are even as a rule.
        stride = -(-len(flat) // MOST_COUNTED) | 1
        # In double precision, or the bins between two neighbouring float32 values would have no width.
        values = flat[::stride].cpu().numpy().astype(np.float64)
        self.counts += stride * np.histogram(values, len(self.counts), (self.low, self.high))[0]

    @property
    def edges(self) -> NDArray[np.float64]:
        """(bins + 1,) bounds of the bins."""
        return np.linspace(self.low, self.high, len(self.counts) + 1)

    @property
    def centers(self) -> NDArray[np.float64]:
        """(bins,) middles of the bins."""
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2


Method = Callable[[Histogram], tuple[float, float]]


def minmax(histogram: Histogram) -> tuple[float, float]:
    """The least and the greatest value seen."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram) -> tuple[float, float]:
    """The interval that leaves out the rarest values at each end, 0.01 % in all."""
    tail = (1.0 - PERCENTILE / 100.0) / (2 if histogram.low < 0.0 < histogram.high else 1)
    shares = np.cumsum(histogram.counts) / histogram.counts.sum()
    edges = histogram.edges
    high = float(edges[1:][np.searchsorted(shares, 1.0 - tail)]) if histogram.high > 0.0 else histogram.high
    low = float(edges[:-1][np.searchsorted(shares, tail, side="right")]) if histogram.low < 0.0 else histogram.low
    return low, high


def mse(histogram: Histogram) -> tuple[float, float]:
    """The interval whose rounding and clamping together move values least, in the square."""
    return _search(histogram, _squared_error)


def entropy(histogram: Histogram) -> tuple[float, float]:
    """The interval whose 256 levels keep the distribution best, by Kullback-Leibler divergence.

    After "8-bit Inference with TensorRT" (Migacz, GTC 2017), searched over shares of the interval at both ends.
    """
    return _search(histogram, _divergence)


METHODS: Final[dict[str, Method]] = {"minmax": minmax, "percentile": percentile, "entropy": entropy, "mse": mse}
"""Methods that measure on data, by the name that ``--calibration-method`` takes."""


def _search(histogram: Histogram, loss: Callable[[Histogram, float, float], float]) -> tuple[float, float]:
    candidates = [(histogram.low * share, histogram.high * share) for share in _SHARES.tolist()]
    losses = [loss(histogram, low, high) for low, high in candidates]
    # Of equal losses the widest interval: an unseen value is then less likely to be clamped.
    return candidates[len(losses) - 1 - int(np.argmin(losses[::-1]))]


def _squared_error(histogram: Histogram, low: float, high: float) -> float:
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / (LEVELS - 1)
    if step <= 0.0:
        return float(np.dot(histogram.counts, histogram.centers**2))
    rounded = np.rint(np.clip(histogram.centers, low, high) / step) * step
    return float(np.dot(histogram.counts, (histogram.centers - rounded) ** 2))


def _divergence(histogram: Histogram, low: float, high: float) -> float:
    inside = (histogram.centers >= low) & (histogram.centers <= high)
    if np.count_nonzero(inside) < 2:
        return np.inf
    counts = histogram.counts[inside].astype(np.float64)
    # The bin that holds zero is left out: after a relu it holds most values, and any interval keeps it.
    zero = np.abs(histogram.centers[inside]).argmin()
    counts[zero] = 0.0
    reference = counts.copy()
    reference[0] += histogram.counts[histogram.centers < low].sum()
    reference[-1] += histogram.counts[histogram.centers > high].sum()
    level = np.minimum(np.arange(len(counts)) * LEVELS // len(counts), LEVELS - 1)
    occupied = counts > 0
    totals = np.bincount(level, counts, LEVELS)
    members = np.bincount(level, occupied, LEVELS)
    spread = np.where(occupied, totals[level] / np.maximum(members[level], 1), 0.0)
    return _kullback_leibler(reference, spread)


def _kullback_leibler(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    if p.sum() == 0.0 or q.sum() == 0.0:
        return np.inf
    epsilon = 1e-9
    p, q = p / p.sum() + epsilon, q / q.sum() + epsilon
    return float(np.dot(p, np.log(p / q)))
