from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfs_deploy.runtimes import Runtime
from tests.bundles import Made, copied, pixels
from tests.cli.program import run

KEYS = {"file", "class", "class_name", "probability", "path", "computation_percentage"}


def test_each_file_gets_its_class_and_its_path(mixed: Made, pictures: Path) -> None:
    files = [pictures / "b.png", pictures / "a.png"]
    ran = run("run", mixed.path, *files, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["bundle"] == str(mixed.path)
    results = ran.json["results"]
    assert [entry["file"] for entry in results] == [str(file) for file in files], "in the order given"
    with Runtime(mixed.path) as runtime:
        expected = runtime(pixels(3)[[1, 0]])
    for row, entry in enumerate(results):
        assert entry.keys() == KEYS
        assert entry["class"] == expected.classes[row]
        assert entry["class_name"] == "abcdefghij"[entry["class"]]
        assert entry["path"] == [("skip", "8", "16", "full")[option] for option in expected.path[row]]
        assert entry["computation_percentage"] == pytest.approx(float(expected.computation_percentage[row]))
        odds = np.exp(expected.logits[row].astype(float) - expected.logits[row].max())
        assert entry["probability"] == pytest.approx(odds.max() / odds.sum(), rel=1e-3)


def test_folders_are_searched(mixed: Made, pictures: Path) -> None:
    results = run("run", mixed.path, pictures, pictures / "a.png", "--json").json["results"]
    assert [Path(entry["file"]).name for entry in results] == ["a.png", "b.png", "c.png", "a.png"]


def test_a_person_sees_a_table_and_what_its_cells_mean(mixed: Made, pictures: Path) -> None:
    ran = run("run", mixed.path, pictures)
    assert ran.code == 0
    for word in ("a.png", "c.png", "probability", "computation", "path: one cell a block", "skip", "full"):
        assert word in ran.out
    assert ran.err == ""


def test_the_bundle_in_the_directory_is_meant(
    mixed: Made, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("run", pictures / "a.png").failed(2, "no *.dfs bundle")
    copied(mixed, tmp_path)
    assert run("run", pictures / "a.png", "--json").json["bundle"] == "mixed.dfs"
    assert run("run", "mixed.dfs", pictures / "a.png", "--json").json["bundle"] == "mixed.dfs"
    (tmp_path / "second.dfs").mkdir()
    run("run", pictures / "a.png").failed(2, "several bundles")


def test_images_of_another_size_are_resized(mixed: Made, tmp_path: Path) -> None:
    Image.fromarray(pixels(1, size=(31, 17))[0]).save(tmp_path / "large.png")
    assert run("run", mixed.path, tmp_path / "large.png", "--json").code == 0


def test_inputs_that_cannot_be_read(mixed: Made, pictures: Path, tmp_path: Path) -> None:
    whole = (pictures / "a.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    for name in ("broken.png", "text.png", "missing.png", "empty"):
        ran = run("run", mixed.path, pictures / "a.png", tmp_path / name, "--json")
        ran.failed(2, name)
        assert ran.out == ""


def test_without_an_input(mixed: Made) -> None:
    run("run", mixed.path).failed(2, "no input")
    assert run("run").code == 2


def test_a_damaged_bundle(mixed: Made, pictures: Path, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    (bundle / "common/head.onnx").unlink()
    run("run", bundle, pictures / "a.png", "--json").failed(4, "head.onnx")


def test_a_bundle_that_is_not_there_is_named(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("run", tmp_path / "missing.dfs", pictures / "a.png").failed(4, "missing.dfs")
