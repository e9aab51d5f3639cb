from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfs_deploy.bundle import Bundle
from dfs_deploy.calibration import STATIC, CalibratedRange, TensorKey, calibrate, calibrate_static
from dfs_deploy.errors import BundleError, RuntimeClosedError
from dfs_deploy.exporters.quantized import BlockRanges
from dfs_deploy.exporters.split import Range, split_block, split_conv, split_head, split_skip
from dfs_deploy.exporters.static import FloatStep, Int8Step, SkipStep, StemRanges, Step, straight_line
from dfs_deploy.models import DFSNetwork, run_option
from dfs_deploy.options import Option
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine
from tests.bundles import Made, normal_images, relative, rig_gate, run_model, settled_network

Ranges = dict[TensorKey, CalibratedRange]


@pytest.fixture(scope="module")
def network() -> DFSNetwork:
    return settled_network("skip,8,16,full", blocks=2, widths=(4, 8, 16))


def block_ranges(ranges: Ranges, block: int, option: int) -> BlockRanges:
    own = {key.tensor: Range(r.low, r.high) for key, r in ranges.items() if (key.block, key.option) == (block, option)}
    own.pop("images", None)
    return BlockRanges(**own)  # type: ignore[arg-type]


def line(network: DFSNetwork, path: Sequence[int], ranges: Ranges, dtype: type[np.floating] = np.float32) -> bytes:
    """The trace of a path through ``skip,8,16,full``; 8 runs in INT8, the rest in float."""
    steps: list[Step] = [FloatStep(split_block(network.blocks[0], Option(32)))]
    for block, choice in zip(network.blocks[1:], path, strict=True):
        option = network.options[choice]
        if option.skips:
            steps.append(SkipStep(split_skip(block)))
        elif option.bits == 8:
            steps.append(Int8Step(split_block(block, option), block_ranges(ranges, block.shape.index, choice)))
        else:
            steps.append(FloatStep(split_block(block, option)))
    stem = split_conv(network.backbone.stem_conv, network.backbone.stem_norm)
    return straight_line("line", stem, steps, split_head(network), dtype=dtype)


@torch.no_grad()
def along(network: DFSNetwork, path: Sequence[int], images: Tensor) -> NDArray[np.float32]:
    features = network.blocks[0](network.backbone.stem(images))
    for block, choice in zip(network.blocks[1:], path, strict=True):
        features = run_option(block, features, network.options[choice])
    logits: NDArray[np.float32] = network.backbone.classify(features).numpy()
    return logits


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("path", [(3, 3, 3, 3, 3), (0, 3, 0, 0, 3), (0, 0, 0, 0, 0), (3, 0, 3, 0, 3)])
def test_a_float_line_is_the_network_along_its_path(network: DFSNetwork, path: tuple[int, ...], count: int) -> None:
    images = normal_images(count)
    (got,) = run_model(line(network, path, {}), images=images.numpy())
    assert relative(got, along(network, path, images)) < 1e-4


def test_the_static_line_is_the_backbone(network: DFSNetwork) -> None:
    images = normal_images(6)
    (got,) = run_model(line(network, (3,) * 5, {}), images=images.numpy())
    with torch.no_grad():
        assert relative(got, network.backbone(images).numpy()) < 1e-4


@pytest.mark.parametrize("path", [(3, 3, 3, 3, 3), (0, 3, 0, 2, 3)])
def test_a_float16_line_is_near_and_takes_and_gives_float32(network: DFSNetwork, path: tuple[int, ...]) -> None:
    images = normal_images(6)
    model = line(network, path, {}, np.float16)
    (got,) = run_model(model, images=images.numpy())
    assert got.dtype == np.float32
    assert 1e-6 < relative(got, along(network, path, images)) < 2e-2
    graph = onnx.load_from_string(model).graph
    weights = [tensor for tensor in graph.initializer if tensor.name.endswith("_weight")]
    assert weights
    assert all(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in weights)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("path", [(1, 1, 1, 1, 1), (0, 1, 0, 0, 1), (1, 0, 1, 3, 2), (3, 1, 0, 1, 0), (2, 0, 1, 1, 3)])
def test_a_line_of_any_precisions_is_near(network: DFSNetwork, path: tuple[int, ...], dtype: type[np.floating]) -> None:
    images = normal_images(24)
    twin = copy.deepcopy(network)
    rig_gate(twin, path, images)
    ranges = calibrate(twin, [1], lambda: iter([images]), "minmax")
    (got,) = run_model(line(network, path, ranges, dtype), images=images.numpy())
    assert relative(got, along(network, path, images)) < 0.1


def static_int8(network: DFSNetwork, images: Tensor, bits: int = 8) -> bytes:
    ranges = calibrate_static(network, lambda: iter([images]), "minmax")
    steps = [
        Int8Step(split_block(block, Option(32)), block_ranges(ranges, block.shape.index, STATIC))
        for block in network.blocks
    ]
    ends = ranges[TensorKey(0, STATIC, "images")]
    stem_ranges = StemRanges(Range(ends.low, ends.high), steps[0].ranges.conv1)
    stem = split_conv(network.backbone.stem_conv, network.backbone.stem_norm)
    return straight_line("static", stem, steps, split_head(network), stem_ranges=stem_ranges, weight_bits=bits)


@pytest.mark.parametrize("bits", [7, 8])
def test_the_static_int8_engine_is_near_the_backbone(network: DFSNetwork, bits: int) -> None:
    images = normal_images(24)
    (got,) = run_model(static_int8(network, images, bits), images=images.numpy())
    with torch.no_grad():
        assert relative(got, network.backbone(images).numpy()) < {7: 0.1, 8: 0.06}[bits]


def test_the_static_int8_engine_convolves_in_integers_throughout(network: DFSNetwork, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(static_int8(network, normal_images(8)), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 1 + 2 * len(network.blocks) + 2
    assert not {"Conv", "FusedConv"} & set(kinds)


# The baselines of a bundle


def test_the_baselines_of_a_bundle_are_the_backbone(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    assert set(bundle.manifest.runtimes["onnxruntime"].static) == {"fp32", "fp16", "int8"}
    images = bundle.input.normalize(mixed.data.images)
    with torch.no_grad():
        expected = mixed.network.backbone(torch.from_numpy(images)).numpy()
    for precision, tolerance in (("fp32", 1e-4), ("fp16", 2e-2), ("int8", 0.1)):
        with StaticEngine(bundle, precision) as engine:  # type: ignore[arg-type]
            together = engine(images)
            assert relative(together, expected) < tolerance
            alone = engine(images[:1])
            np.testing.assert_allclose(alone, together[:1], atol=1e-4)
            kept = alone.copy()
            engine(images[1:2])
            assert np.array_equal(alone, kept), "a result belongs to the caller"


def test_a_baseline_that_was_not_exported_is_named(floats: Made) -> None:
    bundle = Bundle(floats.path)
    assert list(bundle.manifest.runtimes["onnxruntime"].static) == ["fp32"]
    with pytest.raises(BundleError, match="int8"):
        StaticEngine(bundle, "int8")


def test_a_closed_baseline_says_so(floats: Made) -> None:
    engine = StaticEngine(Bundle(floats.path), "fp32")
    engine.close()
    engine.close()
    with pytest.raises(RuntimeClosedError):
        engine(np.zeros((1, 3, 8, 8), np.float32))
