from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.calibration import Range
from dfs_deploy.exporters.split import (
    ConvPart,
    Window,
    split_block,
    split_conv,
    split_gate,
    split_head,
    split_skip,
    split_stem,
)
from dfs_deploy.models import QuantizedConv2d, fake_quantize_weight
from dfs_deploy.options import Option
from tests.bundles import normal_images, settled_network


def convolve(part: ConvPart, x: Tensor) -> Tensor:
    weight, bias = torch.from_numpy(part.weight).double(), torch.from_numpy(part.bias).double()
    return functional.conv2d(x.double(), weight, bias, stride=part.window.stride, padding=part.window.padding)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([1, 3]), st.sampled_from([1, 2]), st.sampled_from([2, 4, 8, 16, 32]))
def test_a_folded_convolution_is_the_convolution_and_its_normalisation(
    seed: int, kernel: int, stride: int, bits: int
) -> None:
    torch.manual_seed(seed)
    conv, norm = QuantizedConv2d(3, 5, kernel, stride), nn.BatchNorm2d(5).eval()
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean):
            assert value is not None
            value.normal_()
        assert norm.running_var is not None
        norm.running_var.uniform_(1e-4, 4.0)
        conv.low.fill_(-0.5)
        conv.high.fill_(2.0)
    x = torch.randn(2, 3, 7, 6)
    part = split_conv(conv, norm, bits)
    weight = fake_quantize_weight(conv.weight, bits).double()
    expected = norm.double()(functional.conv2d(x.double(), weight, stride=stride, padding=kernel // 2))
    torch.testing.assert_close(convolve(part, x), expected, rtol=1e-5, atol=1e-5)
    assert part.weight.dtype == part.bias.dtype == np.float32
    assert part.window == Window(kernel, stride, kernel // 2)
    assert part.saturates == (None if bits == 32 else Range(-0.5, 2.0))


def test_a_channel_that_normalisation_silences_is_silent() -> None:
    conv, norm = QuantizedConv2d(2, 2, 3, 1), nn.BatchNorm2d(2).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.0, 1.0]))
        norm.bias.copy_(torch.tensor([0.25, 0.0]))
    part = split_conv(conv, norm)
    assert not part.weight[0].any()
    assert part.bias[0] == 0.25


def test_a_block_is_split_as_its_option_computes_it() -> None:
    network = settled_network("skip,4,16,full")
    for block in network.blocks[1:]:
        for bits in (4, 16, 32):
            part = split_block(block, Option(bits))
            assert part.shape == block.shape
            assert (part.projection is None) == (block.projection is None)
            convs = [*part.branch, *([] if part.projection is None else [part.projection])]
            for conv, (name, (module, _)) in zip(convs, block.convolutions.items(), strict=True):
                expected = None if bits == 32 else Range(float(module.low), float(module.high))
                assert conv.saturates == expected, name
                levels = len(np.unique(conv.weight[0] / (np.abs(conv.weight[0]).max() or 1.0)).round(5))
                assert bits > 4 or levels <= 16, "rounded first, folded after"


def test_a_skip_is_the_projection_in_full_precision() -> None:
    plain, stride = settled_network("skip,4,full").blocks[1:3]
    assert split_skip(plain) is None
    part = split_skip(stride)
    assert part is not None
    assert part.saturates is None
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(convolve(part, x).float(), stride.skip(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_stem_and_head() -> None:
    network = settled_network()
    images = normal_images(3)
    stem, block = split_stem(network)
    torch.testing.assert_close(
        convolve(stem, images).relu().float(), network.backbone.stem(images), rtol=1e-5, atol=1e-5
    )
    assert block.shape.index == 0
    assert stem.saturates is block.branch[0].saturates is None
    head = split_head(network)
    features = torch.rand(3, 8, 4, 4)
    logits = features.mean((2, 3)) @ torch.from_numpy(head.weight).T + torch.from_numpy(head.bias)
    torch.testing.assert_close(logits, network.backbone.classify(features))


@torch.no_grad()
def test_the_gate_with_its_embedding_folded_scores_as_before() -> None:
    network = settled_network(blocks=2, widths=(4, 8))
    part = split_gate(network)
    assert len(part.input_weight) == len(part.bias) == network.architecture.gated_blocks
    state = network.gate.initial_state(torch.zeros(5, 4, 2, 2))
    hidden = cell = np.zeros((5, 10))
    for index, shape in enumerate(network.architecture.blocks[:-1]):
        features = torch.rand(5, shape.out_channels, 2, 2)
        scores, state = network.gate(index, features, state)
        pooled = features.double().mean((2, 3)).numpy()
        gates = pooled @ part.input_weight[index].T + hidden @ part.recurrent_weight.T + part.bias[index]
        i, f, g, o = np.split(gates, 4, axis=1)
        cell = cell / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        hidden = np.tanh(cell) / (1 + np.exp(-o))
        expected = hidden @ part.projection_weight.T + part.projection_bias
        np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given_range", "expected"),
    [((1.0, 2.0), (0.0, 2.0)), ((-2.0, -1.0), (-2.0, 0.0)), ((-1.0, 1.0), (-1.0, 1.0)), ((0.0, 0.0), (0.0, 0.0))],
)
def test_a_range_including_zero(given_range: tuple[float, float], expected: tuple[float, float]) -> None:
    assert Range(*given_range).including_zero() == Range(*expected)
