from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime import InferenceSession

from dfs_deploy.errors import InternalError
from dfs_deploy.exporters.graph import GraphBuilder


def scaled_sum() -> GraphBuilder:
    graph = GraphBuilder("scaled_sum")
    x = graph.input("x", np.float32, ("N", 3))
    y = graph.node("Add", x, graph.constant("offset", np.array([1, 2, 3], np.float32)))
    graph.output(graph.node("Mul", y, graph.constant("scale", np.float32(2))), "output", np.float32, ("N", 3))
    return graph


def test_a_graph_computes_what_its_nodes_say_for_any_batch() -> None:
    session = InferenceSession(scaled_sum().build(), providers=["CPUExecutionProvider"])
    for count in (1, 4):
        x = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
        assert np.array_equal(session.run(None, {"x": x})[0], 2 * (x + np.array([1, 2, 3])))


def test_a_constant_named_twice_is_one_constant() -> None:
    graph = GraphBuilder("twice")
    assert graph.constant("one", np.float32(1)) == graph.constant("one", np.float32(1))
    x = graph.input("x", np.float32, ("N",))
    graph.output(graph.node("Add", x, "one"), "output", np.float32, ("N",))
    model = onnx.load_from_string(graph.build())
    assert [numpy_helper.to_array(tensor) for tensor in model.graph.initializer] == [1.0]


@pytest.mark.parametrize("other", [np.float32(2), np.float16(1)])
def test_one_name_for_two_constants_is_our_bug(other: np.generic) -> None:
    graph = GraphBuilder("clash")
    graph.constant("one", np.float32(1))
    with pytest.raises(InternalError, match="one"):
        graph.constant("one", other)


def test_a_constant_or_an_input_can_be_an_output() -> None:
    graph = GraphBuilder("pass")
    graph.output(graph.input("x", np.float32, ("N",)), "same", np.float32, ("N",))
    graph.output(graph.constant("value", np.array([5], np.float32)), "five", np.float32, (1,))
    session = InferenceSession(graph.build(), providers=["CPUExecutionProvider"])
    same, five = session.run(None, {"x": np.array([1, 2], np.float32)})
    assert same.tolist() == [1, 2]
    assert five.tolist() == [5]


def test_an_output_that_other_nodes_read_keeps_them_connected() -> None:
    graph = GraphBuilder("shared")
    hidden = graph.node("Relu", graph.input("x", np.float32, ("N",)))
    total = graph.node("Add", hidden, hidden)
    graph.output(hidden, "hidden", np.float32, ("N",))
    graph.output(total, "total", np.float32, ("N",))
    session = InferenceSession(graph.build(), providers=["CPUExecutionProvider"])
    got = session.run(["hidden", "total"], {"x": np.array([-1, 2], np.float32)})
    assert [values.tolist() for values in got] == [[0, 2], [0, 4]]


def test_a_graph_that_is_no_valid_onnx_is_not_made() -> None:
    graph = GraphBuilder("broken")
    x = graph.input("x", np.float32, ("N", 3))
    graph.output(graph.node("Gemm", x, graph.constant("w", np.zeros((4, 2), np.float32))), "y", np.float32, ("N", 2))
    with pytest.raises(Exception, match=r"(?i)shape|dimension"):
        graph.build()
