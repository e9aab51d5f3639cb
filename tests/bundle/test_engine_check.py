"""What may be an engine: everything that is exported, and nothing that could take time or memory without end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.engine_check import EngineUse, check_engine, engine_uses
from dfs_deploy.bundle.onnx_messages import FLOAT
from dfs_deploy.bundle.operators import BATCH
from dfs_deploy.bundle.weights import ReadTensor, WeightsInMemory
from dfs_deploy.errors import BundleError
from dfs_deploy.runtimes import Runtime
from tests.bundles import Made, copied, rewritten, run_model
from tests.checks import refuses
from tests.settled import pixels

FULL = "common/block-01-full-fp32.onnx"
SHAPE = (BATCH, 4, 8, 8)
USE = EngineUse("block 1, option full", (("", FLOAT, SHAPE),), SHAPE, 4 * 8 * 8)
"""Block 1 of the networks here: (4, 8, 8) to (4, 8, 8)."""

Build = Callable[[], onnx.ModelProto]


@pytest.mark.parametrize("which", ["mixed", "static"])
def test_every_exported_engine_passes(which: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle(request.getfixturevalue(which).path)
    uses = engine_uses(bundle.manifest, bundle.options)
    assert set(uses) == {name for name in bundle.manifest.files if name.endswith(".onnx")}
    for file, found in uses.items():
        for use in found:
            assert check_engine(bundle.model(file), file, use) == 0, "all constants are inside"
            content = (bundle.path / file).read_bytes()
            shared = [tensor for tensor in onnx.load_from_string(content).graph.initializer if tensor.external_data]
            lengths = [int(entry.value) for tensor in shared for entry in tensor.external_data if entry.key == "length"]
            assert check_engine(content, file, use, bundle.weights) == sum(lengths)


def model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any] | None = None,
    *,
    domains: dict[str, int] | None = None,
    shape: tuple[Any, ...] | None = ("N", 4, 8, 8),
    takes: tuple[Any, ...] = ("N", 4, 8, 8),
) -> onnx.ModelProto:
    """A model of ``features`` and ``output``, unchecked."""
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, takes)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in (domains or {"": 21}).items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def node(operator: str, *inputs: str, output: str = "output", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [output], **attributes)


WEIGHT = np.zeros((4, 4, 3, 3), np.float32)
CONV = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1]}


def convolution(weight: np.ndarray[Any, Any] = WEIGHT, **attributes: Any) -> onnx.ModelProto:
    bias = np.zeros(len(weight), np.float32)
    conv = node("Conv", "features", "weight", "bias", **{**CONV, **attributes})
    return model([conv], {"weight": weight, "bias": bias})


def body(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes),
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, ()),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 4, 8, 8)),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 4, 8, 8)),
        ],
    )


def loop() -> onnx.ModelProto:
    turns = body(node("Identity", "goes_on", output="still"), node("Relu", "x", output="y"))
    return model(
        [node("Loop", "turns", "goes_on_at_first", "features", body=turns)],
        {"turns": np.int64(2**40), "goes_on_at_first": np.bool_(True)},
    )


def function() -> onnx.ModelProto:
    made = model([node("Own", "features", domain="own")], domains={"": 21, "own": 1})
    made.functions.append(
        helper.make_function("own", "Own", ["a"], ["b"], [node("Relu", "a", output="b")], [helper.make_opsetid("", 21)])
    )
    return made


def unused_function() -> onnx.ModelProto:
    made = function()
    made.graph.node[0].CopyFrom(node("Relu", "features"))
    del made.opset_import[1]
    return made


def hidden_subgraph() -> onnx.ModelProto:
    """An attribute that no operator has, with a graph in it."""
    made = model([node("Relu", "features")])
    made.graph.node[0].attribute.append(helper.make_attribute("anything", body()))
    return made


def sparse() -> onnx.ModelProto:
    made = convolution()
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    where = helper.make_tensor("where", TensorProto.INT64, [1], [0])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [10**6, 10**6]))
    return made


def outside() -> onnx.ModelProto:
    made = convolution()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    return made


def broadcast() -> onnx.ModelProto:
    """Two vectors of 4 MB in the file, and a sum of 4 TB."""
    long = np.zeros((1, 2000, 1, 1), np.float32)
    return model([node("Add", "a", "b")], {"a": long, "b": long.transpose(0, 2, 1, 3)})


def many(count: int) -> onnx.ModelProto:
    names = ["features", *(f"x{i}" for i in range(count - 1)), "output"]
    return model([node("Relu", a, output=b) for a, b in itertools.pairwise(names)])


def training() -> onnx.ModelProto:
    made = model([node("Relu", "features")])
    made.training_info.add().algorithm.CopyFrom(helper.make_graph([], "algorithm", [], []))
    return made


def changed(edit: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    made = convolution()
    edit(made)
    return made


def outer_product() -> onnx.ModelProto:
    long = np.zeros((3000, 1), np.float32)
    return model([node("Gemm", "a", "a", "c", transB=1)], {"a": long, "c": np.zeros(1, np.float32)})


def value_info(made: onnx.ModelProto) -> None:
    made.graph.value_info.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, (10**6,)))


HOSTILE: dict[str, tuple[Build, str]] = {
    "a loop of 2**40 turns": (loop, "Loop"),
    "a huge pad": (
        lambda: model([node("Pad", "features", "pads")], {"pads": np.array([0, 0, 0, 0, 0, 0, 2**40, 0])}),
        "35,184,372,089,088 values",
    ),
    "a pad of the batch": (
        lambda: model([node("Pad", "features", "pads")], {"pads": np.array([2**20, 0, 0, 0, 0, 0, 0, 0])}),
        "Pad",
    ),
    "a pad that is computed": (
        lambda: model([node("Shape", "features", output="pads"), node("Pad", "features", "pads")]),
        "Pad",
    ),
    "a pad that mirrors": (
        lambda: model([node("Pad", "features", "pads", mode="reflect")], {"pads": np.zeros(8, np.int64)}),
        "Pad",
    ),
    "a shape that is computed": (
        lambda: model([node("Shape", "features", output="shape"), node("Reshape", "features", "shape")]),
        "Reshape",
    ),
    "a shape of more values": (
        lambda: model([node("Reshape", "features", "shape")], {"shape": np.array([0, 2**40, -1])}),
        "Reshape",
    ),
    "a shape that mixes images": (
        lambda: model([node("Reshape", "features", "shape")], {"shape": np.array([64, -1])}),
        "Reshape",
    ),
    "a product of unlike maps": (
        lambda: model(
            [node("Mul", "rows", "columns")],
            {"rows": np.zeros((1, 1, 8, 1), np.float32), "columns": np.zeros((1, 1, 1, 8), np.float32)},
        ),
        "Mul",
    ),
    "images as columns": (
        lambda: model(
            [
                node("Flatten", "features", output="flat"),
                node("Add", "flat", "one", output="columns"),
                node("MaxPool", "columns", kernel_shape=[3, 1], pads=[2, 0, 2, 0], output="mixed"),
                node("Add", "features", "mixed"),
            ],
            {"one": np.zeros((1, 1, 1, 1), np.float32)},
        ),
        "(1, 1, N, 256)",
    ),
    "one image for all": (
        lambda: model(
            [node("Gather", "features", "first", output="image"), node("Add", "features", "image")],
            {"first": np.int64(0)},
        ),
        "Gather",
    ),
    "a sequence that is joined": (lambda: model([node("Concat", *["features"] * 65, axis=1)]), "Concat"),
    "images that are joined": (lambda: model([node("Concat", "features", "features", axis=0)]), "Concat"),
    "a joined sequence that grows": (
        lambda: model(
            [node("Concat", *["features"] * 64, axis=1, output="x"), node("Concat", "x", "x", axis=1)],
        ),
        "16,384 values",
    ),
    "a pool of a huge window": (lambda: model([node("MaxPool", "features", kernel_shape=[64, 64])]), "MaxPool"),
    "a pool without a window": (lambda: model([node("AveragePool", "features")]), "AveragePool"),
    "a mean over the images": (
        lambda: model([node("ReduceMean", "features", "axes")], {"axes": np.array([0])}),
        "ReduceMean",
    ),
    "a slice with no step": (
        lambda: model(
            [node("Slice", "features", "zero", "one", "one", "zero")],
            {"zero": np.array([0]), "one": np.array([1])},
        ),
        "Slice",
    ),
    "two constants of one name": (
        lambda: changed(lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        "one name",
    ),
    "an expansion": (lambda: model([node("Expand", "features", "to")], {"to": np.array([1, 4, 2**40, 8])}), "Expand"),
    "a tensor made of a shape": (lambda: model([node("ConstantOfShape", "s")], {"s": np.array([2**40])}), "Constant"),
    "a random tensor": (lambda: model([node("RandomNormal", shape=[2**40])]), "RandomNormal"),
    "an operator of ONNX Runtime": (
        lambda: model([node("Gelu", "features", domain="com.microsoft")], domains={"": 21, "com.microsoft": 1}),
        "com.microsoft.Gelu",
    ),
    "an operator of the blocked layout": (
        lambda: model([node("ReorderInput", "features", domain="com.microsoft.nchwc")]),
        "com.microsoft.nchwc.ReorderInput",
    ),
    "an operator with a line in its name": (lambda: model([node("Relu\nerror: forged", "features")]), r"Relu\nerror"),
    "operators of another domain": (
        lambda: model([node("Relu", "features")], domains={"": 21, "ai.onnx.ml": 3}),
        "ai.onnx.ml 3",
    ),
    "an opset of the future": (lambda: model([node("Relu", "features")], domains={"": 99}), "99"),
    "a function": (function, "own.Own"),
    "a function that nothing calls": (unused_function, "fields"),
    "a subgraph": (hidden_subgraph, "fields"),
    "a sparse constant": (sparse, "fields"),
    "training": (training, "fields"),
    "shapes of its own": (lambda: changed(value_info), "fields"),
    "weights outside": (outside, "another file"),
    "a sum of unlike shapes": (broadcast, "Add"),
    "a product of two vectors": (outer_product, "9,000,000 values"),
    "a convolution with huge pads": (lambda: convolution(pads=[2**20] * 4), "Conv"),
    "a convolution with other pads": (lambda: convolution(pads=[0] * 4), "(N, 4, 6, 6)"),
    "a dilated convolution": (lambda: convolution(dilations=[2**20] * 2), "Conv"),
    "a convolution in groups": (lambda: convolution(group=4), "Conv"),
    "a convolution that pads itself": (lambda: convolution(auto_pad="SAME_UPPER"), "Conv"),
    "a convolution with a padded point": (
        lambda: convolution(np.zeros((4, 4, 1, 1), np.float32), kernel_shape=[1, 1], pads=[3] * 4),
        "784 values",
    ),
    "a convolution with more padding than any": (
        lambda: convolution(np.zeros((4, 4, 1, 1), np.float32), kernel_shape=[1, 1], pads=[0, 0, 0, 129]),
        "Conv",
    ),
    "a pool that sees padding only": (
        lambda: model([node("MaxPool", "features", kernel_shape=[1, 1], pads=[0, 2, 0, 0])]),
        "MaxPool",
    ),
    "a convolution with another bias": (
        lambda: changed(lambda m: m.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(8, "f4"), "bias"))),
        "Conv",
    ),
    "a convolution of stride 0": (lambda: convolution(strides=[0, 0]), "Conv"),
    "numbers as texts": (lambda: model([node("Cast", "features", to=TensorProto.STRING)]), "Cast"),
    "a large kernel": (
        lambda: convolution(np.zeros((4, 4, 63, 63), np.float32), kernel_shape=[63] * 2, pads=[31] * 4),
        "Conv",
    ),
    "more channels than the block": (lambda: convolution(np.zeros((400, 4, 3, 3), np.float32)), "25,600 values"),
    "a constant larger than its bytes": (
        lambda: changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**40)),
        "constant",
    ),
    "a constant of a negative size": (
        lambda: changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, -4)),
        "constant",
    ),
    "a constant of texts": (
        lambda: changed(lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.STRING)),
        "constant",
    ),
    "a constant in another field": (
        lambda: changed(lambda m: m.graph.initializer[0].int64_data.extend([1])),
        "fields",
    ),
    "a constant for an input": (lambda: changed(lambda m: setattr(m.graph.input[0], "name", "bias")), "constant"),
    "ten thousand nodes": (lambda: many(10_000), "parts"),
    "two thousand nodes": (lambda: many(2000), "2000 nodes"),
    "a node before its input": (lambda: model([node("Relu", "later"), node("Relu", "features", output="later")]), "Re"),
    "a value made twice": (lambda: model([node("Relu", "features"), node("Relu", "features")]), "Relu"),
    "no output": (lambda: changed(lambda m: m.graph.ClearField("output")), "nothing"),
    "an output that nothing makes": (lambda: changed(lambda m: setattr(m.graph.output[0], "name", "x")), "nothing"),
    "an output of another shape": (lambda: model([node("GlobalAveragePool", "features")]), "(N, 4, 1, 1)"),
    "an input of another shape": (
        lambda: changed(
            lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 2**20),
        ),
        "1048576",
    ),
    "two inputs": (lambda: changed(lambda m: m.graph.input.append(m.graph.input[0])), "inputs"),
    "no graph": (lambda: changed(lambda m: m.ClearField("graph")), "inputs"),
    "a long name": (lambda: changed(lambda m: setattr(m.graph.node[0], "name", "x" * 10**6)), "bytes"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_export_writes_is_refused(what: str) -> None:
    build, word = HOSTILE[what]
    with refuses(BundleError, "net.dfs: x.onnx", word, "export it again"):
        check_engine(build().SerializeToString(), "net.dfs: x.onnx", USE)


def test_the_same_without_what_is_hostile_passes() -> None:
    for build in (convolution, lambda: many(1000), lambda: model([node("Relu", "features")])):
        check_engine(build().SerializeToString(), "x.onnx", USE)


MAP = (4, 8, 9)
"""Channels, rows and columns that the nodes below take."""

NODES: dict[str, tuple[onnx.NodeProto, dict[str, Any]]] = {
    f"{name} {number}": (made, constants)
    for name, calls in {
        "Conv": [
            (node("Conv", "features", "w", **attributes), {"w": np.zeros(shape, np.float32)})
            for shape, attributes in [
                ((6, 2, 3, 3), {"group": 2, "pads": [0, 1, 2, 3]}),
                ((4, 1, 5, 3), {"group": 4, "pads": [2, 1, 1, 0], "strides": [2, 1]}),
                ((8, 4, 11, 11), {"pads": [5] * 4, "strides": [4, 4], "kernel_shape": [11, 11]}),
                ((2, 4, 3, 2), {"dilations": [2, 3], "pads": [2, 0, 1, 2]}),
                ((5, 4, 1, 1), {"pads": [1, 0, 0, 1]}),
                ((5, 4, 8, 9), {}),
                ((5, 4, 13, 13), {"pads": [6] * 4}),
                ((5, 4, 1, 3), {"pads": [2, 4, 3, 7]}),
                ((5, 4, 32, 32), {"pads": [12, 12, 12, 13], "strides": [8, 8]}),
            ]
        ],
        "Pool": [
            (node(operator, "features", kernel_shape=kernel, ceil_mode=ceil, **attributes), {})
            for operator in ("MaxPool", "AveragePool")
            for ceil in (0, 1)
            for kernel, attributes in [
                ([3, 3], {"strides": [2, 2], "pads": [1] * 4}),
                ([2, 2], {"strides": [2, 2]}),
                ([3, 2], {"strides": [3, 4], "pads": [0, 1, 1, 0]}),
                ([2, 2], {"strides": [3, 5], "pads": [1, 1, 1, 1]}),
                ([8, 9], {}),
                ([17, 17], {"pads": [8] * 4, "strides": [17, 17]}),
            ]
        ],
        "Sum": [
            (node(operator, *inputs), {"c": np.ones(shape, np.float32)})
            for operator in ("Add", "Mul", "Sub", "Div")
            for shape in [(), (1,), (4, 1, 1), (1, 4, 8, 9), (1, 1, 8, 1)]
            for inputs in [("features", "c"), ("c", "features")]
        ],
        "Shape": [
            (node("Pad", "features", "pads"), {"pads": np.array([0, 1, 0, 2, 0, 0, 3, 1])}),
            (node("Pad", "features", "pads", "v"), {"pads": np.zeros(8, np.int64), "v": np.float32(0)}),
            *(
                (node("Reshape", "features", "to"), {"to": np.array(to)})
                for to in [(0, -1), (-1, 288), (0, 0, 72), (0, 2, 2, -1), (0, 0, 9, 8), (-1, 4, 8, 9)]
            ),
            *(
                (
                    node("Slice", "features", "a", "b", "axes", "steps"),
                    {"a": np.array(a), "b": np.array(b), "axes": np.array(axes), "steps": np.array(steps)},
                )
                for a, b, axes, steps in [
                    ((0, 0), (2**62, -1), (2, 3), (2, 2)),
                    ((1,), (3,), (1,), (1,)),
                    ((-1, 7), (-(2**62), 2), (1, 2), (-1, -2)),
                    ((-3,), (2**62,), (3,), (1,)),
                ]
            ),
            (node("Concat", "features", "features", axis=1), {}),
            (node("Concat", "features", "features", "features", axis=3), {}),
            (node("Transpose", "features", perm=[0, 2, 3, 1]), {}),
            (node("ReduceMean", "features", "axes"), {"axes": np.array([2, 3])}),
            (node("ReduceMean", "features", "axes", keepdims=0), {"axes": np.array([1, 2])}),
            (node("GlobalAveragePool", "features"), {}),
            (node("Flatten", "features"), {}),
        ],
        "Value": [
            (node("LeakyRelu", "features", alpha=0.2), {}),
            (node("HardSigmoid", "features", alpha=1 / 6, beta=0.5), {}),
            *((node(operator, "features"), {}) for operator in ("HardSwish", "Gelu", "Erf", "Tanh", "Sigmoid")),
            (node("Gelu", "features", approximate="tanh"), {}),
            (node("Clip", "features", "low", "high"), {"low": np.float32(0), "high": np.float32(6)}),
        ],
    }.items()
    for number, (made, constants) in enumerate(calls)
}


@pytest.mark.parametrize("what", NODES)
def test_a_shape_is_what_onnxruntime_makes_of_it(what: str) -> None:
    made, constants = NODES[what]
    content = model([made], constants, shape=None, takes=("N", *MAP)).SerializeToString()
    (given,) = run_model(content, features=np.zeros((2, *MAP), np.float32))
    use = EngineUse("here", (("", FLOAT, (BATCH, *MAP)),), (BATCH, *given.shape[1:]), 10_000)
    assert given.shape[0] == 2
    check_engine(content, "x.onnx", use)


SHARED = WeightsInMemory("weights.bin", bytes(4096))


def referring(*places: tuple[int, int] | dict[str, str], kind: int = TensorProto.FLOAT) -> bytes:
    """A sum of constants at these offsets and lengths of the shared weights, or with these entries."""
    names = [f"constant_{i}" for i in range(len(places))]
    made = model([node("Relu", "features")])
    for name, place in zip(names, places, strict=True):
        tensor = made.graph.initializer.add(name=name, data_type=kind, data_location=TensorProto.EXTERNAL)
        tensor.dims.append((256 if isinstance(place, dict) else place[1]) // 4)
        offset, length = (0, 256) if isinstance(place, dict) else place
        entries = {"location": "weights.bin", "offset": str(offset), "length": str(length)}
        for key, value in (place if isinstance(place, dict) else entries).items():
            tensor.external_data.add(key=key, value=value)
    return bytes(made.SerializeToString())


WHOLE = {"location": "weights.bin", "offset": "0", "length": "256"}

REFERENCES: dict[str, tuple[bytes, str]] = {
    "another file": (referring({**WHOLE, "location": "../../secret"}), "another file"),
    "no file": (referring({"offset": "0", "length": "256"}), "another file"),
    "beyond the end": (referring((4032, 256)), "4,032"),
    "far beyond the end": (referring({**WHOLE, "length": str(10**17)}), "bytes at 0"),
    "a number too large": (referring({**WHOLE, "length": "9" * 300}), "other entries"),
    "less than is shared": (referring((0, 252)), "252 bytes"),
    "not aligned": (referring((32, 256)), "32"),
    "before the beginning": (referring({**WHOLE, "offset": "-64"}), "other entries"),
    "a checksum": (referring({**WHOLE, "checksum": "0"}), "other entries"),
    "no length": (referring({"location": "weights.bin", "offset": "0"}), "other entries"),
    "a sign": (referring({**WHOLE, "offset": "+64"}), "other entries"),
    "a zero before the number": (referring({**WHOLE, "offset": "064"}), "other entries"),
    "Arabic digits": (referring({**WHOLE, "offset": "\u0660"}), "other entries"),
    "a part of another constant": (referring((0, 512), (64, 256)), "overlap"),
    "two parts of one constant": (referring((0, 320), (256, 320)), "overlap"),
    "another size than its shape": (referring((0, 512), kind=TensorProto.INT8), "512 bytes"),
}


@pytest.mark.parametrize("what", REFERENCES)
def test_a_reference_that_no_export_writes_is_refused(what: str) -> None:
    content, word = REFERENCES[what]
    with refuses(BundleError, "net.dfs: x.onnx", word, "export it again"):
        check_engine(content, "net.dfs: x.onnx", USE, SHARED)


def test_references_are_refused_where_no_weights_are_shared() -> None:
    with refuses(BundleError, "another file"):
        check_engine(referring((0, 256)), "x.onnx", USE)


def test_a_constant_with_two_contents_is_refused() -> None:
    made = onnx.load_from_string(referring((0, 256)))
    made.graph.initializer[0].raw_data = bytes(256)
    with refuses(BundleError, "both inside and in weights.bin"):
        check_engine(made.SerializeToString(), "x.onnx", USE, SHARED)


def test_references_of_more_bytes_than_a_model_holds_are_refused() -> None:
    content, much = referring(*[(0, 1 << 30)] * 2), _Huge()
    with refuses(BundleError, "2,147,483,648 bytes"):
        check_engine(content, "x.onnx", USE, much)


class _Huge:
    """Weights of a gigabyte that nobody may read."""

    name, size = "weights.bin", 1 << 30

    def opened(self) -> AbstractContextManager[ReadTensor]:
        raise AssertionError("a check reads no constant")


def test_the_same_references_within_the_weights_pass() -> None:
    assert check_engine(referring((0, 256), (256, 512), (3840, 256), (0, 256)), "x.onnx", USE, SHARED) == 1280


def nested(tag: bytes, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return tag + length + bytes([size]) + content


FILES = {
    "nothing": b"",
    "text": b"no model",
    "ONNX Runtime's own format": b"\x24\0\0\0ORTM" + bytes(1000),
    "ONNX Runtime's mark in a model": b"\x12\x08xxORTMxx" + convolution().SerializeToString(),
    "a model that was cut off": convolution().SerializeToString()[:-20],
    "a length without end": b"\x3a" + b"\xff" * 30,
    "a length beyond the file": b"\x3a\xff\xff\xff\x7f",
    "a group": b"\x3b\x3c",
    "ten million empty nodes": nested(b"\x3a", b"\x0a\x00" * 10_000_000),
    "ten million empty constants": nested(b"\x3a", b"\x2a\x00" * 10_000_000),
    "a million empty graphs": b"\x3a\x00" * 1_000_000,
    "a constant of ten million empty entries": nested(b"\x3a", nested(b"\x2a", b"\x6a\x00" * 10_000_000)),
    "a node of ten million inputs": nested(b"\x3a", nested(b"\x0a", b"\x0a\x00" * 10_000_000)),
    "a shape of ten million dimensions": nested(b"\x3a", nested(b"\x5a", nested(b"\x12", b"\x0a\x00" * 10_000_000))),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_no_model_are_refused_before_they_are_parsed(what: str) -> None:
    begun = time.perf_counter()
    with refuses(BundleError, "x.onnx"):
        check_engine(FILES[what], "x.onnx", USE)
    assert time.perf_counter() - begun < 30.0, "a hang, and no matter of speed"


@pytest.mark.parametrize("file", [FULL, "common/gate.onnx", "common/stem.onnx", "onnxruntime/static-fp32.onnx"])
def test_a_hostile_engine_is_refused_wherever_it_stands(mixed: Made, tmp_path: Path, file: str) -> None:
    path = rewritten(copied(mixed, tmp_path), {file: loop().SerializeToString()})
    with refuses(BundleError, file, "Loop"):
        Bundle(path).read(file)
    if not file.startswith("onnxruntime/static"):
        with refuses(BundleError, file, "Loop"):
            Runtime(path)


def test_an_engine_for_another_runtime_is_checked_too(mixed: Made, tmp_path: Path) -> None:
    path = rewritten(copied(mixed, tmp_path), {"tensorrt/stem.onnx": loop().SerializeToString()})
    with refuses(BundleError, "tensorrt/stem.onnx", "Loop"):
        Bundle(path).read("tensorrt/stem.onnx")
    with Runtime(path) as runtime:
        assert len(runtime(pixels(1)).classes) == 1


def test_a_gate_that_grows_is_refused(mixed: Made, tmp_path: Path) -> None:
    gate = onnx.load_from_string(Bundle(mixed.path).model("common/gate.onnx"))
    size = len(gate.graph.initializer[0].raw_data) // 4
    gate.graph.initializer.append(numpy_helper.from_array(np.zeros((8 * size, 1), np.float32), "long"))
    gate.graph.node.append(node("Gemm", "long", "long", "long", output="huge", transB=1))
    path = rewritten(copied(mixed, tmp_path), {"common/gate.onnx": gate.SerializeToString()})
    with refuses(BundleError, "the gate", "values"):
        Runtime(path)


def test_an_engine_of_another_block_is_refused(mixed: Made, tmp_path: Path) -> None:
    other = Bundle(mixed.path).model("common/block-02-full-fp32.onnx")
    with refuses(BundleError, "block 1, option full", "(N, 4, 8, 8)"):
        Runtime(rewritten(copied(mixed, tmp_path), {FULL: other}))
