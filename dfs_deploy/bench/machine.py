"""The machine of a bench: what it is, the state of its clocks, and what others take of it while cases are timed."""

from __future__ import annotations

import os
import platform
import resource
import time
from pathlib import Path

from dfs_deploy.bench.result import Disturbance, Machine, MachineState
from dfs_deploy.system.cpu import ROOT, cpu_facts, cpu_limits, describe_cpu, kernel_text


def describe_machine() -> Machine:
    """Describes the machine; reads ``/proc`` and the control groups of this process."""
    cpu, limits = describe_cpu(), cpu_limits()
    return Machine(
        cpu=cpu.model,
        cores=len(limits.affinity),
        system=f"{platform.system()} {platform.machine()}",
        int8=cpu.int8,
        float16=cpu.float16,
        load=_load(),
        quota=limits.quota,
    )


def read_state(root: Path = ROOT) -> MachineState:
    """Reads the state of the clocks from ``/proc`` and ``/sys``.

    Args:
        root: root of the file system.
    """
    affinity = cpu_limits(root).affinity
    facts = cpu_facts(root)
    folders = [root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq" for cpu in affinity]
    governors = {text for folder in folders if (text := kernel_text(folder / "scaling_governor"))}
    kilohertz = [float(text) for folder in folders if (text := kernel_text(folder / "scaling_cur_freq"))]
    said = facts.get("cpu MHz")
    return MachineState(
        affinity=affinity,
        governor=", ".join(sorted(governors)) or None,
        frequency_mhz=sum(kilohertz) / len(kilohertz) / 1e3 if kilohertz else float(said) if said else None,
        turbo=_turbo(root),
        virtual="hypervisor" in facts.get("flags", "").split(),
        load=_load(),
    )


class Watch:
    """Counts from the start what others take, until :meth:`stop`.

    Args:
        root: root of the file system.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._begin = self._counters()

    def stop(self) -> Disturbance:
        """What was taken since the start."""
        (begin, switches, throttled), (end, later, throttled_later) = self._begin, self._counters()
        return Disturbance(
            preemptions_per_s=(later - switches) / (end - begin) if end > begin else None,
            throttled_periods=None if throttled is None or throttled_later is None else throttled_later - throttled,
        )

    def _counters(self) -> tuple[float, int, int | None]:
        """Seconds, involuntary switches of this process, and throttled periods."""
        return (
            time.monotonic(),
            resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
            cpu_limits(self._root).throttled_periods,
        )


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _turbo(root: Path) -> bool | None:
    cpus = root / "sys/devices/system/cpu"
    forbidden, allowed = kernel_text(cpus / "intel_pstate/no_turbo"), kernel_text(cpus / "cpufreq/boost")
    if forbidden:
        return forbidden == "0"
    return allowed == "1" if allowed else None
