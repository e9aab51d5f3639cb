from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.bench.candidates import FORCED_SHARES, ForcedPattern, forced_patterns, spread_path
from dfs_deploy.options import Options, Precision


@given(st.integers(0, 100), st.integers(0, 60))
def test_a_share_of_the_blocks_runs_evenly_spread(share: int, blocks: int) -> None:
    options = Options.parse("skip,8,full")
    path = spread_path(share, 2, blocks, options)
    assert path.shape == (blocks,)
    assert path.dtype == np.uint8
    assert set(path.tolist()) <= {0, 2}
    runs = path == 2
    assert runs.sum() == share * blocks // 100
    for end in range(blocks + 1):
        assert abs(runs[:end].sum() - end * share / 100) < 1, "no part of the network gets more than its share"


@pytest.mark.parametrize("text", ["full,8,skip", "8,skip,full"])
def test_the_blocks_that_do_not_run_skip_wherever_skip_stands(text: str) -> None:
    options = Options.parse(text)
    skip = options.names.index("skip")
    assert spread_path(0, options.names.index("8"), 4, options).tolist() == [skip] * 4
    assert spread_path(100, options.names.index("8"), 4, options).tolist() == [options.names.index("8")] * 4


@pytest.mark.parametrize(
    ("text", "series"),
    [
        ("skip,8,16,full", {"int8": 1, "fp32": 3}),
        ("full,16,8,skip", {"int8": 2, "fp32": 0}),
        ("skip,full", {"fp32": 1}),
        ("skip,16,full", {"fp16": 1, "fp32": 2}),
        ("skip,8,16", {"int8": 1, "fp16": 2}),
        ("8,full", {}),
    ],
)
def test_forced_series_are_of_the_least_and_the_most_precise_option(text: str, series: dict[Precision, int]) -> None:
    expected = [ForcedPattern(share, option, kind) for kind, option in series.items() for share in FORCED_SHARES]
    assert list(forced_patterns(Options.parse(text))) == expected


def test_a_pattern_names_its_cases() -> None:
    pattern = ForcedPattern(25, 1, "int8")
    assert (pattern.dispatched, pattern.trace) == ("dfs-forced-25-int8", "trace-25-int8")
