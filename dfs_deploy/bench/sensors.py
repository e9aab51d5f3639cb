"""Energy sensors: RAPL of a CPU, NVML of a GPU, and the INA3221 of a Jetson.

Written from their documentation: RAPL from the kernel's "Power Capping Framework" (Documentation/power/powercap), the
INA3221's files and rails from NVIDIA's Jetson Linux Developer Guide ("Power Monitor"). None of it has run on a Jetson.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from dfs_deploy.bench.energy import EnergySampler
from dfs_deploy.bench.machine import ROOT


def find_sampler(device: str, root: Path = ROOT) -> EnergySampler | str:
    """The sensor of a device, or one line that says what was looked for and what to do.

    Args:
        device: ``cpu`` (RAPL), ``cuda`` (NVML) or ``jetson`` (INA3221).
        root: root of the file system; tests give another.
    """
    if device == "cuda":
        return find_nvml()
    return find_rapl(root) if device == "cpu" else find_ina3221(root)


# RAPL

_RAPL = "sys/class/powercap"
RAPL_INTERVAL_S = 1.0
"""Far shorter than a counter takes from zero to its end, so that no overflow is missed."""


class RaplPackage:
    """Energy of one package since it was opened.

    Args:
        zone: folder of the package, with ``name``, ``energy_uj`` and ``max_energy_range_uj``.

    Raises:
        OSError: a file cannot be read.
    """

    def __init__(self, zone: Path) -> None:
        self._counter = zone / "energy_uj"
        self.name = (zone / "name").read_text().strip()
        self._range = _number(zone / "max_energy_range_uj") + 1
        self._last, self._total = _number(self._counter), 0

    def joules(self) -> float:
        """Energy so far; a counter that starts again from zero goes on here, if it is read more than once meanwhile."""
        now = _number(self._counter)
        self._total += (now - self._last) % self._range
        self._last = now
        return self._total / 1e6


def find_rapl(root: Path) -> EnergySampler | str:
    """A sampler of all packages, or why there is none."""
    zones = [zone for zone in sorted((root / _RAPL).glob("intel-rapl:*")) if zone.name.count(":") == 1]
    packages = []  # the second level, with one more colon, is part of the first
    for zone in zones:
        try:
            package = RaplPackage(zone)
        except PermissionError:
            return f"{zone / 'energy_uj'} is readable only by root; run as root, or let your group read it"
        except OSError as error:
            return f"RAPL cannot be read ({error})"
        if package.name.startswith("package"):
            packages.append(package)
    if not packages:
        return f"no RAPL package in {root / _RAPL}"
    rail = "+".join(package.name for package in packages)
    return EnergySampler("rapl", rail, lambda: sum(p.joules() for p in packages), "counter", RAPL_INTERVAL_S)


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except ValueError as error:
        raise OSError(f"{file} holds no number: {error}") from error


# NVML

_NVML_INTERVAL_S = 0.1
_NVML_QUERIES: Final[tuple[tuple[Literal["counter", "power"], str], ...]] = (
    ("counter", "nvmlDeviceGetTotalEnergyConsumption"),  # millijoules
    ("power", "nvmlDeviceGetPowerUsage"),  # milliwatts
)


def find_nvml() -> EnergySampler | str:
    """A sampler of the GPU that CUDA runs on in this process, or why there is none.

    Where the driver counts energy (Volta and later), the counter is read; else power is read and integrated. NVML
    renews either about ten times a second, and on A100 and H100 samples power a quarter of the time ("Part-time Power
    Measurements", Yang et al., arXiv 2312.02741): use windows of seconds.
    """
    try:
        import pynvml
    except ModuleNotFoundError:
        return "nvidia-ml-py is not installed; pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
        handle = _nvml_handle(pynvml)
        rail = f"{pynvml.nvmlDeviceGetName(handle)} board"
    except pynvml.NVMLError as error:
        return f"NVML finds no GPU ({error}); see what nvidia-smi says"
    for kind, query in _NVML_QUERIES:
        read = _in_units(pynvml, getattr(pynvml, query), handle)
        try:
            read()
        except OSError:
            continue
        return EnergySampler("nvml", rail, read, kind, _NVML_INTERVAL_S)
    return f"{rail} reports neither energy nor power to NVML"


def _nvml_handle(pynvml: Any) -> Any:
    """NVML's handle of CUDA's first device.

    NVML counts every card in the order of the bus, CUDA those that ``CUDA_VISIBLE_DEVICES`` shows and the fastest
    first: only the address on the bus is common to both.
    """
    try:
        import pycuda.driver as cuda
    except ModuleNotFoundError:  # nothing runs on a GPU then
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    cuda.init()
    return pynvml.nvmlDeviceGetHandleByPciBusId(cuda.Device(0).pci_bus_id())


def _in_units(pynvml: Any, query: Callable[[Any], int], handle: Any) -> Callable[[], float]:
    """A query that answers in thousandths, as one in joules or watts that raises OSError if it fails."""

    def read() -> float:
        try:
            return query(handle) / 1e3
        except pynvml.NVMLError as error:
            raise OSError(str(error)) from error

    return read


# INA3221

_TOTALS = (("VIN",), ("POM_5V_IN",), ("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
"""Rail that feeds the whole module, the one to prefer first; an AGX Orin has none, but three that add up to it."""

_INA3221 = "sys/bus/i2c/drivers/ina3221"
_INA3221_INTERVAL_S = 0.05


def find_ina3221(root: Path) -> EnergySampler | str:
    """A sampler of a Jetson module's total power, or why there is none."""
    channels: dict[str, tuple[Path, Path]] = {}
    for label in sorted((root / _INA3221).glob("*/hwmon/hwmon*/in?_label")):
        number = label.name[len("in") : -len("_label")]
        millivolts, milliamperes = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
        if millivolts.is_file() and milliamperes.is_file():  # another channel has no current
            channels[label.read_text().strip()] = (millivolts, milliamperes)
    if not channels:
        return f"no INA3221 in {root / _INA3221}"
    names = next((names for names in _TOTALS if all(name in channels for name in names)), None)
    if names is None:
        expected = ", ".join("+".join(names) for names in _TOTALS)
        return f"the INA3221 measures {', '.join(channels)}, expected one of {expected}"
    chosen = [channels[name] for name in names]

    def watts() -> float:
        return sum(_number(millivolts) * _number(milliamperes) for millivolts, milliamperes in chosen) / 1e6

    try:
        watts()
    except OSError as error:
        return f"the INA3221 cannot be read ({error})"
    return EnergySampler("ina3221", "+".join(names), watts, "power", _INA3221_INTERVAL_S)
