"""Where an export is written, and how it ends: odd file systems, signals, two at a time."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import pytest

from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.cli import main
from dfs_deploy.io import files
from dfs_deploy.runtimes import Runtime
from tests.bundles import float_network
from tests.cli.program import run
from tests.settled import CONTRACT, pixels

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("places") / "net.pt"
    save_checkpoint(file, float_network(), CONTRACT)
    return file


def words(checkpoint: Path, out: Path) -> list[str]:
    return ["export", str(checkpoint), "--out", str(out), "--targets", "fp32"]


def start(checkpoint: Path, out: Path) -> BaseProcess:
    """Starts the program in a process of its own, which has all libraries already."""

    def work() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
        sys.argv = ["dfs-deploy", *words(checkpoint, out)]
        main()

    process = FORK.Process(target=work)
    process.start()
    return process


def listing(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def works(path: Path) -> bool:
    with Runtime(path, prepared=False) as runtime:
        return len(runtime(pixels(2)).classes) == 2


def no_fsync_of_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


def failing(number: int) -> Callable[..., None]:
    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSYS))


def no_chmod(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("chmod", "fchmod", "utime", "chown"):
        monkeypatch.setattr(os, name, failing(errno.EPERM))


def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))


def no_exchange_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)


@pytest.mark.parametrize("lacks", [no_fsync_of_folders, no_fsync, no_chmod, no_locks])
def test_an_export_to_a_file_system_that_lacks_something(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: Callable[[pytest.MonkeyPatch], None]
) -> None:
    lacks(monkeypatch)
    assert run(*words(checkpoint, tmp_path / "net.dfs")).code == 0
    assert listing(tmp_path) == ["net.dfs"]
    assert works(tmp_path / "net.dfs")


def test_a_bundle_is_replaced_whole_without_an_exchange_of_names(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_exchange_of_names(monkeypatch)
    out = tmp_path / "net.dfs"
    for _ in range(2):
        assert run(*words(checkpoint, out)).code == 0
        assert listing(tmp_path) == ["net.dfs"]
    assert works(out)


def test_an_error_of_the_disk_is_no_such_lack(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    ran = run(*words(checkpoint, tmp_path / "net.dfs"), "--json")
    ran.failed(3, "Input/output error", f"{tmp_path / 'net.dfs'}:")
    assert ".tmp" not in ran.err, "nobody knows the temporary folder"
    assert listing(tmp_path) == []


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_an_export_that_is_stopped_leaves_nothing_for_good(checkpoint: Path, tmp_path: Path, sent: int) -> None:
    out = tmp_path / "net.dfs"
    with mock.patch("dfs_deploy.exporters.pipeline.validate", lambda *arguments: time.sleep(600.0)):
        process = start(checkpoint, out)
    while not (left := list(tmp_path.glob(".net.dfs.*.tmp"))) and process.is_alive():
        time.sleep(0.001)
    assert process.pid is not None
    os.kill(process.pid, sent)
    process.join()
    assert left, "the draft was seen"
    assert process.exitcode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[signal.Signals(sent)]
    assert not out.exists()
    assert sent == signal.SIGKILL or listing(tmp_path) == []
    assert run(*words(checkpoint, out)).code == 0
    assert listing(tmp_path) == ["net.dfs"]
    assert works(out)


def test_exports_to_one_path_at_a_time_do_not_disturb_each_other(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.dfs"
    running = [start(checkpoint, out) for _ in range(2)]
    for process in running:
        process.join()
        assert process.exitcode == 0
    assert listing(tmp_path) == ["net.dfs"]
    assert works(out)
