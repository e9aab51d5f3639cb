from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dfs_deploy.cli.classified import cells
from dfs_deploy.options import Option

SIGNS = {0: "·", 4: "4", 8: "8", 16: "16", 31: "31", 32: "F"}

paths = st.lists(st.sampled_from(sorted(SIGNS)).map(Option), max_size=60)


@given(paths)
def test_every_block_has_its_cell_in_order(path: list[Option]) -> None:
    text = cells(path)
    assert text.plain.split() == [SIGNS[option.bits] for option in path]
    assert len(text.spans) == len(path), "each has a colour of its own"
    assert "\n" not in text.plain


@given(paths.filter(bool), st.integers(8, 30))
def test_a_long_path_takes_several_lines(path: list[Option], width: int) -> None:
    lines = cells(path).wrap(Console(), width)
    assert [word for line in lines for word in line.plain.split()] == [SIGNS[option.bits] for option in path]
    assert all(line.plain[0] != " " for line in lines if line), "cells stand below each other"
