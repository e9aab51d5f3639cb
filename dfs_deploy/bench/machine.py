"""What machine this is, for reports and for ``doctor``."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

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
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    int8 = next((name for flag, name in _INT8 if flag in flags), "")
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return Machine(
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        cores=len(affinity),
        system=f"{platform.system()} {platform.machine()}",
        int8=int8,
        float16="asimdhp" in flags,
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


_INT8 = (
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx_vnni", "AVX VNNI"),
    ("i8mm", "Arm I8MM"),
    ("asimddp", "Arm dot product"),
)


def _cpuinfo() -> dict[str, str]:
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return {}
    first = file.read_text(errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
