from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from numpy.typing import NDArray

from dfs_deploy.calibration.histogram import BINS, Extent, Histogram, HistogramCounter

VALUES = st.floats(-1e6, 1e6, width=32)
BATCHES = st.lists(
    stn.arrays(np.float32, stn.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=VALUES),
    min_size=1,
    max_size=5,
)


def counted(batches: list[NDArray[np.float32]]) -> tuple[Extent, Histogram]:
    extent = Extent()
    for batch in batches:
        extent.add(torch.from_numpy(batch))
    counter = HistogramCounter(extent)
    for batch in batches:
        counter.add(torch.from_numpy(batch))
    return extent, counter.result()


@given(BATCHES)
def test_the_extent_and_the_counts_are_those_of_all_batches_together(batches: list[NDArray[np.float32]]) -> None:
    extent, histogram = counted(batches)
    values = np.concatenate([batch.ravel() for batch in batches])
    assert (extent.low, extent.high) == (values.min(), values.max())
    assert extent.samples == sum(len(batch) for batch in batches)
    assert (histogram.low, histogram.high) == (extent.low, extent.high)
    assert histogram.counts.shape == (BINS,)
    assert histogram.counts.sum() == values.size
    assert np.array_equal(histogram.counts, counted([values[None]])[1].counts)


@given(stn.arrays(np.float32, (1, 50), elements=VALUES))
def test_a_value_is_counted_in_the_bin_that_holds_it(values: NDArray[np.float32]) -> None:
    _, histogram = counted([values])
    slack = 1e-9 * max(1.0, abs(histogram.low), abs(histogram.high))
    upto = np.cumsum(histogram.counts)
    for i, edge in enumerate(histogram.edges[1:]):
        assert np.count_nonzero(values < edge - slack) <= upto[i] <= np.count_nonzero(values <= edge + slack)


def test_edges_and_centers() -> None:
    histogram = Histogram(-1.0, 3.0, np.array([1, 0, 2, 1]))
    assert histogram.edges.tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    assert histogram.centers.tolist() == [-0.5, 0.5, 1.5, 2.5]


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.0, 0.0),
        (5.0, 5.0),
        (-3.0, -3.0),
        (1.0, float(np.nextafter(np.float32(1), np.float32(2)))),
        (1000.0, float(np.nextafter(np.float32(1000), np.float32(2000)))),
        (0.0, float(np.float32(1e-45))),
    ],
)
def test_a_tensor_of_one_value_or_of_neighbours_is_counted(low: float, high: float) -> None:
    _, histogram = counted([np.array([[low, high, low]], np.float32)])
    assert histogram.counts.sum() == 3
    assert (histogram.low, histogram.high) == (low, high)


def test_what_is_kept_does_not_grow() -> None:
    extent = Extent()
    for _ in range(3):
        extent.add(torch.rand(4, 100))
    counter = HistogramCounter(extent)
    for _ in range(3):
        counter.add(torch.rand(4, 100).clamp(extent.low, extent.high))
    assert counter.result().counts.nbytes == 8 * BINS
