from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from dfs_deploy.report.paths import decisions, hot_paths, path_tree

OPTIONS = Options.parse("skip,8,16,full")
GROUPS = [block.group for block in cifar_resnet((2, 2, 1)).blocks]

some_paths = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 40), st.just(4)), elements=st.integers(0, len(OPTIONS) - 1)
)


def test_groups_count_from_one_and_hold_the_first_block() -> None:
    assert GROUPS == [1, 1, 2, 2, 3]


def test_an_option_that_a_block_may_not_run_is_no_decision() -> None:
    allowed = np.ones((2, len(OPTIONS)), np.bool_)
    allowed[1, 1:] = False
    found = decisions(np.array([[1, 0], [2, 0]], np.uint8), OPTIONS, [1, 1, 1], allowed)
    assert [(d.block, d.option) for d in found] == [*((1, name) for name in OPTIONS.names), (2, OPTIONS.names[0])]
    assert found[-1].share == 1.0


@given(some_paths)
def test_shares_of_a_block_add_up_to_all_inputs(paths: NDArray[np.uint8]) -> None:
    found = decisions(paths, OPTIONS, GROUPS, np.ones((4, len(OPTIONS)), np.bool_))
    assert [(d.block, d.option) for d in found] == list(itertools.product(range(1, 5), OPTIONS.names))
    for block in range(1, 5):
        own = [d for d in found if d.block == block]
        np.testing.assert_allclose(sum(d.share for d in own), 1.0)
        assert {d.group for d in own} == {GROUPS[block]}
        for index, decision in enumerate(own):
            assert decision.share == np.mean(paths[:, block - 1] == index)


@given(some_paths, st.integers(1, 5))
def test_hot_paths_are_the_commonest(paths: NDArray[np.uint8], most: int) -> None:
    rows, found = hot_paths(paths, None, OPTIONS, most)
    counts = {tuple(row): int((paths == row).all(1).sum()) for row in paths.tolist()}
    assert len(found) == len(rows) == min(most, len(counts))
    assert [path.rank for path in found] == list(range(1, len(found) + 1))
    assert [path.inputs for path in found] == sorted(counts.values(), reverse=True)[:most]
    for row, path in zip(rows.tolist(), found, strict=True):
        assert path.inputs == counts[tuple(row)]
        assert path.path == tuple(OPTIONS.names[k] for k in row)
        assert path.share == path.inputs / len(paths)
        assert path.top1 is None


def test_of_paths_as_common_the_cheaper_stands_first() -> None:
    _, found = hot_paths(np.array([[3, 3], [0, 0], [1, 1]], np.uint8), None, OPTIONS)
    assert [path.path for path in found] == [("skip", "skip"), ("8", "8"), ("full", "full")]
    assert [path.computation_percentage for path in found] == [0.0, 6.25, 100.0]


def test_accuracy_is_told_by_path() -> None:
    paths = np.array([[0, 1], [0, 1], [0, 1], [2, 2]], np.uint8)
    _, found = hot_paths(paths, np.array([True, False, False, True]), OPTIONS)
    assert [path.top1 for path in found] == [1 / 3, 1.0]


@given(some_paths)
def test_branches_tile_the_tree_and_lie_within_what_they_branch_from(paths: NDArray[np.uint8]) -> None:
    rows, found = hot_paths(paths, None, OPTIONS, most=100)
    tree = path_tree(rows, [path.inputs for path in found], len(paths), OPTIONS, GROUPS)
    levels = [[branch for branch in tree if branch.block == block] for block in range(1, 5)]
    for level in levels:
        assert sum(branch.inputs for branch in level) == len(paths)
        assert level[0].start == 0.0
        np.testing.assert_allclose(level[-1].end, 1.0)
        for before, after in itertools.pairwise(level):
            assert before.end == after.start
    for above, below in itertools.pairwise(levels):
        for branch in below:
            assert any(parent.start <= branch.start and branch.end <= parent.end for parent in above)
    assert len(levels[-1]) == len(found)


def test_a_tree_of_some_paths_keeps_the_share_of_all_inputs() -> None:
    paths = np.array([[0, 1], [0, 1], [0, 2], [3, 3]], np.uint8)
    rows, found = hot_paths(paths, None, OPTIONS, most=2)
    tree = path_tree(rows, [path.inputs for path in found], 4, OPTIONS, GROUPS)
    assert [(b.block, b.option, b.inputs, b.share) for b in tree] == [
        (1, "skip", 3, 0.75),
        (2, "8", 2, 0.5),
        (2, "16", 1, 0.25),
    ]
