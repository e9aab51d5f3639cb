"""What machine this is, for reports and for ``doctor``."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from dfs_deploy.system.cpu import cpu_limits, describe_cpu


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
        quota: CPU seconds per second that a container's limit grants this process, or ``None`` without one.
    """

    cpu: str
    cores: int
    system: str
    int8: str
    float16: bool
    load: float | None
    quota: float | None = None


def describe_machine() -> Machine:
    """Looks at the machine; reads ``/proc`` and the control groups of this process."""
    cpu, limits = describe_cpu(), cpu_limits()
    return Machine(
        cpu=cpu.model,
        cores=len(limits.affinity),
        system=f"{platform.system()} {platform.machine()}",
        int8=cpu.int8,
        float16=cpu.float16,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        quota=limits.quota,
    )
