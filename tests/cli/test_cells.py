from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.cli.cells import cells, cells_per_line, legend
from dfs_deploy.options import Option, Options

SIGNS = {0: "·", 4: "4", 8: "8", 16: "16", 31: "31", 32: "F"}

paths = st.lists(st.sampled_from(sorted(SIGNS)).map(Option), max_size=60)


@given(paths, st.integers(8, 30) | st.none())
def test_every_block_has_its_cell_in_order(path: list[Option], per_line: int | None) -> None:
    text = cells(path, per_line)
    assert text.plain.split() == [SIGNS[option.bits] for option in path]
    assert len(text.spans) == len(path), "each has a colour of its own"
    if per_line is None:
        assert "\n" not in text.plain
    else:
        assert max(len(line.split()) for line in text.plain.split("\n")) <= per_line


@given(st.integers(-100, 400))
def test_as_many_cells_as_fit(columns: int) -> None:
    count = cells_per_line(columns)
    assert count == 8 or len(cells([Option(16)] * count).plain) <= columns < len(
        cells([Option(16)] * (count + 1)).plain
    )


def test_the_legend_names_each_option() -> None:
    words = legend(list(Options.parse("skip,8,16,full"))).plain
    assert words == "path: one cell a block,  · = skipped,  8 = 8 bits, 16 = 16 bits,  F = full precision"
