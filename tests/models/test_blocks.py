"""Blocks that are found, proved and arranged; and everything that is none, with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.errors import BlockError, InputError
from dfs_deploy.models.blocks import find_blocks
from dfs_deploy.models.graph import Evaluation, check_graphs, named_tensors, nonnegative
from dfs_deploy.models.plan import Arrangement, Plan, arrange
from dfs_deploy.models.sizes import multiply_adds
from dfs_deploy.network import GateShape
from dfs_deploy.options import Options
from tests.checks import refuses
from tests.networks import FAMILIES, BasicBlock, ResNet, shaken
from tests.networks.chained import Chained, Residual, conv
from tests.networks.mobilenet import InvertedResidual

IMAGES = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(5))


def plan_of(*blocks: nn.Module) -> Plan:
    return find_blocks(shaken(Chained(*blocks)), IMAGES)


def refused(plan: Plan) -> dict[str, str]:
    return {row.name: row.reason or "" for row in plan.rows if row.kind == "refused"}


def arranged(plan: Plan, options: str = "skip,8,full", always: int = 32) -> Arrangement:
    return arrange(plan, Options.parse(options), always, GateShape(4, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_found_proved_and_put_together(family: str) -> None:
    kind = FAMILIES[family]
    net, x = kind.build(), kind.images(3)
    plan = find_blocks(net, x[:1])
    assert plan.problem is None
    assert refused(plan) == {}
    shortcuts = [row.shortcut for row in plan.blocks]
    assert len(shortcuts) == kind.blocks
    assert shortcuts.count("identity") == kind.identity
    assert sum(row.skip == "projection" for row in plan.blocks) == kind.projection
    assert all((row.skip == "free") == (row.shortcut == "identity") for row in plan.blocks)
    arrangement = arranged(plan)
    check_graphs(arrangement.graphs, named_tensors(net))
    with torch.no_grad():
        logits = Evaluation(named_tensors(net)).run(arrangement.graphs.whole, x)
        expected = net(x)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_branch_shortcut_and_after_add_up_to_each_module(family: str) -> None:
    kind = FAMILIES[family]
    net = kind.build()
    run = Evaluation(named_tensors(net))
    generator = torch.Generator().manual_seed(9)
    for piece in find_blocks(net, kind.images(1)).pieces:
        assert piece.is_block
        x = 2.0 * torch.randn((3, *piece.in_shape), generator=generator)
        with torch.no_grad():
            expected = net.get_submodule(piece.graphs.name)(x.clone())
            value = run.run(piece.graphs.branch, x)
            if piece.graphs.shortcut is not None:
                value = value + run.run(piece.graphs.shortcut, x)
            torch.testing.assert_close(run.run(piece.graphs.after, value), expected, rtol=1e-5, atol=1e-5)
            skip = piece.graphs.skip
            if piece.graphs.free:
                usual = x.relu() if piece.graphs.after.nodes else x
                assert skip is not None
                assert skip.identity
                assert torch.equal(run.run(piece.graphs.after, usual), usual)


def test_multiply_adds_are_those_of_the_graphs() -> None:
    kind = FAMILIES["regnet_y"]
    net = kind.build()
    plan = find_blocks(net, kind.images(1))
    tensors = named_tensors(net)
    for piece in plan.pieces:
        assert piece.macs == multiply_adds(piece.graphs.branch, tensors, piece.in_shape)
    assert plan.multiply_adds == multiply_adds(arranged(plan).graphs.whole, tensors, (3, 64, 64))
    assert [row.share for row in plan.blocks] == [piece.macs / plan.multiply_adds for piece in plan.pieces]


def test_layers_of_squeeze_and_excitation_are_exact_and_no_others() -> None:
    kind = FAMILIES["mobilenet_v3_small"]
    graphs = arranged(find_blocks(kind.build(), kind.images(1))).graphs
    layers = {node.name: node for node in graphs.whole.nodes if node.operator in ("conv", "linear")}
    exact = {name for name, node in layers.items() if node.exact}
    assert exact == {name for name in layers if re.search(r"\.fc[12]$", name)}
    assert not any(node.exact for node in graphs.head.nodes)
    assert {"classifier.0", "classifier.3"} <= {node.name for node in graphs.head.nodes}


def test_convolutions_pad_for_themselves() -> None:
    kind = FAMILIES["efficientnet_lite"]
    graphs = arranged(find_blocks(kind.build(), kind.images(1))).graphs
    assert not any(node.operator == "pad" for node in graphs.whole.nodes)
    stem = next(node for node in graphs.stem.nodes if node.operator == "conv")
    assert stem.numbers("padding") == (0, 0, 1, 1)


def test_a_relu_after_the_addition_is_only_free_if_nothing_is_negative() -> None:
    class After(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    signed = plan_of(After(conv()), After(conv()))
    assert [row.skip for row in signed.blocks] == ["projection", "free"]
    skip = signed.pieces[0].graphs.skip
    assert skip is not None
    assert [node.operator for node in skip.nodes] == ["relu"]
    assert nonnegative(skip)
    assert [row.skip for row in plan_of(nn.ReLU(), After(conv()), Residual(conv()), After(conv())).blocks] == [
        "free",
        "free",
        "projection",
    ]


def test_blocks_can_be_named() -> None:
    kind = FAMILIES["mobilenet_v2"]
    net, x = kind.build(), kind.images(1)
    found = [row.name for row in find_blocks(net, x).blocks]
    assert found == [f"features.{index}" for index in range(1, 9)]
    assert [row.name for row in find_blocks(net, x, {InvertedResidual}).blocks] == found
    assert [row.name for row in find_blocks(net, x, InvertedResidual).blocks] == found
    assert [row.name for row in find_blocks(net, x, r"features\.[345]").blocks] == found[2:5]
    assert [row.name for row in find_blocks(net, x, re.compile(r"features\.3")).blocks] == found[2:3]
    assert [row.name for row in find_blocks(net, x, ["features.5", "features.3"]).blocks] == [found[2], found[4]]
    assert find_blocks(net, x, ["features.0"]).blocks[0].shortcut == "none"


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ({BasicBlock}, ("no module of class BasicBlock",)),
        (r"layer(\d+)", ("matches", "layer")),
        ("features.(", ("no regular expression",)),
        (["features.33"], ("no module 'features.33'", "features.3")),
        (["features.3", "features.3.conv"], ("one is inside the other", "name only one")),
        ([], ("blocks is empty",)),
        ([3], ("int 3",)),
    ],
)
def test_names_that_fit_nothing_are_refused(blocks: object, words: tuple[str, ...]) -> None:
    kind = FAMILIES["mobilenet_v2"]
    with refuses(BlockError, *words):
        find_blocks(kind.build(), kind.images(1), blocks)  # type: ignore[arg-type]


class Pair(nn.Module):
    """A network whose block reads two tensors."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + self.conv(y)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.last, self.fc = nn.Conv2d(3, 4, 1), self.Block(), Residual(conv()), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(self.last(self.block(x, x.relu())).mean((2, 3)))


class Decides(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > 1e9 else x + self.branch(x)


class Normalised(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(functional.layer_norm(x, x.shape[1:]))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight, None, 1, 1)


class Gated(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return (x + self.branch(x)) * x


class Shares(Residual):
    def forward(self, x: Tensor) -> Tensor:
        x = self.branch(x)
        return x + x.relu()


class Both(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x).relu() + x.sigmoid()


class OfTwo(Residual):
    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        return x + self.branch(x) * (1.0 if n == 2 else 2.0)


class ExitsOnThree(Residual):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 3:
            raise SystemExit("no threes")
        return super().forward(x)


class Remembers(Residual):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.branch(x)
        return x + self.seen


class Rude(nn.Module):
    """A network that reads what is inside its last block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.block = nn.Conv2d(3, 4, 1), Residual(conv()), Remembers(conv())
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.first(self.stem(x)))
        return self.fc((x * self.block.seen).mean((2, 3)))


class Around(Rude):
    """A network that carries a value around its last block."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        return self.fc((self.block(x) * x).mean((2, 3)))


class Twice(Rude):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.block(self.first(self.stem(x)))).mean((2, 3)))


def cumulative() -> nn.Module:
    return nn.Sequential(conv(), nn.BatchNorm2d(4, momentum=None))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, tuple[str, ...]]] = {
    "two tensors": (Pair, "block", ("reads 2 tensors", "stem", "expected one")),
    "data": (lambda: Chained(Decides(conv()), Residual(conv())), "blocks.0", ("depends on data", "Tensor.__bool__")),
    "twice": (Twice, "block", ("is called 2 times",)),
    "inside": (Rude, "block", ("block.branch inside", "mul_0 reads too")),
    "around": (Around, "block", ("no link of a chain", "mul_0")),
    "operator": (lambda: Chained(Normalised(conv()), Residual(conv())), "blocks.0", ("layer_norm", "closed set")),
    "weight": (
        lambda: Chained(Residual(Standardised(4, 4, 3)), Residual(conv())),
        "blocks.0",
        ("computes its weight", "in blocks.0.branch"),
    ),
    "momentum": (
        lambda: Chained(Residual(cumulative()), Residual(conv())),
        "blocks.0",
        ("momentum None", "in blocks.0.branch.1"),
    ),
    "after": (lambda: Chained(Gated(conv()), Residual(conv())), "blocks.0", ("again after its last addition",)),
    "shared": (lambda: Chained(Shares(conv()), Residual(conv())), "blocks.0", ("share blocks.0.branch",)),
    "neither": (lambda: Chained(Both(conv()), Residual(conv())), "blocks.0", ("neither is a shortcut",)),
    "batch": (lambda: Chained(OfTwo(conv()), Residual(conv())), "blocks.0", ("differs from its operations",)),
    "exit": (
        lambda: Chained(ExitsOnThree(conv()), Residual(conv())),
        "blocks.0",
        ("fails on a batch of 3 random tensors (SystemExit: no threes)",),
    ),
    "other dropout": (
        lambda: Chained(Residual(nn.Sequential(conv(), nn.Dropout2d(0.5))), Residual(conv())),
        "blocks.0",
        ("take nn.Dropout", "in blocks.0.branch.1"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_block_is_named_with_the_reason(name: str) -> None:
    build, module, words = REFUSED[name]
    net = shaken(build())
    plan = find_blocks(net, IMAGES)
    reason = refused(plan)[module]
    for word in words:
        assert word in reason
    assert plan.blocks
    assert " ".join(reason.split()) in re.sub(r"\s+", " ", str(plan))
    with refuses(BlockError, f"{module} (", *words):
        find_blocks(net, IMAGES, [module])
    with refuses(BlockError, f"{module} is no block", words[0]):
        plan[module]


def test_a_block_that_is_none_still_runs_if_its_graph_can_be_computed() -> None:
    net = shaken(Chained(Residual(conv()), Gated(conv()), Residual(conv())))
    plan = find_blocks(net, IMAGES)
    assert plan.problem is None
    graphs = arranged(plan).graphs
    assert [block.name for block in graphs.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert graphs.blocks[1].shortcut is None
    with torch.no_grad():
        torch.testing.assert_close(Evaluation(named_tensors(net)).run(graphs.whole, IMAGES), net(IMAGES))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Chained(Normalised(conv()), Residual(conv())), ("blocks.0, which always runs", "layer_norm")),
        (lambda: nn.Sequential(Chained(Residual(conv())), nn.Softmax(1)), ("1, which always runs", "softmax")),
        (lambda: Chained(Decides(conv()), Residual(conv())), ("blocks.0 depends on data",)),
        (lambda: Chained(OfTwo(conv()), Residual(conv())), ("put together again, it differs",)),
        (
            lambda: Chained(ExitsOnThree(conv()), Residual(conv())),
            ("put together again, it fails on a batch of 3 random images", "no threes"),
        ),
    ],
)
def test_what_always_runs_must_be_computable_too(build: Callable[[], nn.Module], words: tuple[str, ...]) -> None:
    plan = find_blocks(shaken(build()), IMAGES)
    assert plan.problem is not None
    with refuses(BlockError, "cannot be adapted", *words):
        arranged(plan)
    assert "It cannot be adapted" in str(plan)


class HeadOfTwo(Chained):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)) * (1.0 if len(x) == 2 else 2.0))


@pytest.mark.parametrize("value", [0.0, 1e-7])
def test_a_branch_or_a_head_that_begins_at_zero_is_proved_all_the_same(value: float) -> None:
    """The last normalisation of a branch often does, and then any graph of the branch gives what the module gives."""
    net = shaken(Chained(OfTwo(nn.Sequential(conv(), nn.BatchNorm2d(4))), Residual(conv())))
    tensors = [net.get_parameter(f"blocks.0.branch.1.{name}") for name in ("weight", "bias")]
    for tensor in tensors:
        nn.init.constant_(tensor, value)
    before = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
    assert "differs from its operations" in refused(find_blocks(net, IMAGES))["blocks.0"]
    assert [(tensor.data_ptr(), tensor._version) for tensor in tensors] == before
    assert all(torch.equal(tensor, torch.full((4,), value)) for tensor in tensors)
    head = shaken(HeadOfTwo(Residual(conv())))
    for name in ("fc.weight", "fc.bias"):
        nn.init.constant_(head.get_parameter(name), value)
    assert "put together again, it differs" in str(find_blocks(head, IMAGES).problem)


def test_networks_without_a_block_are_refused() -> None:
    with refuses(BlockError, "no residual block", "none of its modules adds"):
        plan_of(conv(), nn.ReLU())

    class Own(Chained):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.fc((x + self.blocks(x)).mean((2, 3)))

    with refuses(BlockError, "Own has no residual block", "own forward", "a module of its own"):
        find_blocks(Own(conv()), IMAGES)
    with refuses(BlockError, "blocks.0 (Normalised) is no block", "and 1 more are none"):
        plan_of(Normalised(conv()), Normalised(conv()))


def test_outputs_that_are_no_logits_are_refused() -> None:
    class Pair(Chained):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            x = self.blocks(self.stem(x))
            return x, x

    with refuses(InputError, "Pair gives tuple", "(N, classes)"):
        find_blocks(Pair(Residual(conv())), IMAGES)
    with refuses(InputError, "gives (4, 8, 8) per image", "(N, classes)"):
        find_blocks(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Residual(conv())), IMAGES)
    with refuses(InputError, "meta"):
        find_blocks(Chained(Residual(conv())).to("meta"), IMAGES.to("meta"))


def test_a_block_inside_another_belongs_to_it() -> None:
    plan = plan_of(Residual(nn.Sequential(conv(), Residual(conv()))), Residual(conv()))
    assert [row.name for row in plan.blocks] == ["blocks.0", "blocks.1"]


def test_a_container_that_is_none_gives_way_to_the_blocks_in_it() -> None:
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Residual(conv()), Residual(conv()))
            self.last = conv()

        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks(x)
            return x + self.last(x)

    plan = plan_of(Stage())
    assert [row.name for row in plan.blocks] == ["blocks.0.blocks.0", "blocks.0.blocks.1"]
    assert list(refused(plan)) == ["blocks.0"]


def test_what_branch_and_shortcut_both_read_is_computed_before() -> None:
    class PreActivation(nn.Module):
        def __init__(self, projects: bool) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4), conv()
            self.shortcut = nn.Conv2d(4, 4, 1) if projects else None

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x).relu()
            return self.conv(y).relu() + (x if self.shortcut is None else self.shortcut(y))

    plan = plan_of(PreActivation(False), PreActivation(True), PreActivation(False))
    assert [(row.name, row.kind, row.shortcut) for row in plan.rows[1:-1]] == [
        ("blocks.0", "block", "identity"),
        ("blocks.1.norm", "between", ""),
        ("blocks.1", "block", "projection"),
        ("blocks.2", "block", "identity"),
    ]


def test_a_search_leaves_no_trace() -> None:
    class Draws(ResNet):
        def forward(self, x: Tensor) -> Tensor:
            torch.rand(3)
            return super().forward(x)

    kind = FAMILIES["resnet18"]
    net = shaken(Draws(BasicBlock, (2, 2, 2, 2))).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    find_blocks(net, kind.images(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in net.modules())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Drawn(nn.Module):
    """A block of drawn parts."""

    def __init__(
        self, branch: nn.Module, shortcut: nn.Module | None, after: nn.Module | None, shortcut_first: bool
    ) -> None:
        super().__init__()
        self.branch, self.shortcut, self.after, self.first = branch, shortcut, after, shortcut_first

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        if self.first and self.shortcut is not None:
            kept = self.shortcut(x)
        y = self.branch(x)
        if not self.first and self.shortcut is not None:
            kept = self.shortcut(x)
        y = kept + y if self.first else y.add_(kept)
        return y if self.after is None else self.after(y)


LAYERS: tuple[Callable[[], nn.Module], ...] = (
    lambda: conv(groups=2),
    lambda: nn.BatchNorm2d(4),
    lambda: nn.ReLU(inplace=True),
    lambda: nn.ReLU6(),
    lambda: nn.Hardswish(inplace=True),
    lambda: nn.SiLU(),
    lambda: nn.AvgPool2d(3, 1, 1),
    lambda: nn.Dropout(0.1),
)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(LAYERS), max_size=4), st.booleans(), st.booleans(), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_any_chain_of_blocks_is_found_as_it_was_drawn(
    drawn: list[tuple[list[Callable[[], nn.Module]], bool, bool, bool]],
) -> None:
    net = shaken(
        Chained(
            *(
                Drawn(
                    nn.Sequential(conv(), *(make() for make in layers), nn.Hardswish(), conv()),
                    nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) if projects else None,
                    nn.ReLU(inplace=True) if after else None,
                    first,
                )
                for layers, projects, after, first in drawn
            )
        )
    )
    plan = find_blocks(net, IMAGES)
    assert plan.problem is None
    assert refused(plan) == {}
    positive = False
    for row, (_, projects, after, _) in zip(plan.blocks, drawn, strict=True):
        assert row.shortcut == ("projection" if projects else "identity")
        assert row.after == ("relu" if after else "none")
        assert row.skip == ("projection" if projects or (after and not positive) else "free")
        positive = after
    with torch.no_grad():
        given_logits = Evaluation(named_tensors(net)).run(arranged(plan).graphs.whole, IMAGES)
        torch.testing.assert_close(given_logits, net(IMAGES), rtol=1e-4, atol=1e-5 * float(given_logits.abs().max()))
