from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dfs_deploy
from dfs_deploy.system.ort import TELEMETRY
from tests.bundles import Made

PACKAGE = Path(dfs_deploy.__file__).parent
CHECKOUT = PACKAGE.parent

FAKE = """
import os
__version__ = "1.32.0"
class InferenceSession: pass
seen = os.environ.get("ORT_DISABLE_TELEMETRY")
"""
"""A library that tells what it found in the environment when it was imported."""

SAYS = """
import json, os
from dfs_deploy.system.ort import onnxruntime, telemetry
print(json.dumps([onnxruntime.seen, os.environ.get("ORT_DISABLE_TELEMETRY"), telemetry()]))
"""


def python(script: str, *path: Path, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """Runs a script in a process of its own, in which modules of ``path`` come first."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, CHECKOUT])), TELEMETRY: None}
    environment |= variables
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in environment.items() if value is not None},
    )


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    (tmp_path / "onnxruntime.py").write_text(FAKE)
    return tmp_path


# Telemetry


def test_telemetry_is_off_before_the_library_is_imported(fake: Path) -> None:
    ran = python(SAYS, fake)
    assert ran.returncode == 0, ran.stderr
    seen, left, said = json.loads(ran.stdout)
    assert (seen, left) == ("1", "1")
    assert said.startswith("off")


@pytest.mark.parametrize("value", ["0", ""])
def test_what_the_user_set_is_respected(fake: Path, value: str) -> None:
    ran = python(SAYS, fake, ORT_DISABLE_TELEMETRY=value)
    seen, left, said = json.loads(ran.stdout)
    assert (seen, left) == (value, value)
    assert repr(value) in said


def test_a_library_that_was_imported_before_is_not_said_to_be_silent(fake: Path) -> None:
    seen, left, said = json.loads(python(f"import onnxruntime\n{SAYS}", fake).stdout)
    assert (seen, left) == (None, None)
    assert "imported before" in said


def test_a_process_that_runs_a_bundle_has_one_thread_and_writes_nothing_home(mixed: Made, tmp_path: Path) -> None:
    script = (
        "import os, numpy\n"
        "from dfs_deploy import Runtime\n"
        f"with Runtime({str(mixed.path)!r}) as net: net(numpy.zeros((1, 8, 8, 3), numpy.uint8))\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ran = python(script, HOME=str(tmp_path), XDG_CACHE_HOME=None, **single)
    assert (ran.stdout, ran.stderr) == ("1\n", "")
    assert not list(tmp_path.rglob("*"))


def test_nothing_imports_the_library_past_the_one_place() -> None:
    files = [*PACKAGE.rglob("*.py"), *(CHECKOUT / "examples").rglob("*.py"), *(CHECKOUT / "benchmarks").rglob("*.py")]
    assert len(files) > 100
    guilty = []
    for file in files:
        tree = ast.parse(file.read_text())
        unread = [
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        ]
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if any(name.partition(".")[0] == "onnxruntime" for name in names) and node not in unread:
                guilty.append(f"{file.relative_to(CHECKOUT)}:{node.lineno}")
    assert len(guilty) == 1
    assert guilty[0].startswith("dfs_deploy/system/ort.py:")


# A library that is no use


def refusal(*path: Path) -> str:
    """What an application is told that opens a bundle."""
    ran = python(
        "from dfs_deploy import errors\n"
        "try: import dfs_deploy.runtimes.onnxruntime\n"
        "except errors.EnvironmentLacksError as error: print(isinstance(error, ImportError), error.module, error)\n",
        *path,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("True onnxruntime onnxruntime ")
    assert ran.stdout.count("\n") == 1
    return ran.stdout


def test_a_library_that_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError('No module', name='onnxruntime')")
    assert "not installed" in refusal(tmp_path)
    assert "pip install onnxruntime" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (
            'raise ImportError("libstdc++.so.6: version `GLIBCXX_3.4.32 not found\\nmore")',
            "GLIBCXX_3.4.32 not found",
        ),
        ("raise OSError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12"),
        ("import of_which_it_needs", "of_which_it_needs"),
    ],
)
def test_a_library_that_cannot_be_imported_says_the_true_reason(tmp_path: Path, code: str, word: str) -> None:
    (tmp_path / "onnxruntime.py").write_text(code)
    said = refusal(tmp_path)
    assert "not installed" not in said
    assert "cannot be imported" in said
    assert word in said


def test_a_folder_that_an_uninstall_left(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    assert "--force-reinstall" in refusal(tmp_path)


def test_a_library_that_is_too_old(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text(FAKE.replace("1.32.0", "1.16.3"))
    assert "1.16.3 is too old, expected 1.20" in refusal(tmp_path)


@pytest.mark.parametrize("version", ["1.20.0", "1.23.0.dev20260101", "unknown"])
def test_a_version_that_will_do(tmp_path: Path, version: str) -> None:
    (tmp_path / "onnxruntime.py").write_text(FAKE.replace("1.32.0", version))
    assert python("import dfs_deploy.system.ort", tmp_path).returncode == 0


@pytest.mark.parametrize("verb", ["export", "run", "inspect", "verify"])
def test_every_verb_says_it_before_any_work(mixed: Made, tmp_path: Path, verb: str) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')")
    arguments: dict[str, list[object]] = {
        "export": [mixed.checkpoint, "--out", tmp_path / "net.dfs"],
        "run": [mixed.path, tmp_path],
        "inspect": [mixed.path],
        "verify": [mixed.path, "--checkpoint", mixed.checkpoint, "--data", mixed.data_file],
    }
    words = [verb, *map(str, arguments[verb]), "--json"]
    (tmp_path / "a.png").write_bytes(b"")
    ran = python(f"import sys; sys.argv[1:] = {words!r}; from dfs_deploy.cli import main; main()", tmp_path)
    assert (ran.returncode, ran.stdout) == (3, "")
    assert ran.stderr.startswith("error: onnxruntime ")
    assert "libgomp.so.1" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "net.dfs").exists()


def test_doctor_says_it_too(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')")
    ran = python("import sys; sys.argv[1:] = ['doctor']; from dfs_deploy.cli import main; main()", tmp_path)
    assert ran.returncode == 3
    assert "onnxruntime cannot be used" in ran.stdout
    assert "libgomp.so.1" in ran.stderr
