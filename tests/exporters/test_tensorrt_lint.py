from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from dfs_deploy.bundle import Bundle
from dfs_deploy.calibration import from_checkpoint
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.errors import CheckFailedError, GraphRuleError
from dfs_deploy.exporters import export, writing
from dfs_deploy.exporters.engines import TENSORRT, float_engine
from dfs_deploy.exporters.int8 import Int8Part
from dfs_deploy.exporters.int8_forms import Int8Forms
from dfs_deploy.exporters.int8_graphs import tensorrt_engine
from dfs_deploy.exporters.split import Part, split_block
from dfs_deploy.exporters.tensorrt_lint import check_graphs, lint
from dfs_deploy.exporters.writing import EngineWriter
from dfs_deploy.models import DFSNetwork
from dfs_deploy.models.graph import INPUT
from dfs_deploy.options import Option, parse_targets
from tests.bundles import Made, labelled
from tests.exporters.parts import Making, measured
from tests.settled import CONTRACT, settled_network

Edit = Callable[[onnx.ModelProto], None]


def rules(model: onnx.ModelProto | bytes) -> set[str]:
    found = lint(model if isinstance(model, bytes) else model.SerializeToString())
    assert not any("\n" in finding for finding in found)
    return {finding.rpartition("[")[2].rstrip("]") for finding in found}


@pytest.fixture(scope="module")
def graphs() -> dict[str, bytes]:
    """A block with a free shortcut and one with a projection, each in INT8 and FP16, and an inverted one with SE."""
    network = settled_network("skip,8,16,full", blocks=2, widths=(6, 8))
    made = {}
    for name, index in (("plain", 1), ("stride", 2)):
        # TensorRT's arithmetic, with names as short as those of the edits below.
        part = short_names(split_block(network, index, Option(8)))
        made[f"{name}-int8"] = int8(part)
        made[f"{name}-fp16"] = float_engine("block", part, np.float16, TENSORRT)
    return {**made, "excited-int8": int8(excited())}


def int8(part: Part) -> bytes:
    x = np.random.default_rng(0).uniform(-0.5, 3.0, (4, *part.in_shape))
    return tensorrt_engine("block", Int8Part.for_tensorrt(part, measured(part, x)))


def excited() -> Part:
    """An inverted residual block with depthwise convolution, hard swish and squeeze-and-excitation."""
    make = Making((6, 8, 8))
    y = make.add("hard_swish", make.conv(INPUT, 12))
    y = make.excitation(make.add("hard_swish", make.conv(y, 12, 3, groups=12)))
    return make.part(make.add("add", make.conv(y, 6), INPUT))


def short_names(part: Part) -> Part:
    """A part of a CIFAR block whose convolutions are named conv1, conv2 and projection."""
    convs = [layer.name for layer in part.layers if layer.weight is not None]
    names = {**dict(zip(convs, ("conv1", "conv2", "projection"), strict=False)), INPUT: INPUT}
    layers = tuple(
        replace_fields(
            layer, name=names.get(layer.name, layer.name), inputs=tuple(names.get(n, n) for n in layer.inputs)
        )
        for layer in part.layers
    )
    sizes = {names.get(name, name): size for name, size in part.sizes.items()}
    return Part(part.name, layers, part.output, sizes)


def node(model: onnx.ModelProto, operator: str, place: int = 0) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == operator][place]


def replace(model: onnx.ModelProto, name: str, value: NDArray[Any]) -> None:
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def value_of(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


def insert(model: onnx.ModelProto, before: onnx.NodeProto, new: onnx.NodeProto) -> None:
    model.graph.node.insert(list(model.graph.node).index(before), new)


def non_zero_zero_point(model: onnx.ModelProto) -> None:
    replace(model, node(model, "QuantizeLinear").input[2], np.array(-128, np.int8))


def uint8_activations(model: onnx.ModelProto) -> None:
    replace(model, "conv1_input_zero_point", np.array(0, np.uint8))


def no_zero_point(model: onnx.ModelProto) -> None:
    del node(model, "QuantizeLinear").input[2]


def int32_bias(model: onnx.ModelProto) -> None:
    conv = node(model, "Conv")
    bias = value_of(model, conv.input[2])
    constants = {"b": np.zeros(len(bias), np.int32), "b_scale": np.full(len(bias), 0.1, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    insert(model, conv, helper.make_node("DequantizeLinear", list(constants), ["b_float"], name="bias", axis=0))
    conv.input[2] = "b_float"


def weight_axis(model: onnx.ModelProto) -> None:
    weight = next(n for n in model.graph.node if n.input[0] == "conv2_weight")
    weight.attribute[0].i = 1


def one_scale_for_a_weight(model: onnx.ModelProto) -> None:
    for kind, value in (("scale", np.float32(0.01)), ("zero_point", np.int8(0))):
        replace(model, f"conv2_weight_{kind}", np.array(value))


def scales_for_an_activation(model: onnx.ModelProto) -> None:
    channels = len(value_of(model, "conv2_weight_scale"))
    replace(model, "conv2_input_scale", np.full(channels, 0.1, np.float32))
    replace(model, "conv2_input_zero_point", np.zeros(channels, np.int8))


def fewer_zero_points_than_scales(model: onnx.ModelProto) -> None:
    replace(model, "conv2_weight_zero_point", np.zeros(1, np.int8))


def no_rounding_on_the_shortcut(model: onnx.ModelProto) -> None:
    add = node(model, "Add")
    pair = next(n for n in model.graph.node if n.output[0] == add.input[1])
    add.input[1] = next(n for n in model.graph.node if n.output[0] == pair.input[0]).input[0]


def rounding_after_the_convolution(model: onnx.ModelProto) -> None:
    add = node(model, "Add")
    constants = ["conv1_input_scale", "conv1_input_zero_point"]
    insert(model, add, helper.make_node("QuantizeLinear", [add.input[0], *constants], ["q"], name="q"))
    insert(model, add, helper.make_node("DequantizeLinear", ["q", *constants], ["dq"], name="dq"))
    add.input[0] = "dq"


def half_quantised_convolution(model: onnx.ModelProto) -> None:
    conv = node(model, "Conv")
    pair = next(n for n in model.graph.node if n.output[0] == conv.input[0])
    conv.input[0] = next(n for n in model.graph.node if n.output[0] == pair.input[0]).input[0]


def negative_scale(model: onnx.ModelProto) -> None:
    replace(model, "conv1_weight_scale", -value_of(model, "conv1_weight_scale"))


def scale_of_text(model: onnx.ModelProto) -> None:
    (tensor,) = (t for t in model.graph.initializer if t.name == "conv1_input_scale")
    tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.STRING, [], [b"one"]))


def subnormal_scale(model: onnx.ModelProto) -> None:
    replace(model, "conv1_input_scale", np.array(1e-40, np.float32))


def empty_scale(model: onnx.ModelProto) -> None:
    replace(model, "conv1_weight_scale", np.zeros(0, np.float32))


def float16_scale_in_an_old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 17
    replace(model, "conv2_input_scale", np.array(0.1, np.float16))


def another_scale_after_it(model: onnx.ModelProto) -> None:
    node(model, "DequantizeLinear").input[1] = "conv2_input_scale"


def quantized_value_read_elsewhere(model: onnx.ModelProto) -> None:
    quantize = node(model, "QuantizeLinear")
    model.graph.node.append(helper.make_node("Relu", [quantize.output[0]], ["r"], name="r"))


def newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21


def foreign_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def unsupported_operator(model: onnx.ModelProto) -> None:
    relu = node(model, "Relu")
    relu.op_type = "Softsign"


def batch_normalization(model: onnx.ModelProto) -> None:
    relu = node(model, "Relu")
    channels = len(value_of(model, "conv1_bias"))
    names = [f"bn_{i}" for i in range(4)]
    model.graph.initializer.extend(numpy_helper.from_array(np.ones(channels, np.float32), name) for name in names)
    insert(model, relu, helper.make_node("BatchNormalization", [relu.input[0], *names], ["bn"], name="bn"))
    relu.input[0] = "bn"


def infinite_weight(model: onnx.ModelProto) -> None:
    replace(model, "conv1_bias", value_of(model, "conv1_bias") * np.float32(np.inf))


def mixed_types(model: onnx.ModelProto) -> None:
    replace(model, "conv1_bias", value_of(model, "conv1_bias").astype(np.float16))


def double_constant(model: onnx.ModelProto) -> None:
    replace(model, "conv1_bias", value_of(model, "conv1_bias").astype(np.float64))


def computed_weight(model: onnx.ModelProto) -> None:
    node(model, "Conv", 1).input[1] = "features"


ILLEGAL: list[tuple[str, Edit]] = [
    ("scale", non_zero_zero_point),
    ("scale", uint8_activations),
    ("onnx", no_zero_point),
    ("scale", fewer_zero_points_than_scales),
    ("weights", int32_bias),
    ("granularity", weight_axis),
    ("granularity", one_scale_for_a_weight),
    ("granularity", scales_for_an_activation),
    ("residual", no_rounding_on_the_shortcut),
    ("residual", rounding_after_the_convolution),
    ("weights", half_quantised_convolution),
    ("scale", negative_scale),
    ("scale", subnormal_scale),
    ("scale", empty_scale),
    ("onnx", scale_of_text),
    ("onnx", float16_scale_in_an_old_opset),
    ("pair", another_scale_after_it),
    ("pair", quantized_value_read_elsewhere),
    ("operator", newer_opset),
    ("operator", foreign_domain),
    ("operator", unsupported_operator),
    ("operator", batch_normalization),
    ("finite", infinite_weight),
    ("onnx", mixed_types),
    ("onnx", double_constant),
    ("weights", computed_weight),
]


@pytest.mark.parametrize(("rule", "edit"), ILLEGAL, ids=[edit.__name__ for _, edit in ILLEGAL])
def test_an_illegal_graph_breaks_its_rule(graphs: dict[str, bytes], rule: str, edit: Edit) -> None:
    for block in ("plain", "stride"):
        sound = graphs[f"{block}-int8"]
        assert rules(sound) == set()
        model = onnx.load_from_string(sound)
        edit(model)
        assert rule in rules(model)


def rounding_before_the_product(model: onnx.ModelProto) -> None:
    product = node(model, "Mul")
    constants = node(model, "QuantizeLinear").input[1:]
    insert(model, product, helper.make_node("QuantizeLinear", [product.input[1], *constants], ["q"], name="q"))
    insert(model, product, helper.make_node("DequantizeLinear", ["q", *constants], ["dq"], name="dq"))
    product.input[1] = "dq"


def gaps_in_a_pool(model: onnx.ModelProto) -> None:
    pool = node(model, "GlobalAveragePool")
    pool.op_type = "MaxPool"
    pool.attribute.extend(
        helper.make_attribute(name, value) for name, value in (("kernel_shape", [2, 2]), ("dilations", [7, 7]))
    )


def one_scale_for_a_depthwise_weight(model: onnx.ModelProto) -> None:
    depthwise = next(n for n in model.graph.node if any(a.name == "group" and a.i > 1 for a in n.attribute))
    weight = next(n for n in model.graph.node if n.output[0] == depthwise.input[1])
    for name, value in zip(weight.input[1:], (np.float32(0.01), np.int8(0)), strict=True):
        replace(model, name, np.array(value))


def rounded_excitation(model: onnx.ModelProto) -> None:
    """One of the small layers gets an input in int8, its weight stays as it is."""
    squeeze = next(n for n in model.graph.node if n.op_type == "Conv" and n.input[1] in constants_of(model))
    constants = node(model, "QuantizeLinear").input[1:]
    insert(model, squeeze, helper.make_node("QuantizeLinear", [squeeze.input[0], *constants], ["q"], name="q"))
    insert(model, squeeze, helper.make_node("DequantizeLinear", ["q", *constants], ["dq"], name="dq"))
    squeeze.input[0] = "dq"


def constants_of(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


@pytest.mark.parametrize(
    ("rule", "edit"),
    [
        ("float", rounding_before_the_product),
        ("dilation", gaps_in_a_pool),
        ("granularity", one_scale_for_a_depthwise_weight),
        ("weights", rounded_excitation),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_illegal_block_with_excitation_breaks_its_rule(graphs: dict[str, bytes], rule: str, edit: Edit) -> None:
    sound = graphs["excited-int8"]
    assert rules(sound) == set()
    model = onnx.load_from_string(sound)
    edit(model)
    assert rule in rules(model)


@pytest.mark.parametrize("edit", [unsupported_operator, infinite_weight, mixed_types])
def test_a_float16_graph_is_held_to_the_rules_too(graphs: dict[str, bytes], edit: Edit) -> None:
    assert rules(graphs["plain-fp16"]) == set()
    model = onnx.load_from_string(graphs["plain-fp16"])
    if edit is mixed_types:
        replace(model, "conv1_bias", value_of(model, "conv1_bias").astype(np.float32))
    else:
        edit(model)
    assert rules(model) & {"operator", "finite", "onnx"}


def test_what_is_no_model_is_one_finding() -> None:
    assert rules(b"no model") == {"onnx"}
    assert rules(b"") == {"onnx"}


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.left = [np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i in range(4)]

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return {"features": self.left.pop()} if self.left else None


def quantized_by_onnxruntime(tmp_path: Path, **choices: Any) -> bytes:
    part = split_block(settled_network("skip,8,16,full", blocks=2, widths=(6, 8)), 2, Option(32))
    source, target = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    source.write_bytes(float_engine("block", part, dialect=TENSORRT))
    quantize_static(source, target, Reader((2, 6, 8, 8)), **choices)
    return target.read_bytes()


def test_the_defaults_of_onnx_runtimes_quantizer_are_refused(tmp_path: Path) -> None:
    found = rules(quantized_by_onnxruntime(tmp_path))
    assert {"scale", "weights", "granularity", "residual"} <= found


def test_what_onnx_runtimes_quantizer_can_make_legal_keeps_its_scales_and_zero_points(tmp_path: Path) -> None:
    model = quantized_by_onnxruntime(
        tmp_path,
        per_channel=True,
        extra_options={
            "QuantizeBias": False,
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "QDQOpTypePerChannelSupportToAxis": {"Conv": 0},
        },
    )
    assert not rules(model) & {"weights", "granularity", "scale"}


def test_all_findings_of_all_graphs_are_listed(graphs: dict[str, bytes]) -> None:
    first, second = (onnx.load_from_string(graphs[name]) for name in ("plain-int8", "stride-int8"))
    non_zero_zero_point(first)
    infinite_weight(first)
    weight_axis(second)
    check_graphs(graphs)
    with pytest.raises(GraphRuleError) as caught:
        check_graphs({"first.onnx": first.SerializeToString(), "second.onnx": second.SerializeToString()})
    assert issubclass(GraphRuleError, CheckFailedError)
    assert "\n" not in str(caught.value)
    starts = [line.partition(":")[0] for line in caught.value.mismatches]
    assert set(starts) == {"first.onnx", "second.onnx"}
    assert str(len(starts)) in str(caught.value)
    for rule in ("scale", "finite", "granularity"):
        assert any(f"[{rule}]" in line for line in caught.value.mismatches)


def graph_files(bundle: Bundle) -> list[str]:
    return [name for name in bundle.manifest.files if name.startswith("tensorrt/")]


def test_every_graph_of_a_bundle_is_legal(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    files = graph_files(bundle)
    assert len(files) > 10
    check_graphs({name: bundle.model(name) for name in files})


def test_an_illegal_graph_stops_an_export_and_leaves_nothing(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def illegal(name: str, *arguments: Any) -> bytes:
        model = onnx.load_from_string(tensorrt_engine(name, *arguments))
        if "block_2" in name:
            non_zero_zero_point(model)
        return bytes(model.SerializeToString())

    monkeypatch.setattr(writing, "tensorrt_engine", illegal)
    out = tmp_path / "out" / "net.dfs"
    with pytest.raises(GraphRuleError) as caught:
        export(mixed.checkpoint, out, runtimes=["tensorrt"], calibration_data=mixed.data)
    assert caught.value.mismatches
    assert all("tensorrt/block-02-8-int8.onnx" in line for line in caught.value.mismatches)
    assert not list(tmp_path.glob("out/*"))


def test_weights_beyond_float16_are_found_before_a_device_sees_them(tmp_path: Path) -> None:
    network = settled_network("skip,16,full")
    with torch.no_grad():
        network.net.blocks[1].norm1.weight.fill_(1e7)
    save_checkpoint(tmp_path / "loud.pt", network, CONTRACT)
    with pytest.raises(GraphRuleError) as caught:
        export(tmp_path / "loud.pt", tmp_path / "loud.dfs", runtimes=["tensorrt"], calibration_data=labelled(network))
    assert any("block-01-16-fp16.onnx" in line and "float16" in line for line in caught.value.mismatches)


OPTION_LISTS = ["skip,8,16,full", "skip,8,full", "skip,4,6,8,10,12,16,full", "8,full", "skip,16,full"]
TARGET_LISTS = ["fp32,fp16,int8", "fp32,int8", "fp32,fp16", "fp32"]


@st.composite
def networks(draw: st.DrawFn) -> DFSNetwork:
    """With a gate or a static policy, of any depth, widths and options."""
    network = settled_network(
        draw(st.sampled_from(OPTION_LISTS)),
        draw(st.integers(1, 3)),
        tuple(draw(st.lists(st.sampled_from([3, 4, 6, 8]), min_size=1, max_size=3))),
        draw(st.integers(0, 2**16)),
    )
    if draw(st.booleans()):
        return network
    gated = network.architecture.gated_blocks
    return network.with_policy(draw(st.lists(st.integers(0, len(network.options) - 1), min_size=gated, max_size=gated)))


@settings(max_examples=15)
@given(network=networks(), targets=st.sampled_from(TARGET_LISTS))
def test_random_networks_export_for_tensorrt(network: DFSNetwork, targets: str) -> None:
    """Every graph is legal and computes what its option means, also where block 0 alone reaches a shortcut."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "net.pt"
        save_checkpoint(checkpoint, network, CONTRACT)
        exported = export(
            checkpoint,
            Path(folder) / "net.dfs",
            targets=parse_targets(targets),
            runtimes=["tensorrt"],
            calibration_data=labelled(network, 48),
        )
        assert exported.validation.engines
        assert_legal({name: exported.bundle.model(name) for name in graph_files(exported.bundle)})


@settings(max_examples=25)
@example(network=settled_network().with_policy([3, 1, 1]), targets="fp32,fp16,int8")
@given(network=networks(), targets=st.sampled_from(TARGET_LISTS))
def test_every_graph_is_legal_also_without_data(network: DFSNetwork, targets: str) -> None:
    int8 = [place for place, option in enumerate(network.options) if not option.skips and option.bits <= 8]
    ranges = from_checkpoint(network, int8) if int8 else {}
    writer = EngineWriter(network, Int8Forms(ranges), parse_targets(targets))
    writer.write("tensorrt")
    assert_legal(writer.files)


def assert_legal(files: Mapping[str, bytes]) -> None:
    graphs = {name: data for name, data in files.items() if name.startswith("tensorrt/")}
    assert {f"tensorrt/{name}.onnx" for name in ("stem", "head", "static-fp32")} <= graphs.keys()
    assert {name: lint(data) for name, data in graphs.items()} == {name: [] for name in graphs}
