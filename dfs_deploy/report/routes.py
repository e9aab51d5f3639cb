"""What the gate decided: by block, by path, and as a tree of the commonest paths."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.options import Options, computation_percentage
from dfs_deploy.report.results import Branch, Decision, HotPath

HOT_PATHS = 16
"""Paths that a report lists."""


def decisions(paths: NDArray[np.uint8], options: Options, groups: Sequence[int]) -> tuple[Decision, ...]:
    """How often each option was chosen at each gated block.

    Args:
        paths: (N, gated blocks) option indices.
        options: of the gate.
        groups: group of each block, the first block included.
    """
    return tuple(
        Decision(block, groups[block], option.name, float(np.mean(column == index)))
        for block, column in enumerate(paths.T, start=1)
        for index, option in enumerate(options)
    )


def hot_paths(
    paths: NDArray[np.uint8], right: NDArray[np.bool_] | None, options: Options, most: int = HOT_PATHS
) -> tuple[NDArray[np.uint8], tuple[HotPath, ...]]:
    """The commonest paths, the cheaper first where two are as common.

    Args:
        paths: (N, gated blocks) option indices.
        right: (N,) whether each answer was right, or ``None`` without labels.
        options: of the gate.
        most: how many to list.

    Returns:
        Their option indices, (paths, gated blocks) uint8, and what is told of each.
    """
    unique, which, counts = np.unique(paths, axis=0, return_inverse=True, return_counts=True)
    which, cost = which.ravel(), computation_percentage(unique, options.costs)
    order = np.lexsort((cost, -counts))[:most]
    found = [
        HotPath(
            rank=rank,
            path=tuple(options[int(k)].name for k in unique[i]),
            inputs=int(counts[i]),
            share=float(counts[i] / len(paths)),
            computation_percentage=float(cost[i]),
            top1=None if right is None else float(right[which == i].mean()),
        )
        for rank, i in enumerate(order, start=1)
    ]
    return unique[order], tuple(found)


def path_tree(
    rows: NDArray[np.uint8], counts: Sequence[int], total: int, options: Options, groups: Sequence[int]
) -> tuple[Branch, ...]:
    """The tree that some paths make, from the first decision on.

    Args:
        rows: (paths, gated blocks) option indices, each path once.
        counts: inputs of each.
        total: inputs in all, those of other paths included.
        options: of the gate.
        groups: group of each block, the first block included.

    Returns:
        The branches, block by block, from the cheapest option on.
    """
    ranks = np.argsort(np.argsort(options.costs, kind="stable"), kind="stable")
    ordered = sorted(zip(rows.tolist(), counts, strict=True), key=lambda item: [int(ranks[k]) for k in item[0]])
    return tuple(
        branch
        for depth in range(rows.shape[1])
        for branch in _branches(ordered, depth, total, options, groups[depth + 1])
    )


def _branches(
    ordered: Sequence[tuple[list[int], int]], depth: int, total: int, options: Options, group: int
) -> Iterator[Branch]:
    passed = 0
    for prefix, members in itertools.groupby(ordered, key=lambda item: item[0][: depth + 1]):
        inputs = sum(count for _, count in members)
        start, end = passed / total, (passed + inputs) / total
        yield Branch(depth + 1, group, options[prefix[-1]].name, inputs, inputs / total, start, end)
        passed += inputs
