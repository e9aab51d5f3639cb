from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.errors import UsageError
from dfs_deploy.network import Architecture, Block, GateShape, cifar_resnet, cifar_values
from dfs_deploy.options import Options
from tests.checks import refuses

architectures = st.integers(1, 4).flatmap(
    lambda groups: st.builds(
        cifar_resnet,
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
    architecture = cifar_resnet(groups)
    assert architecture.name == name
    assert architecture.gated_blocks == gated


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (
            cifar_resnet((2, 2, 2), image_shape=(3, 16, 16)),
            ["16x16", "32x32"],
        ),
        (
            cifar_resnet((3, 3, 3), image_shape=(1, 32, 32)),
            ["1 channels", "3 channels"],
        ),
        (
            cifar_resnet((2, 3, 4)),
            ["block 2", "layer2.0", "layer1.2", "(32, 16, 16)", "skip projection", "skip free"],
        ),
        (cifar_resnet((3, 3, 3), classes=7), ["7 classes", "10 classes"]),
    ],
)
def test_what_differs_is_said(seen: Architecture, words: list[str]) -> None:
    said = seen.beside(cifar_resnet((3, 3, 3)))
    for word in words:
        assert word in said


@given(architectures, architectures)
def test_architectures_that_differ_are_told_apart(one: Architecture, other: Architecture) -> None:
    seen, expected = one.beside(other).split(", expected ")
    assert (seen == expected) == (one == other)


def test_blocks_of_a_small_network() -> None:
    whole = 9 * 16 * 16 * 32 * 32  # multiply-adds of a 3x3 convolution from 16 channels to 16; the others halve the map
    assert cifar_resnet((1, 2, 1)).blocks == (
        Block(0, "layer1.0", (16, 32, 32), (16, 32, 32), 1, None, macs=2 * whole),
        Block(1, "layer2.0", (16, 32, 32), (32, 16, 16), 2, "projection", macs=whole // 2 + whole),
        Block(2, "layer2.1", (32, 16, 16), (32, 16, 16), 2, "free", macs=2 * whole),
        Block(3, "layer3.0", (32, 16, 16), (64, 8, 8), 3, "projection", macs=whole // 2 + whole),
    )


@given(architectures)
def test_each_block_takes_what_the_one_before_gives(architecture: Architecture) -> None:
    groups, blocks = cifar_values(architecture)["groups"], architecture.blocks
    assert [block.index for block in blocks] == list(range(sum(groups)))
    assert len(blocks) == architecture.gated_blocks + 1
    assert blocks[0].in_shape[1:] == architecture.image_shape[1:]
    for before, after in itertools.pairwise(blocks):
        assert after.in_shape == before.out_shape
        assert after.projects == (after.group != before.group)
    assert sum(block.projects for block in blocks) == len(groups) - 1


@given(architectures)
def test_the_values_that_describe_a_cifar_resnet_are_found_again(architecture: Architecture) -> None:
    assert cifar_resnet(**cifar_values(architecture)) == architecture


def test_odd_sizes_round_up() -> None:
    assert cifar_resnet((1, 1), (4, 8), image_shape=(3, 7, 9)).blocks[1].out_shape == (8, 4, 5)
    assert cifar_resnet((1, 1), (4, 8), image_shape=(3, 1, 1)).blocks[1].out_shape == (8, 1, 1)


def chain(*blocks: Block) -> Architecture:
    return Architecture(name="chain", image_shape=(3, 8, 8), classes=2, gate=GateShape(10, 10), blocks=blocks)


def test_a_gate_of_another_kind_is_told() -> None:
    one, other = (msgspec.structs.replace(chain(FIRST), gate=GateShape(10, 10, kind)) for kind in ("lstm", "stateless"))
    assert one.beside(other) == "chain with a gate of kind lstm, expected chain with a gate of kind stateless"


def test_any_chain_of_blocks_is_a_network() -> None:
    network = chain(
        Block(0, "stem.0", (4, 8, 8), (4, 8, 8), 1, None),
        Block(1, "plain", (4, 8, 8), (6, 5, 8), 1, None, ("full",)),
        Block(2, "skipped", (6, 5, 8), (6, 5, 8), 1, "free", ("skip", "8")),
    )
    options = Options.parse("skip,8,16,full")
    assert [[option.name for option in block.choices(options)] for block in network.blocks] == [
        ["8", "16", "full"],
        ["full"],
        ["skip", "8"],
    ]
    with refuses(UsageError, "no CIFAR ResNet"):
        cifar_values(network)


WITH_CHOICES = (
    Block(0, "stem.0", (4, 8, 8), (4, 8, 8), 1, None, macs=1000),
    Block(1, "fixed", (4, 8, 8), (6, 8, 8), 1, None, ("full",), macs=500),
    Block(2, "skipped", (6, 8, 8), (6, 8, 8), 1, "free", ("skip", "8"), macs=30),
    Block(3, "never skipped", (6, 8, 8), (6, 8, 8), 1, None, None, macs=10),
)
MANY = Options.parse("skip,8,full")


def test_the_gate_decides_about_blocks_with_several_choices() -> None:
    network = chain(*WITH_CHOICES)
    assert [block.fixed(MANY) for block in network.blocks[1:]] == [True, False, False]
    assert network.decided(MANY) == (2, 3)
    assert network.skippable(MANY) == (2,)
    assert network.allowed(MANY).tolist() == [[False, False, True], [True, True, False], [False, True, True]]
    assert network.gated_blocks == 3


def test_blocks_weigh_their_multiply_adds_over_the_mean_of_those_decided() -> None:
    assert chain(*WITH_CHOICES).weights(MANY) == (0.0, 1.5, 0.5)
    assert chain(*WITH_CHOICES).without_macs().weights(MANY) == (0.0, 1.0, 1.0)
    assert chain(*WITH_CHOICES[:2]).weights(MANY) == (0.0,)
    nothing = [msgspec.structs.replace(block, macs=0) for block in WITH_CHOICES]
    assert chain(*nothing).weights(MANY) == (0.0, 1.0, 1.0)


@given(architectures, st.sampled_from(["skip,8,full", "8,full", "skip,full"]))
def test_weights_of_the_decided_blocks_have_a_mean_of_one(architecture: Architecture, text: str) -> None:
    weights = architecture.weights(Options.parse(text))
    assert len(weights) == architecture.gated_blocks
    if weights:
        assert sum(weights) == pytest.approx(len(weights))
    assert architecture.without_macs().weights(Options.parse(text)) == (1.0,) * architecture.gated_blocks


def test_the_range_of_the_computation_is_that_of_the_choices() -> None:
    least, most = chain(*WITH_CHOICES).computation_range(MANY)
    assert (least, most) == pytest.approx((0.25 * 0.0625, 0.75 * 0.0625 + 0.25))
    assert chain(*WITH_CHOICES[:2]).computation_range(MANY) == (1.0, 1.0)


FIRST = Block(0, "a", (4, 8, 8), (4, 8, 8), 1, None)


@pytest.mark.parametrize(
    ("blocks", "word"),
    [
        ((), "0 blocks"),
        ((FIRST, FIRST), "index 0"),
        ((Block(0, "a", (4, 8, 8), (4, 8, 8), 1, "free"),), "first"),
        ((FIRST, Block(1, "b", (5, 8, 8), (5, 8, 8), 1, "free")), "the block before gives (4, 8, 8)"),
        ((FIRST, Block(1, "b", (4, 8, 8), (5, 8, 8), 1, "free")), "gives (5, 8, 8)"),
        ((FIRST, Block(1, "b", (4, 8, 8), (4, 8, 8), 2, "free")), "group 2 after group 1"),
        ((FIRST, Block(1, "b", (4, 8, 8), (0, 8, 8), 2, None)), "whole number"),
    ],
)
def test_blocks_that_form_no_chain_are_refused(blocks: tuple[Block, ...], word: str) -> None:
    with refuses(UsageError, word):
        chain(*blocks)


@pytest.mark.parametrize(
    "values",
    [
        {"groups": ()},
        {"groups": (3, 0, 3)},
        {"groups": (3, 3, 3), "classes": 0},
        {"groups": (3, 3, 3), "widths": (16, 32, -64)},
        {"groups": (3, 3, 3), "image_shape": (3, 32)},
        {"groups": (3, 3, 3), "gate_hidden": 0},
    ],
)
def test_impossible_networks_are_refused(values: dict[str, tuple[int, ...]]) -> None:
    with refuses(UsageError, "impossible architecture"):
        cifar_resnet(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"groups": (500, 500, 1)}, "1001 blocks"),
        ({"groups": (1, 1, 1), "image_shape": (3, 1025, 8)}, "1025x8 pixels"),
        ({"groups": (1, 1, 1), "image_shape": (3, 1024, 1024), "widths": (16, 32, 1025)}, "67,174,400 values"),
        ({"groups": (1, 1, 1), "image_shape": (65, 1024, 1024)}, "68,157,440 values"),
        ({"groups": (1, 1, 1), "classes": 70_000}, "from 1 to 65,536"),
        ({"groups": (1, 1, 1), "gate_hidden": 5000}, "gate of 5,000 features, expected at most 4,096"),
        ({"groups": (1, 1, 1), "gate_embedding": 5000}, "gate of 5,000 features"),
    ],
)
def test_networks_without_bounds_are_refused(values: dict[str, tuple[int, ...]], word: str) -> None:
    with refuses(UsageError, word):
        cifar_resnet(**values)  # type: ignore[arg-type]
    cifar_resnet((1, 1, 1), image_shape=(64, 1024, 1024))
