"""Where an export is written, and how it ends: odd file systems, signals, two at a time. Each is a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.runtimes import Runtime
from tests.bundles import CONTRACT, float_network, pixels

PROGRAM = "import sys; from dfs_deploy.cli import main; sys.argv[0] = 'dfs-deploy'; main()"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("places") / "net.pt"
    save_checkpoint(file, float_network(), CONTRACT)
    return file


def start(checkpoint: Path, out: Path, before: str = "") -> subprocess.Popen[str]:
    """Starts an export in an interpreter that runs a statement first."""
    command = [sys.executable, "-c", f"{before}\n{PROGRAM}", "export", checkpoint, "--out", out, "--targets", "fp32"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def listing(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def works(path: Path) -> bool:
    with Runtime(path, prepared=False) as runtime:
        return len(runtime(pixels(2)).classes) == 2


FILE_SYSTEMS = {
    "no fsync of folders": """
def fsync(handle, real=os.fsync):
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        raise OSError(errno.EINVAL, "Invalid argument")
    real(handle)
os.fsync = fsync
""",
    "no fsync": """
def fsync(handle):
    raise OSError(errno.ENOSYS, "Function not implemented")
os.fsync = fsync
""",
    "no chmod": """
def refuse(*arguments, **keywords):
    raise PermissionError(errno.EPERM, "Operation not permitted")
os.chmod = os.fchmod = os.utime = os.chown = refuse
""",
    "no locks": """
import fcntl
def flock(*arguments):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
""",
    "no renames of folders": """
import ctypes
def rename(source, target, real=os.rename, **keywords):
    if os.path.isdir(source):
        raise PermissionError(errno.EPERM, "Operation not permitted")
    real(source, target, **keywords)
os.rename = os.replace = rename
from dfs_deploy import files
files._exchange = lambda one, other: False
""",
    "no exchange of names": """
from dfs_deploy import files
files._exchange = lambda one, other: False
""",
}


@pytest.mark.parametrize("lacks", FILE_SYSTEMS)
def test_an_export_to_a_file_system_that_lacks_something(checkpoint: Path, tmp_path: Path, lacks: str) -> None:
    before = f"import errno, os, stat\n{FILE_SYSTEMS[lacks]}"
    out = tmp_path / "net.dfs"
    process = start(checkpoint, out, before)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert listing(tmp_path) == ["net.dfs"]
    assert works(out)
    if lacks not in ("no renames of folders", "no exchange of names"):
        return
    digest = Bundle(out).digest
    process = start(checkpoint, out, before)
    _, errors = process.communicate()
    if lacks == "no renames of folders":  # nothing could replace the bundle whole, which is said before the work
        assert process.returncode == 2
        assert "cannot rename folders" in errors
        assert errors.count("\n") == 1
    else:
        assert process.returncode == 0, errors
    assert listing(tmp_path) == ["net.dfs"]
    assert Bundle(out).digest == digest


def test_an_error_of_the_disk_is_no_such_lack(checkpoint: Path, tmp_path: Path) -> None:
    before = """
import errno, os
def fsync(handle):
    raise OSError(errno.EIO, "Input/output error")
os.fsync = fsync
"""
    process = start(checkpoint, tmp_path / "net.dfs", before)
    _, errors = process.communicate()
    assert process.returncode == 3
    assert "Input/output error" in errors
    assert str(tmp_path) in errors
    assert listing(tmp_path) == []


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_an_export_that_is_stopped_leaves_nothing_for_good(checkpoint: Path, tmp_path: Path, sent: int) -> None:
    out = tmp_path / "net.dfs"
    process = start(checkpoint, out)
    while not (left := list(tmp_path.glob(".net.dfs.*.tmp"))) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(sent)
    process.communicate()
    assert left, "the draft was seen, and it was stopped before its end"
    assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[signal.Signals(sent)]
    assert not out.exists()
    assert sent == signal.SIGKILL or listing(tmp_path) == []
    process = start(checkpoint, out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert listing(tmp_path) == ["net.dfs"]
    assert works(out)


def test_exports_to_one_path_at_a_time_do_not_disturb_each_other(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.dfs"
    running = [start(checkpoint, out) for _ in range(2)]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert listing(tmp_path) == ["net.dfs"]
    assert works(out)
