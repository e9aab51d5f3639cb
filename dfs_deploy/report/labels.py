"""Placing of labels beside the points of a figure, so that none covers another one or a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Place = tuple[float, float]
"""A point in pixels, from the upper left corner."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""

FONT_SIZE = 12
_WIDTHS = {"narrow": ("ijltfr.,-:;|!()[]' ", 0.32), "wide": ("mwMW%@", 0.86)}
"""Widths of some letters, as shares of the font's size; of capitals, and of all others, below."""

_CAPITAL, _OTHER = 0.69, 0.555

_POINT = 7.0
"""Half of the side of the square that a point keeps free."""

_LINE = 2.0
"""The same of the squares that stand for a line, and the distance between them, twice over."""

_GAP = 10.0
_FAR = 16.0
"""Distance from which a line joins a label with its point."""


@dataclass(frozen=True)
class Spot:
    """A label to place: its text, the point that it names in pixels, and its colour."""

    text: str
    anchor: Place
    color: str


@dataclass(frozen=True)
class Label:
    """A label in its place.

    Attributes:
        text: text.
        x: left end of the text, in pixels.
        y: middle of its height, in pixels.
        anchor: point that it names, in pixels.
        color: colour.
        far: whether a line is to join it with its point.
    """

    text: str
    x: float
    y: float
    anchor: Place
    color: str
    far: bool

    @property
    def box(self) -> Box:
        """Left, top, right and bottom, in pixels."""
        return _box(self.text, self.x, self.y)


def place_labels(
    spots: Sequence[Spot],
    points: Sequence[Place],
    width: float,
    height: float,
    lines: Sequence[tuple[Place, Place]] = (),
) -> list[Label]:
    """Places labels one after another, each at the nearest free place beside its point.

    Args:
        spots: labels, the most important first.
        points: points of the figure, in pixels, which no label is to cover.
        width: width of the figure, in pixels.
        height: its height.
        lines: ends of lines of the figure, in pixels, which no label is to cover either.

    Returns:
        The labels in their places. One for which no place is free stands where it covers least.
    """
    squares = [_square(place, _POINT) for place in points]
    squares += [_square(place, _LINE) for line in lines for place in _along(*line)]
    placed: list[Label] = []
    for spot in spots:
        taken = [*squares, *(label.box for label in placed)]
        places = [place for place in _places(spot) if _within(place.box, width, height)]
        if places:
            placed.append(min(places, key=lambda place: sum(_overlap(place.box, other) for other in taken)))
    return placed


def _places(spot: Spot) -> list[Label]:
    """Places beside a point, the nearest first."""
    wide = text_width(spot.text)
    x, y = spot.anchor
    found = []
    for distance in (_GAP, 18.0, 28.0, 40.0, 54.0, 70.0):
        for across, down in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1), (0.5, -1), (0.5, 1)):
            left = x + across * distance if across > 0 else x + across * distance - wide if across < 0 else x - wide / 2
            middle = y + down * (distance + (4.0 if not across else 0.0))
            found.append(Label(spot.text, left, middle, spot.anchor, spot.color, distance > _FAR))
    return found


def text_width(text: str) -> float:
    """Width of a text in pixels, about: what draws it is not asked."""
    return FONT_SIZE * sum(
        next(
            (share for letters, share in _WIDTHS.values() if letter in letters),
            _CAPITAL if letter.isupper() else _OTHER,
        )
        for letter in text
    )


def _along(start: Place, end: Place) -> list[Place]:
    """Places on a line, from end to end."""
    (x, y), (across, down) = start, (end[0] - start[0], end[1] - start[1])
    count = max(1, math.ceil(math.hypot(across, down) / (2 * _LINE)))
    return [(x + across * i / count, y + down * i / count) for i in range(count + 1)]


def _square(place: Place, half: float) -> Box:
    return (place[0] - half, place[1] - half, place[0] + half, place[1] + half)


def _box(text: str, x: float, y: float) -> Box:
    return (x, y - 0.6 * FONT_SIZE, x + text_width(text), y + 0.6 * FONT_SIZE)


def _within(box: Box, width: float, height: float) -> bool:
    left, top, right, bottom = box
    return left >= 0 and top >= 0 and right <= width and bottom <= height


def _overlap(one: Box, other: Box) -> float:
    """Area that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return across * down if across > 0 and down > 0 else 0.0
