"""Every reader of a JSON file: what is no regular file of a bounded size is refused at once, and by its name."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from dfs_deploy.bench.baseline import load_baseline
from dfs_deploy.bench.result import load_bench
from dfs_deploy.costs import load_costs
from dfs_deploy.errors import ArtefactError, CheckpointError, DataError, SavedResultError, UsageError
from dfs_deploy.io.json_files import VersionedFormat
from dfs_deploy.io.kinds import JOB_FILE
from dfs_deploy.report.runs import load_run
from dfs_deploy.training import read_metrics
from dfs_deploy.training.job import load_job
from dfs_deploy.training.state import STATE_FILE, load_state
from dfs_deploy.verify import load_verification
from tests.checks import little_memory, refuses

Read = Callable[[Path], Any]

READERS: dict[str, tuple[Read, str, type[Exception], type[Exception]]] = {
    "a baseline": (load_baseline, "base.json", UsageError, SavedResultError),
    "a table of costs": (load_costs, "costs.json", DataError, DataError),
    "a bench": (load_bench, "bench.json", UsageError, SavedResultError),
    "a training run": (load_run, "metrics.jsonl", DataError, DataError),
    "a metrics log": (read_metrics, "metrics.jsonl", DataError, DataError),
    "a job": (lambda file: load_job(file.parent), JOB_FILE, CheckpointError, CheckpointError),
    "a training state": (lambda file: load_state(file.parent), STATE_FILE, CheckpointError, CheckpointError),
    "a saved result": (load_verification, "verified.json", SavedResultError, SavedResultError),
}
"""How each is read, its file's name, the error for what is no regular file, and the one for another content."""

UNLINKED = ("a job", "a training state")
"""Those that lie in the folder of a run, and are never read through a link."""


OF_A_FOLDER = ("a training run", "a metrics log")
"""Those that take the folder of a run, or the file in it."""


def socket_file(file: Path) -> None:
    before = Path.cwd()
    os.chdir(file.parent)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as here:
            here.bind(file.name)
    finally:
        os.chdir(before)


def sparse(file: Path) -> None:
    file.touch()
    os.truncate(file, 100 << 30)


KINDS: list[tuple[Callable[[Path], None], str]] = [
    (os.mkfifo, "is a FIFO"),
    (socket_file, "is a socket"),
    (sparse, "107,374,182,400 bytes"),
    (lambda file: file.symlink_to("/dev/zero"), "is a device"),
]


@pytest.mark.parametrize("what", READERS)
def test_what_is_no_file_of_a_bounded_size(tmp_path: Path, what: str) -> None:
    read, name, error, _ = READERS[what]
    for make, word in KINDS:
        make(tmp_path / name)
        if what in UNLINKED and (tmp_path / name).is_symlink():
            word = "is a link"
        with refuses(error, str(tmp_path / name), word):
            read(tmp_path / name)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("what", [name for name in READERS if name not in (*OF_A_FOLDER, "a training state")])
def test_a_folder_and_a_large_file_are_refused(tmp_path: Path, what: str) -> None:
    read, name, error, _ = READERS[what]
    file = tmp_path / name
    file.touch()
    os.truncate(file, 100 << 30)
    with refuses(error, str(file), "107,374,182,400 bytes"):
        read(file)
    file.unlink()
    file.mkdir()
    with refuses(error, str(file), "is a folder, expected a regular file"):
        read(file)


CONTENTS = {
    "nothing": b"",
    "text": b"no json",
    "a list": b"[]",
    "null": b"null",
    "no UTF-8": b'{"schema_version": "\xff"}',
    "nesting without end": b"[" * 100_000,
    "nesting in a key": b'{"schema_version": 1, "schema": 1, "job": ' + b"[" * 100_000,
    "a number without end": b'{"schema_version": ' + b"9" * 10_000 + b"}",
    "a number that is none": b'{"schema_version": NaN}',
    "a number beyond floats": b'{"schema_version": 1e999}',
    "an escape": b'{"schema_version": 1, "\\u001b[2J\\nerror: forged": 1}',
}


@pytest.mark.parametrize("what", READERS)
def test_another_content(tmp_path: Path, what: str) -> None:
    read, name, _, error = READERS[what]
    for content in CONTENTS.values():
        (tmp_path / name).write_bytes(content + b"\n")
        with pytest.raises(error) as caught:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) <= 1200


@pytest.mark.parametrize("what", [name for name in READERS if name != "a training state"])
def test_a_large_file_of_another_kind_takes_little_more_memory_than_its_size(tmp_path: Path, what: str) -> None:
    read, name, _, error = READERS[what]
    (tmp_path / name).write_bytes(b'{"schema_version": 1, "cases": [' + b"[]," * 2_000_000 + b"0]}\n")
    with little_memory(40_000_000), pytest.raises(error):
        read(tmp_path / name)


@pytest.mark.parametrize("what", [name for name in READERS if name not in ("a training run", "a training state")])
def test_a_file_of_another_kind_is_named(tmp_path: Path, what: str) -> None:
    read, name, _, error = READERS[what]
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    torch.save({"a": torch.zeros(3)}, tmp_path / "net.pt")
    for file, kind in (("data.npz", "an .npz archive of arrays"), ("net.pt", "a PyTorch checkpoint")):
        (tmp_path / file).replace(tmp_path / name)
        with refuses(error, str(tmp_path / name), f"it is {kind}"):
            read(tmp_path / name)


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    x: int
    y: int
    version: int = 2
    kind: str = "a point"


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    xy: tuple[int, int]
    version: int
    kind: str


def from_pair(pair: Pair) -> Point:
    if pair.xy[0] < 0:
        raise UsageError("a negative x")
    return Point(*pair.xy)


POINTS = VersionedFormat(
    "point",
    Point,
    2,
    "draw one",
    error=DataError,
    version_error=ArtefactError,
    version_key="version",
    mark=("kind", "a point"),
    older={1: (Pair, from_pair)},
)


def test_a_versioned_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    POINTS.write(tmp_path / "point.json", Point(1, 2))
    assert POINTS.read(tmp_path / "point.json") == Point(1, 2)


def test_an_older_version_is_converted(tmp_path: Path) -> None:
    assert POINTS.decode(b'{"xy": [3, 4], "version": 1, "kind": "a point"}', tmp_path) == Point(3, 4)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ('{"x": 1, "y": 2, "version": 3, "kind": "a point"}', ArtefactError, ["version 3", "1 to 2", "update"]),
        ('{"x": 1, "y": 2, "version": 0, "kind": "a point"}', ArtefactError, ["version 0", "1 to 2", "draw one"]),
        ('{"x": 1, "y": 2, "version": 9, "kind": "a line"}', DataError, ["'a line'", "'a point'", "draw one"]),
        ('{"x": 1, "y": 2, "version": 2}', DataError, ["no point", "kind", "draw one"]),
        ('{"x": 1, "y": 2, "kind": "a point"}', DataError, ["no point", "version", "draw one"]),
        ('{"x": 1, "version": 2, "kind": "a point"}', DataError, ["no point", "`y`", "draw one"]),
        ('{"x": 1, "y": 2, "z": 3, "version": 2, "kind": "a point"}', DataError, ["no point", "`z`", "draw one"]),
        ('{"xy": [-1, 4], "version": 1, "kind": "a point"}', DataError, ["no point", "a negative x", "draw one"]),
        ('{"x": 1, "y": 2, "version": "2", "kind": "a point"}', DataError, ["no point", "draw one"]),
        ("[1, 2]", DataError, ["no point", "draw one"]),
        ("", DataError, ["no point", "empty", "draw one"]),
    ],
)
def test_a_versioned_file_that_cannot_be_used(
    tmp_path: Path, content: str, error: type[Exception], words: list[str]
) -> None:
    (tmp_path / "point.json").write_text(content)
    with refuses(error, str(tmp_path / "point.json"), *words):
        POINTS.read(tmp_path / "point.json")


def test_a_versioned_file_that_is_missing(tmp_path: Path) -> None:
    with refuses(DataError, "none.json", "cannot be read", "draw one"):
        POINTS.read(tmp_path / "none.json")
