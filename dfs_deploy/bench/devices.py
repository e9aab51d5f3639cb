"""Devices that ``--device`` names, the runtime of each, and whether this machine is one."""

from __future__ import annotations

from importlib import util
from pathlib import Path

from dfs_deploy.bench.jetson import APT_TENSORRT, MODEL, RELEASE, is_jetson
from dfs_deploy.bench.machine import ROOT
from dfs_deploy.errors import EnvironmentLacksError, UsageError
from dfs_deploy.system.libraries import EXTRA_OF, install_line

RUNTIME_OF = {"cpu": "onnxruntime", "cuda": "tensorrt", "jetson": "tensorrt"}
"""Runtime of each device."""

DEVICES = tuple(RUNTIME_OF)

_DRIVER = "proc/driver/nvidia/version"


def check_device(device: str, root: Path = ROOT) -> None:
    """Makes sure that this machine is what ``--device`` says and has what it needs.

    Args:
        device: one of ``DEVICES``.
        root: root of the file system; tests give another.

    Raises:
        UsageError: an unknown device.
        EnvironmentLacksError: this machine is another, or lacks a package.
    """
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}, expected {', '.join(DEVICES)}")
    if device == "cpu":
        return
    board = is_jetson(root)
    if device == "jetson" and not board:
        other = "cuda" if has_gpu(root) else "cpu"
        raise EnvironmentLacksError(
            f"this is no Jetson: neither {root / RELEASE} nor a Jetson in {root / MODEL} was found;"
            f" use --device {other}"
        )
    if device == "cuda" and board:
        raise EnvironmentLacksError(f"this is a Jetson ({root / RELEASE}); use --device jetson")
    if device == "cuda" and not has_gpu(root):
        raise EnvironmentLacksError(f"no NVIDIA driver: {root / _DRIVER} was not found; use --device cpu")
    for module in ("tensorrt", "pycuda"):
        if util.find_spec(module) is None:
            apt = board and module == "tensorrt"
            remedy = APT_TENSORRT if apt else install_line(EXTRA_OF[module])
            raise EnvironmentLacksError(f"{module} is not installed and --device {device} needs it; {remedy}")


def has_gpu(root: Path = ROOT) -> bool:
    """Whether NVIDIA's driver for a discrete GPU is loaded."""
    return (root / _DRIVER).is_file()
