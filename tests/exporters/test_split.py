from __future__ import annotations

import msgspec
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.calibration import Range
from dfs_deploy.exporters.split import Layer, Part, fold, split_block, split_gate, split_head, split_skip, split_stem
from dfs_deploy.models import DFSNetwork, Graph, NetworkGraphs, Node, fake_quantize_weight
from dfs_deploy.models.graph import Attribute
from dfs_deploy.network import Architecture, Block, GateShape
from dfs_deploy.options import Option, Options
from tests.settled import settled_network

SHAPE = (3, 7, 6)
STATISTICS = {"mean": "running_mean", "variance": "running_var", "weight": "weight", "bias": "bias"}


def convolve(layer: Layer, x: Tensor) -> Tensor:
    assert layer.weight is not None
    assert layer.bias is not None
    weight, bias = torch.from_numpy(layer.weight).double(), torch.from_numpy(layer.bias).double()
    padding = layer.numbers("padding")
    assert padding[:2] == padding[2:]
    return functional.conv2d(x.double(), weight, bias, layer.numbers("stride"), padding[:2])


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d, bits: int = 32, ends: tuple[float, float] | None = None) -> Layer:
    """The one layer of a convolution and its normalisation, as a network's option computes them."""
    net = nn.Module()
    net.conv, net.norm = conv, norm
    attributes: dict[str, Attribute] = {
        "stride": (conv.stride[0], conv.stride[1]),
        "padding": (conv.padding[0], conv.padding[1]) * 2,  # type: ignore[dict-item]
        "dilation": (1, 1),
        "groups": 1,
    }
    statistics = {role: f"norm.{name}" for role, name in STATISTICS.items()}
    graph = Graph(
        (
            Node("conv", "conv", ("input",), {"weight": "conv.weight"}, attributes),
            Node("norm", "batch_norm", ("conv",), statistics, {"epsilon": norm.eps, "momentum": 0.1}),
        ),
        "norm",
    )
    block = Block(0, "stem", SHAPE, SHAPE, 1, None)
    shape = Architecture(name="Net", image_shape=SHAPE, classes=2, gate=GateShape(2, 2), blocks=(block,))
    graphs = NetworkGraphs(graph, (), Graph(), "tensor", 32)
    network = DFSNetwork(net, graphs, shape, Options.parse("skip,8,full")).eval()
    if ends is not None:
        network.ranges.low[0], network.ranges.high[0] = ends
    (layer,) = fold("part", graph, network, bits, SHAPE).layers
    return layer


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([1, 3]), st.sampled_from([1, 2]), st.sampled_from([2, 4, 8, 16, 32]))
def test_a_folded_convolution_is_the_convolution_and_its_normalisation(
    seed: int, kernel: int, stride: int, bits: int
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(3, 5, kernel, stride, kernel // 2, bias=False)
    norm = nn.BatchNorm2d(5).eval()
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean):
            assert value is not None
            value.normal_()
        assert norm.running_var is not None
        norm.running_var.uniform_(1e-4, 4.0)
    x = torch.randn(2, *SHAPE)
    layer = folded(conv, norm, bits, (-0.5, 2.0))
    weight = fake_quantize_weight(conv.weight, bits).double()
    expected = norm.double()(functional.conv2d(x.double(), weight, stride=stride, padding=kernel // 2))
    torch.testing.assert_close(convolve(layer, x), expected, rtol=1e-5, atol=1e-5)
    assert layer.weight is not None
    assert layer.bias is not None
    assert layer.weight.dtype == layer.bias.dtype == np.float32
    assert layer.saturates == (None if bits == 32 else Range(-0.5, 2.0))


def test_a_range_that_was_never_recorded_clamps_nothing() -> None:
    conv, norm = nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2).eval()
    assert folded(conv, norm, 8).saturates is None


def test_a_channel_that_normalisation_silences_is_silent() -> None:
    conv, norm = nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.0, 1.0]))
        norm.bias.copy_(torch.tensor([0.25, 0.0]))
    layer = folded(conv, norm)
    assert layer.weight is not None
    assert layer.bias is not None
    assert not layer.weight[0].any()
    assert layer.bias[0] == 0.25


def test_a_block_is_split_as_its_option_computes_it() -> None:
    network = settled_network("skip,4,16,full")
    for block in network.blocks:
        for bits in (4, 16, 32):
            part = split_block(network, block.shape.index, Option(bits))
            assert (part.in_shape, part.out_shape) == (block.shape.in_shape, block.shape.out_shape)
            convolutions = [layer for layer in part.layers if layer.operator == "conv"]
            nodes = [node for node in block.graphs.whole.nodes if node.operator == "conv"]
            assert len(convolutions) == len(nodes) == (3 if block.shape.projects else 2)
            for layer, node in zip(convolutions, nodes, strict=True):
                expected = None if bits == 32 else Range(*map(float, network.ranges.of(node.name)))
                assert layer.saturates == expected, node.name
                assert layer.weight is not None
                levels = len(np.unique(layer.weight[0] / (np.abs(layer.weight[0]).max() or 1.0)).round(5))
                assert bits > 4 or levels <= 16, "rounded first, folded after"


def test_what_always_runs_is_in_the_networks_own_bitwidth() -> None:
    network = settled_network("skip,8,full")
    parts: list[Part | None] = [split_stem(network), split_head(network)]
    parts += [split_skip(network, block.shape.index) for block in network.blocks]
    assert [part is None for part in parts[2:]] == [not block.shape.projects for block in network.blocks]
    for part in parts:
        assert part is None or all(layer.saturates is None for layer in part.layers), "32 bits"


def test_a_gate_that_never_steps_is_zeros() -> None:
    network = settled_network("skip,8,full")
    full = split_gate(network)
    assert full is not None
    fixed = DFSNetwork(network.net, network.graphs, _with_one_choice(network.architecture, 2), network.options).eval()
    part = split_gate(fixed)
    assert part is not None
    assert [weight.shape for weight in part.input_weight] == [weight.shape for weight in full.input_weight]
    for name in ("input_weight", "bias", "projection_bias"):
        steps = [bool(np.any(array)) for array in getattr(part, name)]
        assert steps == [True, False, True], name


def _with_one_choice(architecture: Architecture, index: int) -> Architecture:
    blocks = list(architecture.blocks)
    blocks[index] = msgspec.structs.replace(blocks[index], options=("8",))
    return msgspec.structs.replace(architecture, blocks=tuple(blocks))
