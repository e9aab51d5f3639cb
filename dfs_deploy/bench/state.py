"""The state of the machine while it is measured: what makes times differ from one day to the next."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from dfs_deploy.system.cpu import cpu_facts, cpu_limits

_ROOT = Path("/")
_STEAL = 7
"""Place of the time stolen by the hypervisor among the figures of a CPU in ``/proc/stat`` (proc_stat(5))."""


@dataclass(frozen=True)
class MachineState:
    """What the system says of its clocks; ``None`` where it does not say.

    Attributes:
        affinity: logical CPUs that this process may use.
        governor: of frequency scaling, of those CPUs.
        frequency_mhz: mean over those CPUs, now.
        turbo: whether the CPU may exceed its nominal frequency.
        virtual: whether the CPU is a hypervisor's guest, which neighbours may slow.
        load: mean of runnable processes over the last minute.
    """

    affinity: tuple[int, ...]
    governor: str | None
    frequency_mhz: float | None
    turbo: bool | None
    virtual: bool
    load: float | None


@dataclass(frozen=True)
class Disturbance:
    """What others took while cases were timed; ``None`` where the system does not say.

    Attributes:
        preemptions_per_s: times a second that the system gave this process's CPU to another.
        steal: share of CPU time, 0 to 1, that the hypervisor gave to other guests.
        throttled_periods: periods in which the quota of a container's control group stopped its processes; ``None``
            without a quota as well.
    """

    preemptions_per_s: float | None
    steal: float | None
    throttled_periods: int | None = None


def read_state(root: Path = _ROOT) -> MachineState:
    """Reads ``/proc`` and ``/sys``.

    Args:
        root: of the file system.
    """
    affinity = cpu_limits(root).affinity
    facts = cpu_facts(root)
    folders = [root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq" for cpu in affinity]
    governors = {text for folder in folders if (text := _text(folder / "scaling_governor"))}
    kilohertz = [float(text) for folder in folders if (text := _text(folder / "scaling_cur_freq"))]
    said = facts.get("cpu MHz")
    return MachineState(
        affinity=affinity,
        governor=", ".join(sorted(governors)) or None,
        frequency_mhz=sum(kilohertz) / len(kilohertz) / 1e3 if kilohertz else float(said) if said else None,
        turbo=_turbo(root),
        virtual="hypervisor" in facts.get("flags", "").split(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


class Watch:
    """Watches from the start what others take, until :meth:`stop`.

    Args:
        root: of the file system.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._begin = self._look()

    def stop(self) -> Disturbance:
        """What was taken since the start."""
        begin, end = self._begin, self._look()
        passed = [after - before for before, after in zip(begin.ticks, end.ticks, strict=True)]
        seconds = end.seconds - begin.seconds
        return Disturbance(
            preemptions_per_s=(end.switches - begin.switches) / seconds if seconds > 0.0 else None,
            steal=passed[_STEAL] / sum(passed) if len(passed) > _STEAL and sum(passed) > 0 else None,
            throttled_periods=None
            if begin.throttled is None or end.throttled is None
            else end.throttled - begin.throttled,
        )

    def _look(self) -> _Look:
        line = (_text(self._root / "proc/stat") or "").partition("\n")[0].split()
        return _Look(
            seconds=time.monotonic(),
            switches=resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
            # The last two figures, of guests, are counted in the first two as well (proc_stat(5)).
            ticks=[int(x) for x in line[1:9]],
            throttled=cpu_limits(self._root).throttled_periods,
        )


@dataclass(frozen=True)
class _Look:
    """Counters at one moment."""

    seconds: float
    switches: int
    ticks: list[int]
    throttled: int | None


def _turbo(root: Path) -> bool | None:
    cpus = root / "sys/devices/system/cpu"
    forbidden, allowed = _text(cpus / "intel_pstate/no_turbo"), _text(cpus / "cpufreq/boost")
    if forbidden is not None:
        return forbidden == "0"
    return None if allowed is None else allowed == "1"


def _text(file: Path) -> str | None:
    """Content of a small file of the kernel; ``None`` where the kernel has no such file or does not answer."""
    try:
        return file.read_text(errors="replace").strip() or None
    except OSError:
        return None
