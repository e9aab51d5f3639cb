"""The machine of a bench: what it is, the state of its clocks, and what others take of it while cases are timed."""

from __future__ import annotations

import os
import platform
import resource
import time
from pathlib import Path

from dfs_deploy.bench.result import Disturbance, Machine, MachineState
from dfs_deploy.system.cpu import cpu_facts, cpu_limits, describe_cpu, kernel_text

ROOT = Path("/")
"""Root of the file system; tests read another."""

_STEAL = 7
"""Index of the time stolen by the hypervisor among the figures of a CPU in ``/proc/stat`` (proc_stat(5))."""


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
    """Counts from the start what others take, until ``stop``.

    Args:
        root: root of the file system.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._begin = self._counters()

    def stop(self) -> Disturbance:
        """What was taken since the start."""
        (begin, switches, ticks, throttled), (end, later, ticks_later, throttled_later) = self._begin, self._counters()
        passed = [after - before for before, after in zip(ticks, ticks_later, strict=True)]
        return Disturbance(
            preemptions_per_s=(later - switches) / (end - begin) if end > begin else None,
            steal=passed[_STEAL] / sum(passed) if len(passed) > _STEAL and sum(passed) > 0 else None,
            throttled_periods=None if throttled is None or throttled_later is None else throttled_later - throttled,
        )

    def _counters(self) -> tuple[float, int, list[int], int | None]:
        """Seconds, involuntary switches of this process, clock ticks of all CPUs by kind, and throttled periods."""
        line = (kernel_text(self._root / "proc/stat") or "").partition("\n")[0].split()
        return (
            time.monotonic(),
            resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
            # The last two figures, of guests, are counted in the first two as well (proc_stat(5)).
            [int(x) for x in line[1:9]],
            cpu_limits(self._root).throttled_periods,
        )


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _turbo(root: Path) -> bool | None:
    cpus = root / "sys/devices/system/cpu"
    forbidden, allowed = kernel_text(cpus / "intel_pstate/no_turbo"), kernel_text(cpus / "cpufreq/boost")
    if forbidden is not None:
        return forbidden == "0"
    return None if allowed is None else allowed == "1"
