"""Where the features of a batch lie, and the memory that they lie in."""

from __future__ import annotations

import numpy as np
import pytest

from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.runtimes.onnxruntime.chunks import Buffers, Chunks
from dfs_deploy.runtimes.rows import rows_kernels

SIZE = (4, 3, 2)


@pytest.mark.parametrize(("layout", "shape"), [("float32", (5, 4, 3, 2)), ("uint8", (5, 3, 2, 4))])
def test_a_buffer_has_the_shape_of_its_form(layout: Layout, shape: tuple[int, ...]) -> None:
    array = Buffers().take(5, SIZE, layout)
    assert (array.shape, array.dtype) == (shape, np.dtype(layout))
    assert array.flags.c_contiguous


def test_what_was_given_back_is_lent_again_whatever_fits() -> None:
    buffers = Buffers()
    large = buffers.take(64, SIZE, "float32")
    other = buffers.take(64, SIZE, "float32")
    assert not np.shares_memory(large, other)
    buffers.give(large)
    for rows in (64, 40, 9, 1):
        again = buffers.take(rows, SIZE, "float32")
        assert np.shares_memory(again, large)
        assert not np.shares_memory(buffers.take(rows, SIZE, "uint8"), large)
        buffers.give(again)
    assert not np.shares_memory(buffers.take(65, SIZE, "float32"), large), "it would not fit"


def test_a_group_is_read_where_it_lies_or_copied_once() -> None:
    buffers = Buffers()
    chunks = Chunks(4, buffers, rows_kernels())
    target = buffers.take(4, SIZE, "float32")
    target[...] = np.arange(4).reshape(4, 1, 1, 1)
    chunks.place(np.arange(4), target)
    runs = np.array([False, True])

    def grouped(*choice: int) -> tuple[list[int], bool, list[float]]:
        (group,) = chunks.groups(np.array(choice, np.uint8), runs)
        found = group.rows.tolist(), group.staged, group.features[:, 0, 0, 0].tolist()
        assert np.shares_memory(group.features, target) != group.staged
        chunks.done(group)
        return found

    assert grouped(0, 1, 1, 0) == ([1, 2], False, [1.0, 2.0])
    assert grouped(1, 0, 1, 0) == ([0, 2], True, [0.0, 2.0])
    assert list(chunks.groups(np.zeros(4, np.uint8), runs)) == []


def test_a_chunk_without_samples_is_given_back() -> None:
    buffers = Buffers()
    chunks = Chunks(3, buffers, rows_kernels())
    first = buffers.take(3, SIZE, "float32")
    chunks.place(np.arange(3), first)
    second = buffers.take(2, SIZE, "uint8")
    chunks.place(np.array([2, 0]), second)
    chunks.drop_unused()
    assert len(chunks.arrays) == 2
    third = buffers.take(1, SIZE, "float32")
    chunks.place(np.array([1]), third)
    chunks.drop_unused()
    assert [array is kept for array, kept in zip(chunks.arrays, (second, third), strict=True)] == [True, True]
    assert chunks.where.tolist() == [[0, 1], [1, 0], [0, 0]]
    assert np.shares_memory(buffers.take(3, SIZE, "float32"), first)
