from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from dfs_deploy import Dataset, Runtime
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.errors import ExportMismatchError, UsageError
from dfs_deploy.exporters import Exported, export, pipeline
from dfs_deploy.exporters.int8_forms import Int8Forms
from dfs_deploy.exporters.single_file import LOGIT_TOLERANCE, check_single_file, single_file
from dfs_deploy.models import DFSNetwork, cifar_network
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract
from tests.builders import small_network
from tests.bundles import CONTRACT, pixels, settled_network
from tests.checks import refuses

SKIP, INT8, FLOAT16, FULL = range(4)


@dataclass
class Made:
    """What an export left, and sessions to run it."""

    exported: Exported
    path: Path

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.path)

    def session(self) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.x64quantprecision", "1")  # exact without VNNI as well
        return ort.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])

    def agrees(self, images: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Runs every image in both, compares, and gives the paths."""
        session, paths = self.session(), []
        with Runtime(self.exported.bundle) as runtime:
            for i in range(len(images)):
                logits, path = session.run(["logits", "path"], {"images": images[i : i + 1]})
                expected = runtime(images[i : i + 1])
                np.testing.assert_array_equal(path, expected.path, err_msg=f"image {i}")
                tolerance = LOGIT_TOLERANCE * np.abs(expected.logits).max()
                np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=tolerance, err_msg=f"image {i}")
                paths.append(path[0])
        return np.stack(paths).astype(np.uint8)


def varied_network() -> DFSNetwork:
    """Six blocks, of which the fourth changes the resolution; images take every option and many paths."""
    return settled_network(blocks=3, seed=4)


def make(folder: Path, network: DFSNetwork | None = None, **values: Any) -> Made:
    network = network or varied_network()
    shape = network.architecture.image_shape
    contract = InputContract(shape, CONTRACT.mean, CONTRACT.std, CONTRACT.class_names)
    save_checkpoint(folder / "net.pt", network, contract)
    data = Dataset(pixels(256, 1, shape[1:]), np.zeros(256, np.int64), contract.class_names, "random")
    path = folder / "model.onnx"
    values = {"calibration_data": data, "single_file": path, **values}
    return Made(export(folder / "net.pt", folder / "net.dfs", **values), path)


def inputs(count: int, size: tuple[int, int] = (8, 8)) -> NDArray[np.float32]:
    return CONTRACT.normalize(pixels(count, 2, size))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("single"))


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all its branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def test_it_takes_the_runtimes_paths_on_1000_inputs(made: Made) -> None:
    paths = made.agrees(inputs(1000))
    assert len(np.unique(paths, axis=0)) > 50
    for block in range(paths.shape[1]):
        assert len(np.unique(paths[:, block])) == 4, f"gated block {block}"
    pairs = {(int(a), int(b)) for path in paths for a, b in itertools.pairwise(path)}
    assert {(INT8, INT8), (FULL, INT8), (SKIP, INT8), (INT8, SKIP), (INT8, FULL)} <= pairs
    # Around a skipped block of one resolution, which hands on features in the layout in which they came.
    triples = {tuple(path[start : start + 3].tolist()) for path in paths for start in (0, 2)}
    assert {(INT8, SKIP, INT8), (FULL, SKIP, INT8)} <= triples


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ("skip,full", {}),
        ("full,skip", {}),
        ("4,8", {}),
        ("16,skip,6,3,full", {}),
        ("skip,8,16,full", {"targets": ["fp32"]}),
        ("skip,8,16,full", {"targets": ["fp16", "fp32"]}),
        ("skip,8,16,full", {"weight_bits": 7, "calibration_method": "percentile"}),
        ("skip,8,16,full", {"calibration_data": None}),
    ],
)
def test_other_options_and_targets_agree_as_well(tmp_path: Path, options: str, values: dict[str, Any]) -> None:
    made = make(tmp_path, settled_network(options, blocks=2, seed=2), **values)
    paths = made.agrees(inputs(100))
    assert len(np.unique(paths, axis=0)) > 1


def test_an_odd_size_agrees_as_well(tmp_path: Path) -> None:
    made = make(tmp_path, small_network("skip,16,full", blocks=1, size=(9, 7), widths=(4, 8)))
    made.agrees(inputs(50, (9, 7)))


def test_a_network_without_gated_blocks_has_an_empty_path(tmp_path: Path) -> None:
    made = make(tmp_path, cifar_network(cifar_resnet((1,), (4,), 10, (3, 8, 8)), Options.parse("skip,8")).eval())
    assert made.agrees(inputs(4)).shape == (4, 0)


def test_equal_scores_take_the_lowest_option(tmp_path: Path) -> None:
    network = settled_network()
    network.gate.projection.weight.data.zero_()
    network.gate.projection.bias.data.copy_(network.gate.projection.bias.new_tensor([0.0, 1.0, 1.0, 1.0]))
    assert (make(tmp_path, network).agrees(inputs(4)) == INT8).all()


def test_it_is_plain_onnx(made: Made) -> None:
    model = made.model
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    assert len(model.functions) == 0
    names: list[str] = []
    for graph in graphs(model.graph):
        assert {node.domain for node in graph.node} == {""}
        assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in graph.initializer)
        names += [name for node in graph.node for name in node.output]
        names += [tensor.name for tensor in graph.initializer]
    assert max(Counter(names).values()) == 1, "a name stands once in the graph and all its branches"


def test_weights_of_options_lie_inside_their_branches(made: Made) -> None:
    top = made.model.graph
    convolutions = [node for node in top.node if node.op_type == "Conv"]
    assert [node.input[1] for node in convolutions] == [
        "stem_norm_weight",
        "blocks.0.norm1_weight",
        "blocks.0.norm2_weight",
    ]
    maps = {tensor.name for tensor in top.initializer if len(tensor.dims) == 4}
    assert maps == {node.input[1] for node in convolutions}
    for graph in graphs(top):
        own = {tensor.name for tensor in graph.initializer}
        made_here = {name for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type == "Conv":
                assert node.input[1] in own | made_here, f"{node.name} reads weights from outside its branch"


def test_each_block_is_an_if_with_an_identity_where_it_is_skipped(made: Made) -> None:
    blocks = [node for node in made.model.graph.node if node.op_type == "If"]
    assert len(blocks) == 5
    for index, node in enumerate(blocks, 1):
        skipped = next(attribute.g for attribute in node.attribute if attribute.name == "then_branch")
        first = skipped.node[0].op_type
        assert first == ("Conv" if index == 3 else "Identity"), f"block {index}"
        assert {inner.op_type for inner in skipped.node[1:]} <= {"Identity"}, f"block {index}"


def test_its_inputs_and_outputs_are_for_one_image(made: Made) -> None:
    session = made.session()
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [("images", [1, 3, 8, 8], "tensor(float)")]
    assert [(o.name, o.shape, o.type) for o in session.get_outputs()] == [
        ("logits", [1, 10], "tensor(float)"),
        ("path", [1, 5], "tensor(int64)"),
    ]
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        session.run(None, {"images": inputs(2)})


def test_the_metadata_tells_how_to_normalise_and_label(made: Made) -> None:
    metadata = made.session().get_modelmeta().custom_metadata_map
    values = {key: json.loads(value) for key, value in metadata.items()}
    assert values == {
        "options": [
            {"name": "skip", "bits": 0, "cost": 0.0},
            {"name": "8", "bits": 8, "cost": 0.0625},
            {"name": "16", "bits": 16, "cost": 0.25},
            {"name": "full", "bits": 32, "cost": 1.0},
        ],
        "class_names": list(CONTRACT.class_names),
        "mean": list(CONTRACT.mean),
        "std": list(CONTRACT.std),
        "input_shape": [3, 8, 8],
        "resize": None,
        "interpolation": "bilinear",
    }


def test_without_int8_there_is_nothing_quantised_and_no_flag() -> None:
    content = single_file(varied_network(), CONTRACT, Int8Forms({}), ("fp32",))
    model = onnx.load(io.BytesIO(content))
    operators = {node.op_type for graph in graphs(model.graph) for node in graph.node}
    assert not operators & {"QuantizeLinear", "DequantizeLinear"}
    assert all(len(node.output) == 1 for node in model.graph.node if node.op_type == "If")


def test_the_same_network_gives_the_same_bytes() -> None:
    first, second = (single_file(varied_network(), CONTRACT, Int8Forms({}), ("fp32",)) for _ in range(2))
    assert first == second


def test_another_networks_file_is_refused(made: Made) -> None:
    other = single_file(settled_network(blocks=3, seed=1), CONTRACT, Int8Forms({}), ("fp32",))
    with refuses(ExportMismatchError, "single file", "of 8 images", "the runtime took"):
        check_single_file(other, made.exported.bundle, inputs(8))


def test_logits_that_differ_are_refused(made: Made) -> None:
    model = made.model
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head_head_bias")
    bias.raw_data = (onnx.numpy_helper.to_array(bias) + np.float32(0.5)).tobytes()
    with refuses(ExportMismatchError, "8 of 8 images", "logits differ by"):
        check_single_file(model.SerializeToString(), made.exported.bundle, inputs(8))


def test_a_mismatch_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = single_file(settled_network(blocks=3, seed=1), CONTRACT, Int8Forms({}), ("fp32",))
    monkeypatch.setattr(pipeline, "write_single_file", lambda *values: other)
    with refuses(ExportMismatchError, "single file"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


@pytest.mark.parametrize(
    ("path", "runtimes", "words"),
    [
        (".", ["onnxruntime"], "directory"),
        ("net.dfs", ["onnxruntime"], "bundle"),
        ("net.dfs/model.onnx", ["onnxruntime"], "bundle"),
        ("model.onnx", ["tensorrt"], "onnxruntime"),
    ],
)
def test_a_path_that_cannot_be_is_refused(tmp_path: Path, path: str, runtimes: list[str], words: str) -> None:
    with refuses(UsageError, words):
        make(tmp_path, single_file=tmp_path / path, runtimes=runtimes)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_an_export_without_it_writes_the_bundle_alone(tmp_path: Path) -> None:
    assert make(tmp_path, single_file=None).exported.single_file is None
    assert {path.name for path in tmp_path.iterdir()} == {"net.pt", "net.dfs"}
