from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.manifest import SCHEMA_VERSION, RuntimeEngines
from dfs_deploy.checkpoints import load_checkpoint, save_checkpoint
from dfs_deploy.data import Dataset, ImageFolder, open_dataset, save_npz
from dfs_deploy.errors import CheckpointError, DataError, UsageError
from dfs_deploy.exporters import CALIBRATION_METHODS, export
from dfs_deploy.exporters.pipeline import bundle_stem
from dfs_deploy.models import cifar_network
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import PRECISIONS, Options, computation_percentage
from dfs_deploy.runtimes import Runtime
from tests.builders import release_state_dict, save_release, skipnet_state_dict
from tests.bundles import Made, labelled
from tests.checks import refuses
from tests.settled import CONTRACT, pixels, settled_network


def cifar_like(count: int = 24) -> Dataset:
    return Dataset(pixels(count, size=(32, 32)), np.arange(count, dtype=np.int64) % 10, (), "cifar-like")


def reference(checkpoint: Path, images: np.ndarray[Any, Any]) -> Any:
    loaded = load_checkpoint(checkpoint)
    return loaded.network.route(torch.from_numpy(loaded.input.normalize(images)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def precisions(bundle: Bundle, runtime: str = "onnxruntime") -> dict[str, str]:
    """By option, the precision of the engine to prefer, which is the same at every block; those after it are more."""
    blocks = bundle.manifest.runtimes[runtime].blocks
    found = [{name: [e.precision for e in engines] for name, engines in block.options.items()} for block in blocks]
    assert all(entry == found[0] for entry in found)
    for made in found[0].values():
        assert made == sorted(set(made), key=PRECISIONS.index)
    return {name: made[0] for name, made in found[0].items()}


# Formats


@pytest.mark.parametrize("count", [4, 7])
def test_a_checkpoint_of_the_release(tmp_path: Path, count: int) -> None:
    checkpoint = save_release(tmp_path / "net.pth.tar", release_state_dict((2, 1, 1), count, seed=count))
    data = cifar_like()
    exported = export(checkpoint, tmp_path / "net.dfs", calibration_data=data)
    manifest = exported.bundle.manifest
    assert manifest.source.format == "dfs-release"
    assert manifest.source.assumptions == list(exported.assumptions)
    assert any("options" in line for line in exported.assumptions)
    assert exported.bundle.options.bits == {4: (0, 8, 16, 32), 7: (0, 8, 10, 12, 14, 16, 32)}[count]
    assert manifest.input.class_names == [], "the checkpoint does not say, and ten classes may be any"
    assert exported.comparison is not None
    assert exported.comparison.route_agreement > 0.9
    with Runtime(exported.bundle) as runtime:
        result = runtime(data.images)
    expected = reference(checkpoint, data.images)
    assert np.mean(result.path == expected.path.numpy()) > 0.9


def test_a_skipnet_needs_no_ranges(tmp_path: Path) -> None:
    checkpoint = save_release(tmp_path / "net.pth.tar", skipnet_state_dict((2, 1, 1)))
    exported = export(checkpoint, tmp_path / "net.dfs")
    assert exported.bundle.manifest.source.format == "skipnet"
    assert exported.bundle.options.names == ("skip", "full")
    assert exported.bundle.manifest.calibration is None
    images = cifar_like().images
    expected = reference(checkpoint, images)
    assert len(expected.path.unique()) == 2
    with Runtime(exported.bundle) as runtime:
        result = runtime(images)
    assert np.array_equal(result.path, expected.path.numpy())
    np.testing.assert_allclose(result.logits, expected.logits.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_our_own_formats(tmp_path: Path, suffix: str) -> None:
    network = settled_network("skip,full", seed=3)
    save_checkpoint(tmp_path / f"net{suffix}", network, CONTRACT)
    exported = export(tmp_path / f"net{suffix}", tmp_path / "net.dfs", targets=["fp32"])
    manifest = exported.bundle.manifest
    assert manifest.source.format == "dfs-deploy"
    assert manifest.source.file == f"net{suffix}"
    assert manifest.source.sha256 == hashlib.sha256((tmp_path / f"net{suffix}").read_bytes()).hexdigest()
    assert exported.bundle.architecture == network.architecture
    assert exported.bundle.input == CONTRACT
    images = pixels(40)
    with Runtime(exported.bundle) as runtime:
        result = runtime(images)
    expected = network.route(torch.from_numpy(CONTRACT.normalize(images)))
    assert np.array_equal(result.path, expected.path.numpy())
    np.testing.assert_allclose(result.logits, expected.logits.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", ["full,8,skip", "2,4", "8,16,24"])
def test_any_option_list(tmp_path: Path, options: str) -> None:
    network = settled_network(options)
    data = labelled(network, 32)
    save_checkpoint(tmp_path / "net.pt", network, CONTRACT)
    exported = export(tmp_path / "net.pt", tmp_path / "net.dfs", calibration_data=data)
    assert exported.bundle.options == Options.parse(options)
    with Runtime(exported.bundle) as runtime:
        path = runtime(data.images).path
        assert path.max() < len(exported.bundle.options)


def test_a_network_whose_only_block_is_never_gated(tmp_path: Path) -> None:
    network = cifar_network(cifar_resnet((1,), (4,), 10, (3, 8, 8)), Options.parse("skip,8,full")).eval()
    save_checkpoint(tmp_path / "net.pt", network, CONTRACT)
    data = labelled(network, 10)
    exported = export(tmp_path / "net.pt", tmp_path / "net.dfs", calibration_data=data)
    assert exported.comparison is not None
    assert exported.comparison.route_agreement == 1.0
    with Runtime(exported.bundle) as runtime:
        for images in (data.images, data.images[:1]):
            result = runtime(images)
            assert result.path.shape == (len(images), 0)
            assert (result.computation_percentage == 100).all()
            expected = network.route(torch.from_numpy(CONTRACT.normalize(images))).logits
            np.testing.assert_allclose(result.logits, expected.numpy(), rtol=1e-4, atol=1e-4)


# Targets


@pytest.mark.parametrize(
    ("targets", "served"),
    [
        (["fp32"], {"8": "fp32", "16": "fp32", "full": "fp32"}),
        (["fp32", "fp16"], {"8": "fp16", "16": "fp16", "full": "fp32"}),
        (["int8", "fp32"], {"8": "int8", "16": "fp32", "full": "fp32"}),
        (["fp32", "fp16", "int8"], {"8": "int8", "16": "fp16", "full": "fp32"}),
    ],
)
def test_an_option_whose_precision_is_no_target_gets_the_next_more_precise(
    mixed: Made, tmp_path: Path, targets: list[str], served: dict[str, str]
) -> None:
    exported = export(mixed.checkpoint, tmp_path / "net.dfs", targets=targets, calibration_data=mixed.data)
    manifest = exported.bundle.manifest
    assert precisions(exported.bundle) == served
    assert sorted(manifest.targets) == sorted(targets)
    assert set(manifest.runtimes["onnxruntime"].static) == set(targets)
    wanted = {"8": "int8", "16": "fp16", "full": "fp32"}
    expected = {(name, wanted[name], made) for name, made in served.items() if wanted[name] != made}
    assert {(r.option, r.wanted, r.served_by) for r in manifest.substitutions} == expected
    assert all(r.wanted in r.reason for r in manifest.substitutions)
    assert (manifest.calibration is None) == ("int8" not in targets)


def engine_files(engines: RuntimeEngines) -> list[str]:
    """The file of every engine for a runtime, static baselines included, the gate left out."""
    every = [engines.stem, engines.head]
    for block in engines.blocks:
        every += [engine for served in block.options.values() for engine in served]
        every += [] if block.skip is None else [block.skip]
    return [file for engine in every for file in engine.files.values()] + list(engines.static.values())


def test_each_runtime_has_engines_of_its_own_form_and_the_gate_is_one(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    assert set(bundle.manifest.runtimes) == {"onnxruntime", "tensorrt"}
    assert precisions(bundle, "tensorrt") == {"8": "int8", "16": "fp16", "full": "fp32"}
    ours, theirs = bundle.manifest.runtimes["onnxruntime"], bundle.manifest.runtimes["tensorrt"]
    assert ours.gate == theirs.gate
    assert all(file.startswith("tensorrt/") for file in engine_files(theirs))
    assert not [file for file in engine_files(ours) if file.startswith("tensorrt/")]
    for file in engine_files(theirs):
        graph = onnx.load_from_string(bundle.model(file)).graph
        images = file == theirs.stem.files["float32"] or file in theirs.static.values()
        assert [value.name for value in graph.input] == (["images"] if images else ["features"])
        logits = file == theirs.head.files["float32"] or file in theirs.static.values()
        assert [value.name for value in graph.output] == (["output"] if logits else ["output", "pooled"])
    assert theirs.static.keys() == ours.static.keys() == {"fp32", "fp16", "int8"}
    for block in theirs.blocks:
        assert all(len(engines) == 1 for engines in block.options.values())
        assert block.options["8"][0].files.keys() == {"float32"}
        assert block.options["8"][0].output == "float32"
    for block in ours.blocks:
        assert block.options["8"][0].files.keys() == {"float32", "uint8"}
        assert block.options["8"][0].output == "uint8"
    shapes = bundle.architecture.blocks[1:]
    assert [block.skip is not None for block in ours.blocks] == [shape.projects for shape in shapes]


def test_for_tensorrt_alone(mixed: Made, tmp_path: Path) -> None:
    exported = export(mixed.checkpoint, tmp_path / "net.dfs", runtimes=["tensorrt"], calibration_data=mixed.data)
    assert set(exported.bundle.manifest.runtimes) == {"tensorrt"}
    assert exported.comparison is None
    assert exported.bundle.manifest.accuracy is None
    assert not [name for name in exported.bundle.manifest.files if name.startswith("onnxruntime/")]


def test_seven_bit_weights(mixed: Made, tmp_path: Path) -> None:
    exported = export(mixed.checkpoint, tmp_path / "net.dfs", weight_bits=7, calibration_data=mixed.data)
    assert exported.bundle.manifest.calibration is not None
    assert exported.bundle.manifest.calibration.weight_bits == 7
    most = 0
    for name in exported.bundle.manifest.files:
        if name.startswith("onnxruntime/"):
            for tensor in onnx.load_from_string(exported.bundle.model(name)).graph.initializer:
                if tensor.data_type == onnx.TensorProto.INT8:
                    most = max(most, int(np.abs(numpy_helper.to_array(tensor).astype(int)).max()))
    assert most == 63


# Calibration


@pytest.mark.parametrize("method", CALIBRATION_METHODS)
def test_every_method_runs_and_is_recorded(mixed: Made, tmp_path: Path, method: str) -> None:
    exported = export(mixed.checkpoint, tmp_path / "net.dfs", calibration_data=mixed.data, calibration_method=method)
    record = exported.bundle.manifest.calibration
    assert record is not None
    assert (record.method, record.data, record.samples) == (method, "random", 96)
    blocks = exported.bundle.architecture.gated_blocks
    assert {r.block for r in record.ranges if r.option == "8"} == set(range(1, blocks + 1))
    assert {r.option for r in record.ranges} == {"8", "static"}
    assert all(r.low <= r.high for r in record.ranges)
    sources = {r.source for r in record.ranges if r.option == "8"}
    assert sources == ({"routed", "reached", "checkpoint"} if method == "checkpoint" else {"routed", "reached"})


def test_an_option_that_no_sample_took_is_recorded_so(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    assert bundle.manifest.calibration is not None
    assert bundle.manifest.accuracy is not None
    position = bundle.options.names.index("8")
    shares = [share[position] for share in bundle.manifest.accuracy.option_share]
    assert 0.0 in shares
    assert max(shares) > 0.0
    for record in bundle.manifest.calibration.ranges:
        if record.option == "8":
            assert record.source == ("routed" if shares[record.block - 1] else "reached")
            assert record.samples == (round(96 * shares[record.block - 1]) or 96)


def test_without_data_the_ranges_are_the_checkpoints(tmp_path: Path) -> None:
    network = settled_network(seed=1)
    save_checkpoint(tmp_path / "net.pt", network, CONTRACT)
    exported = export(tmp_path / "net.pt", tmp_path / "net.dfs")
    record = exported.bundle.manifest.calibration
    assert record is not None
    assert (record.method, record.data, record.samples) == ("checkpoint", None, 0)
    assert {r.source for r in record.ranges} == {"checkpoint", "statistics"}
    for r in record.ranges:
        if r.tensor.endswith(".conv1.relu"):  # what the second convolution reads, and nobody else
            assert (r.low, r.high) == tuple(map(float, network.ranges.of(f"blocks.{r.block}.conv2")))
    assert exported.comparison is None
    assert exported.bundle.manifest.accuracy is None
    samples = exported.bundle.samples()
    assert samples is not None
    assert (samples.labels == -1).all()


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_a_method_that_measures_needs_data(mixed: Made, tmp_path: Path, method: str) -> None:
    with refuses(UsageError, method, "--calibration-data"):
        export(mixed.checkpoint, tmp_path / "net.dfs", calibration_method=method)
    exported = export(mixed.checkpoint, tmp_path / "net.dfs", calibration_method=method, targets=["fp32"])
    assert exported.bundle.manifest.calibration is None, "nothing is rounded, so nothing is measured"


def test_data_from_disk_and_how_much_of_it(mixed: Made, tmp_path: Path) -> None:
    exported = export(
        mixed.checkpoint, tmp_path / "net.dfs", calibration_data=str(mixed.data_file), calibration_samples=40, seed=5
    )
    manifest = exported.bundle.manifest
    assert manifest.calibration is not None
    assert manifest.accuracy is not None
    assert (manifest.calibration.samples, manifest.calibration.seed) == (40, 5)
    assert (manifest.accuracy.samples, manifest.accuracy.data) == (40, manifest.calibration.data)
    samples = exported.bundle.samples()
    assert samples is not None
    assert len(samples.images) == 40


def test_no_samples_at_all_are_refused(mixed: Made, tmp_path: Path) -> None:
    with refuses(UsageError, "0"):
        export(mixed.checkpoint, tmp_path / "net.dfs", calibration_data=mixed.data, calibration_samples=0)


def test_images_of_another_size_are_refused_and_files_are_resized(mixed: Made, tmp_path: Path) -> None:
    large = Dataset(pixels(8, size=(9, 8)), np.zeros(8, np.int64), (), "large")
    with refuses(UsageError, "large", "(9, 8, 3)", "(8, 8, 3)"):
        export(mixed.checkpoint, tmp_path / "net.dfs", calibration_data=large)
    save_npz(tmp_path / "large.npz", large)
    exported = export(mixed.checkpoint, tmp_path / "net.dfs", calibration_data=tmp_path / "large.npz")
    assert exported.comparison is not None
    assert exported.comparison.samples == 8


def test_only_the_calibration_images_that_are_drawn_are_decoded(mixed: Made, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for index, (image, label) in enumerate(zip(mixed.data.images, mixed.data.labels, strict=True)):
        path = folder / CONTRACT.class_names[label] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((16, 16), Image.Resampling.NEAREST).save(path)
    drawn = open_dataset(folder).subset(6, 0)
    assert isinstance(drawn, ImageFolder)
    for path in folder.glob("*/*.png"):
        if str(path.relative_to(folder)) not in drawn.files:
            path.write_bytes(b"damaged")
    exported = export(mixed.checkpoint, tmp_path / "net.dfs", calibration_data=folder, calibration_samples=6)
    assert exported.comparison is not None
    assert exported.comparison.samples == 6
    assert "6 of 6 images were resized" in exported.notes[-1]
    with refuses(DataError, "photos/", "no image of a known format"):
        export(mixed.checkpoint, tmp_path / "all.dfs", calibration_data=folder)


@pytest.mark.parametrize(
    ("choices", "word"),
    [
        ({"calibration_method": "magic"}, "magic"),
        ({"runtimes": ["openvino"]}, "openvino"),
        ({"runtimes": []}, "runtime"),
        ({"targets": ["int4"]}, "int4"),
        ({"targets": []}, "target"),
        ({"calibration_data": "missing.npz"}, "missing.npz"),
        ({"weight_bits": 8, "target_cpu": "nonsense"}, "nonsense"),
        ({"weight_bits": 6}, "weight_bits 6, expected 7 or 8"),
    ],
)
def test_choices_that_cannot_be(mixed: Made, tmp_path: Path, choices: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        export(mixed.checkpoint, tmp_path / "net.dfs", **choices)
    assert not list(tmp_path.iterdir())


# The bundle


def test_the_manifest_says_what_was_made_and_measured(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    manifest = bundle.manifest
    assert manifest.schema_version == SCHEMA_VERSION
    assert manifest.producer["name"] == "dfs-deploy"
    assert {"version", "python", "torch", "onnx", "onnxruntime", "numpy"} <= manifest.producer.keys()
    assert [(o.name, o.bits, o.cost) for o in manifest.options] == [
        ("skip", 0, 0.0),
        ("8", 8, 0.0625),
        ("16", 16, 0.25),
        ("full", 32, 1.0),
    ]
    assert manifest.accuracy is not None
    with Runtime(bundle) as runtime:
        result = runtime(mixed.data.images)
    expected = reference(mixed.checkpoint, mixed.data.images)
    assert manifest.accuracy.samples == 96
    assert manifest.accuracy.top1_reference == 1.0
    assert manifest.accuracy.top1_bundle == np.mean(result.classes == mixed.data.labels)
    assert manifest.accuracy.route_agreement == np.mean(result.path == expected.path.numpy())
    weights = bundle.architecture.weights(bundle.options)
    percentage = computation_percentage(expected.path.numpy(), bundle.options.costs, weights).mean(dtype=np.float64)
    assert manifest.accuracy.computation_percentage_reference == pytest.approx(percentage)
    assert set(manifest.accuracy.top1_static) == {"fp32", "fp16", "int8"}
    for block, share in enumerate(manifest.accuracy.option_share):
        assert share == [float(np.mean(result.path[:, block] == k)) for k in range(4)]


def test_the_bundle_carries_inputs_with_the_references_results(mixed: Made) -> None:
    samples = Bundle(mixed.path).samples()
    assert samples is not None
    expected = reference(mixed.checkpoint, samples.images)
    assert np.array_equal(samples.path, expected.path.numpy())
    np.testing.assert_allclose(samples.logits, expected.logits.numpy(), rtol=1e-4, atol=1e-4)
    assert np.array_equal(samples.labels, expected.logits.argmax(1).numpy())


def test_the_same_inputs_give_the_same_bundle_to_the_byte(mixed: Made, tmp_path: Path) -> None:
    folders = [
        export(mixed.checkpoint, tmp_path / name, calibration_data=mixed.data, runtimes=["onnxruntime", "tensorrt"])
        for name in ("one.dfs", "two.dfs")
    ]
    first, second = (contents(exported.bundle.path) for exported in folders)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert first == contents(mixed.path)


def test_progress_is_told_from_nothing_to_all(mixed: Made, tmp_path: Path) -> None:
    told: dict[str, list[float]] = {}
    export(
        mixed.checkpoint,
        tmp_path / "net.dfs",
        calibration_data=mixed.data,
        calibration_method="entropy",
        progress=lambda what, share: told.setdefault(what, []).append(share),
    )
    assert any("calibrating" in what for what in told)
    assert any("onnxruntime" in what for what in told)
    for what, shares in told.items():
        assert shares == sorted(shares), what
        assert 0.0 <= shares[0] <= shares[-1] <= 1.0


# Where it is written


def test_the_stem_of_a_checkpoint() -> None:
    names = ("net.pt", "net.pth.tar", "net.safetensors", "resnet-20.v1.pth", "net", "net.onnx.pt")
    stems = [bundle_stem(Path("somewhere") / name) for name in names]
    assert stems == ["net", "net", "net", "resnet-20.v1", "net", "net.onnx"]


def test_a_bundle_is_named_after_its_checkpoint(mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exported = export(mixed.checkpoint, targets=["fp32"])
    assert exported.bundle.path == Path("mixed.dfs")
    assert [path.name for path in tmp_path.iterdir()] == ["mixed.dfs"]


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("checkpoint.pt", "dfs-30.dfs"),
        ("backbone.pt", "dfs-30-backbone.dfs"),
    ],
)
def test_a_bundle_of_a_training_run_is_named_after_the_run(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, made: str
) -> None:
    run = tmp_path / "dfs-30"
    run.mkdir()
    (run / "job.json").write_text("{}")
    loaded = load_checkpoint(mixed.checkpoint)
    save_checkpoint(run / name, loaded.network, loaded.input)
    monkeypatch.chdir(tmp_path)
    assert export(f"dfs-30/{name}", targets=["fp32"]).bundle.path == Path(made)
    monkeypatch.chdir(run)
    assert export(name, targets=["fp32"]).bundle.path == Path(made)


def test_a_checkpoint_of_that_name_elsewhere_names_its_bundle(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(mixed.checkpoint.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert export("checkpoint.pt", targets=["fp32"]).bundle.path == Path("checkpoint.dfs")


def test_a_bundle_of_another_checkpoint_is_replaced_only_by_name(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export(mixed.checkpoint, targets=["fp32"])
    before = contents(tmp_path / "mixed.dfs")
    other = tmp_path / "other" / "mixed.pt"
    other.parent.mkdir()
    save_checkpoint(other, settled_network(seed=5), CONTRACT)
    with refuses(UsageError, "mixed.dfs was made from another checkpoint", "mixed.pt", "--out mixed.dfs"):
        export(other, targets=["fp32"])
    assert contents(tmp_path / "mixed.dfs") == before
    assert export(mixed.checkpoint, targets=["fp32"]).replaced is None
    exported = export(other, "mixed.dfs", targets=["fp32"])
    assert exported.replaced == mixed.checkpoint.name
    assert exported.bundle.manifest.source.sha256 == hashlib.sha256(other.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_bundle_is_left_alone(mixed: Made, tmp_path: Path, kind: str) -> None:
    out, kept = tmp_path / "net.dfs", tmp_path / "kept"
    if kind == "file":
        out.write_text("precious")
    elif kind == "folder":
        out.mkdir()
        (out / "notes.txt").write_text("precious")
    else:
        kept.mkdir()
        (kept / "notes.txt").write_text("precious")
        out.symlink_to(kept, target_is_directory=True)
    before = contents(tmp_path), sorted(path.name for path in tmp_path.iterdir())
    with refuses(UsageError, "no bundle", "--out"):
        export(mixed.checkpoint, out, targets=["fp32"])
    assert (contents(tmp_path), sorted(path.name for path in tmp_path.iterdir())) == before


def test_names_of_files_and_data_are_stored_on_one_line(tmp_path: Path) -> None:
    network = settled_network()
    checkpoint = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n\x1b[2J.pt"))
    save_checkpoint(tmp_path / "net.pt", network, CONTRACT)
    (tmp_path / "net.pt").rename(checkpoint)
    data = labelled(network, name="images\n" + "x" * 1000)
    bundle = export(checkpoint, tmp_path / "net.dfs", calibration_data=data).bundle
    assert bundle.manifest.source.file == r"caf\xe9\n\x1b[2J.pt"
    assert bundle.manifest.calibration is not None
    assert bundle.manifest.calibration.data is not None
    assert bundle.manifest.calibration.data.startswith(r"images\nxxx")
    assert len(bundle.manifest.calibration.data) == 256
    assert Bundle(bundle.path).digest == bundle.digest


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_features_that_overflow_are_named_while_calibrating(tmp_path: Path, method: str) -> None:
    network = settled_network()
    data = labelled(network)
    checkpoint = tmp_path / "net.pt"
    network.net.stem_norm.weight.data *= 1e38
    save_checkpoint(checkpoint, network, CONTRACT)
    with pytest.raises(CheckpointError) as caught:
        export(checkpoint, tmp_path / "net.dfs", calibration_data=data, calibration_method=method)
    assert "finite" in str(caught.value)


def test_lists_are_taken_as_text(tmp_path: Path) -> None:
    network = settled_network("skip,8,full")
    data = labelled(network, 32)
    save_checkpoint(tmp_path / "net.pt", network, CONTRACT)
    text: dict[str, Any] = {"targets": "fp32, int8", "runtimes": "onnxruntime, tensorrt", "options": "skip,8,full"}
    values: dict[str, Any] = {
        "targets": ["fp32", "int8"],
        "runtimes": ["onnxruntime", "tensorrt"],
        "options": Options.parse("skip,8,full"),
    }
    digests = [
        export(tmp_path / "net.pt", tmp_path / f"{name}.dfs", calibration_data=data, **given).bundle.digest
        for name, given in (("text", text), ("values", values))
    ]
    assert digests[0] == digests[1]
    for wrong in ({"targets": "fp64"}, {"runtimes": "openvino"}, {"weight_bits": 6}, {"budgets": "a"}):
        with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
            export(tmp_path / "net.pt", tmp_path / "wrong.dfs", calibration_data=data, **wrong)  # type: ignore[arg-type]
