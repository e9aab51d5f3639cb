from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from dfs_deploy.models import fake_quantize, fake_quantize_weight
from dfs_deploy.models.quantize import batch_range

EPSILON = float(np.finfo(np.float32).eps)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A least and a greatest value, far enough apart that 12 bits are coarse beside float32's."""
    low = np.float32(draw(st.floats(-10, 10, width=32)))
    high = np.float32(low + np.float32(draw(st.floats(1, 20, width=32))))
    return torch.tensor([low]), torch.tensor([high])


values = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40).map(torch.tensor)
bits = st.integers(2, 12)


def rounding(low: Tensor, high: Tensor) -> float:
    """How far float32 arithmetic on values within a range may be off."""
    return 4 * EPSILON * float(torch.maximum(low.abs(), high.abs()))


@given(values, ranges(), bits)
def test_a_second_rounding_changes_nothing(x: Tensor, bounds: tuple[Tensor, Tensor], some: int) -> None:
    once = fake_quantize(x, *bounds, some)
    torch.testing.assert_close(fake_quantize(once, *bounds, some), once, rtol=0, atol=rounding(*bounds))


@given(values, ranges(), bits)
def test_within_the_range_it_is_off_by_half_a_step_at_most(x: Tensor, bounds: tuple[Tensor, Tensor], some: int) -> None:
    low, high = bounds
    x = x.clamp(low, high)
    step = float(high - low) / (2**some - 1)
    assert float((fake_quantize(x, low, high, some) - x).abs().max()) <= step / 2 + rounding(low, high)


@given(values, ranges(), bits)
def test_outside_the_range_it_clamps(x: Tensor, bounds: tuple[Tensor, Tensor], some: int) -> None:
    low, high = bounds
    rounded = fake_quantize(x, low, high, some)
    slack = rounding(low, high)
    assert float(rounded.min()) >= float(low) - slack
    assert float(rounded.max()) <= float(high) + slack
    torch.testing.assert_close(rounded[x >= high], high.expand(int((x >= high).sum())), rtol=0, atol=slack)
    assert torch.equal(rounded[x <= low], low.expand(int((x <= low).sum())))


@given(ranges(), st.integers(2, 6), st.integers(0, 1000))
def test_there_are_at_most_two_to_the_bits_values(bounds: tuple[Tensor, Tensor], some: int, seed: int) -> None:
    x = 30 * torch.randn(3000, generator=torch.Generator().manual_seed(seed))
    assert len(fake_quantize(x, *bounds, some).unique()) <= 2**some


@given(ranges(), bits)
def test_the_grid_is_even_and_reaches_both_ends(bounds: tuple[Tensor, Tensor], some: int) -> None:
    low, high = bounds
    grid = torch.linspace(float(low), float(high), 2**some)
    torch.testing.assert_close(fake_quantize(grid, low, high, some), grid, rtol=0, atol=2 * rounding(low, high))


def reference(x: NDArray[np.float32], low: float, high: float, bits: int) -> NDArray[np.float64]:
    steps = 2**bits - 1
    return np.rint(np.clip((x.astype(np.float64) - low) / (high - low) * steps, 0, steps)) / steps * (high - low) + low


@pytest.mark.parametrize("some", [2, 4, 8, 10, 12, 14, 16])
def test_it_is_the_papers_quantiser(some: int) -> None:
    x = torch.randn(2000, generator=torch.Generator().manual_seed(some))
    low, high = torch.tensor([-1.3]), torch.tensor([2.1])
    off = np.abs(fake_quantize(x, low, high, some).numpy() - reference(x.numpy(), -1.3, 2.1, some))
    # Beside a tie, float32 may take the other neighbour; nowhere else may it differ.
    assert np.quantile(off, 0.98) < 1e-6
    assert off.max() <= 3.4 / (2**some - 1) + 1e-6


def test_halves_go_to_the_even_neighbour() -> None:
    x = torch.tensor([0.5, 1.5, 2.5])
    assert fake_quantize(x, torch.zeros(1), torch.tensor([3.0]), 2).tolist() == [0.0, 2.0, 2.0]


@pytest.mark.parametrize("some", [24, 31])
def test_many_bits_round_no_further_than_float32_does(some: int) -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    low, high = torch.tensor([-2.0]), torch.tensor([2.0])
    torch.testing.assert_close(fake_quantize(x, low, high, some), x, rtol=0, atol=1e-6)


def test_the_gradient_passes_straight_through() -> None:
    x = torch.tensor([-5.0, 0.1, 5.0], requires_grad=True)
    rounded = fake_quantize(x, torch.zeros(1), torch.ones(1), 2)
    assert rounded.tolist() == pytest.approx([0.0, 0.0, 1.0])
    rounded.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_a_range_of_no_width_gives_finite_values() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0])
    assert torch.isfinite(fake_quantize(x, torch.zeros(1), torch.zeros(1), 8)).all()


def test_double_precision_stays() -> None:
    x = torch.randn(5, dtype=torch.float64)
    assert fake_quantize(x, x.min(), x.max(), 8).dtype == torch.float64


def test_a_weight_is_rounded_over_its_own_range() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    rounded = fake_quantize_weight(weight, 4)
    assert rounded.shape == weight.shape
    assert len(rounded.unique()) <= 16
    torch.testing.assert_close(rounded.min(), weight.min())
    torch.testing.assert_close(rounded.max(), weight.max())
    assert fake_quantize_weight(weight, 32) is weight


def test_the_range_of_a_batch_is_the_mean_over_samples() -> None:
    x = torch.tensor([[[0.0, 4.0], [1.0, 2.0]], [[-2.0, 0.0], [0.0, 1.0]]])
    low, high = batch_range(x)
    assert (low.tolist(), high.tolist()) == ([-1.0], [2.5])
