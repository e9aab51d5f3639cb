from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.bench.candidates import FORCED_SHARES, ForcedPattern, even_path, forced_patterns, spread_path
from dfs_deploy.network import Architecture, Block, GateShape
from dfs_deploy.options import Options, Precision


def chain(*choices: tuple[str, ...] | None, never: Sequence[int] = ()) -> Architecture:
    """A network of blocks that may run some options, of which those at some positions cannot be skipped."""
    shape = (4, 8, 8)
    first = Block(0, "stem", shape, shape, 1, None)
    blocks = [
        Block(i, f"block{i}", shape, shape, 1, None if i in never else "free", options)
        for i, options in enumerate(choices, 1)
    ]
    return Architecture(name="chain", image_shape=(3, 8, 8), classes=2, gate=GateShape(1, 1), blocks=(first, *blocks))


@given(st.integers(0, 100), st.integers(0, 60))
def test_a_share_of_the_blocks_runs_evenly_spread(share: int, blocks: int) -> None:
    options = Options.parse("skip,8,full")
    path = spread_path(share, 2, chain(*[None] * blocks), options)
    assert path.shape == (blocks,)
    assert path.dtype == np.uint8
    assert set(path.tolist()) <= {0, 2}
    runs = path == 2
    assert runs.sum() == share * blocks // 100
    for end in range(blocks + 1):
        assert abs(runs[:end].sum() - end * share / 100) < 1, "no part of the network gets more than its share"


@pytest.mark.parametrize("text", ["full,8,skip", "8,skip,full"])
def test_the_blocks_that_do_not_run_skip_wherever_skip_stands(text: str) -> None:
    options, network = Options.parse(text), chain(*[None] * 4)
    skip = options.names.index("skip")
    assert spread_path(0, options.names.index("8"), network, options).tolist() == [skip] * 4
    assert spread_path(100, options.names.index("8"), network, options).tolist() == [options.names.index("8")] * 4


@given(st.data(), st.integers(0, 100), st.sampled_from(["8", "full"]))
def test_the_share_is_of_the_blocks_that_may_be_skipped(data: st.DataObject, share: int, option: str) -> None:
    options = Options.parse("skip,8,16,full")
    kinds = st.sampled_from([None, ("skip", "full"), ("8", "16"), ("full",), ("16",)])
    network = chain(*data.draw(st.lists(kinds, max_size=12)))
    path = spread_path(share, options.names.index(option), network, options)
    allowed, skippable = network.allowed(options), np.array(network.skippable(options), int) - 1
    assert allowed[np.arange(len(path)), path].all(), "no block runs what it may not"
    assert (path[skippable] != 0).sum() == share * len(skippable) // 100
    for block, taken in enumerate(path):
        if taken and allowed[block, options.names.index(option)]:
            assert options[int(taken)].name == option
        if block not in skippable:
            assert taken


def test_a_block_without_the_option_runs_the_nearest() -> None:
    options = Options.parse("skip,8,16,full")
    network = chain(("skip", "16", "full"), ("full",), ("skip",), None, never=(4,))
    assert even_path(network, options, 1).tolist() == [2, 3, 0, 1]
    assert even_path(network, options, 0).tolist() == [0, 3, 0, 1]


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
