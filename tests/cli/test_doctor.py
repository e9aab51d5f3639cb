from __future__ import annotations

import re
import sys
from functools import partial
from importlib import metadata, util
from pathlib import Path

import onnxruntime
import pytest

import dfs_deploy
from dfs_deploy.bench import jetson
from dfs_deploy.cli import doctor
from dfs_deploy.runtimes.onnxruntime import blocked
from dfs_deploy.system.cpu import CpuLimits
from dfs_deploy.system.libraries import EXTRA_OF
from tests.bench.boards import jetson_tree
from tests.cli.program import run

CORE = {"numpy", "onnxruntime", "protobuf", "msgspec", "typer", "rich", "pillow"}


def test_json_says_what_is_there() -> None:
    ran = run("doctor", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["passed"] is True
    assert ran.json["facts"]["dfs-deploy"] == dfs_deploy.__version__
    checks = {check["name"]: check for check in ran.json["checks"]}
    assert checks.keys() == CORE | EXTRA_OF.keys()
    assert {name for name, check in checks.items() if check["needed"]} == CORE
    assert checks["numpy"]["found"] == metadata.version("numpy")
    for name, extra in EXTRA_OF.items():
        assert extra in checks[name]["remedy"] or "apt" in checks[name]["remedy"]


def test_what_can_be_imported_is_found() -> None:
    """A module's distribution may have another name."""
    checks = {check["name"]: check for check in run("doctor", "--json").json["checks"]}
    for module in EXTRA_OF:
        assert bool(checks[module]["found"]) == (util.find_spec(module) is not None)


def test_a_person_reads_passed() -> None:
    ran = run("doctor")
    assert ran.code == 0
    assert "PASSED" in ran.out
    assert "onnxruntime" in ran.out


@pytest.mark.parametrize(("together", "said"), [(1, "plain"), (8, "blocked by 8")])
def test_the_layout_of_features_is_said(monkeypatch: pytest.MonkeyPatch, together: int, said: str) -> None:
    monkeypatch.setattr(blocked, "block_size", lambda: together)
    assert run("doctor", "--json").json["facts"]["feature layout"].startswith(said)


def test_what_running_needs_and_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    ran = run("doctor", "--json")
    ran.failed(3, "pillow is not installed", "pip install pillow")
    assert ran.json["passed"] is False
    ran = run("doctor")
    assert ran.code == 3
    assert "FAILED: pillow missing" in ran.out


def test_the_module_is_asked_and_not_the_name_that_it_was_installed_under(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime comes as onnxruntime-gpu, -openvino and in wheels of boards' makers as well."""

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    ran = run("doctor", "--json")
    assert ran.code == 0
    checks = {check["name"]: check for check in ran.json["checks"]}
    assert checks["onnxruntime"]["found"] == onnxruntime.__version__


def broken(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str, code: str) -> None:
    """Lets the import of a module run other code."""
    (folder / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)


def test_what_is_installed_and_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacks = "/usr/lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found"
    broken(monkeypatch, tmp_path, "msgspec", f"raise ImportError({lacks!r} + chr(10) + 'more')")
    broken(monkeypatch, tmp_path, "onnx", "raise RuntimeError('of another protobuf')")
    ran = run("doctor")
    assert ran.code == 3
    assert re.search(r"broken +msgspec +cannot be imported: ImportError: .*GLIBCXX_3.4.32' not found", ran.out)
    assert re.search(r"broken +onnx +cannot be imported: RuntimeError: of another protobuf", ran.out)
    assert "FAILED: msgspec cannot be used" in ran.out
    assert ran.err.count("\n") == 1
    assert "GLIBCXX_3.4.32" in ran.err


def test_the_quota_stands_beside_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(run("doctor", "--json").json["facts"])
    assert names[names.index("cores") + 1] == "CPU quota"
    monkeypatch.setattr(doctor, "cpu_limits", lambda: CpuLimits((0, 1, 2, 3), 1.5, 7))
    said = run("doctor", "--json").json["facts"]["CPU quota"]
    assert "1.5 CPU" in said
    assert "7 period" in said
    assert "2 thread" in said


def test_an_extra_that_is_not_there_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "sklearn"):
        monkeypatch.setitem(sys.modules, module, None)
    ran = run("doctor")
    assert ran.code == 0
    assert "[export]" in ran.out
    assert "[train]" in ran.out


def on_board(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Makes doctor look at a board of files."""
    for name in ("is_jetson", "read_jetson", "read_power_state"):
        monkeypatch.setattr(doctor, name, partial(getattr(jetson, name), root))


def test_a_jetson_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_board(monkeypatch, jetson_tree(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = run("doctor", "--json")
    facts = ran.json["facts"]
    assert (facts["jetson"], facts["JetPack"], facts["Jetson Linux"]) == ("yes", "6.2", "36.4.3")
    assert (facts["TensorRT"], facts["CUDA"], facts["power mode"]) == ("10.3.0.30", "12.6.68", "not found")
    assert "sudo jetson_clocks" in facts["clocks"]
    assert "48.5" in facts["temperature"]
    assert facts["energy"].startswith("none: no INA3221")
    assert ran.json["problems"] == []
    checks = {check["name"]: check for check in ran.json["checks"]}
    assert checks["tensorrt"]["remedy"] == "sudo apt install python3-libnvinfer"


def test_what_is_known_not_to_work_on_a_jetson_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_board(monkeypatch, jetson_tree(tmp_path, packages={"libnvinfer11": "11.4.1-1"}))
    ran = run("doctor")
    assert ran.code == 0
    assert "does not run on JetPack 6" in ran.out
    assert "sudo apt install python3-libnvinfer" in ran.out
