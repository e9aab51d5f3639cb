"""The kind of CPU that INT8 engines are made for, which decides how many bits their weights have.

x86 CPUs without VNNI add two products of 8-bit numbers in 16 bits, where they can saturate. ONNX Runtime computes them
exactly there, and slowly, unless the weights have 7 bits, which cannot saturate. Everywhere else 8 bits are as fast and
more precise.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Final, Literal

from dfs_deploy.errors import UsageError
from dfs_deploy.system.cpu import Cpu, describe_cpu

if TYPE_CHECKING:
    from dfs_deploy.bundle.manifest import Manifest

TargetCpu = Literal["vnni", "avx2", "arm"]
WeightBits = Literal[7, 8]

WEIGHT_BITS: Final[dict[TargetCpu, WeightBits]] = {"vnni": 8, "avx2": 7, "arm": 8}
"""Bits of INT8 weights by kind of CPU: x86 with VNNI, x86 without, and Arm or any other that is no x86."""

AUTO: Final = "auto"
"""Name that stands for the kind of this machine's CPU."""

WORDS: Final[dict[TargetCpu, str]] = {
    "vnni": "x86 with VNNI",
    "avx2": "x86 without VNNI",
    "arm": "Arm or any other that is no x86",
}
"""Kinds of CPU in words."""

_X86 = ("x86_64", "amd64", "i686", "i386")


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
    """The kind of CPU of a name.

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
    raise UsageError(f"unknown target CPU {name!r}, expected {AUTO}, {', '.join(WEIGHT_BITS)}")


def made_for_another_cpu(manifest: Manifest, cpu: Cpu | None = None) -> str | None:
    """Says that a bundle's INT8 engines for ONNX Runtime suit another kind of CPU.

    Args:
        manifest: manifest of the bundle.
        cpu: description of the CPU that is to run them; ``None`` for the one that this process runs on.

    Returns:
        One line with the cost and the remedy, or ``None`` if they suit this CPU, or if there are none.
    """
    record = manifest.calibration
    if record is None or "int8" not in manifest.targets or "onnxruntime" not in manifest.runtimes:
        return None
    here = target_of(cpu)
    if record.weight_bits == WEIGHT_BITS[here]:
        return None
    cost = "INT8 engines are slow here" if record.weight_bits > WEIGHT_BITS[here] else "they lose precision for nothing"
    return (
        f"made for another CPU: INT8 weights have {record.weight_bits} bits and this CPU ({WORDS[here]}) wants"
        f" {WEIGHT_BITS[here]}, so {cost}; export with --target-cpu {here}"
    )
