from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.errors import ExportMismatchError
from dfs_deploy.exporters import export, validation, writing
from dfs_deploy.exporters.reference import Reference
from dfs_deploy.exporters.validation import TOLERANCES, EngineDeviation, validate
from dfs_deploy.runtimes import Result, Runtime
from tests.bundles import Made, copied, labelled, rewritten
from tests.settled import CONTRACT, settled_network

Change = Callable[[NDArray[np.generic]], NDArray[np.generic]]


def perturbed(model: bytes, name: str, change: Change) -> bytes:
    """A model with one constant changed."""
    proto = onnx.load_from_string(model)
    (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(value).astype(value.dtype), name))
    return bytes(proto.SerializeToString())


def off(bundle: Path, file: str, name: str, change: Change) -> dict[str, bytes]:
    """A file of a bundle with one constant changed, by its name there."""
    return {file: perturbed(Bundle(bundle).model(file), name, change)}


def images(made: Made) -> Tensor:
    return torch.from_numpy(Bundle(made.path).input.normalize(made.data.images[:32]))


def reference(made: Made) -> Reference:
    return Reference.of(made.network, images(made))


def mismatches(made: Made, bundle: Path) -> list[str]:
    with pytest.raises(ExportMismatchError) as caught:
        validate(Bundle(bundle), reference(made))
    assert str(len(caught.value.mismatches)) in str(caught.value)
    assert "\n" not in str(caught.value)
    return [line for line in caught.value.mismatches if not line.startswith("logits")]


def test_a_sound_bundle_passes_with_an_entry_for_each_engine(mixed: Made) -> None:
    result = validate(Bundle(mixed.path), reference(mixed))
    assert all(engine.passed for engine in result.engines)
    files = [name for name in Bundle(mixed.path).manifest.files if name.endswith(".onnx")]
    engines = [name for name in files if "static" not in name and "gate" not in name]
    assert len(result.engines) == len(engines)
    assert len({engine.label for engine in result.engines}) == len(engines)
    assert result.paths > 1
    for precision in ("fp32", "fp16", "int8"):
        worst = max(engine.judged for engine in result.engines if engine.precision == precision)
        assert worst < TOLERANCES[precision] / 2


INT8_FILE = "onnxruntime/block-02-8-int8.onnx"
CORRUPTIONS = {
    "common/stem.onnx": ("stem_norm_weight", ["stem"]),
    "common/head-from-uint8.onnx": ("head_bias", ["head"]),
    "common/block-02-skip.onnx": ("blocks.2.projection.norm_weight", ["block 2", "skip", "float32"]),
    "common/block-01-full-fp32.onnx": ("blocks.1.norm2_weight", ["block 1", "full", "fp32", "float32"]),
    "common/block-03-16-fp16-from-uint8.onnx": ("blocks.3.norm1_weight", ["block 3", "16", "fp16", "uint8"]),
    "common/block-03-16-fp32.onnx": ("blocks.3.norm1_high", ["block 3", "16", "fp32", "float32"]),
    "onnxruntime/block-02-8-int8.onnx": (
        "blocks.2.projection.norm_weight_scale",
        ["block 2", "8", "int8", "onnxruntime"],
    ),
    "tensorrt/block-01-8-int8.onnx": ("blocks.1.norm1_weight_scale", ["block 1", "8", "int8", "tensorrt"]),
}


@pytest.mark.parametrize("file", CORRUPTIONS)
def test_the_engine_that_is_off_is_named_and_no_other(mixed: Made, tmp_path: Path, file: str) -> None:
    constant, words = CORRUPTIONS[file]
    bundle = copied(mixed, tmp_path)
    rewritten(bundle, off(bundle, file, constant, lambda value: value * 0.5))
    (line,) = mismatches(mixed, bundle)
    for word in words:
        assert word in line, line


def test_all_that_are_off_are_listed(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    chosen = list(CORRUPTIONS)[3:6]
    rewritten(
        bundle,
        {
            file: perturbed(Bundle(bundle).model(file), CORRUPTIONS[file][0], lambda value: value * 0.5)
            for file in chosen
        },
    )
    lines = mismatches(mixed, bundle)
    assert len(lines) == len(chosen)
    assert len(set(lines)) == len(chosen)


@pytest.mark.parametrize("constant", ["input_weight_value", "projection_weight_value"])
def test_a_gate_that_is_off_is_named(mixed: Made, tmp_path: Path, constant: str) -> None:
    bundle = copied(mixed, tmp_path)
    file = "common/gate.onnx"
    rewritten(bundle, off(bundle, file, constant, lambda value: value * 1.05))
    lines = mismatches(mixed, bundle)
    assert lines
    assert all(line.startswith("gate after block") for line in lines)


def test_an_engine_that_gives_nan_does_not_pass(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    file = "common/block-01-full-fp32.onnx"
    rewritten(bundle, off(bundle, file, "blocks.1.norm1_bias", lambda value: value * np.nan))
    (line,) = mismatches(mixed, bundle)
    assert "nan" in line
    assert not EngineDeviation(1, "full", "fp32", "float32", "onnxruntime", float("nan"), 0.0).passed


def test_the_whole_is_checked_too(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    files = ["common/head.onnx", "common/head-from-uint8.onnx"]
    rewritten(
        bundle,
        {file: perturbed(Bundle(bundle).model(file), "head_weight", lambda value: -value) for file in files},
    )
    with pytest.raises(ExportMismatchError) as caught:
        validate(Bundle(bundle), reference(mixed))
    assert any(line.startswith("logits on") for line in caught.value.mismatches)


def test_of_paths_the_first_that_differs_is_named(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[int]] = []

    class Straying(Runtime):
        def __call__(self, *given: Any, **how: Any) -> Result:
            result = super().__call__(*given, **how)
            path = result.path.copy()
            path[-1, 0] = 1 - path[-1, 0]
            taken[:] = result.path.tolist()
            return dataclasses.replace(result, path=path)

    monkeypatch.setattr(validation, "Runtime", Straying)
    with pytest.raises(ExportMismatchError) as caught:
        validate(Bundle(mixed.path), reference(mixed))
    first, *rest = taken[-1]
    assert len(taken) > 1
    assert caught.value.mismatches == (f"path {[1 - first, *rest]}, the reference's is {taken[-1]}",)


def test_a_block_that_overflows_float16_is_named(mixed: Made, tmp_path: Path) -> None:
    network = mixed.network
    bundle = copied(mixed, tmp_path)
    loud = copy.deepcopy(network)
    loud.net.get_parameter("blocks.1.norm2.weight").data *= 1e5
    file = "common/block-01-16-fp16.onnx"
    rewritten(bundle, off(bundle, file, "blocks.1.norm2_weight", lambda value: value * np.inf))
    with pytest.raises(ExportMismatchError) as caught:
        validate(Bundle(bundle), Reference.of(loud, images(mixed)))
    assert any("block 1, option 16: fp16" in line and "overflows float16" in line for line in caught.value.mismatches)


def test_a_mismatch_stops_an_export_and_leaves_nothing(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = writing.float_engine

    def off(name: str, *arguments: Any, **choices: Any) -> bytes:
        model = original(name, *arguments, **choices)
        wrong = "block_2_option_full" in name
        return perturbed(model, "blocks.2.norm1_weight", lambda value: value * 1.1) if wrong else model

    monkeypatch.setattr(writing, "float_engine", off)
    with pytest.raises(ExportMismatchError) as caught:
        export(mixed.checkpoint, tmp_path / "out" / "net.dfs", calibration_data=mixed.data)
    engines = [line for line in caught.value.mismatches if not line.startswith("logits")]
    assert len(engines) == 2, "one for each layout of the input"
    assert all("block 2, option full" in line for line in engines)
    assert not list(tmp_path.glob("out/*"))
    assert not list(tmp_path.glob("out/.*"))


def test_a_bundle_that_stood_there_outlives_a_failed_export(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied(mixed, tmp_path)
    before = Bundle(bundle).digest
    original = writing.gate_engine
    monkeypatch.setattr(
        writing, "gate_engine", lambda part: perturbed(original(part), "bias_value", lambda value: value + 1.0)
    )
    with pytest.raises(ExportMismatchError):
        export(mixed.checkpoint, bundle, calibration_data=mixed.data)
    assert Bundle(bundle).digest == before
    assert [path.name for path in tmp_path.iterdir()] == [bundle.name]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_static_baseline_that_is_off_is_named(mixed: Made, tmp_path: Path, precision: str) -> None:
    bundle = copied(mixed, tmp_path)
    file = f"onnxruntime/static-{precision}.onnx"
    rewritten(bundle, off(bundle, file, "head_head_weight", lambda value: value * 0.4))
    (line,) = mismatches(mixed, bundle)
    assert f"static {precision}" in line


def test_validation_reads_through_the_digests(mixed: Made, tmp_path: Path) -> None:
    opened = Bundle(copied(mixed, tmp_path))
    (opened.path / "common/stem.onnx").write_bytes(b"changed meanwhile")
    with pytest.raises(Exception, match=r"stem\.onnx was changed"):
        validate(opened, reference(mixed))


REMEDIES: dict[str, tuple[dict[str, str], bool, list[str]]] = {
    "INT8, calibrated on data": (
        {INT8_FILE: "blocks.2.projection.norm_weight_scale"},
        True,
        ["--calibration-method", "--calibration-samples", "--targets fp16,fp32"],
    ),
    "INT8, without data": (
        {INT8_FILE: "blocks.2.projection.norm_weight_scale"},
        False,
        ["--calibration-data", "--targets fp16,fp32"],
    ),
    "FP16": ({"common/block-03-16-fp16.onnx": "blocks.3.norm1_weight"}, True, ["--targets int8,fp32"]),
    "both": (
        {INT8_FILE: "blocks.2.projection.norm_weight_scale", "common/block-03-16-fp16.onnx": "blocks.3.norm1_weight"},
        True,
        ["--calibration-method", "--targets fp32"],
    ),
    "FP32": ({"common/block-01-full-fp32.onnx": "blocks.1.norm2_weight"}, True, ["report this"]),
    "the gate": ({"common/gate.onnx": "bias_value"}, True, ["report this"]),
}


@pytest.mark.parametrize("what", REMEDIES)
def test_what_to_do_is_said(mixed: Made, tmp_path: Path, what: str) -> None:
    files, on_data, words = REMEDIES[what]
    bundle = copied(mixed, tmp_path)

    def edit(manifest: dict[str, Any]) -> None:
        if not on_data:
            manifest["calibration"]["data"] = None

    changes = {f: perturbed(Bundle(bundle).model(f), name, lambda value: value * 0.5) for f, name in files.items()}
    rewritten(bundle, changes, edit)
    with pytest.raises(ExportMismatchError) as caught:
        validate(Bundle(bundle), reference(mixed))
    for word in words:
        assert word in str(caught.value)
    assert ("report" in str(caught.value)) == ("report this" in words)


def test_without_data_a_deep_network_fails_with_the_remedy_and_passes_with_it(tmp_path: Path) -> None:
    """Batch statistics say little of a network that was hardly trained."""
    network = settled_network("skip,8,full", blocks=6, widths=(4, 8))
    for block in network.net.blocks:
        block.norm2.weight.data *= 0.05
        block.norm2.weight.data[0] = 40.0  # makes one channel's statistics wide, and all others too coarse
        block.norm2.running_var[0] = 1e4
    save_checkpoint(tmp_path / "net.pt", network, CONTRACT)
    with pytest.raises(ExportMismatchError, match="--calibration-data"):
        export(tmp_path / "net.pt", tmp_path / "net.dfs")
    assert not (tmp_path / "net.dfs").exists()
    export(tmp_path / "net.pt", tmp_path / "net.dfs", calibration_data=labelled(network))
