"""What a trace says about a network: operations, modules, in-place changes, and what it cannot say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.errors import BlockError, InputError
from dfs_deploy.models.graph import INPUT, OPERATORS, Evaluation, Graph, named_tensors
from dfs_deploy.models.trace import Trace, trace
from tests.checks import refuses
from tests.networks import FAMILIES, shaken
from tests.networks.chained import conv


class Calls(nn.Module):
    """A network whose forward is one function; it has one convolution, one linear layer and one batch norm."""

    def __init__(self, function: Callable[[Calls, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = conv()
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def operators(traced: Trace) -> list[str]:
    """Operators on the way to the output."""
    live = {traced.output}
    found = []
    for step in reversed(traced.steps):
        if step.node.name in live:
            live.update(step.node.inputs)
            found.append(step.node.operator)
    return found[::-1]


def problems(traced: Trace) -> list[str]:
    return [step.problem for step in traced.steps if step.problem is not None]


def images(count: int = 2, size: int = 8) -> Tensor:
    return torch.randn((count, 4, size, size), generator=torch.Generator().manual_seed(3))


def graph_of(traced: Trace) -> Graph:
    assert traced.output is not None
    return Graph(tuple(step.node for step in traced.steps), traced.output)


def halves(net: Calls, x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([second, first], dim=1)


def squeezed(net: Calls, x: Tensor) -> Tensor:
    n, c, _, _ = x.shape
    scale = torch.sigmoid(net.fc(functional.adaptive_avg_pool2d(x, 1).view(n, c))).view(n, c, 1, 1)
    return x * scale.expand_as(x)


def changed(net: Calls, x: Tensor) -> Tensor:
    y = net.conv(x)
    kept = y
    y += 1.0
    y.mul_(0.5)
    functional.relu_(y)
    return kept - x


TRANSLATED: dict[str, tuple[Callable[[Calls, Tensor], Tensor], list[str]]] = {
    "module": (lambda net, x: net.norm(net.conv(x)), ["conv", "batch_norm"]),
    "same": (
        lambda net, x: functional.conv2d(x, net.conv.weight, padding="same", dilation=(2, 1)),
        ["conv"],
    ),
    "weight alone": (lambda net, x: functional.conv2d(x, net.conv.weight.detach(), padding=1), ["conv"]),
    "valid": (lambda net, x: functional.conv2d(x, net.conv.weight, net.conv.bias, 2, "valid"), ["conv"]),
    "activations": (
        lambda net, x: functional.hardswish(functional.silu(torch.tanh(functional.gelu(x)))).sigmoid(),
        ["gelu", "tanh", "silu", "hard_swish", "sigmoid"],
    ),
    "clips": (
        lambda net, x: functional.hardtanh(functional.relu6(x - 1).clamp(0.5, 3), -1.0, 2.0).clamp(min=0),
        ["affine", "clip", "clip", "clip", "relu"],
    ),
    "hard sigmoid": (
        lambda net, x: functional.hardsigmoid(functional.leaky_relu(x, 0.2)),
        ["leaky_relu", "hard_sigmoid"],
    ),
    "numbers": (lambda net, x: (3 - (2 * x + 1) / 4) * torch.tensor(0.5) - -x, ["affine"] * 7 + ["add"]),
    "alpha": (lambda net, x: torch.add(x, x.relu(), alpha=2), ["relu", "affine", "add"]),
    "in place": (changed, ["conv", "affine", "affine", "relu", "affine", "add"]),
    "pools": (
        lambda net, x: functional.max_pool2d(functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False), 2),
        ["avg_pool", "max_pool"],
    ),
    "adaptive": (
        lambda net, x: functional.adaptive_max_pool2d(functional.adaptive_avg_pool2d(x, 4), (2, 4)),
        ["avg_pool", "max_pool"],
    ),
    "whole map": (lambda net, x: functional.avg_pool2d(x, x.size(3)), ["global_avg_pool"]),
    "classifier": (lambda net, x: net.fc(x.mean([-1, -2])), ["global_avg_pool", "flatten", "linear"]),
    "flatten": (lambda net, x: torch.flatten(functional.adaptive_avg_pool2d(x, 2), 1), ["avg_pool", "flatten"]),
    "squeeze": (lambda net, x: x.mean((2, 3), keepdim=True).squeeze(), ["global_avg_pool", "flatten"]),
    "squeezes": (
        lambda net, x: net.fc(x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(2)),
        ["global_avg_pool", "flatten", "linear"],
    ),
    "excitation": (squeezed, ["global_avg_pool", "flatten", "linear", "sigmoid", "unflatten", "mul"]),
    "option A": (
        lambda net, x: functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0),
        ["slice", "pad"],
    ),
    "slices": (lambda net, x: x[..., 1:-1, 3:][:, :2], ["slice", "slice"]),
    "zeros beside": (lambda net, x: torch.cat([x, torch.zeros_like(x), x.mul(0)], 1), ["affine", "affine", "concat"]),
    "dropout beside": (lambda net, x: functional.dropout(x, 0.3, False) + x, ["dropout", "add"]),
    "halves": (halves, ["slice", "slice", "concat"]),
    "narrow": (lambda net, x: torch.narrow(x, 1, 1, 2), ["slice"]),
    "nothing": (
        lambda net, x: functional.dropout(x.contiguous().clone().float(), 0.3, False).relu(),
        ["dropout", "relu"],
    ),
    "pad of nothing": (lambda net, x: functional.pad(x, (0, 0)).relu(), ["relu"]),
}


@pytest.mark.parametrize("name", TRANSLATED)
def test_functions_become_operations_of_the_same_value(name: str) -> None:
    function, expected = TRANSLATED[name]
    net = shaken(Calls(function))
    traced = trace(net, images())
    assert problems(traced) == []
    assert sorted(operators(traced)) == sorted(expected)
    x = images(3)
    with torch.no_grad():
        given = Evaluation(named_tensors(net)).run(graph_of(traced), x)
        torch.testing.assert_close(given, net(x.clone()), rtol=1e-5, atol=1e-6)


OPAQUE: dict[str, tuple[Callable[[Calls, Tensor], Tensor], str]] = {
    "layer norm": (lambda net, x: functional.layer_norm(x, x.shape[1:]), "nn.functional.layer_norm"),
    "permute": (lambda net, x: x.permute(0, 2, 3, 1), "Tensor.permute"),
    "computed weight": (
        lambda net, x: functional.conv2d(x, net.conv.weight - net.conv.weight.mean(), padding=1),
        "computes its weight from conv.weight",
    ),
    "foreign weight": (
        lambda net, x: functional.conv2d(x, torch.ones(4, 4, 1, 1)),
        "weight that is not in its state dict",
    ),
    "weight of the image": (lambda net, x: functional.linear(net.fc.weight, x.mean((0, 2, 3))), "constant tensor"),
    "parameter": (lambda net, x: x * net.scale, "computes with scale"),
    "constant tensor": (lambda net, x: x + torch.ones(4, 1, 1), "constant tensor (4, 1, 1) float32"),
    "batch statistics": (lambda net, x: functional.batch_norm(x, None, None, training=True), "the batch's mean"),
    "reshape": (lambda net, x: x.view(-1, 2, 8, 8), "reshapes (2, 4, 8, 8) to (4, 2, 8, 8)"),
    "unequal windows": (lambda net, x: functional.adaptive_avg_pool2d(x, 3), "windows of unequal sizes"),
    "reflection": (lambda net, x: functional.pad(x, (1, 1, 1, 1), "reflect"), "pads with reflect"),
    "crop": (lambda net, x: functional.pad(x, (-1, 0)), "pads (2, 4, 8, 8) by (-1, 0)"),
    "join rows": (lambda net, x: torch.cat([x, x], 2), "along axis 2"),
    "image of the batch": (lambda net, x: x[0], "indexes a tensor other than by slices"),
    "half the batch": (lambda net, x: x[:1], "expected whole images"),
    "random": (lambda net, x: functional.dropout(x), "drops at random"),
    "detached": (lambda net, x: x.relu().detach(), "keeps gradients"),
    "data": (lambda net, x: x.relu().data, "keeps gradients"),
    "dropout of channels": (lambda net, x: functional.dropout2d(x, 0.3, False), "shifts values in training"),
    "alpha dropout": (lambda net, x: functional.alpha_dropout(x, 0.3, False), "shifts values in training"),
    "other type": (lambda net, x: x.double(), "uses Tensor.double"),
    "quotient": (lambda net, x: x / x.relu(), "divides by a tensor"),
    "one side": (lambda net, x: x.clamp(max=1), "clamps on one side"),
    "squeezed": (lambda net, x: x.mean((2, 3), keepdim=True).squeeze(3).relu(), "a tensor that was squeezed"),
    "expanded": (lambda net, x: x.mean((2, 3), keepdim=True).expand(2, 4, 3, 3).relu(), "a tensor that was expanded"),
    "linear on a map": (lambda net, x: functional.linear(x, torch.ones(4, 8)), "linear layer on a tensor (2, 4, 8, 8)"),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_other_functions_are_named(name: str) -> None:
    function, words = OPAQUE[name]
    found = problems(trace(Calls(function), images()))
    assert any(words in problem for problem in found), found


def part_of(net: Calls, x: Tensor) -> Tensor:
    y = net.conv(x)
    y[:, :2] = 0
    return y


def through_view(net: Calls, x: Tensor) -> Tensor:
    y = net.conv(x)
    y[:, :2].relu_()
    return y


@pytest.mark.parametrize("function", [part_of, through_view])
def test_changes_of_a_part_are_not_lost(function: Callable[[Calls, Tensor], Tensor]) -> None:
    traced = trace(Calls(function), images())
    last = next(step for step in traced.steps if step.node.name == traced.output)
    assert last.problem is not None


def test_dropout_does_not_change_what_else_reads_its_input() -> None:
    for function in (functional.dropout, functional.dropout2d):
        traced = trace(Calls(lambda net, x, drop=function: drop(x, 0.3, False) + x), images())
        assert traced.steps[-1].node.inputs == (traced.steps[0].node.name, INPUT)


def test_cumulative_batch_norm_is_refused_by_name() -> None:
    net = Calls(lambda net, x: net.norm(x))
    net.norm.momentum = None
    (problem,) = problems(trace(net, images()))
    assert "momentum None" in problem


@pytest.mark.parametrize(
    ("read", "function"),
    [
        (lambda x: bool((x > 0).any()), "Tensor.__bool__"),
        (lambda x: int(x.sum()), "Tensor.__int__"),
        (lambda x: x.sum().item(), "Tensor.item"),
        (lambda x: x.tolist(), "Tensor.tolist"),
        (lambda x: x.numpy(), "Tensor.numpy"),
        (lambda x: x[x > 0], "Tensor.__getitem__"),
    ],
)
def test_values_that_python_reads_are_noted(read: Callable[[Tensor], object], function: str) -> None:
    def forward(net: Calls, x: Tensor) -> Tensor:
        read(x)
        return x.relu()

    (reading,) = trace(Calls(forward), images()).readings
    assert reading.function == function


def test_shapes_may_be_read() -> None:
    def forward(net: Calls, x: Tensor) -> Tensor:
        return x.relu() if x.shape[1] * x.size(2) > x.dim() + len(x) and x.is_contiguous() else x

    traced = trace(Calls(forward), images())
    assert traced.readings == ()
    assert operators(traced) == ["relu"]


def test_nodes_are_named_after_modules() -> None:
    net = FAMILIES["resnet18"].build()
    traced = trace(net, FAMILIES["resnet18"].images())
    names = [step.node.name for step in traced.steps]
    assert names[:3] == ["conv1", "bn1", "relu.relu_0"]
    assert "layer2.0.downsample.0" in names
    assert len(set(names)) == len(names)
    first = traced.steps[0].node
    assert first.inputs == (INPUT,)
    assert first.tensors == {"weight": "conv1.weight"}
    assert first.attributes == {"stride": (2, 2), "padding": (3, 3, 3, 3), "dilation": (1, 1), "groups": 1}
    call = next(call for call in traced.calls if call.name == "layer2.0")
    assert {step.module for step in traced.steps[call.start : call.stop]} >= {"layer2.0", "layer2.0.downsample.1"}
    assert call.result == traced.steps[call.stop - 1].node.name


def test_modules_named_input_and_output_do_no_harm() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input, self.output = conv(), conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.output(self.input(self.input(x)))

    names = [step.node.name for step in trace(Named(), images()).steps]
    assert names == ["input.conv_0", "input.conv_1", "output.conv_0"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_without_values_gives_the_same_trace(family: str) -> None:
    net, x = FAMILIES[family].build(), FAMILIES[family].images(1)
    real = trace(net, x)
    shape_only = trace(net.to("meta"), x.to("meta"))
    assert [step.node for step in shape_only.steps] == [step.node for step in real.steps]
    assert [step.shape for step in shape_only.steps] == [step.shape for step in real.steps]


def test_the_network_is_as_before() -> None:
    net = FAMILIES["mobilenet_v3_small"].build().train()
    frozen = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trace(net, FAMILIES["mobilenet_v3_small"].images())
    assert net.training
    assert not frozen.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_network_is_as_before_if_it_raises() -> None:
    def forward(net: Calls, x: Tensor) -> Tensor:
        net.norm.running_mean.add_(1.0)  # type: ignore[union-attr]
        net.norm.running_var = torch.zeros(4)
        raise ValueError("no such images")

    net = Calls(forward).train()
    mean, variance = net.norm.running_mean, net.norm.running_var
    with refuses(InputError, "does not take", "(2, 4, 8, 8) float32", "no such images"):
        trace(net, images())
    assert net.training
    assert net.norm.running_mean is mean
    assert net.norm.running_var is variance
    assert mean is not None
    assert not mean.any()
    assert not net._forward_hooks
    assert torch.add(torch.ones(1), 1) == 2  # torch is not watched any more


def missing_key(net: Calls, x: Tensor) -> Tensor:
    found: dict[str, Tensor] = {}
    return found["nowhere"]


def missing_attribute(net: Calls, x: Tensor) -> Tensor:
    return net.nowhere(x)  # type: ignore[operator]


def ends(net: Calls, x: Tensor) -> Tensor:
    raise SystemExit(7)


@pytest.mark.parametrize(
    ("forward", "words"),
    [(missing_key, "KeyError: 'nowhere'"), (missing_attribute, "AttributeError"), (ends, "SystemExit: 7")],
)
def test_whatever_a_forward_raises_is_one_line(forward: Callable[[Calls, Tensor], Tensor], words: str) -> None:
    with refuses(InputError, "does not take", words):
        trace(Calls(forward), images())


def test_examples_that_are_no_images_are_refused() -> None:
    net = FAMILIES["resnet18"].build()
    with refuses(InputError, "(3, 64, 64) float32", "expected (N, channels, height, width)"):
        trace(net, torch.zeros(3, 64, 64))
    with refuses(InputError, "uint8", "float32"):
        trace(net, torch.zeros((1, 3, 64, 64), dtype=torch.uint8))
    with refuses(InputError, "ndarray"):
        trace(net, torch.zeros(1, 3, 64, 64).numpy())  # type: ignore[arg-type]
    with refuses(InputError, "does not take", "(1, 4, 64, 64) float32"):
        trace(net, torch.zeros(1, 4, 64, 64))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_modules_that_do_not_run_as_python_are_refused() -> None:
    with refuses(BlockError, "scripted"):
        trace(nn.Sequential(torch.jit.script(conv())), images())


def test_the_page_about_networks_lists_every_operator() -> None:
    page = (Path(__file__).parents[2] / "docs" / "any-network.md").read_text()
    table = page.split("## The closed set of operators")[1].split("\n## ")[0]
    listed = {name for row in re.findall(r"^\|([^|]*)\|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert listed == set(OPERATORS)
