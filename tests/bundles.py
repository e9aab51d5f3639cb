"""Bundles made once for all tests, from networks whose ranges and gates are known."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.engines import FeatureGrid, feature_grids
from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.data import Dataset, save_npz
from dfs_deploy.exporters import export
from dfs_deploy.io.files import sha256
from dfs_deploy.models import DFSNetwork
from dfs_deploy.runtimes import Substitution
from dfs_deploy.runtimes.backend import running_engines
from dfs_deploy.runtimes.onnxruntime.conversion import OTHER
from tests.settled import CONTRACT, Split, normal_images, pixels, rig_gate, settled_network


def labelled(network: DFSNetwork, count: int = 96, seed: int = 1, name: str = "random") -> Dataset:
    """Images with the reference's own answers as labels."""
    images = pixels(count, seed)
    answers = network.route(torch.from_numpy(CONTRACT.normalize(images))).logits.argmax(1)
    return Dataset(images, answers.numpy().astype(np.int64), CONTRACT.class_names, name)


@dataclass(frozen=True)
class Made:
    """A bundle and what it was made from; not to be changed."""

    path: Path
    checkpoint: Path
    network: DFSNetwork
    data: Dataset
    data_file: Path


_MADE: dict[str, Made] = {}


def made(name: str, factory: pytest.TempPathFactory, network: Callable[[], DFSNetwork], **choices: Any) -> Made:
    """A bundle of a name, made once; ``choices`` are those of ``export``."""
    if name not in _MADE:
        folder = factory.mktemp(name)
        reference = network()
        data = labelled(reference)
        checkpoint = folder / f"{name}.pt"
        save_checkpoint(checkpoint, reference, CONTRACT)
        save_npz(folder / "data.npz", data)
        exported = export(checkpoint, folder / f"{name}.dfs", calibration_data=data, **choices)
        _MADE[name] = Made(exported.bundle.path, checkpoint, reference, data, folder / "data.npz")
    return _MADE[name]


def mixed_network() -> DFSNetwork:
    """Options skip, 8, 16 and full; the paths hold free skips, stride skips and every option."""
    network = settled_network()
    rig_gate(network, [Split(0, 1), Split(0, 3), Split(1, 2)], normal_images(64))
    return network


def float_network() -> DFSNetwork:
    """Options skip, 16 and full: sixteen bits are so many that rounding hardly shows."""
    network = settled_network("skip,16,full")
    rig_gate(network, [Split(0, 1), Split(0, 2), Split(1, 0)], normal_images(64))
    return network


def mixed_bundle(factory: pytest.TempPathFactory) -> Made:
    """INT8, FP16 and FP32 engines for both runtimes."""
    return made("mixed", factory, mixed_network, runtimes=["onnxruntime", "tensorrt"])


def wide_network() -> DFSNetwork:
    """Channels in sixteens, as the convolutions of every CPU take them together; every option on its paths."""
    network = settled_network(widths=(16, 32))
    rig_gate(network, [Split(0, 1), Split(0, 3), Split(1, 2)], normal_images(64))
    return network


def wide_bundle(factory: pytest.TempPathFactory) -> Made:
    """INT8, FP16 and FP32 engines that fit ONNX Runtime's blocked layout."""
    return made("wide", factory, wide_network)


def float_bundle(factory: pytest.TempPathFactory) -> Made:
    """FP32 engines alone, so that every path is the reference's."""
    return made("floats", factory, float_network, targets=["fp32"])


def static_bundle(factory: pytest.TempPathFactory) -> Made:
    """The policy 8, skip, 16 instead of a gate, for both runtimes."""
    return made(
        "static", factory, lambda: settled_network().with_policy([1, 0, 2]), runtimes=["onnxruntime", "tensorrt"]
    )


def copied(made: Made, folder: Path) -> Path:
    """A copy of its bundle that a test may change."""
    return Path(shutil.copytree(made.path, folder / made.path.name))


def manifest_of(bundle: Path) -> dict[str, Any]:
    """The manifest as plain values."""
    values: dict[str, Any] = msgspec.json.decode((bundle / "manifest.json").read_bytes())
    return values


def write_manifest(bundle: Path, values: dict[str, Any]) -> None:
    """Replaces the manifest and nothing else."""
    (bundle / "manifest.json").write_bytes(msgspec.json.encode(values))


def rewritten(bundle: Path, changes: dict[str, bytes], edit: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Replaces files of a bundle, with digests that fit: what its author could have written.

    Args:
        bundle: changed in place.
        changes: content by path in the bundle.
        edit: changes the manifest's values as well.
    """
    values = manifest_of(bundle)
    for name, data in changes.items():
        (bundle / name).write_bytes(data)
        values["files"][name] = {"sha256": sha256(data), "size": len(data)}
    if edit is not None:
        edit(values)
    write_manifest(bundle, values)
    return bundle


Choices = dict[int, tuple[list[str], str | None]]
"""By index of a block, the options that it may run, and its kind of skip."""

FIXED: Choices = {2: (["8"], "projection")}
MASKED: Choices = {1: (["skip", "16", "full"], "free"), 2: (["skip", "8", "16", "full"], None)}
ALL_FIXED: Choices = {1: (["16"], "free"), 2: (["8"], None), 3: (["full"], "free")}
"""Choices for the three gated blocks of ``mixed_bundle``."""


def narrowed(bundle: Path, choices: Choices) -> Path:
    """Lets some blocks of a bundle run some options only, and drops the engines of the others."""
    manifest = manifest_of(bundle)
    for index, (names, skip) in choices.items():
        manifest["architecture"]["blocks"][index].update(options=names, skip=skip)
        for engines in manifest["runtimes"].values():
            block = engines["blocks"][index - 1]
            block["options"] = {name: served for name, served in block["options"].items() if name in names}
            block["skip"] = block["skip"] if skip and "skip" in names else None
    write_manifest(bundle, manifest)
    return bundle


def run_model(model: bytes, **feeds: NDArray[Any]) -> list[NDArray[Any]]:
    """What ONNX Runtime makes of a model, its outputs in order; uint8 maps go in and come out channels first.

    Maps here are square, and no map has as many channels as rows: so the layout that a model declares is plain.
    """
    return _run(model, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, feeds)


def run_as_written(model: bytes, **feeds: NDArray[Any]) -> list[NDArray[Any]]:
    """The same, node by node: of a graph for another runtime, whose integers this CPU may have no exact kernel for."""
    return _run(model, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, feeds)


def _open(model: bytes, level: onnxruntime.GraphOptimizationLevel) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact without VNNI as well
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )


def _run(model: bytes, level: onnxruntime.GraphOptimizationLevel, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    session = _open(model, level)
    for declared in session.get_inputs():
        given = feeds.get(declared.name)
        if given is not None and given.dtype == np.uint8 and list(given.shape[1:]) != declared.shape[1:]:
            feeds[declared.name] = np.ascontiguousarray(given.transpose(0, 2, 3, 1))
    outputs: list[NDArray[Any]] = session.run(None, feeds)
    return [
        x.transpose(0, 3, 1, 2) if x.dtype == np.uint8 and x.ndim == 4 and x.shape[1] == x.shape[2] else x
        for x in outputs
    ]


def relative(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Greatest error over the greatest value expected."""
    return float(np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max())


def converted(features: NDArray[Any], to: Layout, grid: FeatureGrid) -> NDArray[Any]:
    """Features of one layout in the other one, by definition."""
    scale = np.float32(grid.scale)
    if to == "float32":
        return ((features.astype(np.int32) - grid.zero_point) * scale).transpose(0, 3, 1, 2).astype(np.float32)
    steps = np.round(features / scale) + grid.zero_point
    return np.ascontiguousarray(np.clip(steps, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def run_path(
    bundle: Bundle, substitutions: Sequence[Substitution], images: NDArray[np.uint8], path: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Logits of images along one path: engine by engine in sessions of their own, with conversions by definition."""
    names, grids = bundle.options.names, feature_grids(bundle, "onnxruntime")
    features: NDArray[Any] = bundle.input.prepare(images)
    layout: Layout = "float32"
    for placed in running_engines(bundle, "onnxruntime", substitutions):
        if placed.block and placed.option != names[int(path[placed.block - 1])]:
            continue
        if layout not in placed.engine.files:
            layout = OTHER[layout]
            features = converted(features, layout, grids[placed.before])
        model = bundle.model(placed.engine.files[layout])
        session = _open(model, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
        (features,) = session.run(None, {session.get_inputs()[0].name: features})
        layout = placed.engine.output
    return features
