"""A few of the inputs at both ends: those that took the cheapest paths and those that took the dearest."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dfs_deploy.bundle import Bundle
from dfs_deploy.report.results import Example
from dfs_deploy.runtimes import Result

LARGEST = 96
"""Pixels along the longer side of a picture; larger inputs are made smaller for the page."""


def pick_examples(
    bundle: Bundle, images: NDArray[np.uint8], labels: NDArray[np.int64] | None, result: Result, each: int
) -> tuple[Example, ...]:
    """Chooses inputs by the cost of their path, and among equals by how sure the network was.

    Args:
        bundle: that ran them.
        images: (N, H, W, C) uint8.
        labels: (N,) int64, or ``None``.
        result: of the images.
        each: how many of an end; at most half of the inputs are shown.

    Returns:
        The easy ones, the cheapest first; then the hard ones, the dearest first.
    """
    each = min(each, len(images) // 2)
    sure = _softmax(result.logits).max(1)
    order = np.lexsort((-sure, result.computation_percentage))
    easy, hard = order[:each], order[::-1][:each]
    return _told(bundle, "easy", easy, images, labels, result, sure) + _told(
        bundle, "hard", hard, images, labels, result, sure
    )


def _told(
    bundle: Bundle,
    end: Literal["easy", "hard"],
    chosen: NDArray[np.intp],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    result: Result,
    sure: NDArray[np.float32],
) -> tuple[Example, ...]:
    names = bundle.input.class_names
    return tuple(
        Example(
            end=end,
            image=picture(images[i]),
            label=None if labels is None else _class_name(names, int(labels[i])),
            answer=_class_name(names, int(result.classes[i])),
            correct=None if labels is None else bool(result.classes[i] == labels[i]),
            probability=float(sure[i]),
            path=tuple(bundle.options[int(k)].name for k in result.path[i]),
            computation_percentage=float(result.computation_percentage[i]),
        )
        for i in chosen
    )


def picture(image: NDArray[np.uint8]) -> str:
    """An image (H, W, C) uint8 as the ``data:`` address of a PNG; three channels in colour, else the first in grey."""
    shown = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    shown.thumbnail((LARGEST, LARGEST))
    stream = io.BytesIO()
    shown.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _class_name(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else f"class {index}"


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)
