"""From the classes of a data set to those of a network, and the draw of images: neither needs a decoded image."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import DataError
from dfs_deploy.io.text import one_line

_NAMES_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Matched:
    """Labels that count as a network does.

    Attributes:
        labels: (N,) int64.
        class_names: name of each class of the network; empty if none are known.
        note: what was assumed, in a line; ``None`` for nothing.
    """

    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    note: str | None


def match_labels(
    labels: NDArray[np.int64], own: tuple[str, ...], classes: int, network: Sequence[str], name: str
) -> Matched:
    """Renumbers labels as a network does.

    Names decide if both sides have them. If only the data have, and all are numbers, these are the classes' numbers.
    Otherwise the labels stay as they are, in the order of the data's classes.

    Args:
        labels: (N,) int64, from 0 on.
        own: names of the data's classes, or empty.
        classes: number of the network's classes.
        network: names of its classes, or empty.
        name: what messages call the data.

    Raises:
        DataError: a class that the network does not know, or that cannot be told from another.
    """
    network, note = tuple(network), None
    if own and network and own != network:
        labels = _by_name(own, network, name)[labels]
    elif own and not network and all(map(is_number, own)):
        labels, own = _by_number(own, classes, name)[labels], ()
    elif own and not network:
        shown = _listed([f"{index} = {one}" for index, one in enumerate(own)])
        note = one_line(
            f"the network has no names for its {classes} classes, so the {len(own)} of {name} were taken in their own"
            f" order: {shown}; if that is not the network's, number the classes, or export with --class-names"
        )
    if labels.max() >= classes:
        raise DataError(
            f"{name} has label {labels.max()}, the network has {classes} classes, from 0; give its own data"
        )
    return Matched(labels, network or own, note)


def draw(total: int, count: int | None, seed: int) -> NDArray[np.intp]:
    """Draws from ``total`` images at random without replacement.

    For one seed, what is drawn for a smaller count is the beginning of what is drawn for a larger one.

    Args:
        total: number of images that there are.
        count: number of images to draw; ``None``, or more than there are, for all, in an order that the seed decides.
        seed: 0 or above.

    Raises:
        DataError: a count below 1, or a negative seed.
    """
    if count is not None and count < 1:
        raise DataError(f"a subset of {count} images, expected at least 1; leave the count out for all")
    if seed < 0:
        raise DataError(f"seed {seed}, expected 0 or above")
    return np.random.default_rng(seed).permutation(total)[:count]


def is_number(name: str) -> bool:
    """Whether a class goes by a number, as in ``7`` or ``007``."""
    return name.isascii() and name.isdecimal() and len(name) <= 18


def class_order(name: str) -> tuple[int, str]:
    """Key by which names that are all numbers are sorted."""
    return int(name), name


def _by_name(own: tuple[str, ...], network: tuple[str, ...], name: str) -> NDArray[np.int64]:
    """Index in the network of each class of the data: by its exact name, or by its number or its canonical letters."""
    position = {one: index for index, one in enumerate(network)}
    if any(one not in position for one in own):
        position = {_canonical(one): index for index, one in enumerate(network)}
        own = tuple(map(_canonical, own))
        network = tuple(map(_canonical, network))
    unknown = [one for one in own if one not in position]
    if unknown:
        raise DataError(
            f"{name} has {len(unknown)} of {len(own)} classes that the network does not know: {_listed(unknown)}; it"
            f" knows {_listed(network)}: name the classes as the network does"
        )
    here, there = Counter(own), Counter(network)
    twice = next((one for one in own if here[one] > 1 or there[one] > 1), None)
    if twice is not None:
        raise DataError(
            f"{name} or the network has two classes of the name {twice!r}, expected names that tell classes apart;"
            " rename one, or give labels without names"
        )
    return np.array([position[one] for one in own], np.int64)


def _by_number(own: tuple[str, ...], classes: int, name: str) -> NDArray[np.int64]:
    numbers = np.array([int(one) for one in own], np.int64)
    if numbers.max() >= classes:
        raise DataError(
            f"{name} has a class {own[int(numbers.argmax())]}, expected the network's numbers, 0 to {classes - 1};"
            " number the classes as the network does, from 0"
        )
    return numbers


def _canonical(name: str) -> str:
    """One form for names that are the same to a reader: 007 and 7, and letters whose accents stand apart (macOS)."""
    return str(int(name)) if is_number(name) else unicodedata.normalize("NFC", name)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown}, ..."
