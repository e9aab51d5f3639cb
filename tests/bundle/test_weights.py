"""Constants of a bundle: stored once, put back where a model is read, and never taken from anywhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dfs_deploy.bundle import Bundle, sharing_weights
from dfs_deploy.bundle.weights import (
    ALIGNMENT,
    LEAST_SHARED,
    WEIGHTS,
    SharedWeights,
    WeightsInMemory,
    distinct_tensors,
    inlined,
    share_weights,
)
from dfs_deploy.errors import BundleError, DigestError, UsageError
from dfs_deploy.io.files import sha256_stream
from dfs_deploy.runtimes import Runtime
from tests.bundles import Made, copied, made, rewritten
from tests.checks import refuses
from tests.settled import pixels, settled_network

DTYPES = (np.float32, np.float16, np.int8, np.uint8, np.int32, np.int64)


def model(constants: dict[str, np.ndarray[Any, Any]]) -> onnx.ModelProto:
    """A model with constants, one node, and a field that this package does not know."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 4))
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "graph",
        [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 4))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    whole = helper.make_model(graph)
    helper.set_model_props(whole, {"key": "value"})
    return whole


def random(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(seed).integers(0, 100, shape)
    return np.asarray(values, dtype)


arrays = st.builds(
    random, st.integers(0, 200), st.integers(1, 3), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 3)
)


@settings(max_examples=60)
@given(st.lists(st.lists(arrays, max_size=5), min_size=1, max_size=4))
def test_a_model_comes_back_whole_and_each_tensor_is_stored_once(drawn: list[list[np.ndarray[Any, Any]]]) -> None:
    models = {f"{i}.onnx": model({f"c{j}": a for j, a in enumerate(each)}) for i, each in enumerate(drawn)}
    shared, content = share_weights({name: made.SerializeToString() for name, made in models.items()})
    weights = WeightsInMemory(WEIGHTS, content)
    for name, whole in models.items():
        assert onnx.load_from_string(inlined(shared[name], weights, name)) == whole
    distinct = {a.tobytes() for each in drawn for a in each if a.nbytes >= LEAST_SHARED}
    assert len(content) <= sum(len(each) + ALIGNMENT - 1 for each in distinct)
    for each in distinct:
        assert content.count(each) >= 1
    for name in models:
        for tensor in onnx.load_from_string(shared[name]).graph.initializer:
            assert len(tensor.raw_data) < LEAST_SHARED
            for entry in tensor.external_data:
                assert entry.key != "offset" or int(entry.value) % ALIGNMENT == 0


def test_the_same_files_give_the_same_bytes_in_any_order() -> None:
    files = {f"{i}.onnx": model({"c": random(100, seed=i), "d": random(80)}).SerializeToString() for i in range(3)}
    backwards = dict(reversed(files.items()))
    assert share_weights(files) == share_weights(backwards)


def test_other_files_stay_as_they_are() -> None:
    files = {"samples.npz": bytes(1000), "a.onnx": model({"c": random(2)}).SerializeToString()}
    shared, content = share_weights(files)
    assert content == b""
    assert onnx.load_from_string(shared["a.onnx"]) == onnx.load_from_string(files["a.onnx"])
    assert shared["samples.npz"] == files["samples.npz"]


def test_a_file_that_is_no_model_is_named() -> None:
    with refuses(BundleError, "a.onnx is no ONNX model"):
        share_weights({"a.onnx": b"\xff"})


def test_a_model_that_has_references_already_keeps_them() -> None:
    weights = SharedWeights()
    once = weights.take(model({"c": random(100)}).SerializeToString(), "a.onnx")
    assert weights.take(once, "a.onnx") == once


def test_a_model_without_references_is_given_as_it_is() -> None:
    content = model({"c": random(100)}).SerializeToString()
    assert inlined(content, None, "a.onnx") is content
    assert inlined(content, WeightsInMemory(WEIGHTS, b""), "a.onnx") is content


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"location": "/etc/passwd"}, "another file"),
        ({"offset": "128"}, "400 bytes at 128"),
        ({"checksum": "x"}, "other entries"),
    ],
)
def test_a_reference_elsewhere_is_refused_even_unchecked(change: dict[str, str], word: str) -> None:
    weights = SharedWeights()
    shared = onnx.load_from_string(weights.take(model({"c": random(100)}).SerializeToString(), "a.onnx"))
    (tensor,) = shared.graph.initializer
    entries = {entry.key: entry.value for entry in tensor.external_data} | change
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    with refuses(BundleError, "a.onnx", word, "export it again"):
        inlined(shared.SerializeToString(), WeightsInMemory(WEIGHTS, weights.content), "a.onnx")


# In a bundle


def test_an_exported_bundle_has_its_weights_once(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    assert bundle.manifest.weights == WEIGHTS
    for name in bundle.manifest.files:
        if name.endswith(".onnx"):
            tensors = onnx.load_from_string(bundle.read(name)).graph.initializer
            assert all(len(tensor.raw_data) < LEAST_SHARED for tensor in tensors)
            whole = onnx.load_from_string(bundle.model(name))
            onnx.checker.check_model(whole)
            assert not any(tensor.external_data for tensor in whole.graph.initializer)


def test_a_bundle_with_weights_of_a_real_size_is_hardly_larger_than_its_tensors(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A convolution of 64 channels has 147 kB; those of a ResNet-50 have up to 9 MB."""
    network = settled_network("skip,8,full", widths=(64, 128))
    bundle = Bundle(made("sized", tmp_path_factory, lambda: network, targets=["int8", "fp32"]).path)
    alone = sum(len(bundle.model(name)) for name in bundle.manifest.files if name.endswith(".onnx"))
    samples = bundle.manifest.files["samples.npz"].size
    assert distinct_tensors(bundle) < alone / 2
    assert bundle.size - samples <= 1.1 * distinct_tensors(bundle)


def test_tensors_are_counted_once_wherever_they_lie(mixed: Made, tmp_path: Path) -> None:
    bundle = Bundle(mixed.path)
    files = {name: bundle.model(name) for name in bundle.manifest.files if name.endswith(".onnx")}
    inside = rewritten(copied(mixed, tmp_path), files, lambda manifest: manifest.update(weights=None))
    assert distinct_tensors(Bundle(inside)) == distinct_tensors(bundle) > 1000


def test_a_bundle_with_its_weights_inside_runs_the_same(mixed: Made, tmp_path: Path) -> None:
    bundle = Bundle(mixed.path)
    files = {name: bundle.model(name) for name in bundle.manifest.files if name.endswith(".onnx")}
    inside = rewritten(copied(mixed, tmp_path), files, lambda manifest: manifest.update(weights=None))
    with Runtime(mixed.path) as one, Runtime(inside) as other:
        assert np.array_equal(one(pixels(4)).logits, other(pixels(4)).logits)


def changed_weights(path: Path) -> None:
    content = bytearray((path / WEIGHTS).read_bytes())
    content[100] ^= 1
    (path / WEIGHTS).write_bytes(content)


HARM = {
    "changed": changed_weights,
    "longer": lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes() + b"x"),
    "shorter": lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-1]),
    "empty": lambda path: (path / WEIGHTS).write_bytes(b""),
    "missing": lambda path: (path / WEIGHTS).unlink(),
    "a link": lambda path: (
        (path / WEIGHTS).rename(path.with_name("w")),
        (path / WEIGHTS).symlink_to(path.with_name("w")),
    ),
    "a pointer": lambda path: (path / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    "a folder": lambda path: ((path / WEIGHTS).unlink(), (path / WEIGHTS).mkdir()),
    "a pipe": lambda path: ((path / WEIGHTS).unlink(), os.mkfifo(path / WEIGHTS)),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("opened", [False, True], ids=["before", "after"])
def test_weights_that_are_not_those_of_the_manifest(mixed: Made, tmp_path: Path, harm: str, opened: bool) -> None:
    path = copied(mixed, tmp_path)
    bundle = Bundle(path) if opened else None
    HARM[harm](path)
    word = {"missing": "is missing", "a link": "is a link", "a pointer": "git lfs pull", "a folder": "is a folder"}
    with refuses(DigestError, WEIGHTS, word.get(harm, "is a FIFO" if harm == "a pipe" else "was changed")):
        (bundle or Bundle(path)).model("common/stem.onnx")


def test_weights_that_were_replaced_by_the_same_are_read(mixed: Made, tmp_path: Path) -> None:
    path = copied(mixed, tmp_path)
    bundle = Bundle(path)
    expected, content = bundle.model("common/stem.onnx"), (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).unlink()
    (path / WEIGHTS).write_bytes(content)
    assert bundle.model("common/stem.onnx") == expected


def test_weights_are_digested_once_however_many_models_are_read(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    digested = []

    def digest(stream: BinaryIO) -> str:
        digested.append(stream)
        return sha256_stream(stream)

    monkeypatch.setattr("dfs_deploy.bundle.weights.sha256_stream", digest)
    bundle = Bundle(mixed.path)
    for name in bundle.manifest.files:
        if name.endswith(".onnx"):
            bundle.model(name)
    assert len(digested) == 1


def test_a_manifest_that_names_weights_it_does_not_list(mixed: Made, tmp_path: Path) -> None:
    path = rewritten(copied(mixed, tmp_path), {}, lambda manifest: manifest.update(weights="other.bin"))
    with refuses(BundleError, "other.bin is not among its files"):
        Bundle(path)


def test_weights_may_be_larger_than_other_files(mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copied(mixed, tmp_path)
    weights = (path / WEIGHTS).stat().st_size
    largest = max(file.stat().st_size for file in path.rglob("*.onnx"))
    assert largest < weights
    monkeypatch.setattr("dfs_deploy.bundle.consistency.MAX_FILE", largest)
    Bundle(path)
    monkeypatch.setattr("dfs_deploy.bundle.consistency.MAX_FILE", largest - 1)
    with refuses(BundleError, f"has {largest:,} bytes, at most {largest - 1:,} are read"):
        Bundle(path)


def test_a_manifest_may_say_that_weights_have_two_gigabytes(mixed: Made, tmp_path: Path) -> None:
    def enlarge(manifest: dict[str, Any]) -> None:
        manifest["files"][WEIGHTS]["size"] = 2 << 30

    path = rewritten(copied(mixed, tmp_path), {}, enlarge)
    with refuses(DigestError, WEIGHTS, "was changed"):
        Bundle(path)


def test_more_weights_than_a_bundle_may_have_are_refused_with_the_cause(
    mixed: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle(mixed.path)
    files = {name: bundle.model(name) for name in bundle.manifest.files if name.endswith(".onnx")}
    monkeypatch.setattr("dfs_deploy.bundle.writing.MAX_BUNDLE", 1000)
    with refuses(UsageError, "bytes of different weights together", "leave out options"):
        sharing_weights(bundle.manifest, files)


class Unread:
    """Weights of which nothing is read."""

    name, size = WEIGHTS, 1 << 31

    def opened(self) -> NoReturn:
        raise AssertionError("the weights were opened")


def test_a_model_that_names_one_tensor_too_often_is_refused_before_it_is_read() -> None:
    """A joined path may name the same engine at every block, each within the limit."""
    made = onnx.ModelProto()
    for index in range(3):
        tensor = made.graph.initializer.add(name=f"{index}", data_location=TensorProto.EXTERNAL)
        for key, value in {"location": WEIGHTS, "offset": "0", "length": str(1 << 30)}.items():
            tensor.external_data.add(key=key, value=value)
    with refuses(BundleError, "net.dfs: a path", f"refers to {3 << 30:,} bytes"):
        inlined(made.SerializeToString(), Unread(), "net.dfs: a path")


def test_references_to_more_than_a_bundle_may_hold_are_refused(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of a thousand engines could refer to the same gigabyte."""
    monkeypatch.setattr("dfs_deploy.bundle.artefact.MAX_BUNDLE", 1000)
    bundle = Bundle(mixed.path)
    with refuses(BundleError, "more than 1,000 bytes of weights"):
        for name in bundle.manifest.files:
            if name.endswith(".onnx"):
                bundle.model(name)
