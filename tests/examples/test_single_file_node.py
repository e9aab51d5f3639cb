from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from dfs_deploy import Dataset
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.exporters import export
from tests.settled import CONTRACT, pixels, settled_network

EXAMPLE = Path(__file__).parents[2] / "examples" / "single_file_node"
FILES = ("classify.mjs", "package.json", ".npmrc")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed, with a model in it."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder = tmp_path_factory.mktemp("node")
    for name in FILES:
        shutil.copy(EXAMPLE / name, folder)
    command = ["npm", "install", "--no-audit", "--no-fund", "--fetch-retries=0"]
    try:
        installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        pytest.skip("npm install of onnxruntime-node took more than three minutes")
    if installed.returncode != 0:
        errors = [line for line in installed.stderr.splitlines() if "npm error" in line]
        pytest.skip(f"npm cannot install onnxruntime-node: {errors[0] if errors else installed.stderr[-200:]}")

    save_checkpoint(folder / "net.pt", settled_network(blocks=3, seed=4), CONTRACT)
    data = Dataset(pixels(128, 1), np.zeros(128, np.int64), CONTRACT.class_names, "random")
    export(folder / "net.pt", folder / "net.dfs", calibration_data=data, single_file=folder / "model.onnx")
    return folder


def classify(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["node", "classify.mjs", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def in_python(folder: Path, images: np.ndarray[Any, np.dtype[np.uint8]]) -> list[tuple[Any, Any]]:
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    prepared = CONTRACT.normalize(images)
    return [tuple(session.run(["logits", "path"], {"images": prepared[i : i + 1]})) for i in range(len(images))]


def test_javascript_decides_as_python_does(folder: Path) -> None:
    images = pixels(20, seed=3)
    names = [f"{i}.bin" for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        image.tofile(folder / name)
    ran = classify(folder, "--json", "model.onnx", *names)
    assert (ran.returncode, ran.stderr) == (0, "")
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [row["file"] for row in rows] == names
    for row, (logits, path) in zip(rows, in_python(folder, images), strict=True):
        assert row["path"] == path[0].tolist()
        assert row["class"] == logits.argmax()
        assert row["name"] == CONTRACT.class_names[row["class"]]
        np.testing.assert_allclose(row["logits"], logits[0], rtol=0, atol=1e-3 * np.abs(logits).max())
    assert len({tuple(row["path"]) for row in rows}) > 3


def test_a_json_image_is_the_same_as_bytes(folder: Path) -> None:
    image = pixels(1, seed=4)[0]
    image.tofile(folder / "image.bin")
    (folder / "image.json").write_text(json.dumps(image.tolist()))
    ran = classify(folder, "model.onnx", "image.bin", "image.json")
    assert (ran.returncode, ran.stderr) == (0, "")
    first, second = (line.split(": ", 1)[1] for line in ran.stdout.splitlines())
    assert first == second
    _, path = in_python(folder, image[None])[0]
    options = ["skip", "8", "16", "full"]
    assert first.endswith(", path " + " ".join(options[option] for option in path[0]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected: node classify.mjs"),
        (("model.onnx", "short.bin"), "short.bin: 100 bytes, expected 8 x 8 x 3"),
        (("short.bin", "short.bin"), "was not written by dfs-deploy"),
        (("package.json", "short.bin"), "no ONNX file"),
        (("none.onnx", "short.bin"), "none.onnx"),
    ],
)
def test_an_error_is_one_line(folder: Path, words: tuple[str, ...], message: str) -> None:
    (folder / "short.bin").write_bytes(bytes(100))
    ran = classify(folder, *words)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert message in ran.stderr
