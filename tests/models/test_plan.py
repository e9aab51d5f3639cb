"""Plans: what they print, what each block may do, and which blocks are decided, fixed or merged."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dfs_deploy.errors import BlockError, OptionError
from dfs_deploy.models.blocks import find_blocks
from dfs_deploy.models.graph import Evaluation, check_graphs, named_tensors
from dfs_deploy.models.plan import WIDTH, Arrangement, Plan, arrange
from dfs_deploy.network import Architecture, GateShape
from dfs_deploy.options import Options
from tests.checks import refuses
from tests.networks import FAMILIES, shaken
from tests.networks.chained import Chained, Residual, conv


def plan_of(family: str) -> Plan:
    return find_blocks(FAMILIES[family].build(), FAMILIES[family].images(1))


def arranged(plan: Plan, options: str = "skip,8,full", always: int = 32) -> Arrangement:
    return arrange(plan, Options.parse(options), always, GateShape(4, 4))


def choices(architecture: Architecture, options: str) -> dict[str, str]:
    parsed = Options.parse(options)
    return {block.name: ",".join(option.name for option in block.choices(parsed)) for block in architecture.blocks[1:]}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_printed_plan_is_narrow_and_complete(family: str) -> None:
    plan = plan_of(family)
    lines = str(plan).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) == 2 + len(plan.rows)
    for row, line in zip(plan.rows, lines[2:], strict=True):
        assert line.startswith(row.name)
        assert f"{100 * row.share:.1f}%" in line
        assert row.class_name in line
        if row.kind == "block":
            assert row.shortcut in line
            assert {"free": " free ", "projection": " computes ", None: " no "}[row.skip] in line


def test_long_names_are_shortened() -> None:
    inner: nn.Module = Residual(conv())
    for _ in range(12):
        inner = nn.Sequential(nn.Sequential(inner))
    plan = find_blocks(shaken(Chained(inner)), torch.zeros(1, 3, 8, 8))
    plan[plan.blocks[0].name].options = "skip,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,full"
    assert max(map(len, str(plan).splitlines())) <= WIDTH


def test_options_are_set_by_glob() -> None:
    plan = plan_of("resnet18")
    plan["layer1.*"].options = "full"
    plan["layer[34].1"].options = ["skip", 8]
    by_name = {row.name: row.options for row in plan.blocks}
    assert by_name["layer1.0"] == by_name["layer1.1"] == ("full",)
    assert by_name["layer3.1"] == by_name["layer4.1"] == ("skip", "8")
    assert by_name["layer2.0"] is None
    assert plan["layer1.*"].options == ("full",)
    assert "skip,8" in str(plan)
    plan["layer1.0"].options = None
    assert plan["layer1.0"].options is None
    with refuses(BlockError, "different options"):
        _ = plan["layer1.*"].options


def test_impossible_options_are_refused() -> None:
    plan = plan_of("mobilenet_v2")
    with refuses(OptionError, "features.1", "no shortcut", "give it a bitwidth"):
        plan["*"].options = "skip"
    assert all(row.options is None for row in plan.blocks)
    plan["*"].options = "skip,8"
    assert {row.options for row in plan.blocks} == {("8",), ("skip", "8")}
    plan["*"].options = None
    with refuses(OptionError, "unknown option 'fast'"):
        plan["features.3"].options = "fast"
    with refuses(OptionError, "no option"):
        plan["features.3"].options = []
    with refuses(BlockError, "'features.33'", "8", "features.3"):
        plan["features.33"]
    plan["features.3"].options = "skip,4"
    with refuses(OptionError, "features.3", "'4'", "skip,8,full"):
        arranged(plan)


def test_a_plan_in_json_says_everything() -> None:
    plan = plan_of("cifar_resnet")
    plan["layer1.0"].options = "8,full"
    loaded = json.loads(json.dumps(plan.as_json()))
    assert loaded["network"] == "CifarResNetA"
    assert loaded["image_shape"] == [3, 32, 32]
    assert loaded["classes"] == 10
    assert loaded["problem"] is None
    rows = {row["name"]: row for row in loaded["rows"]}
    assert rows["layer1.0"]["options"] == ["8", "full"]
    assert rows["layer2.0"]["shortcut"] == "slice+pad"
    assert rows["layer2.0"]["after"] == "relu"
    assert rows["layer2.0"]["skip"] == "projection"
    assert rows["layer2.0"]["skippable"] is True
    assert rows["layer2.0"]["in_shape"] == [8, 32, 32]
    assert rows["layer2.0"]["out_shape"] == [16, 16, 16]
    assert loaded["multiply_adds"] > sum(row["macs"] for row in loaded["rows"] if row["kind"] == "block") > 0


def test_a_plan_knows_its_network() -> None:
    plan = plan_of("resnet18")
    plan.check(FAMILIES["resnet18"].build())
    with refuses(BlockError, "plan of another network", "layer1.0.conv1.weight", "find its blocks again"):
        plan.check(FAMILIES["resnet50"].build())
    with refuses(BlockError, "no such tensor"):
        plan.check(FAMILIES["mobilenet_v2"].build())


def test_every_block_with_two_options_is_decided() -> None:
    architecture = arranged(plan_of("mobilenet_v2")).architecture
    assert architecture.blocks[0].name == "stem"
    assert architecture.blocks[0].in_shape == (3, 64, 64)
    assert choices(architecture, "skip,8,full") == {
        f"features.{index}": "skip,8,full" if index in (3, 5, 6, 8) else "8,full" for index in range(1, 9)
    }
    assert [block.group for block in architecture.blocks] == [1, 2, 3, 3, 4, 4, 4, 5, 5]
    assert architecture.classes == 10


def test_what_always_runs_is_fixed_or_merged() -> None:
    plan = plan_of("mobilenet_v2")
    arrangement = arranged(plan, "skip,full")
    # features.1 and features.2 have no shortcut: they belong to the stem
    assert choices(arrangement.architecture, "skip,full") == {
        "features.3": "skip,full",
        "features.4": "full",
        "features.5": "skip,full",
        "features.6": "skip,full",
        "features.7": "full",
        "features.8": "skip,full",
    }
    assert {"features.1.conv.0.0", "features.2.conv.2"} <= {node.name for node in arrangement.graphs.stem.nodes}
    plan["features.5"].options = "full"
    plan["features.8"].options = "full"
    arrangement = arranged(plan, "skip,full")
    assert choices(arrangement.architecture, "skip,full") == {
        "features.3": "skip,full",
        "features.4-features.5": "full",
        "features.6": "skip,full",
    }
    merged = arrangement.architecture.blocks[2]
    assert (merged.in_shape, merged.out_shape, merged.skip) == ((8, 16, 16), (12, 8, 8), None)
    assert {"features.7.conv.2", "features.8.addition"} <= {node.name for node in arrangement.graphs.head.nodes}


def test_a_fixed_block_keeps_the_option_that_was_asked_for() -> None:
    plan = plan_of("resnet18")
    plan["layer1.*"].options = "8"
    plan["layer4.1"].options = "full"
    arrangement = arranged(plan)
    found = choices(arrangement.architecture, "skip,8,full")
    assert list(found)[:2] == ["layer1.0-layer1.1", "layer2.0"]
    assert found["layer1.0-layer1.1"] == "8"
    assert list(found)[-1] == "layer4.0"  # layer4.1 always runs in the head's bits
    names = list(choices(arranged(plan, always=8).architecture, "skip,8,full"))
    assert (names[0], names[-1]) == ("layer2.0", "layer4.1")


def test_what_lies_between_blocks_runs_in_the_bits_of_what_always_runs() -> None:
    plan = find_blocks(
        shaken(Chained(Residual(conv()), nn.MaxPool2d(2), Residual(conv()), nn.AvgPool2d(2), nn.ReLU())),
        torch.zeros(1, 3, 8, 8),
    )
    for options, always, option in (("skip,8,full", 8, "8"), ("skip,8,full", 32, "full"), ("skip,4,8", 32, "8")):
        blocks = arranged(plan, options, always).architecture.blocks
        assert [block.name for block in blocks] == ["stem", "blocks.0", "blocks.1", "blocks.2"]
        assert blocks[2].options == (option,)
        assert [block.skip for block in blocks] == [None, "free", None, "free"]
        assert [block.group for block in blocks] == [1, 1, 2, 2]


def test_a_block_that_may_only_skip_is_left_out() -> None:
    kind = FAMILIES["resnet18"]
    net, x = kind.build(), kind.images(3)
    plan = find_blocks(net, x)
    plan["layer2.1"].options = "skip"
    plan["layer3.0"].options = "skip"
    graphs = arranged(plan).graphs
    assert "layer2.1" not in [block.name for block in graphs.blocks]
    assert not any(name.startswith(("layer2.1", "layer3.0.conv")) for name in graphs.whole.tensors)
    pruned = next(block for block in graphs.blocks if block.name == "layer3.0")
    assert [node.name for node in pruned.whole.nodes] == [
        "layer3.0.downsample.0",
        "layer3.0.downsample.1",
        "layer3.0.relu.relu_1",
    ]
    check_graphs(graphs, named_tensors(net))
    with torch.no_grad():
        net.layer2[1].bn2.weight.zero_()
        net.layer2[1].bn2.bias.zero_()
        net.layer3[0].bn2.weight.zero_()
        net.layer3[0].bn2.bias.zero_()
        torch.testing.assert_close(Evaluation(named_tensors(net)).run(graphs.whole, x), net(x))


def test_nothing_to_decide_is_an_error() -> None:
    plan = plan_of("resnet18")
    plan["*"].options = "full"
    with refuses(BlockError, "nothing is decided", "skip,8,full"):
        arranged(plan)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([None, "skip,8", "8,full", "full", "8", "skip"]), min_size=6, max_size=6))
def test_any_choice_of_options_gives_the_network_or_says_why(wanted: list[str | None]) -> None:
    plan = _PLAN
    for row, options in zip(plan.blocks, wanted, strict=True):
        plan[row.name].options = options
    if all(options in ("full", "8", "skip") for options in wanted):
        with refuses(BlockError, "nothing is decided"):
            arranged(plan)
        return
    arrangement = arranged(plan)
    check_graphs(arrangement.graphs, named_tensors(_NET))
    options = Options.parse("skip,8,full")
    decided = [block for block in arrangement.architecture.blocks[1:] if len(block.choices(options)) > 1]
    assert len(decided) == sum(options not in ("full", "8", "skip") for options in wanted)
    assert len(arrangement.graphs.blocks) == len(arrangement.architecture.blocks) - 1
    if "skip" not in wanted:
        x = FAMILIES["cifar_resnet"].images(2)
        with torch.no_grad():
            torch.testing.assert_close(Evaluation(named_tensors(_NET)).run(arrangement.graphs.whole, x), _NET(x))


_NET = FAMILIES["cifar_resnet"].build()
_PLAN = find_blocks(_NET, FAMILIES["cifar_resnet"].images(1))


def test_names_of_merged_blocks_are_bounded() -> None:
    net, long = Chained(), "a" * 200
    for number in range(4):
        net.blocks.add_module(f"{long}{number}", Residual(conv()))
    plan = find_blocks(shaken(net), torch.zeros(1, 3, 8, 8))
    plan["*[12]"].options = "full"
    arrangement = arranged(plan, "skip,full")
    names = [block.name for block in arrangement.architecture.blocks]
    assert names == ["stem", f"blocks.{long}0", f"blocks.{long}1-...", f"blocks.{long}3"]
    check_graphs(arrangement.graphs, named_tensors(net))
