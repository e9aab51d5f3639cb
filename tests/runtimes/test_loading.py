"""Loading a bundle's engines: which are loaded, and what is left in memory of what they were made from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import BundleError
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.backend import BackendOptions, running_engines
from dfs_deploy.runtimes.onnxruntime import loading
from dfs_deploy.runtimes.onnxruntime.loading import load_engines, reached_layouts
from dfs_deploy.runtimes.onnxruntime.sessions import open_session, session_options
from tests.bundles import Made, copied, rewritten
from tests.checks import refuses
from tests.settled import pixels

PLAIN = BackendOptions(prepared=False)


def reached(bundle: Bundle) -> dict[str, tuple[str, ...]]:
    return {
        placed.label: layouts for placed, layouts in reached_layouts(bundle, running_engines(bundle, "onnxruntime"))
    }


def test_only_layouts_in_which_features_arrive_are_loaded(mixed: Made, floats: Made) -> None:
    found = reached(Bundle(mixed.path))
    assert found["the stem"] == ("float32",)
    assert found["block 1, option 8 (int8)"] == ("float32",), "the stem leaves float32"
    assert found["block 2, option 8 (int8)"] == ("float32", "uint8")
    assert found["the head"] == ("float32", "uint8")
    engines = load_engines(Bundle(mixed.path), PLAIN)
    assert [sorted(engine.sessions) for engine in engines.blocks[0] if engine] == [["float32"]] * 3
    assert [sorted(engine.sessions) for engine in engines.blocks[2] if engine] == [["float32", "uint8"]] * 3
    assert set(reached(Bundle(floats.path)).values()) == {("float32",)}


def test_features_stay_in_a_layout_through_a_free_skip_alone(mixed: Made, tmp_path: Path) -> None:
    """With INT8 engines alone, float32 features reach a later block only past blocks that pass them on."""

    def int8_only(manifest: dict[str, Any]) -> None:
        manifest["runtimes"].pop("tensorrt")
        for block in manifest["runtimes"]["onnxruntime"]["blocks"]:
            block["options"] = dict.fromkeys(block["options"], block["options"]["8"])

    bundle = Bundle(rewritten(copied(mixed, tmp_path), {}, int8_only))
    found = reached(bundle)
    assert found["block 2, option 8 (int8)"] == ("float32", "uint8"), "block 1 can be skipped for free"
    assert found["block 3, option 8 (int8)"] == ("float32", "uint8"), "the projection of block 2 leaves float32"


@pytest.mark.parametrize("threads", [1, 4])
def test_engines_load_alike_in_any_number_of_threads(
    mixed: Made, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    original = loading.in_threads
    with Runtime(mixed.path, prepared=False) as runtime:
        expected = runtime(pixels(8))
    monkeypatch.setattr(loading, "in_threads", lambda tasks: original(tasks, threads))
    with Runtime(mixed.path, prepared=False) as runtime:
        got = runtime(pixels(8))
    assert np.array_equal(got.logits, expected.logits)
    assert np.array_equal(got.path, expected.path)


@pytest.mark.parametrize("threads", [1, 4])
def test_of_several_bad_engines_the_first_is_named(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    original = loading.in_threads
    monkeypatch.setattr(loading, "in_threads", lambda tasks: original(tasks, threads))
    files = [f"common/block-0{index}-full-fp32.onnx" for index in (1, 2, 3)]
    bundle = rewritten(copied(mixed, tmp_path), dict.fromkeys(files, b"no model"))
    for _ in range(5):
        with refuses(BundleError, files[0]):
            Runtime(bundle, prepared=False)


def named(name: str) -> onnx.ModelProto:
    """A model that adds a constant of a name to its input."""
    values = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["N", 4]) for each in "xy"]
    add = helper.make_node("Add", ["x", name], ["y"])
    constant = numpy_helper.from_array(np.ones(4, np.float32), name)
    graph = helper.make_graph([add], "g", values[:1], values[1:], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def outside(model: onnx.ModelProto) -> onnx.ModelProto:
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    return model


def outside_within_a_node(model: onnx.ModelProto) -> onnx.ModelProto:
    (tensor,) = outside(model).graph.initializer
    model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    return model


@pytest.mark.parametrize("name", ["location", "location.weight", "encoder.allocation"])
def test_a_users_layer_may_have_any_name(name: str) -> None:
    session = open_session(named(name).SerializeToString(), "x.onnx", session_options(1))
    assert session.run(None, {"x": np.zeros((1, 4), np.float32)})[0].tolist() == [[1.0] * 4]


@pytest.mark.parametrize("change", [outside, outside_within_a_node])
def test_no_session_reads_weights_from_elsewhere(
    change: Callable[[onnx.ModelProto], onnx.ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.ones(4, np.float32).tofile("secret.bin")
    with refuses(BundleError, "x.onnx", "keeps weights in a file of its own"):
        open_session(change(named("weight")).SerializeToString(), "x.onnx", session_options(1))


HELD = """
import gc, resource, sys
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from dfs_deploy.runtimes.onnxruntime.loading import return_freed_memory
from dfs_deploy.runtimes.onnxruntime.sessions import open_session, session_options


def used():
    return sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Private")) >> 10


def model(channels):
    weight = np.ones((channels, channels, 3, 3), np.float32)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, 8, 8]) for name in "xy"]
    conv = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1] * 4)
    graph = helper.make_graph([conv], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


keep = [open_session(model(8), "warm", session_options(1))]
gc.collect(), return_freed_memory()
before = used()
for _ in range(4):
    keep.append(open_session(model(768), "large", session_options(1)))
gc.collect(), return_freed_memory()
print((used() - before) / (4 * 768 * 768 * 9 * 4 / 2**20))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_a_session_holds_its_weights_once() -> None:
    ran = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=False, timeout=300)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert 0.9 < float(ran.stdout) < 1.2
