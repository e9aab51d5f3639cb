"""Energy sensors: RAPL of a CPU, NVML of a GPU, and a Jetson's INA3221, by its files or by ``tegrastats``.

Written from their documentation: RAPL from the kernel's "Power Capping Framework" (Documentation/power/powercap), the
INA3221's files and rails and the lines of ``tegrastats`` from NVIDIA's Jetson Linux Developer Guide ("Power Monitor",
"tegrastats Utility"). None of it has run on a Jetson.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO, Any, Final, Literal

from dfs_deploy.bench.energy import EnergyReading, EnergySampler, PolledSampler, reading
from dfs_deploy.bench.machine import ROOT
from dfs_deploy.errors import EnvironmentLacksError


def find_sampler(device: str, root: Path = ROOT) -> EnergySampler | str:
    """The best sensor of a device, or one line that says what was looked for and what to do.

    Args:
        device: ``cpu`` (RAPL), ``cuda`` (NVML) or ``jetson`` (INA3221, else tegrastats).
        root: root of the file system; tests give another.
    """
    if device == "cpu":
        return find_rapl(root)
    if device == "cuda":
        return find_nvml()
    sensor = find_ina3221(root)
    if isinstance(sensor, EnergySampler):
        return sensor
    fallback = find_tegrastats()
    return fallback if isinstance(fallback, EnergySampler) else f"{sensor}; {fallback}"


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
    return PolledSampler("rapl", rail, lambda: sum(p.joules() for p in packages), "counter", RAPL_INTERVAL_S)


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
        return PolledSampler("nvml", rail, read, kind, _NVML_INTERVAL_S)
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

TOTALS = (("VIN",), ("POM_5V_IN",), ("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
"""Rail that feeds the whole module, the one to prefer first; an AGX Orin has none, but three that add up to it."""

_EXPECTED = ", ".join("+".join(names) for names in TOTALS)
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
    names = total_of(channels)
    if names is None:
        return f"the INA3221 measures {', '.join(channels)}, expected one of {_EXPECTED}"
    chosen = [channels[name] for name in names]

    def watts() -> float:
        return sum(_number(millivolts) * _number(milliamperes) for millivolts, milliamperes in chosen) / 1e6

    try:
        watts()
    except OSError as error:
        return f"the INA3221 cannot be read ({error})"
    return PolledSampler("ina3221", "+".join(names), watts, "power", _INA3221_INTERVAL_S)


def total_of(labels: Collection[str]) -> tuple[str, ...] | None:
    """Rails among these whose sum is the module's power, or ``None``."""
    return next((names for names in TOTALS if all(name in labels for name in names)), None)


# tegrastats

_TEGRASTATS_INTERVAL_MS = 100
_PATIENCE_S = 5.0
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/(\d+)(?:mW)?(?!\w)")


def parse_rails(line: str) -> dict[str, float]:
    """Power in watts of each rail that a line of ``tegrastats`` names.

    A line has for each rail its power now and its mean in milliwatts: ``VDD_IN 4524mW/4510mW``, before JetPack 5
    without the unit.
    """
    return {name: int(now) / 1e3 for name, now, _ in _RAIL.findall(line)}


def find_tegrastats(command: Sequence[str] | None = None) -> EnergySampler | str:
    """A sampler of the module's total power, or why there is none.

    Args:
        command: command that prints the lines; ``None`` for ``tegrastats`` at ten lines per second.
    """
    if command is None:
        program = shutil.which("tegrastats")
        if program is None:
            return "no tegrastats on the path"
        command = (program, "--interval", str(_TEGRASTATS_INTERVAL_MS))
    sampler = TegrastatsSampler(command)
    try:
        sampler.start()
        sampler.cancel()
    except EnvironmentLacksError as error:
        return str(error)
    return sampler


class TegrastatsSampler(EnergySampler):
    """Reads the lines of a process that lives from :meth:`start` to :meth:`stop`.

    Args:
        command: command that prints them.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.source, self.rail = "tegrastats", ""
        self._command = tuple(command)
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._samples: list[tuple[float, float]] = []
        self._begun = threading.Event()
        self._seen = ""

    def start(self) -> None:
        self.cancel()
        self._samples, self._seen = [], ""
        self._begun.clear()
        try:
            self._process = subprocess.Popen(  # noqa: S603 (a fixed program)
                self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            raise EnvironmentLacksError(
                f"{self._command[0]} does not start ({error}); measure without energy"
            ) from error
        self._thread = threading.Thread(
            target=self._follow, args=(self._process.stdout,), name="energy-tegrastats", daemon=True
        )
        self._thread.start()
        self._begun.wait(_PATIENCE_S)
        if not self._samples:
            self.cancel()
            seen = f"printed {self._seen[:80]!r}" if self._seen else "printed nothing"
            raise EnvironmentLacksError(f"{self._command[0]} {seen}, expected one of {_EXPECTED}")
        self._samples = [(time.monotonic(), self._samples[-1][1])]

    def stop(self) -> EnergyReading:
        if self._thread is None or not self._thread.is_alive():
            self.cancel()
            raise EnvironmentLacksError(f"{self._command[0]} ended by itself; measure without energy")
        self.cancel()
        # Lines come ten times per second: the last one holds until the end of the window.
        self._samples.append((time.monotonic(), self._samples[-1][1]))
        return reading(self._samples, "power", self.source, self.rail)

    def cancel(self) -> None:
        """Ends the process and the thread, if they run."""
        process, thread = self._process, self._thread
        self._process = self._thread = None
        if process is not None:
            process.terminate()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if thread is not None:
            thread.join()
        if process is not None and process.stdout is not None:
            process.stdout.close()

    def _follow(self, lines: IO[str]) -> None:
        for line in lines:
            self._seen = line.strip()
            found = parse_rails(line)
            names = total_of(found)
            if names is None:
                break
            self.rail = "+".join(names)
            self._samples.append((time.monotonic(), sum(found[name] for name in names)))
            self._begun.set()
        self._begun.set()
