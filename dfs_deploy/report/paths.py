"""The gate's decisions: by block, by path, as a tree of the commonest paths, and by example inputs."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dfs_deploy.bundle import Bundle
from dfs_deploy.options import Options, computation_percentage
from dfs_deploy.report.data import Branch, Decision, Example, HotPath
from dfs_deploy.runtimes import Result

HOT_PATHS = 16
"""Number of paths that a report lists."""

LARGEST = 96
"""Pixels along the longer side of a picture; larger inputs are made smaller for the page."""


def decisions(
    paths: NDArray[np.uint8], options: Options, groups: Sequence[int], allowed: NDArray[np.bool_]
) -> tuple[Decision, ...]:
    """How often each option was chosen at each block that may run it.

    Args:
        paths: (N, blocks) option indices.
        options: options of the gate.
        groups: group of each block, the first block included.
        allowed: (blocks, options) bool, whether a block may run an option.
    """
    return tuple(
        Decision(block, groups[block], option.name, float(np.mean(column == index)))
        for block, column in enumerate(paths.T, start=1)
        for index, option in enumerate(options)
        if allowed[block - 1, index]
    )


def hot_paths(
    paths: NDArray[np.uint8],
    right: NDArray[np.bool_] | None,
    options: Options,
    most: int = HOT_PATHS,
    weights: Sequence[float] | None = None,
) -> tuple[NDArray[np.uint8], tuple[HotPath, ...]]:
    """The commonest paths; of two that are equally common, the cheaper first.

    Args:
        paths: (N, blocks) option indices.
        right: (N,) whether each answer was right, or ``None`` without labels.
        options: options of the gate.
        most: number of paths to list.
        weights: weight of each block in the computation; ``None`` for equal ones.

    Returns:
        Their option indices, (paths, blocks) uint8, and their figures.
    """
    unique, which, counts = np.unique(paths, axis=0, return_inverse=True, return_counts=True)
    which, cost = which.ravel(), computation_percentage(unique, options.costs, weights)
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
        rows: (paths, blocks) option indices, each path once.
        counts: number of inputs of each path.
        total: number of all inputs, those of other paths included.
        options: options of the gate.
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


def pick_examples(
    bundle: Bundle, images: NDArray[np.uint8], labels: NDArray[np.int64] | None, result: Result, each: int
) -> tuple[Example, ...]:
    """Chooses inputs at both ends: by the cost of their path, and among equals by how sure the network was.

    Args:
        bundle: bundle that ran them.
        images: (N, H, W, C) uint8.
        labels: (N,) int64, or ``None``.
        result: result of the images.
        each: number of inputs per end; at most half of the inputs are shown.

    Returns:
        The easy ones, the cheapest first; then the hard ones, the most expensive first.
    """
    each = min(each, len(images) // 2)
    powers = np.exp(result.logits - result.logits.max(1, keepdims=True))
    sure, names = powers.max(1) / powers.sum(1), bundle.input.class_names
    order = np.lexsort((-sure, result.computation_percentage))

    def name(index: int) -> str:
        return names[index] if index < len(names) else f"class {index}"

    def example(end: Literal["easy", "hard"], i: int) -> Example:
        return Example(
            end=end,
            image=picture(images[i]),
            label=None if labels is None else name(int(labels[i])),
            answer=name(int(result.classes[i])),
            correct=None if labels is None else bool(result.classes[i] == labels[i]),
            probability=float(sure[i]),
            path=tuple(bundle.options[int(k)].name for k in result.path[i]),
            computation_percentage=float(result.computation_percentage[i]),
        )

    return (*(example("easy", i) for i in order[:each]), *(example("hard", i) for i in order[::-1][:each]))


def picture(image: NDArray[np.uint8]) -> str:
    """An image (H, W, C) uint8 as the ``data:`` address of a PNG; three channels in colour, else the first in grey."""
    shown = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    shown.thumbnail((LARGEST, LARGEST))
    stream = io.BytesIO()
    shown.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
