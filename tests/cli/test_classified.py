from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from dfs_deploy.cli.classified import cells, cells_per_line, wrapped_cells
from dfs_deploy.options import Option

SIGNS = {0: "·", 4: "4", 8: "8", 16: "16", 31: "31", 32: "F"}

paths = st.lists(st.sampled_from(sorted(SIGNS)).map(Option), max_size=60)


@given(paths)
def test_every_block_has_its_cell_in_order(path: list[Option]) -> None:
    text = cells(path)
    assert text.plain.split() == [SIGNS[option.bits] for option in path]
    assert len(text.spans) == len(path), "each has a colour of its own"
    assert "\n" not in text.plain


@given(paths, st.integers(8, 30))
def test_a_long_path_takes_several_lines(path: list[Option], per_line: int) -> None:
    lines = wrapped_cells(path, per_line).renderables
    words = [line.plain.split() for line in lines if isinstance(line, Text)]
    assert len(words) == len(lines) == max(1, -(-len(path) // per_line))
    assert [word for line in words for word in line] == [SIGNS[option.bits] for option in path]
    assert max(map(len, words)) <= per_line


@given(st.integers(-100, 400))
def test_as_many_cells_as_fit(columns: int) -> None:
    count = cells_per_line(columns)
    assert count is not None
    assert count == 8 or len(cells([Option(16)] * count).plain) <= columns < len(
        cells([Option(16)] * (count + 1)).plain
    )
