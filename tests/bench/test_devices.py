from __future__ import annotations

from importlib import util
from pathlib import Path

import pytest

from dfs_deploy.bench.devices import DEVICES, RUNTIME_OF, check_device
from dfs_deploy.errors import EnvironmentLacksError, UsageError
from tests.bench.boards import jetson_tree
from tests.bench.sensors import write_tree
from tests.checks import refuses


@pytest.fixture
def gpu(tmp_path: Path) -> Path:
    return write_tree(
        tmp_path, {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.0\n"}
    )


def installed(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: object() if name in modules else None)


def test_a_cpu_is_always_there(tmp_path: Path) -> None:
    check_device("cpu", tmp_path)
    assert RUNTIME_OF["cpu"] == "onnxruntime"


@pytest.mark.parametrize("device", ["gpu", "CPU", "", "tpu"])
def test_an_unknown_device_is_a_wrong_call(device: str) -> None:
    with refuses(UsageError, repr(device), *DEVICES):
        check_device(device)


def test_another_machine_is_no_jetson(tmp_path: Path) -> None:
    with refuses(EnvironmentLacksError, "nv_tegra_release", "device-tree/model", "--device cpu"):
        check_device("jetson", tmp_path)


def test_a_machine_with_a_gpu_is_no_jetson_and_may_use_it(gpu: Path) -> None:
    with refuses(EnvironmentLacksError, "no Jetson", "--device cuda"):
        check_device("jetson", gpu)


def test_a_machine_without_a_gpu(tmp_path: Path) -> None:
    with refuses(EnvironmentLacksError, "proc/driver/nvidia/version", "--device cpu"):
        check_device("cuda", tmp_path)


def test_a_jetson_is_named_by_its_own_device(tmp_path: Path) -> None:
    with refuses(EnvironmentLacksError, "this is a Jetson", "--device jetson"):
        check_device("cuda", jetson_tree(tmp_path))


def test_on_a_jetson_tensorrt_comes_by_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jetson_tree(tmp_path)
    installed(monkeypatch)
    with refuses(EnvironmentLacksError, "tensorrt", "sudo apt install python3-libnvinfer"):
        check_device("jetson", tmp_path)
    installed(monkeypatch, "tensorrt")
    with refuses(EnvironmentLacksError, "pycuda", "pip install -e", "[tensorrt]"):
        check_device("jetson", tmp_path)
    installed(monkeypatch, "tensorrt", "pycuda")
    check_device("jetson", tmp_path)


def test_elsewhere_it_comes_by_pip(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    with refuses(EnvironmentLacksError, "tensorrt", "pip install -e", "[tensorrt]"):
        check_device("cuda", gpu)
    installed(monkeypatch, "tensorrt", "pycuda")
    check_device("cuda", gpu)
