from __future__ import annotations

import pytest

from dfs_deploy.report.style import option_colors


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("bits", [[0, 8, 16, 32], [0, 32], [8, 32], [0, *range(8, 25, 2)], [0, *range(2, 33)]])
def test_letters_can_be_read_on_every_colour(bits: list[int]) -> None:
    """WCAG 2.2 asks for 4.5 to 1."""
    colors = option_colors(bits)
    assert len(colors) == len(bits)
    for color in colors:
        assert contrast(color.light, color.light_text) >= 4.5
        assert contrast(color.dark, color.dark_text) >= 4.5
    assert len({color.light for color in colors}) == len(colors)
