"""Trees of files as the kernel shows them, made from its documentation, for tests of sensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    """Writes files under a root, their folders made."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def ina3221_tree(root: Path, chips: Mapping[str, Mapping[int, tuple[str, int, int]]]) -> Path:
    """INA3221 monitors by bus address; of each channel its label, mV and mA."""
    files = {}
    for number, (address, channels) in enumerate(chips.items()):
        folder = f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon{number + 3}"
        files[f"{folder}/name"] = "ina3221\n"
        for channel, (label, millivolts, milliamperes) in channels.items():
            files[f"{folder}/in{channel}_label"] = f"{label}\n"
            files[f"{folder}/in{channel}_input"] = f"{millivolts}\n"
            files[f"{folder}/curr{channel}_input"] = f"{milliamperes}\n"
        files[f"{folder}/in7_label"] = "sum of shunt voltages\n"
        files[f"{folder}/in7_input"] = "0\n"
    return write_tree(root, files)


def rapl_tree(root: Path, packages: int = 1, microjoules: int = 1_000_000, greatest: int = 262_143_328_850) -> Path:
    """RAPL zones of a CPU: packages, each with a core zone in it, and the platform."""
    zones = {f"intel-rapl:{i}": f"package-{i}" for i in range(packages)}
    zones |= {f"intel-rapl:{i}:0": "core" for i in range(packages)}
    zones[f"intel-rapl:{packages}"] = "psys"
    files = {"sys/class/powercap/intel-rapl/enabled": "1\n"}
    for zone, name in zones.items():
        folder = f"sys/class/powercap/{zone}"
        files[f"{folder}/name"] = f"{name}\n"
        files[f"{folder}/energy_uj"] = f"{microjoules}\n"
        files[f"{folder}/max_energy_range_uj"] = f"{greatest}\n"
    return write_tree(root, files)
