"""Energy of a CPU's packages from RAPL, whose counters Linux shows under ``/sys/class/powercap``.

The files are described in the kernel's "Power Capping Framework" (Documentation/power/powercap).
"""

from __future__ import annotations

from pathlib import Path

from dfs_deploy.bench.energy import EnergySampler, PolledSampler

SOURCE = "rapl"
INTERVAL_S = 1.0
"""Far shorter than a counter takes from zero to its end, so that no turn is missed."""

_CLASS = "sys/class/powercap"


class Package:
    """The energy of one package since it was opened.

    Args:
        zone: its folder, with ``name``, ``energy_uj`` and ``max_energy_range_uj``.

    Raises:
        OSError: a file cannot be read.
    """

    def __init__(self, zone: Path) -> None:
        self._counter = zone / "energy_uj"
        self.name = (zone / "name").read_text().strip()
        self._range = _number(zone / "max_energy_range_uj") + 1
        self._last, self._total = _number(self._counter), 0

    def joules(self) -> float:
        """Energy so far; a counter that starts again from zero goes on here. Ask more than once a turn."""
        now = _number(self._counter)
        self._total += (now - self._last) % self._range
        self._last = now
        return self._total / 1e6


def find(root: Path) -> EnergySampler | str:
    """A sampler of all packages, or why there is none."""
    zones = sorted((root / _CLASS).glob("intel-rapl:*"))
    zones = [zone for zone in zones if zone.name.count(":") == 1]  # the second level is part of the first
    packages = []
    for zone in zones:
        try:
            package = Package(zone)
        except PermissionError:
            return f"{zone / 'energy_uj'} is readable by root alone; run as root, or let your group read it"
        except OSError as error:
            return f"RAPL cannot be read ({error})"
        if package.name.startswith("package"):
            packages.append(package)
    if not packages:
        return f"no RAPL package in {root / _CLASS}"
    rail = "+".join(package.name for package in packages)
    return PolledSampler(SOURCE, rail, lambda: sum(package.joules() for package in packages), "counter", INTERVAL_S)


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except ValueError as error:
        raise OSError(f"{file} holds no number: {error}") from error
