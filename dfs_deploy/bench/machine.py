"""What machine this is, for reports and for ``doctor``."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from dfs_deploy.cpu import describe_cpu
from dfs_deploy.errors import EnvironmentLacksError, UsageError

DEVICES = ("cpu", "cuda", "jetson")

_TEGRA_RELEASE = Path("/etc/nv_tegra_release")
_MODEL = Path("/proc/device-tree/model")


@dataclass(frozen=True)
class Machine:
    """A machine as a report names it.

    Attributes:
        cpu: model name.
        cores: logical cores that this process may use.
        system: operating system and architecture.
        int8: the instructions for 8-bit products that the CPU has, or an empty string.
        float16: whether the CPU computes in float16 and ONNX Runtime has kernels for it: 64-bit Arm with FEAT_FP16.
        load: mean of runnable processes over the last minute, or ``None`` where the system does not say.
    """

    cpu: str
    cores: int
    system: str
    int8: str
    float16: bool
    load: float | None


def describe_machine() -> Machine:
    """Looks at the machine; reads ``/proc`` and nothing else."""
    cpu = describe_cpu()
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return Machine(
        cpu=cpu.model,
        cores=len(affinity),
        system=f"{platform.system()} {platform.machine()}",
        int8=cpu.int8,
        float16=cpu.float16,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def check_device(device: str) -> None:
    """Makes sure that this machine is what ``--device`` says.

    Raises:
        UsageError: an unknown device.
        EnvironmentLacksError: this machine is another; says what was looked for.
    """
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}, expected {', '.join(DEVICES)}")
    if device == "jetson" and not is_jetson():
        raise EnvironmentLacksError(
            f"this is no Jetson: neither {_TEGRA_RELEASE} nor a Jetson in {_MODEL} was found; use --device cpu"
        )
    if device != "cpu":
        raise EnvironmentLacksError(f"no TensorRT runtime is installed for --device {device}; use --device cpu")


def is_jetson() -> bool:
    """Whether this is an NVIDIA Jetson."""
    return _TEGRA_RELEASE.exists() or (_MODEL.is_file() and "jetson" in _MODEL.read_text(errors="replace").lower())
