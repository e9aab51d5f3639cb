from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from dfs_deploy.exporters.engines import float_engine, gate_engine
from dfs_deploy.exporters.int8 import Grid
from dfs_deploy.exporters.split import split_block, split_gate, split_head, split_skip, split_stem
from dfs_deploy.models import DFSNetwork, NetworkBlock, decide
from dfs_deploy.options import Option
from tests.bundles import normal_images, relative, run_model, settled_network

TOLERANCE = 1e-4
GRID = Grid(0.03)


def features_for(block: NetworkBlock, layout: str, seed: int = 0) -> tuple[NDArray[np.generic], torch.Tensor]:
    """What an engine is fed and what that means; float features partly negative, as after a skipped stride block."""
    shape = (6, *block.shape.in_shape)
    random = np.random.default_rng(seed)
    if layout == "uint8":
        fed = random.integers(0, 256, shape, dtype=np.uint8)
        return fed, torch.from_numpy(fed.astype(np.float32) * np.float32(GRID.scale))
    floats = (2.0 * random.standard_normal(shape) + 1.0).astype(np.float32)
    return floats, torch.from_numpy(floats)


def engine(
    network: DFSNetwork, block: NetworkBlock, bits: int, layout: str, dtype: type[np.floating] = np.float32
) -> bytes:
    part = split_block(network, block.shape.index, Option(bits))
    return float_engine("block", part, dtype, takes=GRID if layout == "uint8" else None)


@pytest.fixture(scope="module")
def network() -> DFSNetwork:
    return settled_network("skip,8,16,full", blocks=2, widths=(4, 8, 16))


@pytest.mark.parametrize("layout", ["float32", "uint8"])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_an_fp32_engine_is_the_block(network: DFSNetwork, bits: int, layout: str) -> None:
    clamped = 0
    for block in network.blocks:
        model = engine(network, block, bits, layout, np.float32)
        fed, features = features_for(block, layout)
        with torch.no_grad():
            expected = block(features, bits, round_inputs=False).numpy()
            clamped += not torch.allclose(block(features), torch.from_numpy(expected), rtol=1e-2, atol=1e-2)
        (got,) = run_model(model, features=fed)
        assert got.dtype == np.float32
        assert relative(got, expected) < TOLERANCE
    assert bits == 32 or clamped, "an option's saturation should matter, or this shows little"


@pytest.mark.parametrize("layout", ["float32", "uint8"])
def test_a_skip_engine_is_the_projection_alone(network: DFSNetwork, layout: str) -> None:
    strided = [block for block in network.blocks if block.shape.projects]
    assert len(strided) == 2
    assert all(split_skip(network, block.shape.index) is None for block in network.blocks if not block.shape.projects)
    for block in strided:
        projection = split_skip(network, block.shape.index)
        assert projection is not None
        model = float_engine("skip", projection, takes=GRID if layout == "uint8" else None)
        fed, features = features_for(block, layout)
        with torch.no_grad():
            expected = block.skip(features).numpy()
        (got,) = run_model(model, features=fed)
        assert relative(got, expected) < TOLERANCE
        assert got.min() < 0, "without relu"


@pytest.mark.parametrize("count", [1, 5])
def test_stem_and_head_engines(network: DFSNetwork, count: int) -> None:
    images = normal_images(count)
    with torch.no_grad():
        expected = network.stem(images).numpy()
        (got,) = run_model(float_engine("stem", split_stem(network), source="images"), images=images.numpy())
        assert relative(got, expected) < TOLERANCE
        for layout in ("float32", "uint8"):
            fed = np.random.default_rng(1).integers(0, 256, (count, 16, 2, 2), dtype=np.uint8)
            floats = fed.astype(np.float32) * np.float32(GRID.scale)
            model = float_engine("head", split_head(network), takes=GRID if layout == "uint8" else None)
            (logits,) = run_model(model, features=fed if layout == "uint8" else floats)
            assert relative(logits, network.head(torch.from_numpy(floats)).numpy()) < TOLERANCE


@pytest.mark.parametrize("layout", ["float32", "uint8"])
def test_an_fp16_engine_computes_in_float16(network: DFSNetwork, layout: str) -> None:
    for block in network.blocks:
        model = engine(network, block, 16, layout, np.float16)
        graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model), strict_mode=True).graph
        types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
        convs = [node for node in graph.node if node.op_type == "Conv"]
        assert len(convs) == (3 if block.shape.projects else 2)
        for conv in convs:
            assert types[conv.output[0]] == TensorProto.FLOAT16
            assert [constants[name] for name in conv.input[1:]] == [TensorProto.FLOAT16] * 2
        fed, features = features_for(block, layout)
        (got,) = run_model(model, features=fed)
        with torch.no_grad():
            expected = block(features, 16, round_inputs=False).numpy()
        assert got.dtype == np.float32
        assert relative(got, expected) < 1e-2
        assert relative(got, expected) > 1e-6, "float32 would be nearer"


def test_a_batch_is_its_images(network: DFSNetwork) -> None:
    block = network.block(2)
    model = engine(network, block, 16, "float32")
    fed, _ = features_for(block, "float32")
    (together,) = run_model(model, features=fed)
    alone = [run_model(model, features=row[None])[0][0] for row in fed]
    np.testing.assert_allclose(together, np.stack(alone), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_gate_engine_steps_as_the_gate(network: DFSNetwork) -> None:
    model = gate_engine(split_gate(network))
    state = network.gate.initial_state(torch.zeros(7, 4, 2, 2))
    hidden, cell = (part.numpy() for part in state)
    for index, shape in enumerate(network.architecture.blocks[:-1]):
        features = 2 * torch.rand(7, *shape.out_shape)
        scores, state = network.gate(index, features, state)
        pooled = features.mean((2, 3)).numpy()
        got = run_model(model, pooled=pooled, block=np.array(index, np.int64), hidden=hidden, cell=cell)
        np.testing.assert_allclose(got[0], scores.numpy(), rtol=1e-4, atol=1e-4)
        assert np.array_equal(got[1], decide(scores).numpy())
        hidden, cell = got[2], got[3]
        for ours, theirs in zip((hidden, cell), state, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_the_gate_engine_gives_its_weights(network: DFSNetwork) -> None:
    part = split_gate(network)
    model = onnx.load_from_string(gate_engine(part))
    assert [value.name for value in model.graph.input] == ["pooled", "block", "hidden", "cell"]
    names = [value.name for value in model.graph.output]
    zeros = np.zeros((1, 10), np.float32)
    feeds = {"pooled": np.zeros((1, 4), np.float32), "block": np.array(0, np.int64), "hidden": zeros, "cell": zeros}
    got = dict(zip(names, run_model(model.SerializeToString(), **feeds), strict=True))
    assert names[:4] == ["scores", "decision", "hidden_out", "cell_out"]
    for name in ("bias", "recurrent_weight", "projection_weight", "projection_bias"):
        assert np.array_equal(got[name], getattr(part, name)), name
    for own, stacked in zip(part.input_weight, got["input_weight"], strict=True):
        assert np.array_equal(stacked[:, : own.shape[1]], own)
        assert not stacked[:, own.shape[1] :].any()


@torch.no_grad()
def test_of_equal_scores_the_gate_engine_takes_the_lowest_index() -> None:
    network = settled_network("skip,8,16,full")
    network.gate.projection.weight.zero_()
    network.gate.projection.bias.copy_(torch.tensor([-1.0, 2.0, 2.0, 2.0]))
    zeros = np.zeros((3, 10), np.float32)
    model = gate_engine(split_gate(network))
    pooled = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    _, decision, *_ = run_model(model, pooled=pooled, block=np.array(0, np.int64), hidden=zeros, cell=zeros)
    assert decision.tolist() == [1, 1, 1]


def test_engines_come_out_the_same_to_the_byte(network: DFSNetwork) -> None:
    block = network.block(2)
    assert engine(network, block, 16, "uint8", np.float16) == engine(network, block, 16, "uint8", np.float16)
    assert gate_engine(split_gate(network)) == gate_engine(split_gate(network))


def test_normalisation_is_folded_and_weights_are_inside(network: DFSNetwork) -> None:
    for block in network.blocks:
        part = split_block(network, block.shape.index, Option(32))
        graph = onnx.load_from_string(float_engine("block", part)).graph
        assert {node.op_type for node in graph.node} == {"Conv", "Relu", "Add"}
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        assert np.array_equal(weights[f"{part.layers[0].name}_weight"], part.layers[0].weight)
        assert all(tensor.data_location == TensorProto.DEFAULT for tensor in graph.initializer)
