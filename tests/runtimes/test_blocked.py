"""Engines of many operators in ONNX Runtime's blocked layout: they give what the plain engines give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfs_deploy.bundle.engines import PlacedEngine, Size
from dfs_deploy.bundle.manifest import Engine, Layout
from dfs_deploy.runtimes.onnxruntime.blocked import block_size, blocked_layouts, blocked_models, from_blocks, to_blocks
from tests.bundles import relative, run_model

TAKES, GIVES = (32, 9, 7), (48, 5, 4)
"""Channels in sixteens, rows and columns."""

needs_blocks = pytest.mark.skipif(block_size() == 1, reason="ONNX Runtime has no blocked layout for this CPU")


class Builder:
    """Nodes and constants of a model whose values are drawn."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Any] = {}
        self.random = np.random.default_rng(0)

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def conv(self, x: str, out: int, taken: int, kernel: int, **attributes: Any) -> str:
        weight = self.random.normal(size=(out, taken, kernel, kernel)).astype(np.float32) / (kernel * taken**0.5)
        pads = [kernel // 2] * 4
        return self.node(
            "Conv",
            x,
            self.constant(weight),
            self.constant(self.random.normal(size=out).astype(np.float32)),
            **{"kernel_shape": [kernel] * 2, "pads": pads, **attributes},
        )


def plain(b: Builder, x: str) -> str:
    y = b.node("Relu", b.conv(x, 32, 32, 3))
    return b.conv(y, 48, 32, 3, strides=[2, 2])


def inverted(b: Builder, x: str) -> str:
    """Expansion, depthwise convolution, squeeze-and-excitation, projection."""
    y = b.node("HardSwish", b.conv(x, 64, 32, 1))
    y = b.node("HardSwish", b.conv(y, 64, 1, 5, group=64, strides=[2, 2]))
    squeezed = b.node("Relu", b.conv(b.node("GlobalAveragePool", y), 16, 64, 1))
    scale = b.node("HardSigmoid", b.conv(squeezed, 64, 16, 1), alpha=1 / 6, beta=0.5)
    return b.conv(b.node("Mul", y, scale), 48, 64, 1)


def smooth(b: Builder, x: str) -> str:
    """SiLU, which ONNX Runtime makes an operator of its own, grouped and asymmetric convolutions."""
    y = b.conv(x, 64, 8, 3, group=4, pads=[0, 1, 2, 1])
    y = b.node("Mul", y, b.node("Sigmoid", y))
    return b.conv(b.node("Gelu", y), 48, 64, 3, strides=[2, 2])


def pooled(b: Builder, x: str) -> str:
    y = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    z = b.node("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    return b.conv(b.node("Concat", y, z, axis=1), 48, 64, 1)


def without_convolution(b: Builder, x: str) -> str:
    """The shortcut of option A: every second row and column, and zeros for the new channels."""
    ends, axes, steps = np.array([9, 7]), np.array([2, 3]), np.array([2, 2])
    y = b.node("Slice", x, *map(b.constant, (np.array([0, 0]), ends, axes, steps)))
    return b.node("Pad", y, b.constant(np.array([0, 8, 0, 0, 0, 8, 0, 0])))


BODIES: dict[str, Callable[[Builder, str], str]] = {
    each.__name__: each for each in (plain, inverted, smooth, pooled, without_convolution)
}


def engine(body: Callable[[Builder, str], str], layout: Layout, takes: Size = TAKES, gives: Size = GIVES) -> bytes:
    """A model from features of a layout to float32 features."""
    b, (channels, height, width) = Builder(), takes
    x, kind, shape = "features", TensorProto.FLOAT, [channels, height, width]
    if layout == "uint8":
        kind, shape = TensorProto.UINT8, [height, width, channels]
        x = b.node("Transpose", x, perm=[0, 3, 1, 2])
        x = b.node("DequantizeLinear", x, b.constant(np.float32(0.02)), b.constant(np.uint8(100)))
    body(b, x)
    b.nodes[-1].output[0] = "output"
    graph = helper.make_graph(
        b.nodes,
        "block",
        [helper.make_tensor_value_info("features", kind, ["N", *shape])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", *gives])],
        [numpy_helper.from_array(value, name) for name, value in b.constants.items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


@needs_blocks
@pytest.mark.parametrize("layouts", [("float32",), ("uint8",), ("float32", "uint8")], ids=" and ".join)
@pytest.mark.parametrize("body", BODIES)
def test_a_block_gives_the_same_in_the_blocked_layout(body: str, layouts: tuple[Layout, ...]) -> None:
    record = Engine(precision="fp32", output="float32", files={layout: f"{layout}.onnx" for layout in layouts})
    placed = PlacedEngine("block", 1, "full", 0, record, TAKES, GIVES, 0)
    models = {layout: engine(BODIES[body], layout) for layout in layouts}
    made = blocked_models(placed, models, "x.onnx")
    assert tuple(made) == blocked_layouts(placed) == layouts
    values = np.random.default_rng(1).integers(0, 256, (2, *TAKES)).astype(np.uint8)
    for layout, model in made.items():
        given = values if layout == "uint8" else (values.astype(np.float32) - 100) / 50
        (expected,) = run_model(models[layout], features=given)
        taken = (
            np.ascontiguousarray(values.transpose(0, 2, 3, 1)) if layout == "uint8" else to_blocks(given, block_size())
        )
        (name,) = (value.name for value in onnx.load_from_string(model).graph.input)
        (got,) = run_model(model, **{name: taken})
        assert relative(from_blocks(got, block_size()), expected) < 1e-5


def test_engines_that_run_as_they_are() -> None:
    def layouts(part: Any, output: Layout, *files: Layout) -> tuple[Layout, ...]:
        record = Engine(precision="fp32", output=output, files={layout: f"{layout}.onnx" for layout in files})
        return blocked_layouts(PlacedEngine(part, 1, "full", 0, record, TAKES, GIVES, 0))

    assert layouts("stem", "uint8", "float32") == ()
    assert layouts("head", "float32", "uint8") == ()
    assert layouts("block", "uint8", "uint8") == ()
    assert layouts("block", "uint8", "float32", "uint8") == ("float32",)
    assert layouts("block", "float32", "uint8") == ("uint8",)
    assert layouts("stem", "float32", "float32") == layouts("head", "float32", "float32", "uint8") == ("float32",)
