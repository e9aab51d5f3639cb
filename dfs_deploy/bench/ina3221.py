"""A Jetson's own power monitor, the INA3221, over sysfs: one file for a rail's millivolts and one for its milliamperes.

Paths and rails are those of NVIDIA's Jetson Linux Developer Guide, "Power Monitor".
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dfs_deploy.bench.energy import EnergySampler, PolledSampler

SOURCE = "ina3221"
TOTALS = (("VIN",), ("POM_5V_IN",), ("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
"""The rail that feeds the whole module, the one to prefer first; an AGX Orin has none, but three that add up to it."""

INTERVAL_S = 0.05
_DRIVER = "sys/bus/i2c/drivers/ina3221"


@dataclass(frozen=True)
class Rail:
    """One rail: its label, and the files with its voltage in mV and its current in mA."""

    label: str
    millivolts: Path
    milliamperes: Path

    def watts(self) -> float:
        """Power now; raises OSError where it cannot be read."""
        try:
            return int(self.millivolts.read_text()) * int(self.milliamperes.read_text()) / 1e6
        except ValueError as error:
            raise OSError(f"{self.millivolts.parent} holds no number: {error}") from error


def rails(root: Path) -> list[Rail]:
    """Every rail of every INA3221, in the order of their files; a channel without a label or a current is left out."""
    found = []
    for label in sorted((root / _DRIVER).glob("*/hwmon/hwmon*/in?_label")):
        channel = label.name[len("in") : -len("_label")]
        volts, amperes = label.with_name(f"in{channel}_input"), label.with_name(f"curr{channel}_input")
        if volts.is_file() and amperes.is_file():
            found.append(Rail(label.read_text().strip(), volts, amperes))
    return found


def total_of(labels: Collection[str]) -> tuple[str, ...] | None:
    """The rails among these whose sum is the module's power, or ``None``."""
    return next((names for names in TOTALS if all(name in labels for name in names)), None)


def expected() -> str:
    """What :func:`total_of` looks for, for messages."""
    return ", ".join("+".join(names) for names in TOTALS)


def find(root: Path) -> EnergySampler | str:
    """A sampler of the module's total power, or why there is none."""
    found = rails(root)
    if not found:
        return f"no INA3221 in {root / _DRIVER}"
    by_label = {rail.label: rail for rail in found}
    names = total_of(by_label)
    if names is None:
        return f"the INA3221 measures {', '.join(by_label)}, expected one of {expected()}"
    chosen = [by_label[name] for name in names]

    def watts() -> float:
        return sum(rail.watts() for rail in chosen)

    try:
        watts()
    except OSError as error:
        return f"the INA3221 cannot be read ({error})"
    return PolledSampler(SOURCE, "+".join(names), watts, "power", INTERVAL_S)
