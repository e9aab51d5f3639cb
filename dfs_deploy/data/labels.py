"""Labels of a data set in a network's numbering, and random draws of images; neither needs a decoded image."""

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
    """Labels in a network's numbering.

    Attributes:
        labels: (N,) int64.
        class_names: names of the network's classes; empty if none are known.
        note: one line on what was assumed, or ``None``.
    """

    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    note: str | None


def match_labels(
    labels: NDArray[np.int64], own: tuple[str, ...], classes: int, network: Sequence[str], name: str
) -> Matched:
    """Renumbers labels to a network's classes.

    If both sides have class names, the names decide. If only the data have names and all of them are numbers, these
    are the class numbers. Otherwise the labels do not change.

    Args:
        labels: (N,) int64, from 0 on.
        own: names of the data's classes, or empty.
        classes: number of the network's classes.
        network: names of the network's classes, or empty.
        name: name of the data in messages.

    Raises:
        DataError: the network does not know a class, or two classes have the same name.
    """
    network, note = tuple(network), None
    if own and network and own != network:
        labels = _by_name(own, network, name)[labels]
    elif own and not network and all(map(is_number, own)):
        labels, own = _by_number(own, classes, name)[labels], ()
    elif own and not network:
        shown = _listed([f"{index} = {one}" for index, one in enumerate(own)])
        note = one_line(
            f"the network has no names for its {classes} classes, so the {len(own)} of {name} keep their own"
            f" order: {shown}; if the network's differs, number the classes, or export with --class-names"
        )
    if labels.max() >= classes:
        raise DataError(
            f"{name} has label {labels.max()}, expected 0 to {classes - 1}; give data with the network's classes"
        )
    return Matched(labels, network or own, note)


def draw(total: int, count: int | None, seed: int) -> NDArray[np.intp]:
    """Draws (min(count, total),) indices; see ``Dataset.subset``."""
    if count is not None and count < 1:
        raise DataError(f"a subset of {count} images, expected at least 1; leave the count out for all")
    if seed < 0:
        raise DataError(f"seed {seed}, expected 0 or above")
    return np.random.default_rng(seed).permutation(total)[:count]


def is_number(name: str) -> bool:
    """Whether the name of a class is a number, such as ``7`` or ``007``."""
    return name.isascii() and name.isdecimal() and len(name) <= 18


def class_order(name: str) -> tuple[int, str]:
    """Sort key for class names that are numbers."""
    return int(name), name


def _by_name(own: tuple[str, ...], network: tuple[str, ...], name: str) -> NDArray[np.int64]:
    """Network's index of each class of the data, by exact names, or else by canonical names."""
    position = {one: index for index, one in enumerate(network)}
    if any(one not in position for one in own):
        position = {_canonical(one): index for index, one in enumerate(network)}
        own = tuple(map(_canonical, own))
        network = tuple(map(_canonical, network))
    unknown = [one for one in own if one not in position]
    if unknown:
        raise DataError(
            f"{name} has {len(unknown)} of {len(own)} classes that the network does not know: {_listed(unknown)};"
            f" expected {_listed(network)}: name the classes as the network does"
        )
    here, there = Counter(own), Counter(network)
    twice = next((one for one in own if here[one] > 1 or there[one] > 1), None)
    if twice is not None:
        raise DataError(
            f"{name} or the network has two classes with the name {twice!r}, expected a different name for each class;"
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
    """Common form of names that read the same: 007 and 7, composed and decomposed accents (macOS)."""
    return str(int(name)) if is_number(name) else unicodedata.normalize("NFC", name)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown}, ..."
