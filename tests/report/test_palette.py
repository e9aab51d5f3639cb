from __future__ import annotations

import pytest

from dfs_deploy.report.palette import contrast, option_colors


def rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


@pytest.mark.parametrize("bits", [[0, 8, 16, 32], [0, 32], [8, 32], [0, *range(8, 25, 2)], [0, *range(2, 33)]])
def test_letters_can_be_read_on_every_colour(bits: list[int]) -> None:
    """WCAG 2.2 asks for 4.5 to 1."""
    colors = option_colors([{"bits": b} for b in bits])
    assert len(colors) == len(bits)
    for color in colors:
        assert contrast(rgb(color.light), rgb(color.light_text)) >= 4.5
        assert contrast(rgb(color.dark), rgb(color.dark_text)) >= 4.5
    assert len({color.light for color in colors}) == len(colors)


def test_contrast_is_wcags() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)
