"""The shipped checkpoint on a double of TensorRT, against ONNX Runtime's engines and against its own graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dfs_deploy import export
from dfs_deploy.bundle import Bundle
from dfs_deploy.data.digits import load_digits
from dfs_deploy.runtimes import Result, Runtime
from dfs_deploy.runtimes.tensorrt.engine_cache import BuildSettings, prepare
from tests.bundles import run_model
from tests.runtimes.tensorrt.direct import direct
from tests.runtimes.tensorrt.machine import building_here, machine

CHECKPOINT = Path(__file__).parents[3] / "examples" / "digits.pt"
IMAGES = 64
BAR = 1e-3
"""Of logits, whose greatest is about 20."""

HALF = 1e-3
"""Of the greatest logit: what float16 leaves; its numbers lie within 5e-4 of what they stand for."""


def made(folder: Path, *targets: str) -> Path:
    bundle = folder / "digits.dfs"
    export(
        CHECKPOINT,
        bundle,
        targets=targets,
        runtimes=["onnxruntime", "tensorrt"],
        calibration_data=load_digits("train"),
        calibration_samples=256,
    )
    with machine(), building_here():
        prepare(Bundle(bundle), BuildSettings(batch=IMAGES))
    return bundle


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("digits-floats"), "fp32")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("digits-quantised"), "fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return load_digits("test").images[:IMAGES]


@pytest.fixture(autouse=True)
def gpu() -> Iterator[Any]:
    with machine() as device:
        yield device


def answers(bundle: Path, images: NDArray[np.uint8], batch: int) -> Result:
    with Runtime(bundle, "tensorrt") as runtime:
        parts = [runtime(images[i : i + batch]) for i in range(0, len(images), batch)]
    logits, path = (np.concatenate([getattr(part, name) for part in parts]) for name in ("logits", "path"))
    return Result(logits, path, parts[0].costs)


@pytest.mark.parametrize("batch", [1, IMAGES])
def test_float_engines_agree_with_onnxruntime(floats: Path, images: NDArray[np.uint8], batch: int) -> None:
    with Runtime(floats) as runtime:
        expected = runtime(images)
    result = answers(floats, images, batch)
    assert len(np.unique(result.path, axis=0)) > 4, "the images take different paths"
    np.testing.assert_array_equal(result.path, expected.path)
    np.testing.assert_allclose(result.logits, expected.logits, rtol=0, atol=BAR)


@pytest.mark.parametrize("batch", [1, IMAGES])
def test_every_engine_and_the_gate_agree_with_the_graphs_themselves(
    quantised: Path, images: NDArray[np.uint8], batch: int
) -> None:
    result = answers(quantised, images, batch)
    expected = direct(quantised, images)
    assert len(np.unique(expected.path)) == 4, "every option is taken"
    np.testing.assert_array_equal(result.path, expected.path)
    np.testing.assert_allclose(result.logits, expected.logits, rtol=0, atol=BAR)


def test_options_without_int8_agree_with_onnxruntime(quantised: Path, images: NDArray[np.uint8]) -> None:
    with Runtime(quantised) as other, Runtime(quantised, "tensorrt") as runtime:
        for index, name in enumerate(runtime.options.names):
            path = np.full((IMAGES, 5), index)
            expected = other(images, path=path).logits
            error = np.abs(runtime(images, path=path).logits - expected).max()
            assert name == "8" or error <= (HALF * np.abs(expected).max() if name == "16" else BAR), name


# What INT8 engines of the two runtimes differ in


def test_int8_engines_differ_from_onnxruntimes_by_rounding_alone(quantised: Path) -> None:
    """Without rounding, and without ends to what is summed at the end of a block, they compute the same."""
    bundle, ran = Bundle(quantised), direct(quantised, load_digits("test").images)
    ours, theirs = bundle.manifest.runtimes["tensorrt"], bundle.manifest.runtimes["onnxruntime"]
    for block, other, features, choice in zip(ours.blocks, theirs.blocks, ran.features, ran.path.T, strict=True):
        reached = features[choice == bundle.options.names.index("8")]
        assert len(reached), "calibrated on images that take this option here"
        graphs = [bundle.model(engines.options["8"][0].files["float32"]) for engines in (block, other)]
        got, expected = (run_model(unrounded(graph), features=reached)[0] for graph in graphs)
        expected = expected.transpose(0, 3, 1, 2)  # ONNX Runtime's end channels last
        np.testing.assert_allclose(got, expected, rtol=0, atol=BAR)
        got, expected = (run_model(graph, features=reached)[0] for graph in graphs)
        assert np.abs(got - expected * np.float32(theirs.feature_scales[block.index])).max() > BAR


def unrounded(graph: bytes) -> bytes:
    """A quantised graph whose activations are clamped where they were rounded, and neither where they are summed."""
    model = onnx.load_from_string(graph)
    constants = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}

    def source(name: str) -> onnx.NodeProto | None:
        """What made a value, whatever moved it or read it from its grid since."""
        node = makers.get(name)
        while node is not None and node.op_type in ("Transpose", "DequantizeLinear"):
            node = makers.get(node.input[0])
        return node

    sums = [node for node in model.graph.node if node.op_type == "Add"]
    summed = {made.output[0] for node in sums for name in node.input if (made := source(name)) is not None}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in makers:
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
        elif node.op_type == "QuantizeLinear":
            value, (scale, zero) = node.input[0], (constants[name] for name in node.input[1:3])
            before = source(value)
            del node.input[1:], node.attribute[:]
            if node.output[0] in summed:
                node.op_type = "Identity"
            elif before is not None and before.op_type == "Add":
                node.op_type = "Relu"
            else:
                node.op_type = "Clip"
                for end in (np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max):
                    node.input.append(f"{node.output[0]}_{end}")
                    limit = helper.make_tensor(node.input[-1], onnx.TensorProto.FLOAT, [], [(end - int(zero)) * scale])
                    model.graph.initializer.append(limit)
    for value in model.graph.output:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    changed: bytes = model.SerializeToString()
    return changed
