"""A path in the terminal: a coloured cell a gated block, which reads as well without the colour."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from dfs_deploy.options import Option

# The greatest bitwidth of a shade, and a background on which its text can be read.
_SHADES = ((0, "white on grey30"), (8, "black on green3"), (16, "black on gold1"), (32, "white on red3"))

_LEAST_CELLS = 8


def cells(path: Sequence[Option]) -> Text:
    """A cell for each option of a path, in order, on one line.

    Args:
        path: what each gated block ran.
    """
    return Text(" ", justify="left").join(_cell(option) for option in path)


def wrapped_cells(path: Sequence[Option], per_line: int) -> Group:
    """The same on several lines.

    Args:
        path: what each gated block ran.
        per_line: most cells of a line.
    """
    return Group(*(cells(path[start : start + per_line]) for start in range(0, max(len(path), 1), per_line)))


def cells_per_line(columns: int) -> int:
    """How many cells fit into a part of a line, 8 at least."""
    return max(_LEAST_CELLS, (columns + 1) // 3)


def legend(options: Sequence[Option]) -> Text:
    """What each cell stands for."""
    entries = [Text.assemble(_cell(option), f" = {_meaning(option)}") for option in options]
    return Text.assemble("path: one cell a block, ", Text(", ").join(entries))


def _meaning(option: Option) -> str:
    return "skipped" if option.skips else f"{option.bits} bits" if option.quantized else "full precision"


def _cell(option: Option) -> Text:
    sign = "·" if option.skips else str(option.bits) if option.quantized else "F"
    return Text(f"{sign:>2}", style=next(style for bits, style in _SHADES if option.bits <= bits))
