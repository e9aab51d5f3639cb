"""Every operator as ONNX, at both opsets, against its arithmetic in PyTorch; folding keeps what a graph computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from dfs_deploy.calibration import Range
from dfs_deploy.errors import UsageError
from dfs_deploy.exporters.engines import ONNXRUNTIME, TENSORRT, Dialect, float_engine
from dfs_deploy.exporters.layers import WRITERS, check_operators
from dfs_deploy.exporters.split import Part, fold
from dfs_deploy.models import DFSNetwork, Graph, NetworkGraphs, Node
from dfs_deploy.models.graph import OPERATORS, Attribute, tensor_tree
from dfs_deploy.network import Architecture, Block, GateShape
from dfs_deploy.options import Options

SHAPE = (6, 9, 7)
CONV = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
POOL = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil": 0}
STATISTICS = {"mean": "n.mean", "variance": "n.variance", "weight": "n.weight", "bias": "n.bias"}
NORM = {"epsilon": 1e-3, "momentum": 0.1}


def tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    return {
        "c.weight": normal(6, 6, 3, 3) / 8,
        "c.bias": normal(6),
        "g.weight": normal(6, 2, 3, 3) / 4,
        "d.weight": normal(6, 1, 5, 5) / 5,
        "l.weight": normal(4, 6) / 2,
        "l.bias": normal(4),
        "w.weight": normal(5, 7) / 3,
        "n.mean": normal(6),
        "n.variance": normal(6).square() + 0.1,
        "n.weight": normal(6),
        "n.bias": normal(6),
    }


def of(graph: Graph) -> DFSNetwork:
    """A network that holds the tensors and the graph."""
    block = Block(0, "stem", SHAPE, SHAPE, 1, None)
    shape = Architecture(name="Net", image_shape=SHAPE, classes=2, gate=GateShape(2, 2), blocks=(block,))
    graphs = NetworkGraphs(graph, (), Graph(), "channel", 32)
    return DFSNetwork(tensor_tree(tensors(), ()), graphs, shape, Options.parse("skip,8,full")).eval()


def one(operator: str, names: dict[str, str] | None = None, **attributes: Attribute) -> Node:
    return Node("y", operator, ("input",), names or {}, attributes)


def chain(*nodes: Node) -> Graph:
    return Graph(nodes, nodes[-1].name)


def run(part: Part, x: torch.Tensor, dialect: Dialect = ONNXRUNTIME, **keywords: Any) -> np.ndarray:
    session = ort.InferenceSession(float_engine("part", part, dialect=dialect, **keywords))
    result: np.ndarray = session.run(["output"], {"features": x.numpy()})[0]
    return result


def images(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return 3.0 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


CASES = {
    "conv": one("conv", {"weight": "c.weight", "bias": "c.bias"}, **CONV),
    "conv of groups, strided, dilated, padded unevenly": one(
        "conv", {"weight": "g.weight"}, stride=(2, 1), padding=(0, 2, 3, 1), dilation=(2, 1), groups=3
    ),
    "conv padded beyond its window": one(
        "conv", {"weight": "g.weight"}, stride=(2, 1), padding=(5, 0, 0, 9), dilation=(1, 1), groups=3
    ),
    "depthwise conv": one(
        "conv", {"weight": "d.weight"}, stride=(2, 2), padding=(1, 2, 2, 2), dilation=(1, 1), groups=6
    ),
    "linear on maps": one("linear", {"weight": "w.weight"}),
    "batch_norm": one("batch_norm", STATISTICS, **NORM),
    "batch_norm without weights": one("batch_norm", {"mean": "n.mean", "variance": "n.variance"}, **NORM),
    "relu": one("relu"),
    "relu6": one("clip", low=0.0, high=6.0),
    "clip": one("clip", low=-1.0, high=2.0),
    "leaky_relu": one("leaky_relu", slope=0.1),
    "hard_swish": one("hard_swish"),
    "hard_sigmoid": one("hard_sigmoid"),
    "sigmoid": one("sigmoid"),
    "silu": one("silu"),
    "tanh": one("tanh"),
    "gelu": one("gelu"),
    "affine": one("affine", scale=-1.5, shift=0.25),
    "max_pool": one("max_pool", **POOL, dilation=(1, 1)),
    "max_pool, dilated": one("max_pool", **{**POOL, "stride": (1, 2)}, dilation=(2, 1)),
    "max_pool, ceil": one("max_pool", kernel=(2, 3), stride=(2, 3), padding=(0, 0), ceil=1, dilation=(1, 1)),
    "avg_pool": one("avg_pool", **POOL, count_padding=0),
    "avg_pool, padding counts": one("avg_pool", **POOL, count_padding=1),
    "avg_pool, ceil": one("avg_pool", **{**POOL, "stride": (3, 4), "ceil": 1}, count_padding=0),
    "avg_pool, ceil, padding counts": one(
        "avg_pool", kernel=(3, 4), stride=(3, 3), padding=(1, 1), ceil=1, count_padding=1
    ),
    "global_avg_pool": one("global_avg_pool"),
    "flatten": one("flatten"),
    "pad": one("pad", pads=(1, 0, 2, 0, 1, 3)),
    "pad that crops": one("pad", pads=(0, -1, 2, 0, -2, 0)),
    "slice": one("slice", starts=(1, 0, 0), ends=(6, 9, 7), steps=(2, 1, 2)),
}


@pytest.mark.parametrize("dialect", [ONNXRUNTIME, TENSORRT], ids=["21", "19"])
@pytest.mark.parametrize("node", CASES.values(), ids=CASES)
def test_an_operator_computes_what_pytorch_does(node: Node, dialect: Dialect) -> None:
    network = of(chain(node))
    expected = network.compute(network.graphs.stem, images()).numpy()
    part = fold("part", network.graphs.stem, network, 32, SHAPE)
    assert part.out_shape == expected.shape[1:]
    np.testing.assert_allclose(run(part, images(), dialect), expected, rtol=1e-4, atol=1e-5)


def test_every_operator_is_written_and_tested() -> None:
    assert set(OPERATORS) <= {*WRITERS, "batch_norm", "dropout"}
    assert {node.operator for node in CASES.values()} | {"add", "mul", "concat", "dropout", "unflatten"} >= set(
        OPERATORS
    )


def test_an_unknown_operator_is_refused_by_name() -> None:
    graphs = NetworkGraphs(chain(one("relu"), Node("odd", "fourier", ("y",))), (), Graph(), "channel", 32)
    with pytest.raises(UsageError, match="layer odd is a fourier, which no engine"):
        check_operators(graphs, {})


WINDOWS_BEYOND = {
    "a convolution with more padding than any": (
        one("conv", {"weight": "c.weight"}, **{**CONV, "padding": (4, 4, 129, 4)}),
        r"window of \(3, 3\).*padding \(4, 4, 129, 4\)",
    ),
    "a convolution of a huge kernel": (one("conv", {"weight": "huge"}, **CONV), r"window of \(33, 3\)"),
    "a convolution of a huge stride": (
        one("conv", {"weight": "c.weight"}, **{**CONV, "stride": (1, 40)}),
        r"strides \(1, 40\)",
    ),
    "a pool of a huge window": (
        one("avg_pool", **{**POOL, "kernel": (40, 2)}, count_padding=0),
        r"window of \(40, 2\)",
    ),
    "a pool that reaches far": (one("max_pool", **POOL, dilation=(1, 64)), r"dilations \(1, 64\)"),
}


@pytest.mark.parametrize("what", WINDOWS_BEYOND)
def test_a_window_that_no_bundle_may_hold_is_refused_by_name(what: str) -> None:
    node, words = WINDOWS_BEYOND[what]
    graphs = NetworkGraphs(chain(node), (), Graph(), "channel", 32)
    with pytest.raises(UsageError, match=f"layer y is a {node.operator} with a .*{words}"):
        check_operators(graphs, {**tensors(), "huge": torch.zeros(6, 6, 33, 3)})


def test_the_largest_windows_pass() -> None:
    patches = one("conv", {"weight": "huge"}, **{**CONV, "stride": (32, 32), "padding": (0, 128, 5, 0)})
    pool = one("max_pool", **{**POOL, "kernel": (32, 17)}, dilation=(4, 1))
    for node in (patches, pool, *CASES.values()):
        graphs = NetworkGraphs(chain(node), (), Graph(), "channel", 32)
        check_operators(graphs, {**tensors(), "huge": torch.zeros(6, 6, 32, 32)})


def squeeze_excite() -> Graph:
    """A block with squeeze-and-excitation, dropout, values that several layers read, and a normalisation before all."""
    return chain(
        Node("first", "batch_norm", ("input",), STATISTICS, NORM),
        Node("wide", "conv", ("first",), {"weight": "c.weight", "bias": "c.bias"}, CONV),
        Node("norm", "batch_norm", ("wide",), STATISTICS, NORM),
        Node("act", "hard_swish", ("norm",)),
        Node("pool", "global_avg_pool", ("act",)),
        Node("flat", "flatten", ("pool",)),
        Node("flat_norm", "batch_norm", ("flat",), STATISTICS, NORM),
        Node("drop", "dropout", ("pool",), {}, {"share": 0.5}),
        Node("gate", "hard_sigmoid", ("drop",)),
        Node("scaled", "mul", ("act", "gate")),
        Node("sum", "add", ("scaled", "input")),
        Node("both", "concat", ("sum", "act", "first")),
        Node("end", "dropout", ("both",), {}, {"share": 0.2}),
    )


@pytest.mark.parametrize("dialect", [ONNXRUNTIME, TENSORRT], ids=["21", "19"])
def test_a_graph_of_many_operators_computes_what_pytorch_does(dialect: Dialect) -> None:
    network = of(squeeze_excite())
    expected = network.compute(network.graphs.stem, images()).numpy()
    part = fold("part", network.graphs.stem, network, 32, SHAPE)
    np.testing.assert_allclose(run(part, images(), dialect), expected, rtol=1e-4, atol=1e-4)


def test_a_normalisation_is_folded_only_into_what_nobody_else_reads() -> None:
    norm = Node("norm", "batch_norm", ("conv",), STATISTICS, NORM)
    conv = Node("conv", "conv", ("input",), {"weight": "c.weight"}, CONV)
    alone = of(chain(conv, norm))
    shared = of(chain(conv, norm, Node("sum", "add", ("norm", "conv"))))
    folded, kept = (fold("part", network.graphs.stem, network, 32, SHAPE) for network in (alone, shared))
    assert [layer.name for layer in folded.layers] == ["norm"]
    assert [(layer.name, layer.exact) for layer in kept.layers] == [("conv", False), ("norm", True), ("sum", False)]
    for part, network in ((folded, alone), (kept, shared)):
        expected = network.compute(network.graphs.stem, images()).numpy()
        np.testing.assert_allclose(run(part, images()), expected, rtol=1e-4, atol=1e-4)


def test_a_normalisation_of_features_without_a_map_is_a_linear_layer() -> None:
    pool, flat = Node("pool", "global_avg_pool", ("input",)), Node("flat", "flatten", ("pool",))
    norm = Node("norm", "batch_norm", ("flat",), STATISTICS, NORM)
    linear = Node("linear", "linear", ("norm",), {"weight": "l.weight", "bias": "l.bias"})
    network = of(chain(pool, flat, norm, linear))
    part = fold("part", network.graphs.stem, network, 32, SHAPE)
    assert [layer.operator for layer in part.layers] == ["global_avg_pool", "flatten", "linear", "linear"]
    expected = network.compute(network.graphs.stem, images()).numpy()
    np.testing.assert_allclose(run(part, images()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 32])
def test_zeros_before_a_convolution_become_its_padding(bits: int) -> None:
    pad = Node("pad", "pad", ("input",), {}, {"pads": (0, 1, 0, 0, 2, 3)})
    conv = Node("conv", "conv", ("pad",), {"weight": "c.weight"}, CONV)
    network = of(chain(pad, conv))
    network.ranges.low[0], network.ranges.high[0] = -2.0, 1.5
    part = fold("part", network.graphs.stem, network, bits, SHAPE)
    (layer,) = part.layers
    assert layer.inputs == ("input",) and layer.numbers("padding") == (2, 1, 3, 4)
    expected = network.compute(network.graphs.stem, images(), bits, round_inputs=False).numpy()
    np.testing.assert_allclose(run(part, images()), expected, rtol=1e-4, atol=1e-5)


def test_more_zeros_than_a_convolution_may_pad_with_stay() -> None:
    pad = Node("pad", "pad", ("input",), {}, {"pads": (0, 2, 2, 0, 2, 128)})
    conv = Node("conv", "conv", ("pad",), {"weight": "c.weight"}, CONV)
    network = of(chain(pad, conv))
    part = fold("part", network.graphs.stem, network, 32, SHAPE)
    assert [layer.operator for layer in part.layers] == ["pad", "conv"]
    expected = network.compute(network.graphs.stem, images()).numpy()
    np.testing.assert_allclose(run(part, images()), expected, rtol=1e-4, atol=1e-5)


def test_zeros_that_an_option_clamps_stay() -> None:
    pad = Node("pad", "pad", ("input",), {}, {"pads": (0, 1, 1, 0, 1, 1)})
    conv = Node("conv", "conv", ("pad",), {"weight": "c.weight"}, CONV)
    network = of(chain(pad, conv))
    network.ranges.low[0], network.ranges.high[0] = 0.5, 1.5
    part = fold("part", network.graphs.stem, network, 8, SHAPE)
    assert [layer.operator for layer in part.layers] == ["pad", "conv"]
    assert part.layers[1].saturates == Range(0.5, 1.5)
    expected = network.compute(network.graphs.stem, images(), 8, round_inputs=False).numpy()
    np.testing.assert_allclose(run(part, images()), expected, rtol=1e-4, atol=1e-5)


def test_an_exact_layer_is_float_in_every_option() -> None:
    conv = Node("conv", "conv", ("input",), {"weight": "c.weight"}, CONV, exact=True)
    rounded = Node("more", "conv", ("conv",), {"weight": "g.weight"}, {**CONV, "groups": 3})
    network = of(chain(conv, rounded))
    exact, coarse = fold("part", network.graphs.stem, network, 4, SHAPE).layers
    assert exact.exact and np.array_equal(exact.weight, tensors()["c.weight"].numpy())
    assert not coarse.exact and len(np.unique(coarse.weight[0])) <= 15


def test_a_float16_engine_takes_and_gives_float32() -> None:
    network = of(squeeze_excite())
    part = fold("part", network.graphs.stem, network, 32, SHAPE)
    expected = network.compute(network.graphs.stem, images()).numpy()
    got = run(part, images(), dtype=np.float16)
    assert got.dtype == np.float32
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert 0.0 < error < 1e-2
