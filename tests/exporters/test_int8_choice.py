from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from dfs_deploy.exporters.int8 import Grid
from dfs_deploy.exporters.int8_choice import GOOD_ERROR, choose, choose_for_tensorrt
from dfs_deploy.exporters.split import Part
from dfs_deploy.models.graph import INPUT
from tests.exporters.parts import Making, measured

GRID = Grid(0.02, 100)


def block(loudness: float) -> Part:
    """An inverted residual block; one hidden channel is louder than the others, and its reader makes up for that."""
    make = Making((6, 8, 8))
    y = make.add("relu", make.conv(INPUT, 12))
    y = make.add("relu", make.conv(y, 12, 3, groups=12))
    part = make.part(make.add("add", make.conv(y, 6), INPUT))
    first, relu, depthwise, *rest = part.layers
    assert first.weight is not None
    assert depthwise.weight is not None
    assert first.bias is not None
    loud = np.ones((12, 1, 1, 1), np.float32)
    loud[0] = loudness
    first = replace(first, weight=first.weight * loud, bias=first.bias * loud.ravel())
    return replace(part, layers=(first, relu, replace(depthwise, weight=depthwise.weight / loud), *rest))


def features(part: Part) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1.0, 3.0, (24, *part.in_shape)).astype(np.float32)


def test_a_part_that_loses_little_is_all_in_int8() -> None:
    part = block(1.0)
    x = features(part)
    ranges = measured(part, x)
    form, chosen = choose(part, ranges, GRID, Grid.uint8(ranges[part.output]), 8, x)
    assert chosen.kept == form.float_layers == ()
    assert chosen.tried == {(): chosen.error}
    assert 0.0 < chosen.error < 0.04
    assert "all in INT8" in str(chosen)
    form, chosen = choose_for_tensorrt(part, ranges, x)
    assert chosen.kept == form.float_layers == ()
    assert chosen.error < 0.04


@pytest.mark.parametrize("takes", [None, GRID])
def test_layers_around_a_value_with_one_loud_channel_are_kept_in_float(takes: Grid | None) -> None:
    part = block(2000.0)
    x = features(part)
    ranges = measured(part, x if takes is None else takes.dequantize(takes.quantize(x)))
    form, chosen = choose(part, ranges, takes, Grid.uint8(ranges[part.output]), 8, x)
    assert chosen.kept == form.float_layers == (part.layers[0].name, part.layers[2].name)
    assert chosen.tried[()] > GOOD_ERROR > chosen.error
    assert chosen.error == chosen.tried[chosen.kept] == min(chosen.tried.values())
    assert chosen.tried[part.layers[0].name,] > GOOD_ERROR, "one side alone does not help"
    assert part.layers[0].name in str(chosen)
    assert "in float" in str(chosen)


def test_layers_are_kept_in_float_for_tensorrt_too() -> None:
    part = block(2000.0)
    x = features(part)
    form, chosen = choose_for_tensorrt(part, measured(part, x), x)
    assert part.layers[2].name in chosen.kept == form.float_layers
    assert chosen.tried[()] > GOOD_ERROR > chosen.error


def test_a_part_that_nothing_helps_stays_in_int8_and_says_its_error() -> None:
    """Its output's grid is too coarse for what it gives."""
    part = block(1.0)
    x = features(part)
    form, chosen = choose(part, measured(part, x), GRID, Grid(10.0, 10), 8, x)
    assert chosen.kept == form.float_layers == ()
    assert chosen.error > GOOD_ERROR
    assert len(chosen.tried) > 3
