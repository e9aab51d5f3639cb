"""This machine's CPU as Linux describes it: what it computes fast, which INT8 engines suit it, how much of it is ours.

x86 CPUs without VNNI add two products of 8-bit numbers in 16 bits, where they can saturate. ONNX Runtime computes them
exactly there, and slowly, unless the weights have 7 bits, which cannot saturate. Everywhere else 8 bits are as fast and
more precise.
"""

from __future__ import annotations

import itertools
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from dfs_deploy.errors import UsageError

_INT8 = (
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx_vnni", "AVX VNNI"),
    ("i8mm", "Arm I8MM"),
    ("asimddp", "Arm dot product"),
)
_KEY_FACTS = ("model name", "CPU implementer", "CPU part", "CPU variant", "CPU revision", "Features")
_X86_VECTORS = ("avx", "amx")
_ROOT = Path("/")
_OCTAL = re.compile(r"\\([0-7]{3})")
"""An escaped character, such as a space, in a path of ``/proc/self/mountinfo``."""

TargetCpu = Literal["vnni", "avx2", "arm"]
WeightBits = Literal[7, 8]

WEIGHT_BITS: Final[dict[TargetCpu, WeightBits]] = {"vnni": 8, "avx2": 7, "arm": 8}
"""Bits of INT8 weights that each kind of CPU wants."""

AUTO: Final = "auto"
"""Name of the kind of this machine's CPU, whichever it is."""

WORDS: Final[dict[TargetCpu, str]] = {
    "vnni": "x86 with VNNI",
    "avx2": "x86 without VNNI",
    "arm": "Arm or any other that is not x86",
}
"""Kinds of CPU in words."""

_X86 = ("x86_64", "amd64", "i686", "i386")


@dataclass(frozen=True)
class Cpu:
    """A CPU and what it can do.

    Attributes:
        model: name of the model, or the architecture if the system gives none.
        features: names that the kernel has for what it can do; empty if the system does not say.
        int8: instructions for 8-bit products that it has, in words; empty if it has none.
        float16: whether it computes in float16 and ONNX Runtime has kernels for it: 64-bit Arm with FEAT_FP16.
        key: text that differs between CPUs, for the key of a cache: on x86 the model's name, which virtual machines
            shorten to that of a family, and the vector instructions; on Arm the maker's numbers and the features.
    """

    model: str
    features: frozenset[str]
    int8: str
    float16: bool
    key: str


def describe_cpu(root: Path = _ROOT) -> Cpu:
    """Looks at the CPU.

    Args:
        root: folder of the file system's root.
    """
    facts, machine = cpu_facts(root), platform.machine()
    features = frozenset(facts.get("flags", facts.get("Features", "")).split())
    key = [facts[name] for name in _KEY_FACTS if name in facts] if facts else [platform.processor()]
    key += sorted(feature for feature in features if feature.startswith(_X86_VECTORS))
    return Cpu(
        model=facts.get("model name") or platform.processor() or machine,
        features=features,
        int8=next((name for flag, name in _INT8 if flag in features), ""),
        float16=machine.lower() in ("aarch64", "arm64") and "asimdhp" in features,
        key=" ".join([machine, *key]),
    )


def has_fast_float16() -> bool:
    """Whether this CPU computes in float16, and ONNX Runtime has kernels for it; see ``Cpu``."""
    return describe_cpu().float16


def cpu_facts(root: Path = _ROOT) -> dict[str, str]:
    """Facts about the first CPU in ``/proc/cpuinfo``, by the kernel's names; empty if there is no such file.

    Args:
        root: folder of the file system's root.
    """
    file = root / "proc/cpuinfo"
    if not file.is_file():
        return {}
    with file.open(errors="replace") as stream:
        # The kernel writes an entry as it is read, and machines of hundreds of cores have long files.
        pairs = [line.partition(":") for line in itertools.takewhile(str.strip, stream)]
    return {name.strip(): value.strip() for name, _, value in pairs}


def is_x86() -> bool:
    """Whether this machine has an x86 CPU."""
    return platform.machine().lower() in _X86


def target_of(cpu: Cpu | None = None) -> TargetCpu:
    """The kind of a CPU of this machine's architecture.

    Args:
        cpu: description of the CPU; ``None`` for the one that this process runs on.
    """
    if not is_x86():
        return "arm"
    return "vnni" if (describe_cpu() if cpu is None else cpu).int8 else "avx2"


def target_named(name: str | None) -> TargetCpu:
    """The kind of CPU that a name stands for.

    Args:
        name: ``vnni``, ``avx2`` or ``arm``; ``auto`` and ``None`` for the kind of this machine's CPU.

    Raises:
        UsageError: another name.
    """
    if name is None or name == AUTO:
        return target_of()
    for target in WEIGHT_BITS:
        if name == target:
            return target
    raise UsageError(f"unknown target CPU {name!r}, expected {AUTO}, {', '.join(WEIGHT_BITS)}; name one of them")


def made_for_another_cpu(
    weight_bits: int | None, cpu: Cpu | None = None, made_for: TargetCpu | None = None
) -> str | None:
    """A note if INT8 engines for ONNX Runtime suit another kind of CPU.

    Args:
        weight_bits: bits of their weights; ``None`` if there are no such engines.
        cpu: description of the CPU that is to run them; ``None`` for the one that this process runs on.
        made_for: kind of CPU that they were made for; ``None`` if that is not recorded.

    Returns:
        One line with the cost and the remedy; ``None`` if they suit this CPU.
    """
    here = target_of(cpu)
    wanted = WEIGHT_BITS[here]
    if weight_bits is None or weight_bits == wanted:
        return None
    cost = "INT8 engines are slow here" if weight_bits > wanted else "they lose precision for nothing"
    meant = "" if made_for is None or made_for == here else f" ({WORDS[made_for]})"
    return (
        f"made for another CPU{meant}: INT8 weights have {weight_bits} bits and this CPU ({WORDS[here]}) wants"
        f" {wanted}, so {cost}; export with --target-cpu {here}"
    )


@dataclass(frozen=True)
class CpuLimits:
    """How much CPU time this process may use.

    Attributes:
        affinity: logical CPUs that this process may run on, in order.
        quota: CPU seconds per second that its control groups grant (``docker run --cpus``, a Kubernetes limit): the
            smallest of their limits; ``None`` for no limit. A process that needs more is stopped until the next period
            begins, usually every 100 ms.
        throttled_periods: number of periods in which a group with a quota was stopped, from the group's start until
            now; ``None`` without a quota, or if the kernel does not count them. Take the difference of two readings.
    """

    affinity: tuple[int, ...]
    quota: float | None
    throttled_periods: int | None

    @property
    def cores(self) -> int:
        """Number of threads that can run at once: of logical CPUs, or of what the quota keeps busy if that is fewer.

        It is at least 1, and the quota is rounded up: a quota of 1.5 keeps 2 threads busy three quarters of the time.
        """
        count = len(self.affinity)
        return count if self.quota is None else max(1, min(count, -int(-self.quota // 1)))


def cpu_limits(root: Path = _ROOT) -> CpuLimits:
    """Reads affinity and control groups, version 2 and version 1; a file that the kernel does not have is no limit.

    Args:
        root: folder of the file system's root.
    """
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    quotas: list[float] = []
    throttled: list[int] = []
    for group in _cpu_groups(root):
        quota = _quota(group)
        if quota is not None:
            quotas.append(quota)
            counts = re.search(r"^nr_throttled (\d+)$", kernel_text(group / "cpu.stat") or "", re.MULTILINE)
            throttled += [int(counts[1])] if counts else []
    return CpuLimits(
        affinity=tuple(affinity),
        quota=min(quotas, default=None),
        throttled_periods=sum(throttled) if throttled else None,
    )


def _quota(group: Path) -> float | None:
    """CPU seconds per second that one control group grants."""
    limit, _, period = (kernel_text(group / "cpu.max") or "").partition(" ")  # version 2: "max 100000"
    if not limit:
        limit = kernel_text(group / "cpu.cfs_quota_us") or ""  # version 1: -1 is no limit
        period = kernel_text(group / "cpu.cfs_period_us") or ""
    return int(limit) / int(period) if limit.isdecimal() and period.isdecimal() and int(period) else None


def _cpu_groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that this process is in, its own first, then those around it up to the mount."""
    for number, kind, place, mount in _group_mounts(root):
        for line in (kernel_text(root / "proc/self/cgroup") or "").splitlines():
            found, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if (kind == "cgroup2" and found == "0") or (number and number in controllers.split(",")):
                within = PurePosixPath(path)
                # In a container without a namespace of its own, the path is the host's and the mount shows a part.
                inner = within.relative_to(place) if within.is_relative_to(place) else PurePosixPath()
                if ".." in inner.parts:  # the process was moved out of its namespace
                    inner = PurePosixPath()
                folder = root / str(mount).lstrip("/")
                yield from (folder / each for each in (inner, *inner.parents))


def _group_mounts(root: Path) -> Iterator[tuple[str, str, PurePosixPath, PurePosixPath]]:
    """Mounts of control groups that limit CPU time: controller, kind, the part that is mounted, and its mount point."""
    for line in (kernel_text(root / "proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")  # proc_pid_mountinfo(5)
        fields, said = before.split(), after.split()
        if len(fields) < 5 or len(said) < 3:
            continue
        place, mount = (PurePosixPath(_OCTAL.sub(lambda code: chr(int(code[1], 8)), part)) for part in fields[3:5])
        if said[0] == "cgroup2":
            yield "", "cgroup2", place, mount
        elif said[0] == "cgroup" and "cpu" in said[2].split(","):
            yield "cpu", "cgroup", place, mount


def kernel_text(file: Path) -> str | None:
    """Content of a small file of the kernel; ``None`` if it has no such file or does not answer."""
    try:
        return file.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None
