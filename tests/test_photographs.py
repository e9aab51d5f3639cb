"""A bundle whose network takes the middle of photographs: every verb makes them its input in the same way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dfs_deploy
from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import CheckpointFacts
from dfs_deploy.data import ImageFolder, decode_image, list_images, load_image, open_dataset
from dfs_deploy.errors import DataError, InputError
from dfs_deploy.exporters import export
from dfs_deploy.runtimes import Runtime
from tests.bundles import Made
from tests.checks import refuses
from tests.cli.program import run
from tests.data.decoded import Decoded
from tests.data.pictures import pixels, save_image
from tests.settled import CONTRACT

FACTS = CheckpointFacts(resize=10, interpolation="bicubic")


def photographs(root: Path, count: int) -> Path:
    """Images of the network's classes, 12 to 20 pixels on a side."""
    random = np.random.default_rng(0)
    for index in range(count):
        height, width = random.integers(12, 21, 2)
        name = CONTRACT.class_names[index % 10]
        save_image(root / name / f"{index:03}.png", pixels(int(height), int(width), 3, seed=index))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photographs"), 40)


@pytest.fixture(scope="module")
def bundle(mixed: Made, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cropped") / "net.dfs"
    export(mixed.checkpoint, path, facts=FACTS, targets="fp32,int8", calibration_data=folder)
    return path


def test_the_crop_is_part_of_the_bundle(bundle: Path, mixed: Made) -> None:
    contract = Bundle(bundle).input
    assert (contract.shape, contract.resize, contract.interpolation) == ((3, 8, 8), 10, "bicubic")
    assert (Bundle(mixed.path).input.resize, Bundle(mixed.path).input.interpolation) == (None, "bilinear")
    assert "shorter side resized to 10, bicubic, and the centre of 8x8 cut out" in run("inspect", bundle).out
    assert "resized to 8x8, bilinear" in run("inspect", mixed.path).out
    with refuses(InputError, "resize 7", "expected 8 to"):
        export(mixed.checkpoint, bundle.parent / "other.dfs", facts=CheckpointFacts(resize=7))


def test_files_arrays_and_data_sets_become_the_same_input(bundle: Path, folder: Path) -> None:
    with Runtime(bundle) as runtime:
        expected = []
        for file in list_images(folder)[:6]:
            image = load_image(file)
            fitted = runtime.input.fit(image)
            np.testing.assert_array_equal(load_image(file, runtime.input.geometry), fitted)
            np.testing.assert_array_equal(decode_image(file.read_bytes(), runtime.input.geometry), fitted)
            assert runtime(image[None]) == runtime(fitted[None]), "an array of another size is cropped as well"
            expected.append(runtime(fitted[None]).logits[0])
        opened = open_dataset(folder, size=runtime.input.geometry)
        images, _ = next(opened.batches(6))
        np.testing.assert_allclose(runtime(images).logits, expected, rtol=1e-4, atol=1e-4)
    ran = run("run", bundle, *list_images(folder)[:6], "--json")
    assert [entry["class"] for entry in ran.json["results"]] == np.argmax(expected, 1).tolist()


@pytest.mark.parametrize("count", [140, 300])
def test_verify_reads_a_folder_of_any_size_in_batches(
    bundle: Path, mixed: Made, tmp_path: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("dfs_deploy.exporters.comparison.BATCH", 16)
    found = dfs_deploy.verify(bundle, mixed.checkpoint, photographs(tmp_path / "photographs", count))
    assert found.samples == decoded.count == count
    assert decoded.most <= 16 + 2
    assert found.route_agreement > 0.9
    assert not any("resized" in note for note in found.notes)


def test_export_reads_what_it_calibrates_on_in_batches(
    mixed: Made, folder: Path, tmp_path: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("comparison.BATCH", "pipeline._BATCH"):
        monkeypatch.setattr(f"dfs_deploy.exporters.{module}", 8)
    monkeypatch.setattr("dfs_deploy.exporters.pipeline.most_looked_at", lambda contract: 8)
    made = export(mixed.checkpoint, tmp_path / "net.dfs", facts=FACTS, targets="fp32", calibration_data=folder)
    assert made.comparison is not None
    assert made.comparison.samples == 40
    assert decoded.most <= 8 + 2
    assert len(set(decoded.files)) == 40


def test_only_what_is_drawn_has_to_be_whole(
    bundle: Path, mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photographs(tmp_path / "photographs", 40)
    drawn = open_dataset(root).subset(12, 5)
    assert isinstance(drawn, ImageFolder)
    for path in root.glob("*/*.png"):
        if str(path.relative_to(root)) not in drawn.files:
            path.write_bytes(path.read_bytes()[:60])
    assert dfs_deploy.verify(bundle, mixed.checkpoint, root, samples=12, seed=5).samples == 12
    damaged = root / drawn.files[7]
    damaged.write_bytes(damaged.read_bytes()[:60])
    with refuses(DataError, str(damaged), "damaged image"):
        dfs_deploy.verify(bundle, mixed.checkpoint, root, samples=12, seed=5)
    ran = run("run", bundle, root, "--json")
    assert ran.code == 1
    assert (len(ran.json["results"]), len(ran.json["errors"])) == (11, 29)


def test_bench_takes_photographs(bundle: Path, folder: Path) -> None:
    result = dfs_deploy.bench(bundle, folder, min_seconds=0.01, min_iterations=1, start_ups=0, energy_seconds=0.0)
    assert (result.inputs, result.data) == (40, folder.name)
