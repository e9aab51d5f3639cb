"""Signs that a result is wrong: predictions as of a network that has learnt nothing, and the likely cause.

A comparison of two sides that are wrong in the same way passes every threshold. So the predictions are checked, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.io.text import one_line

CERTAINTY = 0.01
"""Greatest probability of a remark about accuracy for a network that is as much better than chance as a useful one."""

_MARGIN = (0.05, 0.1)
"""Bounds on the margin by which a useful network is better than chance; within them it is as large as chance."""

_REORDERED = 0.3
"""Share of images that must become right under another numbering of the classes for a remark about it."""

_PER_CLASS, _ENOUGH = 8, 50
"""Least number of images per class, on average, and in all, for a remark about another numbering."""

_FEW = 10
"""Least number of images for a remark about predictions that are all the same."""


def suspicions(
    labels: NDArray[np.int64] | None,
    predictions: NDArray[np.int64],
    classes: int,
    class_names: Sequence[str] = (),
) -> tuple[str, ...]:
    """Remarks on predictions that point to a mistake rather than to a weak network, with the likely cause.

    An accuracy is called chance if a network that is 5 to 10 points better than chance would be as bad or worse in at
    most 1 % of draws of so many images (exact binomial test). Few images are therefore never remarked on.

    Args:
        labels: (N,) true class of each image; ``None`` if none are known.
        predictions: (N,) predicted class of each image.
        classes: number of the network's classes.
        class_names: name of each class, or empty.

    Returns:
        One line per remark, safe for a terminal.
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
    """Whether a network that is usefully better than chance would almost never have so few right answers."""
    chance = 1.0 / classes
    useful = chance + min(max(chance, _MARGIN[0]), _MARGIN[1])
    return _binomial_cdf(right, count, useful) <= CERTAINTY


def _binomial_cdf(most: int, count: int, share: float) -> float:
    """Probability of at most ``most`` successes in ``count`` independent trials."""
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
    """A remark if predictions would agree with the labels much better under another numbering of the classes."""
    count, present = len(labels), len(np.unique(labels))
    if present < 2 or count < max(_ENOUGH, _PER_CLASS * present):
        return None
    pairs, counts = np.unique(np.stack([labels, predictions], axis=1), axis=0, return_counts=True)
    matched = count
    for side in (0, 1):  # the commonest prediction of each label, and the commonest label of each prediction
        most = np.zeros(int(pairs[:, side].max()) + 1, np.int64)
        np.maximum.at(most, pairs[:, side], counts)
        matched = min(matched, int(most.sum()))
    if matched < right + _REORDERED * count:
        return None
    other = pairs[:, 0] != pairs[:, 1]
    label, prediction = pairs[other][counts[other].argmax()]
    return (
        f"top-1 of {100.0 * right / count:.2f} % on {count:,} images would be about {100.0 * matched / count:.0f} % if"
        f" the labels were numbered otherwise: {_named(int(label), class_names)} is mostly classified as"
        f" {_named(int(prediction), class_names)}, and others go together too; the data may count the classes in"
        " another order than the network"
    )


def _named(label: int, class_names: Sequence[str]) -> str:
    return f"class {label}" + (f" ({class_names[label]})" if label < len(class_names) else "")
