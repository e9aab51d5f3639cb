from __future__ import annotations

import numpy as np
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
)
from dfs_deploy.models import QuantizedConv2d, fake_quantize_weight
from dfs_deploy.options import Option
from tests.bundles import settled_network


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
