"""Results that are probably no results: what makes a network look as if it had learnt nothing, and what causes that.

A comparison of two sides that are wrong in the same way passes every bar. So the result is looked at itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.io.text import one_line

CERTAINTY = 0.01
"""Probability at most of a warning about accuracy if the network is as much better than chance as a useful one is."""

_MARGIN = (0.05, 0.1)
"""Accuracy by which a useful network is better than chance: as much as chance is, within these bounds."""

_REORDERED = 0.3
"""Share of images that must be right only under another numbering of the classes."""

_PER_CLASS, _ENOUGH = 8, 50
"""Images of each class, on average, and of all, below which nothing is said of another numbering."""

_FEW = 10
"""Images below which nothing is said of predictions that are all the same."""


def suspicions(
    labels: NDArray[np.int64] | None,
    predictions: NDArray[np.int64],
    classes: int,
    class_names: Sequence[str] = (),
) -> tuple[str, ...]:
    """Says what about predictions hints at a mistake rather than at a weak network, and its likely cause.

    An accuracy is called chance if a network of chance plus 5 to 10 points would be as bad, or worse, on so many images
    in at most 1 % of draws (exact binomial test); so few images say nothing.

    Args:
        labels: (N,) true class of each image; ``None`` if none are known.
        predictions: (N,) predicted class of each image.
        classes: number of the network's classes.
        class_names: name of each class, or empty.

    Returns:
        A line for each suspicion, fit for a terminal; empty if there is none.
    """
    count = len(predictions)
    if count == 0:
        return ()
    found = []
    predicted = np.bincount(predictions, minlength=classes)
    one_class = bool(predicted.max() == count) and count >= _FEW and (labels is None or not _mostly_one(labels))
    if one_class:
        label = int(predicted.argmax())
        found.append(
            f"every one of {count:,} images is classified as {_named(label, class_names)}: is the normalisation (mean,"
            " std) that of the network, and are these its kind of images?"
        )
    if labels is not None and classes > 1:
        right = int(np.sum(predictions == labels))
        order = _other_order(labels, predictions, right, class_names)
        if order is not None:
            found.append(order)
        elif _is_chance(right, count, classes):
            found.append(
                f"top-1 of {100.0 * right / count:.2f} % on {count:,} images is hardly better than chance"
                f" ({100.0 / classes:.3g} %): the labels may count the classes in another order than the network, the"
                " normalisation (mean, std) may be another, or the network may be for other data or not trained"
            )
    return tuple(map(one_line, found))


def _is_chance(right: int, count: int, classes: int) -> bool:
    """Whether a network that is usefully better than chance would hardly ever have so few answers right."""
    chance = 1.0 / classes
    useful = chance + min(max(chance, _MARGIN[0]), _MARGIN[1])
    return _binomial_cdf(right, count, useful) <= CERTAINTY


def _binomial_cdf(most: int, count: int, share: float) -> float:
    """Probability of at most so many successes in so many independent trials."""
    if most >= count:
        return 1.0
    steps = np.arange(most, dtype=np.float64)
    # Logarithms of the probabilities of 0, 1, ... successes: each is the one before, times a ratio.
    ratios = np.log((count - steps) / (steps + 1.0)) + math.log(share / (1.0 - share))
    logs = count * math.log1p(-share) + np.concatenate([[0.0], np.cumsum(ratios)])
    return float(min(1.0, np.exp(logs).sum()))


def _mostly_one(labels: NDArray[np.int64]) -> bool:
    return bool(10 * np.bincount(labels).max() >= 9 * len(labels))


def _other_order(
    labels: NDArray[np.int64], predictions: NDArray[np.int64], right: int, class_names: Sequence[str]
) -> str | None:
    """Says so if predictions would go with the labels much better under another numbering of the classes."""
    count, present = len(labels), len(np.unique(labels))
    if present < 2 or count < max(_ENOUGH, _PER_CLASS * present):
        return None
    pairs, counts = np.unique(np.stack([labels, predictions], axis=1), axis=0, return_counts=True)
    together = count
    for side in (0, 1):  # each label's commonest prediction, and each prediction's commonest label
        most = np.zeros(int(pairs[:, side].max()) + 1, np.int64)
        np.maximum.at(most, pairs[:, side], counts)
        together = min(together, int(most.sum()))
    if together < right + _REORDERED * count:
        return None
    other = pairs[:, 0] != pairs[:, 1]
    label, prediction = pairs[other][counts[other].argmax()]
    return (
        f"top-1 of {100.0 * right / count:.2f} % on {count:,} images would be about {100.0 * together / count:.0f} % if"
        f" the labels were numbered otherwise: {_named(int(label), class_names)} is mostly classified as"
        f" {_named(int(prediction), class_names)}, and others go together too; the data may count the classes in"
        " another order than the network"
    )


def _named(label: int, class_names: Sequence[str]) -> str:
    return f"class {label}" + (f" ({class_names[label]})" if label < len(class_names) else "")
