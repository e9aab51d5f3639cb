"""Regrouping: who runs together, and their rows in one array, the same from either kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dfs_deploy.runtimes import native
from dfs_deploy.runtimes.rows import RowsKernels, gather_rows, group_rows, place_rows, rows_kernels

from .gates import needs_native

KERNELS = [
    pytest.param(RowsKernels(group_rows, gather_rows, place_rows), id="numpy"),
    pytest.param(rows_kernels(), id="native", marks=needs_native),
]


def lying(seed: int, samples: int, arrays: int) -> NDArray[np.intp]:
    """Places of samples: each in a row of its own, some rows nobody's."""
    random = np.random.default_rng(seed)
    spots = random.permutation(arrays * (samples + 3))[:samples]
    return np.stack(np.divmod(spots, samples + 3), 1).astype(np.intp)


@pytest.mark.parametrize("kernels", KERNELS)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 5), st.integers(1, 5))
def test_groups_are_those_of_one_option_and_form_in_the_order_in_which_they_lie(
    kernels: RowsKernels, seed: int, samples: int, arrays: int, options: int
) -> None:
    random = np.random.default_rng(seed)
    where = lying(seed, samples, arrays)
    choice = random.integers(0, options, samples).astype(np.uint8)
    runs = random.random(options) < 0.7
    in_uint8 = (random.random(arrays) < 0.5).tolist()
    groups = kernels.group(where, choice, runs, in_uint8)
    expected = {}
    for option in range(options):
        for rounded in (False, True):
            members = [i for i in range(samples) if choice[i] == option and in_uint8[where[i, 0]] == rounded]
            if runs[option] and members:
                expected[option, rounded] = sorted(members, key=lambda i: tuple(where[i]))
    assert [(option, rounded) for option, rounded, _ in groups] == list(expected)
    assert [rows.tolist() for _, _, rows in groups] == list(expected.values())
    assert all(rows.dtype == np.intp for _, _, rows in groups)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 5))
def test_gathering_copies_each_sample_s_features(
    kernels: RowsKernels, dtype: Any, seed: int, samples: int, arrays: int
) -> None:
    random = np.random.default_rng(seed)
    where = lying(seed, samples, arrays)
    held = [random.integers(0, 255, (samples + 3, 3, 2, 5)).astype(dtype) for _ in range(arrays)]
    some = np.flatnonzero(random.random(samples) < 0.6).astype(np.intp)
    rows = some[np.lexsort((where[some, 1], where[some, 0]))]
    out = np.full((len(rows), 3, 2, 5), 77, dtype)
    kernels.gather(held, where, rows, out)
    for got, sample in zip(out, rows, strict=True):
        array, row = where[sample]
        assert np.array_equal(got, held[array][row])


@pytest.mark.parametrize("kernels", KERNELS)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_placing_moves_the_samples_that_are_meant(kernels: RowsKernels, seed: int, samples: int) -> None:
    random = np.random.default_rng(seed)
    where = lying(seed, samples, 3)
    before = where.copy()
    rows = random.permutation(samples)[: random.integers(0, samples + 1)].astype(np.intp)
    kernels.place(where, rows, 7)
    assert where[rows].tolist() == [[7, row] for row in range(len(rows))]
    others = np.setdiff1d(np.arange(samples), rows)
    assert np.array_equal(where[others], before[others])


WHERE = np.array([[0, 0], [0, 1], [1, 0]], np.intp)
CHOICE = np.array([0, 1, 1], np.uint8)
RUNS = np.array([True, True])


@needs_native
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((WHERE + 1, CHOICE, RUNS, [False, True]), id="an array that is not there"),
        pytest.param((WHERE - 1, CHOICE, RUNS, [False, True]), id="a negative row"),
        pytest.param((WHERE * (2**63 - 1), CHOICE, RUNS, [False] * 2), id="a row beyond all memory"),
        pytest.param((WHERE, CHOICE + 1, RUNS, [False, True]), id="an option that is not there"),
        pytest.param((WHERE[[0, 0, 1]], CHOICE, RUNS, [False, True]), id="two samples in one row"),
        pytest.param((WHERE[:2], CHOICE, RUNS, [False, True]), id="another number of samples"),
        pytest.param((WHERE[:, ::-1], CHOICE, RUNS, [False, True]), id="not contiguous"),
        pytest.param((WHERE.astype(np.int32), CHOICE, RUNS, [False, True]), id="another integer"),
        pytest.param((WHERE, CHOICE.astype(np.int64), RUNS, [False, True]), id="choices of another type"),
    ],
)
def test_the_compiled_grouping_refuses_what_it_cannot_read(arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        rows_kernels().group(*arguments)


HELD = [np.zeros((2, 4), np.float32), np.ones((1, 4), np.float32)]
ROWS = np.array([0, 1, 2], np.intp)


@needs_native
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((HELD[:1], WHERE, ROWS, np.zeros((3, 4), np.float32)), id="an array that is not there"),
        pytest.param((HELD[::-1], WHERE, ROWS, np.zeros((3, 4), np.float32)), id="a row that is not there"),
        pytest.param((HELD, WHERE, ROWS + 1, np.zeros((3, 4), np.float32)), id="a sample that is not there"),
        pytest.param((HELD, WHERE, ROWS, np.zeros((2, 4), np.float32)), id="less room than samples"),
        pytest.param((HELD, WHERE, ROWS, np.zeros((3, 3), np.float32)), id="smaller rows"),
        pytest.param((HELD, WHERE, ROWS, np.zeros((3, 4), np.uint8)), id="another type"),
        pytest.param((HELD, WHERE, ROWS, np.zeros((3, 8), np.float32)[:, ::2]), id="not contiguous"),
        pytest.param((HELD, WHERE, ROWS, np.broadcast_to(np.float32(0), (3, 4))), id="not writable"),
    ],
)
def test_the_compiled_gathering_refuses_what_it_cannot_copy(arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        rows_kernels().gather(*arguments)


@needs_native
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((WHERE.copy(), ROWS + 1, 0), id="a sample that is not there"),
        pytest.param((WHERE.copy(), ROWS - 1, 0), id="a negative sample"),
        pytest.param((WHERE[:, :1].copy(), ROWS, 0), id="one column"),
        pytest.param((WHERE.T, ROWS[:2], 0), id="not contiguous"),
    ],
)
def test_the_compiled_placing_refuses_what_it_cannot_write(arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        rows_kernels().place(*arguments)


def test_without_the_compiled_kernels_numpy_regroups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "lacks", "it was not compiled at install")
    assert rows_kernels() == RowsKernels(group_rows, gather_rows, place_rows)
