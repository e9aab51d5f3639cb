from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from numpy.typing import NDArray

from dfs_deploy.calibration import METHODS, methods
from dfs_deploy.calibration.methods import BINS, PERCENTILE, Histogram, MinMax

Values = NDArray[np.float32]

SAMPLES = stn.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e4, 1e4, width=32))


VALUES = st.floats(-1e6, 1e6, width=32)
BATCHES = st.lists(
    stn.arrays(np.float32, stn.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=VALUES),
    min_size=1,
    max_size=5,
)


def counted(batches: list[NDArray[np.float32]]) -> tuple[MinMax, Histogram]:
    ends = MinMax()
    for batch in batches:
        ends.add(torch.from_numpy(batch))
    histogram = Histogram(ends.low, ends.high)
    for batch in batches:
        histogram.add(torch.from_numpy(batch))
    return ends, histogram


@given(BATCHES)
def test_the_ends_and_the_counts_are_those_of_all_batches_together(batches: list[NDArray[np.float32]]) -> None:
    ends, histogram = counted(batches)
    values = np.concatenate([batch.ravel() for batch in batches])
    assert (ends.low, ends.high) == (values.min(), values.max())
    assert ends.samples == sum(len(batch) for batch in batches)
    assert (histogram.low, histogram.high) == (ends.low, ends.high)
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


# From a histogram to an interval


def histogram(values: Values) -> Histogram:
    return counted([values.reshape(1, -1)])[1]


def rounding_error(values: NDArray[np.float64], low: float, high: float, counts: NDArray[np.int64]) -> float:
    """Mean square of what 256 levels over an interval and zero move."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255 or 1.0
    levels = np.clip(np.rint(values / step), np.rint(low / step), np.rint(high / step))
    return float(np.average((values - levels * step) ** 2, weights=counts))


def heavy_tail(low: float) -> Histogram:
    """Millions of moderate values, bell-shaped up to 1, and a single one at 10; where ``low`` is -10 the same below."""
    counts = np.zeros(2048, np.int64)
    seen = Histogram(low, 10.0, counts)
    counts[:] = np.rint(2e5 * np.exp(-0.5 * (3.0 * seen.centers) ** 2))
    counts[np.abs(seen.centers) > 1.0] = 0
    counts[-1] = 1
    counts[0] = max(counts[0], 1)
    return seen


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25)
@given(SAMPLES)
def test_an_interval_lies_within_what_was_seen_and_zero(method: str, values: Values) -> None:
    low, high = METHODS[method](histogram(values))
    assert type(low) is float, "a manifest holds plain numbers"
    assert type(high) is float
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low <= high
    assert min(values.min(), 0.0) <= low
    assert high <= max(values.max(), 0.0)


@given(SAMPLES)
def test_minmax_is_the_extent(values: Values) -> None:
    assert METHODS["minmax"](histogram(values)) == (values.min(), values.max())


@pytest.mark.parametrize(("count", "shift"), [(1, 3.0), (100, 0.0), (20_000, -3.0), (100_000, -1e3)])
def test_percentile_leaves_out_no_more_than_its_share(shift: float, count: int) -> None:
    values = (np.random.default_rng(count).standard_t(3, count) + shift).astype(np.float32)
    if shift == 0.0:
        values = np.abs(values)
    low, high = METHODS["percentile"](histogram(values))
    left_out = np.count_nonzero((values < low) | (values > high))
    assert left_out <= (1 - PERCENTILE / 100) * count + 1e-6


def test_percentile_leaves_out_rare_values_at_each_end() -> None:
    values = np.linspace(-1, 1, 100_000, dtype=np.float32)
    values[0], values[1] = -50.0, 50.0
    low, high = METHODS["percentile"](histogram(values))
    assert -1.1 < low <= -0.99
    assert 0.99 <= high < 1.1


@settings(max_examples=50)
@given(SAMPLES)
def test_mse_never_rounds_worse_than_minmax(values: Values) -> None:
    seen = histogram(values)
    best, whole = (rounding_error(seen.centers, *METHODS[name](seen), seen.counts) for name in ("mse", "minmax"))
    assert best <= whole * (1 + 1e-9)


@pytest.mark.parametrize(("method", "low"), [("percentile", 0.0), ("entropy", -10.0), ("mse", -10.0)])
def test_a_lone_far_value_is_given_up(method: str, low: float) -> None:
    _, high = METHODS[method](heavy_tail(low))
    assert 0.95 < high < 5.0


@pytest.mark.parametrize("low", [0.0, -10.0])
def test_mse_rounds_better_than_minmax_where_a_value_lies_far_out(low: float) -> None:
    seen = heavy_tail(low)
    best, whole = (rounding_error(seen.centers, *METHODS[name](seen), seen.counts) for name in ("mse", "minmax"))
    assert best < 0.5 * whole


@pytest.mark.parametrize("method", ["entropy", "mse"])
def test_evenly_spread_values_keep_their_whole_interval(method: str) -> None:
    values = np.linspace(0, 8, 100_000, dtype=np.float32)
    _, high = METHODS[method](histogram(values))
    assert high > 7.9


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_one_value_keeps_it(method: str) -> None:
    for value in (0.0, 5.0, -3.0, 1e-30, 1e30):
        low, high = METHODS[method](histogram(np.full(1000, value, np.float32)))
        assert (low if value < 0 else high) == pytest.approx(np.float32(value), rel=1e-6)
        assert math.isfinite(low)
        assert math.isfinite(high)


@pytest.mark.parametrize(("method", "low"), [(method, -10.0) for method in METHODS])
def test_the_interval_scales_with_the_values(method: str, low: float) -> None:
    seen = heavy_tail(low)
    scaled = Histogram(4 * seen.low, 4 * seen.high, seen.counts)
    assert METHODS[method](scaled) == pytest.approx(tuple(4 * end for end in METHODS[method](seen)), rel=1e-6)


def test_of_a_large_batch_an_even_sample_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(64, 8, 16, 16, generator=torch.Generator().manual_seed(0)) ** 2
    values[:, 0] += 1.0  # a channel unlike the others: no stride may leave it out
    whole, part = Histogram(0.0, 2.0), Histogram(0.0, 2.0)
    whole.add(values)
    assert whole.counts.sum() == values.numel()
    monkeypatch.setattr(methods, "MOST_COUNTED", 10_000)
    part.add(values)
    assert not np.any(part.counts % 15), "one of 15 is counted, and stands for all of them"
    assert part.counts.sum() == pytest.approx(values.numel(), abs=15)
    for share in (0.1, 0.5, 0.9, 0.99):
        at = [np.searchsorted(np.cumsum(each.counts) / each.counts.sum(), share) for each in (whole, part)]
        assert abs(at[0] - at[1]) < 0.03 * BINS


def test_a_value_weighs_the_same_in_a_small_batch_and_in_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges must not depend on how the data are split into batches."""
    monkeypatch.setattr(methods, "MOST_COUNTED", 1000)
    seen = Histogram(0.0, 1.0)
    for batch in (torch.zeros(1, 1000), torch.ones(4, 900)):
        seen.add(batch)
    assert (seen.counts[0], seen.counts[-1]) == (1000, 3600)


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_ranges_do_not_depend_on_the_size_of_a_batch(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Batches of another size are of other values: as when a gate sends the bright images somewhere else."""
    monkeypatch.setattr(methods, "MOST_COUNTED", 20_000)
    generator = torch.Generator().manual_seed(0)
    few, many = torch.rand(4, 4096, generator=generator), 0.25 * torch.rand(64, 4096, generator=generator)
    one, other = Histogram(0.0, 1.0), Histogram(0.0, 1.0)
    for batch in (few, many):
        one.add(batch)
    for batch in (*few.split(4), *many.split(4)):
        other.add(batch)
    shares = [np.cumsum(each.counts) / each.counts.sum() for each in (one, other)]
    assert np.abs(shares[0] - shares[1]).max() < 0.02
    step = 0.01  # between two intervals that a searching method tries
    assert METHODS[method](one) == pytest.approx(METHODS[method](other), abs=1.01 * step)
