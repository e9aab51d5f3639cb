"""What pages and figures have in common: colours of options, and the look of figures in files.

More bits, more colour; a skip is grey. Letters in a page's cells say the same without colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfs_deploy.errors import UsageError
from dfs_deploy.io.files import write_whole
from dfs_deploy.system.libraries import required

if TYPE_CHECKING:
    from dfs_deploy.bench.result import BenchResult

FIGURE_CONFIG: dict[str, Any] = {
    "background": "white",
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500, "gridColor": "#e3e6ea"},
    "legend": {"labelFontSize": 11, "titleFontSize": 12},
    "title": {"fontSize": 13, "anchor": "start"},
}
"""Vega-Lite's ``config`` of a figure that is written to a file."""

_LIGHT = ((78, 165, 160), (58, 110, 176), (20, 36, 82))
_DARK = ((40, 112, 122), (84, 156, 224), (214, 234, 255))
_SKIP_LIGHT, _SKIP_DARK = (205, 211, 218), (72, 81, 93)

_EVEN_LUMINANCE = 0.179
"""Luminance on which black and white text have the same contrast (WCAG 2.2, contrast ratio)."""


@dataclass(frozen=True)
class OptionColor:
    """Fill and a text colour that can be read on it, for a light and for a dark page."""

    light: str
    light_text: str
    dark: str
    dark_text: str


def option_colors(bits: Sequence[int]) -> list[OptionColor]:
    """A colour for each option, given its bits; 0 for a skip."""
    computing = sorted({b for b in bits if b})
    colors = []
    for b in bits:
        share = computing.index(b) / max(1, len(computing) - 1) if b else 0.0
        light = _along(_LIGHT, share) if b else _SKIP_LIGHT
        dark = _along(_DARK, share) if b else _SKIP_DARK
        colors.append(OptionColor(_hex(light), _text_on(light), _hex(dark), _text_on(dark)))
    return colors


def _along(stops: Sequence[Sequence[int]], share: float) -> list[int]:
    scaled = share * (len(stops) - 1)
    left = min(int(scaled), len(stops) - 2)
    return [round(a + (scaled - left) * (b - a)) for a, b in zip(stops[left], stops[left + 1], strict=True)]


def _text_on(color: Sequence[int]) -> str:
    """Black or white, whichever has the greater contrast (WCAG 2.2, relative luminance)."""
    red, green, blue = (c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color)
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > _EVEN_LUMINANCE else "#ffffff"


def _hex(color: Sequence[int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in color)


def draw(spec: dict[str, Any], kind: str) -> bytes:
    """A figure as the content of a file.

    Args:
        spec: Vega-Lite.
        kind: ``svg`` or ``png``.
    """
    import vl_convert

    spec = spec | {"config": FIGURE_CONFIG}
    return vl_convert.vegalite_to_svg(spec).encode() if kind == "svg" else vl_convert.vegalite_to_png(spec, scale=2.0)


def figure_writer(file: Path, figure: Callable[[BenchResult], dict[str, Any]]) -> Callable[[BenchResult], None]:
    """Function that writes a figure of a bench; made before the bench, so that none is run for a figure that fails.

    Args:
        file: SVG or PNG, as its suffix says.
        figure: function that makes Vega-Lite of a bench.

    Raises:
        UsageError: another suffix; or, when it is called, a file that cannot be written.
        MissingExtraError: the library that draws is not installed.
    """
    if file.suffix not in (".svg", ".png"):
        raise UsageError(f"{file} ends in {file.suffix or 'nothing'!r}, expected .svg or .png; name the plot so")
    with required():
        import vl_convert  # noqa: F401

    def write(result: BenchResult) -> None:
        try:
            write_whole(file, draw(figure(result), file.suffix[1:]))
        except OSError as error:
            raise UsageError(f"{file} cannot be written ({error.strerror}); name another file") from error

    return write
