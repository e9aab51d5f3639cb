from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dfs_deploy.io.kinds import Role, given_instead, kind_of
from tests.builders import skipnet_state_dict


def onnx_model(path: Path, producer: str = "") -> None:
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, producer_name=producer), path)


def picture(path: Path) -> None:
    Image.new("RGB", (4, 4)).save(path)


MADE: list[tuple[str, Callable[[Path], object], Role, str]] = [
    ("a.npz", lambda path: np.savez(path, x=np.zeros(3)), "data", ".npz"),
    ("packed.npz", lambda path: np.savez_compressed(path, x=np.zeros(3)), "data", ".npz"),
    ("a.npy", lambda path: np.save(path, np.zeros(3)), "data", "NumPy"),
    ("a.pt", lambda path: torch.save(skipnet_state_dict(), path), "checkpoint", "PyTorch"),
    ("misnamed.png", lambda path: torch.save(skipnet_state_dict(), path), "checkpoint", "PyTorch"),
    (
        "old.pth",
        lambda path: torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False),
        "checkpoint",
        "PyTorch",
    ),
    ("a.safetensors", lambda path: save_file({"a": torch.zeros(3)}, path), "checkpoint", ".safetensors"),
    ("a.pkl", lambda path: path.write_bytes(pickle.dumps({1: 2})), "checkpoint", "pickle"),
    ("a.onnx", onnx_model, "model", "ONNX"),
    ("b.onnx", lambda path: onnx_model(path, "somebody"), "model", "ONNX"),
    ("a.ort", lambda path: path.write_bytes(b"\x10\0\0\0ORTM" + bytes(20)), "model", ".ort"),
    ("a.png", picture, "image", "PNG"),
    ("a.jpg", picture, "image", "JPEG"),
    ("a.bmp", picture, "image", "BMP"),
    ("a.ppm", picture, "image", "PPM"),
    ("a.webp", picture, "image", "WebP"),
    ("a.gif", picture, "image", "GIF"),
    ("a.mp4", lambda path: path.write_bytes(b"\0\0\0\x20ftypisom" + bytes(20)), "video", "video"),
    ("a.json", lambda path: path.write_text(json.dumps({"a": 1})), "record", "JSON"),
    ("pointer.pt", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "other", "Git LFS"),
    ("nothing", lambda path: path.touch(), "other", "empty"),
    ("fifo", os.mkfifo, "other", "no regular file"),
    ("net.dfs.cache", lambda path: path.mkdir(), "part", "cache"),
]


def test_a_path_is_told_by_its_content(tmp_path: Path) -> None:
    for name, make, role, word in MADE:
        make(tmp_path / name)
        kind = kind_of(tmp_path / name)
        assert kind is not None, name
        assert kind.role == role
        assert word in kind.name
        assert kind.name.startswith(("a ", "an ", "the ", "no "))


def test_a_bundle_is_told_by_its_manifest(tmp_path: Path) -> None:
    for name in ("net", "net.dfs"):
        folder = tmp_path / name
        folder.mkdir()
        assert kind_of(folder) is None
        manifest = folder / "manifest.json"
        if name == "net":
            manifest.write_text('{"files": []}')
            assert kind_of(folder) is None, "manifests of others have that name too"
            manifest.write_text('{"schema_version": 2}')
        else:
            manifest.symlink_to("elsewhere")  # as the caches of downloads keep files
        kind = kind_of(folder)
        assert kind is not None
        assert kind.role == "bundle"
    manifest = tmp_path / "net" / "manifest.json"
    manifest.rename(tmp_path / "elsewhere.json")
    manifest.symlink_to(tmp_path / "elsewhere.json")
    assert kind_of(tmp_path / "net") is None, "a link in a folder is not followed"
    manifest.unlink()
    os.mkfifo(manifest)
    assert kind_of(tmp_path / "net") is None, "a FIFO is not waited for"


@pytest.mark.parametrize("content", [b"hello", b"\x08", b"PK", b"\x02\0\0\0\0\0\0\0{}"[:9], bytes(5000)])
def test_what_gives_no_sign_is_of_no_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert kind_of(tmp_path / "file") is None


def test_what_is_not_there_is_of_no_kind(tmp_path: Path) -> None:
    assert kind_of(tmp_path / "missing") is None
    assert kind_of("a\0b") is None
    assert kind_of("x" * 5000) is None


def test_what_was_given_instead_is_said_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "my net.pt"
    torch.save(skipnet_state_dict(), path)
    said = given_instead(path, "a bundle", "bundle")
    assert said is not None
    assert said.startswith(str(path))
    assert "PyTorch checkpoint" in said
    assert f"dfs-deploy export '{path}'" in said
    assert given_instead(path, "a checkpoint", "checkpoint") is None
    assert given_instead(tmp_path / "missing", "a bundle", "bundle") is None
