from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.checkpoints.reading import read_checkpoint_file
from dfs_deploy.errors import CheckpointError, UnsafeCheckpointError
from tests.builders import release_state_dict
from tests.checks import MakesFolder, refuses

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(7), "b": torch.zeros(0, 2)}


def assert_same(read: Any, expected: dict[str, torch.Tensor]) -> None:
    assert set(read) == set(expected)
    for key, value in expected.items():
        assert read[key].dtype == value.dtype
        assert torch.equal(read[key], value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_state_dict_is_read_with_what_stands_beside_it(tmp_path: Path, zipped: bool, nested: bool) -> None:
    path = tmp_path / "model.pth.tar"
    content = {"state_dict": OrderedDict(TENSORS), "epoch": 3, "arch": "x"} if nested else {**TENSORS, "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    file = read_checkpoint_file(path)
    assert file.size == path.stat().st_size
    held = file.content["state_dict"] if nested else file.content
    assert_same({key: value for key, value in held.items() if isinstance(value, torch.Tensor)}, TENSORS)
    assert {key: file.values[key] for key in file.values if key != "state_dict"} == (
        {"epoch": 3, "arch": "x"} if nested else {"epoch": 3}
    )


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_safetensors_are_told_by_their_content(tmp_path: Path, name: str) -> None:
    """The length of the header comes first, and can begin like a pickle or an archive."""
    path = tmp_path / name
    for padding in range(0, 200, 8):
        save_file(TENSORS, path, {"dfs_deploy": '{"version": 1}', "format": "pt", "note": "x" * padding})
        file = read_checkpoint_file(path)
        assert_same(file.content, TENSORS)
        assert file.values == {"version": 1}


def test_torchs_files_are_told_by_their_content(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save(TENSORS, path)
    assert_same(read_checkpoint_file(path).content, TENSORS)


@pytest.mark.parametrize("metadata", ["[1]", "{", "nul", "1"])
def test_safetensors_with_malformed_values_are_refused(tmp_path: Path, metadata: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, {"dfs_deploy": metadata})
    with refuses(CheckpointError, str(path)):
        read_checkpoint_file(path)


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    payload = pickle.dumps({"state_dict": MakesFolder(marker)}, protocol)
    path.write_bytes(payload)
    with refuses(UnsafeCheckpointError, str(path), "run code"):
        load_checkpoint(path)
    assert not marker.exists()
    pickle.loads(payload)  # noqa: S301 (shows that it would have)
    assert marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_archive_that_would_run_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    torch.save({"state_dict": TENSORS, "hook": MakesFolder(marker)}, path, _use_new_zipfile_serialization=zipped)
    with refuses(UnsafeCheckpointError, str(path), "mkdir", "run code"):
        load_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # shows that it would have
    assert marker.exists()


@pytest.mark.parametrize("content", [torch.nn.Linear(2, 2), {"state_dict": TENSORS, "best": np.float64(0.5)}])
def test_pickled_objects_are_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with refuses(UnsafeCheckpointError, str(path), "save a state dict"):
        read_checkpoint_file(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused_at_any_length(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pt")
    if kind == "safetensors":
        save_file(TENSORS, path)
    else:
        torch.save({"state_dict": TENSORS, "epoch": 3}, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for length in {*range(0, len(whole), max(1, len(whole) // 150)), 1, 2, 3, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint_file(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"learning rate: 0.1\n" * 9,
        # These begin as a pickle that names something does, and end otherwise.
        b"classes: 10\nwidth: 16\n",
        b"cat\ndog\n)R",
        b"I1\ncat\ndog\n(dR]",
    ],
)
def test_a_text_file_is_unreadable_rather_than_unsafe(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with refuses(CheckpointError, str(path)):
        read_checkpoint_file(path)


def npz(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), x=np.zeros((1, 2, 2, 3), np.uint8), y=np.zeros(1))
    path.with_suffix(".npz").rename(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (npz, ["is an .npz archive", "--data"]),
        (lambda path: Image.new("RGB", (2, 2)).save(path, "PNG"), ["is a PNG image", "after the bundle"]),
        (lambda path: path.write_bytes(b"\x08\x07\x12\x04test"), ["is an ONNX model", "checkpoint"]),
        (lambda path: path.write_bytes(b""), ["is an empty file"]),
        (lambda path: path.write_bytes(b'{"a": 1}'), ["is a JSON file"]),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x\n"), ["git lfs pull"]),
        (
            lambda path: (path.mkdir(), (path / "manifest.json").write_text('{"schema_version": 2}')),
            ["is a bundle"],
        ),
        (lambda path: (path.mkdir(), (path / "checkpoint.pt").write_text("")), ["checkpoint.pt in it"]),
        (lambda path: path.mkdir(), ["is a folder"]),
        (lambda path: os.mkfifo(path), ["is a FIFO"]),
    ],
)
def test_what_is_no_checkpoint_is_called_by_its_name(
    tmp_path: Path, make: Callable[[Path], object], words: list[str]
) -> None:
    path = tmp_path / "model.pt"
    make(path)
    with refuses(CheckpointError, str(path), *words):
        load_checkpoint(path)


@pytest.mark.parametrize("head", [b"", b"PK\x03\x04", b"\x80\x02", (5 << 30).to_bytes(8, "little") + b"{"])
def test_a_file_without_end_is_refused_and_not_read(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "model.pt"
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(100 << 30)
    with refuses(CheckpointError, "107,374,182,400 bytes"):
        load_checkpoint(path)
    with path.open("r+b") as stream:
        stream.truncate(10 << 30)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), "text", 3])
def test_what_is_no_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with refuses(CheckpointError, "expected a dict", type(content).__name__):
        read_checkpoint_file(path)


@pytest.mark.parametrize(
    "content",
    [{}, {"state_dict": {}}, {"state_dict": [1, 2]}, {"epoch": 3}, {"state_dict": {"a": 1}}, {1: torch.ones(1)}],
)
def test_a_dict_without_tensors_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with refuses(CheckpointError, "no tensors", "state_dict"):
        load_checkpoint(path)


def test_safetensors_without_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({}, path)
    with refuses(CheckpointError, "no tensors"):
        load_checkpoint(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with refuses(CheckpointError, str(tmp_path / "none.pt"), "does not exist"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("protocol", [3, 5])
def test_another_protocol_is_named_without_warnings(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": release_state_dict()}, path, pickle_protocol=protocol)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with refuses(CheckpointError, f"protocol {protocol}", "expected 2"):
            read_checkpoint_file(path)


def rezipped(path: Path, edit: Callable[[dict[str, bytes]], object], **how: Any) -> None:
    """Writes the members of a torch archive again, changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    edit(members)
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


FORMS: dict[str, Callable[[Path], None]] = {
    "compressed": lambda path: rezipped(path, lambda held: None, compression=zipfile.ZIP_DEFLATED),
    "a member elsewhere": lambda path: rezipped(path, lambda held: held.update({"other/file": b""})),
    "a program": lambda path: rezipped(path, lambda held: held.update({"model/constants.pkl": b""})),
    "no pickle": lambda path: rezipped(path, lambda held: held.pop("model/data.pkl")),
    "no values": lambda path: rezipped(path, lambda held: held.pop("model/data/0")),
    "data after the pickle": lambda path: rezipped(
        path, lambda held: held.update({"model/data.pkl": held["model/data.pkl"] + b"more"})
    ),
    "bytes before it": lambda path: path.write_bytes(b"PK\3\4" + path.read_bytes()) and None,
    "another magic number": lambda path: path.write_bytes(pickle.dumps(1, 2) + pickle.dumps(2, 2)) and None,
}


@pytest.mark.parametrize("form", FORMS)
def test_archives_of_a_form_that_torch_does_not_write_are_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": TENSORS}, path)
    FORMS[form](path)
    with refuses(CheckpointError, str(path)):
        read_checkpoint_file(path)
