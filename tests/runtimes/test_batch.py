"""Features of a batch: who runs together, where features lie, and the memory that they lie in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.runtimes.buffers import BufferPool
from dfs_deploy.runtimes.onnxruntime.batch import BatchFeatures

SIZE = (4, 3, 2)


@pytest.mark.parametrize(("layout", "shape"), [("float32", (5, 4, 3, 2)), ("uint8", (5, 3, 2, 4))])
def test_a_buffer_has_the_shape_of_its_layout(layout: Layout, shape: tuple[int, ...]) -> None:
    maps = BufferPool().take(5, SIZE, layout).maps
    assert (maps.shape, maps.dtype) == (shape, np.dtype(layout))
    assert maps.flags.c_contiguous


def test_memory_that_was_given_back_is_lent_again_if_it_is_large_enough() -> None:
    pool = BufferPool()
    large = pool.take(64, SIZE, "float32")
    other = pool.take(64, SIZE, "float32")
    assert not np.shares_memory(large.maps, other.maps)
    pool.give_back(large)
    for rows in (64, 40, 9, 1):
        again = pool.take(rows, SIZE, "float32")
        assert np.shares_memory(again.maps, large.maps)
        assert not np.shares_memory(pool.take(rows, SIZE, "uint8").maps, large.maps)
        pool.give_back(again)
    assert not np.shares_memory(pool.take(65, SIZE, "float32").maps, large.maps), "it is too small"


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 4), st.integers(1, 6))
def test_groups_have_the_features_of_their_samples(seed: int, samples: int, options: int, blocks: int) -> None:
    random = np.random.default_rng(seed)
    pool = BufferPool()
    features = BatchFeatures(samples, pool)
    start = pool.take(samples, SIZE, "float32")
    start.maps[...] = np.arange(samples).reshape(-1, 1, 1, 1)
    features.put(np.arange(samples), start)
    in_uint8 = np.zeros(samples, np.bool_)
    for _ in range(blocks):  # every group leaves its features as they are, in one layout or the other
        choice = random.integers(0, options, samples).astype(np.uint8)
        runs = random.random(options) < 0.7
        results, seen = [], []
        for group in features.groups(choice, runs):
            maps = group.maps if group.layout == "float32" else group.maps.transpose(0, 3, 1, 2)
            assert (maps == group.samples.reshape(-1, 1, 1, 1)).all()
            assert (choice[group.samples] == group.option).all()
            assert (in_uint8[group.samples] == (group.layout == "uint8")).all()
            seen.append((group.option, group.layout == "uint8"))
            layout: Layout = "uint8" if random.random() < 0.5 else "float32"
            target = pool.take(len(group.samples), SIZE, layout)
            target.maps[...] = group.samples.reshape(-1, 1, 1, 1)
            results.append((group.samples, target))
            features.done(group)
        assert seen == sorted(set(seen)), "one group for each option and layout"
        ran = np.concatenate([np.zeros(0, np.intp), *(group for group, _ in results)])
        assert sorted(ran) == np.flatnonzero(runs[choice]).tolist()
        for members, target in results:
            features.put(members, target)
            in_uint8[members] = target.layout == "uint8"
        features.drop_unused()
        assert set(features.where[:, 0]) == set(range(len(features.maps)))


def test_a_group_is_read_where_it_lies_or_copied_once() -> None:
    pool = BufferPool()
    features = BatchFeatures(4, pool)
    target = pool.take(4, SIZE, "float32")
    target.maps[...] = np.arange(4).reshape(4, 1, 1, 1)
    features.put(np.arange(4), target)
    runs = np.array([False, True])

    def grouped(*choice: int) -> tuple[list[int], bool, list[float]]:
        (group,) = features.groups(np.array(choice, np.uint8), runs)
        found = group.samples.tolist(), group.copy is not None, group.maps[:, 0, 0, 0].tolist()
        assert np.shares_memory(group.maps, target.maps) == (group.copy is None)
        features.done(group)
        return found

    assert grouped(0, 1, 1, 0) == ([1, 2], False, [1.0, 2.0])
    assert grouped(1, 0, 1, 0) == ([0, 2], True, [0.0, 2.0])
    assert list(features.groups(np.zeros(4, np.uint8), runs)) == []


def test_a_buffer_without_samples_is_given_back() -> None:
    pool = BufferPool()
    features = BatchFeatures(3, pool)
    first = pool.take(3, SIZE, "float32")
    features.put(np.arange(3), first)
    second = pool.take(2, SIZE, "uint8")
    features.put(np.array([2, 0]), second)
    features.drop_unused()
    assert len(features.maps) == 2
    third = pool.take(1, SIZE, "float32")
    features.put(np.array([1]), third)
    features.drop_unused()
    assert [maps is kept.maps for maps, kept in zip(features.maps, (second, third), strict=True)] == [True, True]
    assert features.where.tolist() == [[0, 1], [1, 0], [0, 0]]
    assert np.shares_memory(pool.take(3, SIZE, "float32").maps, first.maps)
