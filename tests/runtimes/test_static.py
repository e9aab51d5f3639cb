"""The engines of a path as one model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import BundleError
from dfs_deploy.runtimes import Substitution
from dfs_deploy.runtimes.onnxruntime.static import engine_files, join_engines, join_path
from tests.bundles import Made
from tests.checks import refuses


def path_of(options: list[int]) -> NDArray[np.uint8]:
    return np.array(options, np.uint8)


def test_a_path_holds_its_engines_and_no_other(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    engines = bundle.manifest.runtimes["onnxruntime"]
    skips = [block.skip for block in engines.blocks]
    assert [skip is None for skip in skips] == [True, False, True], "one group begins among the gated blocks"
    assert skips[1] is not None
    skipped = [engines.stem.files["float32"], skips[1].files["float32"], engines.head.files["float32"]]
    assert engine_files(bundle, path_of([0, 0, 0])) == skipped
    whole = engine_files(bundle, path_of([1, 1, 1]))
    first, second, third = (block.options["8"][0].files for block in engines.blocks)
    ends = [engines.stem.files["float32"], engines.head.files["uint8"]]
    assert whole == [ends[0], first["float32"], second["uint8"], third["uint8"], ends[1]]


def test_a_path_follows_what_serves_an_option(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    served = Substitution("8", "int8", "fp32", "slower here than the more precise engine", (1, 2, 3))
    files = engine_files(bundle, path_of([1, 1, 1]), [served])[1:-1]
    blocks = bundle.manifest.runtimes["onnxruntime"].blocks
    fallbacks = [next(each for each in block.options["8"] if each.precision == "fp32") for block in blocks]
    assert files == [engine.files["float32"] for engine in fallbacks]


@pytest.mark.parametrize("options", [[1, 1, 1], [0, 2, 1]], ids=str)
def test_the_joined_model_is_one_graph_of_the_parts_nodes(mixed: Made, options: list[int]) -> None:
    bundle = Bundle(mixed.path)
    parts = [onnx.load_from_string(bundle.model(file)) for file in engine_files(bundle, path_of(options))]
    joined = onnx.load_from_string(join_path(bundle, path_of(options)))
    onnx.checker.check_model(joined, full_check=True)
    assert [node.op_type for node in joined.graph.node] == [node.op_type for part in parts for node in part.graph.node]
    assert len(joined.graph.initializer) == sum(len(part.graph.initializer) for part in parts)
    assert (len(joined.graph.input), len(joined.graph.output)) == (1, 1)
    assert joined.graph.input[0].type == parts[0].graph.input[0].type
    assert joined.graph.output[0].type == parts[-1].graph.output[0].type


def test_engines_of_several_operator_versions_are_not_joined(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    stem, *_, head = [(file, bundle.model(file)) for file in engine_files(bundle, path_of([0, 0, 0]))]
    other = onnx.load_from_string(head[1])
    other.opset_import[0].version -= 1
    with refuses(BundleError, "head", "another version", "export it again"):
        join_engines([stem, ("head", other.SerializeToString())])
