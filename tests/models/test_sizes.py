"""Shapes by arithmetic: they are those of the tensors that PyTorch computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.errors import CheckpointError
from dfs_deploy.models.graph import INPUT, OPERATORS, Evaluation, Graph, Node, named_tensors
from dfs_deploy.models.sizes import SIZES, multiply_adds, sizes_of
from dfs_deploy.network import MAX_MAP
from tests.checks import refuses
from tests.networks import FAMILIES

NUMBERS = {"slope": 0.1, "scale": 2.0, "shift": 1.0, "share": 0.5, "low": 0.0, "high": 6.0}
WINDOWS = ("conv", "max_pool", "avg_pool")


@st.composite
def nodes(draw: st.DrawFn, operator: str) -> tuple[Node, dict[str, torch.Tensor], tuple[int, ...]]:
    """A node with attributes, tensors and an input that mostly fit each other."""
    few = st.integers(1, 4)
    channels, groups = draw(few), draw(st.sampled_from((1, 1, 2)))
    flat = operator == "linear" or (operator not in (*WINDOWS, "pad", "slice") and draw(st.booleans()))
    shape = (channels,) if flat else (channels, draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    attributes: dict[str, Any] = {}
    for name, kind in OPERATORS[operator].attributes.items():
        if name in NUMBERS:
            attributes[name] = NUMBERS[name]
        elif kind is float:
            attributes[name] = 0.1
        elif name in ("ceil", "count_padding"):
            attributes[name] = draw(st.integers(0, 1))
        elif name == "groups":
            attributes[name] = groups
        else:
            least = 0 if name in ("padding", "pads", "starts", "ends") else 1
            attributes[name] = tuple(draw(st.integers(least, 3)) for _ in range(int(kind)))  # type: ignore[call-overload]
    outputs, kernel = draw(few), (draw(few), draw(few))
    inside = draw(st.sampled_from((channels, channels, max(1, channels // groups), 3)))
    weight = {"conv": (outputs, inside, *kernel), "linear": (outputs, inside)}.get(operator, (channels,))
    tensors = {}
    for role in OPERATORS[operator].roles:
        if role.endswith("?") and draw(st.booleans()):
            continue
        role = role.rstrip("?")
        vector = (outputs if operator in ("conv", "linear") else draw(st.sampled_from((channels, channels, 3))),)
        tensors[role] = torch.ones(weight if role == "weight" and operator != "batch_norm" else vector)
    inputs = (INPUT,) * (OPERATORS[operator].inputs or draw(st.integers(1, 3)))
    return Node("node", operator, inputs, {role: role for role in tensors}, attributes), tensors, shape


def both(node: Node, tensors: dict[str, torch.Tensor], shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Shape that PyTorch gives and the shape by arithmetic; ``None`` for a refusal."""
    graph = Graph((node,), node.name)
    try:
        with torch.no_grad():
            computed = tuple(Evaluation(tensors).run(graph, torch.ones(2, *shape)).shape[1:])
    except (RuntimeError, ValueError, IndexError):
        computed = None
    try:
        return computed, sizes_of(graph, tensors, shape)[node.name]
    except CheckpointError:
        return computed, None


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_shape_is_the_one_that_pytorch_gives(operator: str) -> None:
    seen: list[bool] = []

    @given(nodes(operator))
    def same(made: tuple[Node, dict[str, torch.Tensor], tuple[int, ...]]) -> None:
        computed, size = both(*made)
        seen.append(size is not None)
        if size is not None:
            assert computed == size
        elif operator in ("conv", "max_pool", "avg_pool", "linear", "batch_norm"):
            assert computed is None or 0 in computed, "what PyTorch computes is not refused"

    same()
    assert any(seen), "some should fit, or this shows little"


def test_every_operator_has_a_shape() -> None:
    assert SIZES.keys() == OPERATORS.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_of_a_network_has_its_shape(family: str) -> None:
    from dfs_deploy.models import adapt, find_blocks

    made = FAMILIES[family]
    net, images = made.build(), made.images(1)
    graph = adapt(net, find_blocks(net, images), "skip,full").graphs.whole
    tensors, seen = named_tensors(net), dict[str, tuple[int, ...]]()
    with torch.no_grad():
        Evaluation(tensors, observer=lambda name, value: seen.update({name: tuple(value.shape[1:])})).run(graph, images)
    assert sizes_of(graph, tensors, tuple(images.shape[1:])) == seen


@pytest.mark.parametrize(
    ("shapes", "result"),
    [
        (((4, 3, 3), (4, 3, 3)), (4, 3, 3)),
        (((4, 1, 1), (4, 3, 3)), (4, 3, 3)),
        (((4, 3, 3), (1, 3, 3)), (4, 3, 3)),
        (((4, 3, 3), (3, 3, 3)), None),
        (((4, 3, 3), (4,)), None),
    ],
)
def test_two_values_are_broadcast_within_a_rank(shapes: tuple[Any, Any], result: Any) -> None:
    node = Node("sum", "add", ("a", "b"))
    if result is None:
        with pytest.raises(Exception, match="one shape"):
            SIZES["add"](node, {}, shapes)
    else:
        assert SIZES["add"](node, {}, shapes) == result
        one, other = (torch.ones(2, *shape) for shape in shapes)
        assert tuple((one + other).shape[1:]) == result


def test_channels_are_put_together() -> None:
    node = Node("all", "concat", ("a", "b", "c"))
    assert SIZES["concat"](node, {}, [(1, 2, 2), (3, 2, 2), (2, 2, 2)]) == (6, 2, 2)
    with pytest.raises(Exception, match="channels only"):
        SIZES["concat"](node, {}, [(1, 2, 2), (3, 2, 3), (2, 2, 2)])


def conv(padding: int = 1, stride: int = 1) -> tuple[Graph, dict[str, torch.Tensor]]:
    attributes = {"stride": (stride,) * 2, "padding": (padding,) * 4, "dilation": (1, 1), "groups": 1}
    node = Node("conv", "conv", (INPUT,), {"weight": "w"}, attributes)
    return Graph((node,), "conv"), {"w": torch.ones(8, 3, 3, 3)}


def test_multiply_adds_are_counted_by_hand() -> None:
    graph, tensors = conv(stride=2)
    assert multiply_adds(graph, tensors, (3, 8, 6)) == 4 * 3 * 8 * 3 * 9
    assert multiply_adds(Graph(), {}, (3, 8, 6)) == 0


def test_a_misfit_names_the_node_and_what_it_expects() -> None:
    graph, tensors = conv()
    with refuses(CheckpointError, "conv (conv)", "(4, 8, 8)", "(8, 3, 3, 3)"):
        sizes_of(graph, tensors, (4, 8, 8))
    with refuses(CheckpointError, "conv", "at least 3 rows"):
        sizes_of(conv(0)[0], tensors, (3, 2, 2))
    with refuses(CheckpointError, "conv", f"at most {MAX_MAP:,}"):
        sizes_of(conv(4096)[0], tensors, (3, 1024, 1024))
