"""Colours of options: more bits, more colour; a skip is grey. Letters in the cells say the same without colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_LIGHT = ((78, 165, 160), (58, 110, 176), (20, 36, 82))
_DARK = ((40, 112, 122), (84, 156, 224), (214, 234, 255))
_SKIP_LIGHT, _SKIP_DARK = (205, 211, 218), (72, 81, 93)
_INK, _PAPER = "#000000", "#ffffff"

_Color = tuple[int, int, int]


@dataclass(frozen=True)
class OptionColor:
    """A fill and a text colour that can be read on it, for a light and for a dark page."""

    light: str
    light_text: str
    dark: str
    dark_text: str


def option_colors(options: Sequence[dict[str, Any]]) -> list[OptionColor]:
    """A colour for each option of a report's JSON, in its order."""
    computing = sorted({option["bits"] for option in options if option["bits"]})
    colors = []
    for option in options:
        place = computing.index(option["bits"]) / max(1, len(computing) - 1) if option["bits"] else None
        light = _SKIP_LIGHT if place is None else _along(_LIGHT, place)
        dark = _SKIP_DARK if place is None else _along(_DARK, place)
        colors.append(OptionColor(_hex(light), _text_on(light), _hex(dark), _text_on(dark)))
    return colors


def contrast(first: _Color, second: _Color) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2, relative luminance and contrast ratio)."""
    high, low = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(color: _Color) -> float:
    parts = [c / 255 for c in color]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _along(stops: Sequence[_Color], place: float) -> _Color:
    scaled = place * (len(stops) - 1)
    left = min(int(scaled), len(stops) - 2)
    share = scaled - left
    mixed = [round(a + share * (b - a)) for a, b in zip(stops[left], stops[left + 1], strict=True)]
    return mixed[0], mixed[1], mixed[2]


def _text_on(color: _Color) -> str:
    return _INK if contrast(color, (0, 0, 0)) >= contrast(color, (255, 255, 255)) else _PAPER


def _hex(color: _Color) -> str:
    return "#" + "".join(f"{part:02x}" for part in color)
