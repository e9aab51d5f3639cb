"""Facts of a Jetson: release, libraries, power mode, clocks, temperature, and what is known not to work.

Everything but the power mode is read from files, below a root that tests replace. The files are those of NVIDIA's
Jetson Linux Developer Guide and of dpkg. Written from their documentation: nothing here has run on a Jetson.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from dfs_deploy.bench.machine import ROOT
from dfs_deploy.bench.result import Jetson, PowerState
from dfs_deploy.system.cpu import kernel_text

RELEASE = "etc/nv_tegra_release"
MODEL = "proc/device-tree/model"
APT_TENSORRT = "sudo apt install python3-libnvinfer"
APT_JETPACK = "sudo apt install nvidia-jetpack"

_LEAST_TENSORRT = (8, 6)
_LEAST_JETPACK_FOR_11 = (7, 2, 2)
_PATIENCE_S = 5.0


def is_jetson(root: Path = ROOT) -> bool:
    """Whether this is an NVIDIA Jetson.

    Args:
        root: root of the file system; tests give another.
    """
    return (root / RELEASE).is_file() or "jetson" in (kernel_text(root / MODEL) or "").lower()


def read_jetson(root: Path = ROOT) -> Jetson:
    """Reads the model and the installed software."""
    packages = installed_packages(kernel_text(root / "var/lib/dpkg/status") or "")
    release = parse_release(kernel_text(root / RELEASE) or "")
    library = next(
        (version for name, version in sorted(packages.items()) if re.fullmatch(r"libnvinfer\d+", name)), None
    )
    jetpack = packages.get("nvidia-jetpack")
    if jetpack is None and release is not None:
        jetpack = _JETPACK_OF.get(int(release.partition(".")[0]))
    return Jetson(
        model=kernel_text(root / MODEL),
        l4t=release,
        jetpack=_upstream(jetpack),
        tensorrt=_upstream(library),
        cuda=_cuda(root),
    )


def read_power_state(root: Path = ROOT) -> PowerState:
    """Reads clocks and temperatures, and asks ``nvpmodel`` for the mode."""
    celsius, sensor = hottest(root) or (None, None)
    return PowerState(query_power_mode(), clocks_locked(root), celsius, sensor)


def problems(jetson: Jetson) -> list[str]:
    """Combinations that are known not to work, one line each with what to do."""
    found = []
    major = None if jetson.l4t is None else int(jetson.l4t.partition(".")[0])
    version = _numbers(jetson.tensorrt)
    if major is not None and major < 36:
        found.append(
            f"Jetson Linux {jetson.l4t} has a Python older than 3.10 and a TensorRT older than 8.6; flash JetPack 6"
        )
    elif version is not None and version < _LEAST_TENSORRT:
        found.append(f"TensorRT {jetson.tensorrt} is older than 8.6, which is the least; {APT_JETPACK}")
    if major == 36 and version is not None and version >= (11,):
        found.append(
            f"TensorRT {jetson.tensorrt} does not run on JetPack 6, which has 10.3; remove it, then {APT_TENSORRT}"
        )
    jetpack = _numbers(jetson.jetpack) or ()
    if version is not None and version >= (11,) and (7,) <= jetpack < _LEAST_JETPACK_FOR_11 and len(jetpack) > 1:
        found.append(
            f"TensorRT {jetson.tensorrt} is for JetPack 7.2.2 and later, and this is {jetson.jetpack}; {APT_JETPACK}"
        )
    if jetson.tensorrt is None:
        found.append(f"TensorRT is not installed; {APT_JETPACK}")
    if jetson.cuda is None:
        found.append(f"the CUDA toolkit is not installed, and pycuda is built with it; {APT_JETPACK}")
    return found


_JETPACK_OF = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7"}
"""Major version of JetPack by that of Jetson Linux."""


def parse_release(text: str) -> str | None:
    """Release of Jetson Linux from ``/etc/nv_tegra_release``: ``# R36 (release), REVISION: 4.3, GCID: ...``."""
    found = re.match(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)", text)
    return None if found is None else f"{found[1]}.{found[2]}"


def installed_packages(status: str) -> dict[str, str]:
    """Versions by name of the packages that ``/var/lib/dpkg/status`` has as installed."""
    found = {}
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.+)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed") and fields.keys() >= {"Package", "Version"}:
            found[fields["Package"]] = fields["Version"]
    return found


def parse_power_mode(text: str) -> str | None:
    """Name of the mode in what ``nvpmodel -q`` prints: ``NV Power Mode: MAXN``."""
    found = re.search(r"^NV Power Mode: *(\S.*)$", text, re.MULTILINE)
    return None if found is None else found[1].strip()


def query_power_mode() -> str | None:
    """The power mode, or ``None`` if ``nvpmodel`` is missing or does not say."""
    program = shutil.which("nvpmodel")
    if program is None:
        return None
    try:
        ran = subprocess.run(  # noqa: S603 (a fixed program)
            [program, "-q"], capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_power_mode(ran.stdout)


def clocks_locked(root: Path = ROOT) -> bool | None:
    """Whether the least and the greatest frequency are one, of every CPU and the GPU; ``None`` if nothing says."""
    folders = [(f, "scaling_min_freq", "scaling_max_freq") for f in root.glob("sys/devices/system/cpu/cpu*/cpufreq")]
    for pattern in ("*.gpu", "*.ga10b", "*.gv11b", "*.gp10b", "*.gb10b"):  # the GPU's name by generation
        folders += [(f, "min_freq", "max_freq") for f in root.glob(f"sys/class/devfreq/{pattern}")]
    ends = [(kernel_text(folder / least), kernel_text(folder / greatest)) for folder, least, greatest in folders]
    said = [(low, high) for low, high in ends if low is not None and high is not None]
    return all(low == high for low, high in said) if said else None


def hottest(root: Path = ROOT) -> tuple[float, str] | None:
    """The highest temperature in degrees Celsius, and its sensor; one that is off does not answer and is left out."""
    found = []
    for zone in root.glob("sys/class/thermal/thermal_zone*"):
        name, millidegrees = kernel_text(zone / "type"), kernel_text(zone / "temp")
        if name is not None and millidegrees is not None and re.fullmatch(r"-?\d+", millidegrees):
            found.append((int(millidegrees) / 1e3, name))
    return max(found, default=None)


def _cuda(root: Path) -> str | None:
    found = re.search(
        r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', kernel_text(root / "usr/local/cuda/version.json") or ""
    )
    return None if found is None else found[1]


def _upstream(version: str | None) -> str | None:
    """Version without the suffixes of Debian and of NVIDIA's builds: ``10.3.0.30`` for ``10.3.0.30-1+cuda12.5``."""
    return None if version is None else re.split(r"[-+~]", version)[0]


def _numbers(version: str | None) -> tuple[int, ...] | None:
    return None if version is None else tuple(int(part) for part in re.findall(r"\d+", version))
