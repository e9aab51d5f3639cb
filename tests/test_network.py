from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.errors import UsageError
from dfs_deploy.network import Architecture, BlockShape
from tests.checks import refuses

architectures = st.integers(1, 4).flatmap(
    lambda groups: st.builds(
        Architecture,
        groups=st.tuples(*[st.integers(1, 4)] * groups),
        widths=st.tuples(*[st.integers(1, 64)] * groups),
        classes=st.integers(1, 100),
        image_shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    )
)


@pytest.mark.parametrize(
    ("groups", "name", "gated"),
    [((3, 3, 3), "ResNet-20", 8), ((6, 6, 6), "ResNet-38", 17), ((12, 12, 12), "ResNet-74", 35)],
)
def test_names_and_decisions_are_the_papers(groups: tuple[int, ...], name: str, gated: int) -> None:
    architecture = Architecture(groups)
    assert architecture.name == name
    assert architecture.gated_blocks == gated


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (
            Architecture((2, 2, 2), image_shape=(3, 16, 16)),
            "ResNet-14 on 16x16 images, expected ResNet-20 on 32x32 images",
        ),
        (
            Architecture((3, 3, 3), image_shape=(1, 32, 32)),
            "ResNet-20 on 32x32 images of 1 channels, expected ResNet-20 on 32x32 images of 3 channels",
        ),
        (
            Architecture((2, 3, 4)),
            "ResNet-20 with groups of 2, 3, 4 blocks, expected ResNet-20 with groups of 3, 3, 3 blocks",
        ),
        (Architecture((3, 3, 3), classes=7), "ResNet-20 with 7 classes, expected ResNet-20 with 10 classes"),
    ],
)
def test_what_differs_is_said_and_nothing_else(seen: Architecture, words: str) -> None:
    assert seen.beside(Architecture((3, 3, 3))) == words


@given(architectures, architectures)
def test_architectures_that_differ_are_told_apart(one: Architecture, other: Architecture) -> None:
    seen, expected = one.beside(other).split(", expected ")
    assert (seen == expected) == (one == other)


def test_blocks_of_a_small_network() -> None:
    assert list(Architecture((1, 2, 1)).block_shapes()) == [
        BlockShape(0, 16, 16, 1, (32, 32)),
        BlockShape(1, 16, 32, 2, (32, 32)),
        BlockShape(2, 32, 32, 1, (16, 16)),
        BlockShape(3, 32, 64, 2, (16, 16)),
    ]


@given(architectures)
def test_each_block_takes_what_the_one_before_gives(architecture: Architecture) -> None:
    shapes = list(architecture.block_shapes())
    assert [shape.index for shape in shapes] == list(range(sum(architecture.groups)))
    assert len(shapes) == architecture.gated_blocks + 1
    assert shapes[0].in_channels == architecture.widths[0]
    assert shapes[0].in_size == architecture.image_shape[1:]
    assert not shapes[0].projects
    for before, after in itertools.pairwise(shapes):
        assert after.in_channels == before.out_channels
        assert after.in_size == before.out_size
    assert sum(shape.stride == 2 for shape in shapes) == len(architecture.groups) - 1
    assert all(shape.projects == (shape.stride == 2) for shape in shapes)


def test_odd_sizes_round_up() -> None:
    assert BlockShape(1, 4, 8, 2, (7, 9)).out_size == (4, 5)
    assert BlockShape(1, 4, 8, 2, (1, 1)).out_size == (1, 1)


def test_a_change_of_channels_alone_projects() -> None:
    assert BlockShape(1, 4, 8, 1, (8, 8)).projects
    assert not BlockShape(1, 8, 8, 1, (8, 8)).projects


@pytest.mark.parametrize(
    "values",
    [
        {"groups": ()},
        {"groups": (), "widths": ()},
        {"groups": (3, 3)},
        {"groups": (3, 0, 3)},
        {"groups": (3, 3, 3), "classes": 0},
        {"groups": (3, 3, 3), "widths": (16, 32, -64)},
        {"groups": (3, 3, 3), "image_shape": (3, 32)},
        {"groups": (3, 3, 3), "image_shape": (3, 0, 32)},
        {"groups": (3, 3, 3), "gate_hidden": 0},
        {"groups": (3, 3, 3), "gate_embedding": 0},
    ],
)
def test_impossible_networks_are_refused(values: dict[str, tuple[int, ...]]) -> None:
    with refuses(UsageError, "impossible architecture"):
        Architecture(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"groups": (500, 500, 1)}, "1001 blocks"),
        ({"groups": (1, 1, 1), "image_shape": (3, 1025, 8)}, "1025x8 pixels"),
        ({"groups": (1, 1, 1), "image_shape": (3, 1024, 1024), "widths": (16, 32, 1025)}, "67,174,400 values"),
        ({"groups": (1, 1, 1), "image_shape": (65, 1024, 1024)}, "68,157,440 values"),
    ],
)
def test_networks_without_bounds_are_refused(values: dict[str, tuple[int, ...]], word: str) -> None:
    with refuses(UsageError, word):
        Architecture(**values)  # type: ignore[arg-type]
    Architecture((1, 1, 1), image_shape=(64, 1024, 1024))
