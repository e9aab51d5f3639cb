"""Regrouping a batch whose samples lie in rows of several arrays: who runs together, and their rows in one array.

In NumPy here; ``native/_rows.pyx`` does the same, compiled, and :func:`rows_kernels` gives whichever there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.runtimes import native

Rows = NDArray[np.intp]


GroupRows = Callable[[Rows, NDArray[np.uint8], NDArray[np.bool_], Sequence[bool]], list[tuple[int, bool, Rows]]]
GatherRows = Callable[[Sequence[NDArray[Any]], Rows, Rows, NDArray[Any]], None]
PlaceRows = Callable[[Rows, Rows, int], None]


@dataclass(frozen=True)
class RowsKernels:
    """One way to do all of it.

    Attributes:
        group: see :func:`group_rows`.
        gather: see :func:`gather_rows`.
        place: see :func:`place_rows`.
    """

    group: GroupRows
    gather: GatherRows
    place: PlaceRows


def rows_kernels() -> RowsKernels:
    """The compiled kernels where they were compiled, NumPy's elsewhere: the results are the same."""
    if native.lacks is not None:
        return RowsKernels(group_rows, gather_rows, place_rows)
    from dfs_deploy.runtimes.native import _rows

    return RowsKernels(_rows.group_rows, _rows.gather_rows, _rows.place_rows)


def group_rows(
    where: Rows, choice: NDArray[np.uint8], runs: NDArray[np.bool_], in_uint8: Sequence[bool]
) -> list[tuple[int, bool, Rows]]:
    """Groups samples by option, and by the layout of the array that they lie in.

    Args:
        where: (N, 2) intp, array and row of each sample.
        choice: (N,) uint8, the option of each sample.
        runs: (options,) bool; samples of other options are left out.
        in_uint8: of each array, whether it holds uint8.

    Returns:
        Option, whether in uint8, and (n,) intp samples in the order in which they lie; by option, then layout.
    """
    rows = np.flatnonzero(runs[choice])
    if not len(rows):
        return []
    array, row = where[rows].T
    kind = 2 * choice[rows].astype(np.intp) + np.asarray(in_uint8, np.bool_)[array]
    order = np.lexsort((row, array, kind))
    rows, kind = rows[order], kind[order]
    starts = np.flatnonzero(kind[1:] != kind[:-1]) + 1
    kinds = kind[[0, *starts]].tolist()
    return [(k // 2, k % 2 == 1, group) for k, group in zip(kinds, np.split(rows, starts), strict=True)]


def gather_rows(arrays: Sequence[NDArray[Any]], where: Rows, rows: Rows, out: NDArray[Any]) -> None:
    """Copies the features of some samples into one array.

    Args:
        arrays: contiguous; those that are read have the type of ``out``, and rows of its rows' shape.
        where: (N, 2) intp, array and row of each sample.
        rows: (n,) intp, samples.
        out: (n, ...), contiguous, written.
    """
    array, row = where[rows].T
    starts = np.flatnonzero(array[1:] != array[:-1]) + 1
    for start, end in zip([0, *starts], [*starts, len(rows)], strict=True):
        if end > start:
            np.take(arrays[array[start]], row[start:end], 0, out[start:end], "clip")  # checks bounds in C


def place_rows(where: Rows, rows: Rows, array: int) -> None:
    """Lets samples lie in one array, in their order.

    Args:
        where: (N, 2) intp, array and row of each sample; written.
        rows: (n,) intp, samples.
        array: index of the array.
    """
    where[rows, 0] = array
    where[rows, 1] = np.arange(len(rows))
