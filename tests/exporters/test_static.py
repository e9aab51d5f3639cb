from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from dfs_deploy.bundle import Bundle
from dfs_deploy.calibration import Ranges, calibrate, calibrate_static, from_checkpoint
from dfs_deploy.errors import BundleError, RuntimeClosedError
from dfs_deploy.exporters.int8_forms import Int8Forms
from dfs_deploy.exporters.split import split_block, split_head, split_stem
from dfs_deploy.exporters.writing import EngineWriter, static_engine
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import Option
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine
from dfs_deploy.system.cpu import WeightBits
from tests.bundles import Made, relative, run_as_written, run_model
from tests.settled import normal_images, settled_network


@pytest.fixture(scope="module")
def network() -> DFSNetwork:
    return settled_network("skip,8,16,full", blocks=2, widths=(4, 8, 16))


def float_engine(network: DFSNetwork, dtype: type[np.floating] = np.float32) -> bytes:
    blocks = [split_block(network, block.shape.index, Option(32)) for block in network.blocks]
    return static_engine("static", [split_stem(network), *blocks, split_head(network)], dtype=dtype)


def static_engines(
    network: DFSNetwork, ranges: Ranges, runtime: str = "onnxruntime", bits: WeightBits = 8
) -> list[bytes]:
    writer = EngineWriter(network, Int8Forms(ranges, bits), ("int8", "fp32"))
    engines = writer.write(runtime)
    return [writer.files[file] for file in engines.static.values()]


def static_int8(network: DFSNetwork, images: Tensor, runtime: str = "onnxruntime", bits: WeightBits = 8) -> bytes:
    gated = calibrate(network, [1], lambda: iter([images]), "minmax")
    static = calibrate_static(network, lambda: iter([images]), "minmax")
    return static_engines(network, {**gated, **static}, runtime, bits)[0]


@pytest.mark.parametrize(("dtype", "tolerance", "count"), [(np.float32, 1e-4, 1), (np.float16, 0.01, 6)])
@torch.no_grad()
def test_a_float_engine_is_the_backbone(
    network: DFSNetwork, dtype: type[np.floating], tolerance: float, count: int
) -> None:
    images = normal_images(count)
    (got,) = run_model(float_engine(network, dtype), images=images.numpy())
    assert got.dtype == np.float32
    assert relative(got, network.static(images).numpy()) < tolerance


@pytest.mark.parametrize(("runtime", "bits"), [("onnxruntime", 7), ("onnxruntime", 8), ("tensorrt", 8)])
@torch.no_grad()
def test_the_static_int8_engine_is_near_the_backbone(network: DFSNetwork, runtime: str, bits: WeightBits) -> None:
    images = normal_images(24)
    run = run_model if runtime == "onnxruntime" else run_as_written
    (got,) = run(static_int8(network, images, runtime, bits), images=images.numpy())
    assert relative(got, network.static(images).numpy()) < {7: 0.1, 8: 0.06}[bits]


def test_without_data_the_first_block_stays_in_float(network: DFSNetwork) -> None:
    model, _ = static_engines(network, from_checkpoint(network, [1]))
    constants = {tensor.name: tensor.data_type for tensor in onnx.load_from_string(model).graph.initializer}
    assert constants["stem_stem_norm_weight"] == constants["stem_blocks.0.norm1_weight"] == onnx.TensorProto.FLOAT
    assert constants["block_1_blocks.1.norm1_weight"] == onnx.TensorProto.INT8


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_without_data_the_blocks_borrow_ranges_and_no_weights(runtime: str) -> None:
    """The option whose ranges they borrow has weights of 16 levels, and its engines are written first."""
    network = settled_network("skip,4,full", blocks=2, widths=(4, 8, 16))
    model, *_ = static_engines(network, from_checkpoint(network, [1]), runtime)
    for tensor in onnx.load_from_string(model).graph.initializer:
        if tensor.name.startswith("block_") and tensor.name.endswith("norm1_weight"):
            weight = onnx.numpy_helper.to_array(tensor)
            assert weight.dtype == np.int8
            assert max(len(np.unique(channel)) for channel in weight) > 16, tensor.name


def test_the_static_int8_engine_convolves_in_integers_throughout(network: DFSNetwork, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(static_int8(network, normal_images(8)), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 1 + 2 * len(network.architecture.blocks) + 2
    assert not {"Conv", "FusedConv"} & set(kinds)


# The baselines of a bundle


def test_the_baselines_of_a_bundle_are_the_backbone(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    assert set(bundle.manifest.runtimes["onnxruntime"].static) == {"fp32", "fp16", "int8"}
    images = bundle.input.normalize(mixed.data.images)
    with torch.no_grad():
        expected = mixed.network.static(torch.from_numpy(images)).numpy()
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
