"""Facts of a Jetson: release, libraries, power mode, clocks, temperature, and what is known not to work.

Everything but the power mode is read from files, below a root that tests replace. The files are those of NVIDIA's
Jetson Linux Developer Guide and of dpkg. Written from their documentation: nothing here has run on a Jetson.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dfs_deploy.system.cpu import ROOT, kernel_text

RELEASE = "etc/nv_tegra_release"
MODEL = "proc/device-tree/model"
APT_TENSORRT = "sudo apt install python3-libnvinfer"
APT_JETPACK = "sudo apt install nvidia-jetpack"

UNKNOWN = "not found"
"""Stands for a fact that the board does not give."""

_PATIENCE_S = 5.0


def is_jetson(root: Path = ROOT) -> bool:
    """Whether this is an NVIDIA Jetson.

    Args:
        root: root of the file system; tests give another.
    """
    return (root / RELEASE).is_file() or "jetson" in kernel_text(root / MODEL).lower()


def jetson_facts(root: Path = ROOT) -> dict[str, str]:
    """Model, installed software, and the state that the speed depends on; :data:`UNKNOWN` for what is not said."""
    packages = _installed_packages(kernel_text(root / "var/lib/dpkg/status"))
    release = re.match(
        r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)", kernel_text(root / RELEASE)
    )  # "# R36 (release), REVISION: 4.3, GCID: ..."
    cuda = re.search(
        r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', kernel_text(root / "usr/local/cuda/version.json")
    )
    tensorrt = next((version for name, version in packages.items() if re.fullmatch(r"libnvinfer\d+", name)), None)
    facts = {
        "model": kernel_text(root / MODEL),
        "Jetson Linux": None if release is None else f"{release[1]}.{release[2]}",
        "JetPack": packages.get("nvidia-jetpack"),
        "TensorRT": tensorrt,
        "CUDA": None if cuda is None else cuda[1],
        "power mode": _power_mode(),
        "clocks": _clocks(root),
        "temperature": _temperature(root),
    }
    return {name: value or UNKNOWN for name, value in facts.items()}


def problems(facts: Mapping[str, str]) -> list[str]:
    """What is known not to work, one line each with what to do.

    Args:
        facts: see :func:`jetson_facts`.
    """
    found = []
    system, tensorrt = facts["Jetson Linux"].partition(".")[0], facts["TensorRT"]
    if system.isdecimal() and int(system) < 36:
        found.append(
            f"Jetson Linux {facts['Jetson Linux']} has a Python older than 3.10 and a TensorRT older than 8.6; flash"
            " JetPack 6"
        )
    if system == "36" and re.match(r"1[1-9]\.", tensorrt):
        found.append(f"TensorRT {tensorrt} does not run on JetPack 6, which has 10.3; remove it, then {APT_TENSORRT}")
    if tensorrt == UNKNOWN:
        found.append(f"TensorRT is not installed; {APT_JETPACK}")
    if facts["CUDA"] == UNKNOWN:
        found.append(f"the CUDA toolkit is not installed, and pycuda is built with it; {APT_JETPACK}")
    return found


def _installed_packages(status: str) -> dict[str, str]:
    """Versions by name of the packages that ``/var/lib/dpkg/status`` has as installed.

    Suffixes of Debian and of NVIDIA's builds are left out: ``10.3.0.30`` for ``10.3.0.30-1+cuda12.5``.
    """
    found = {}
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.+)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed") and fields.keys() >= {"Package", "Version"}:
            found[fields["Package"]] = re.split(r"[-+~]", fields["Version"])[0]
    return found


def _power_mode() -> str | None:
    """Power mode in what ``nvpmodel -q`` prints, as in ``NV Power Mode: MAXN``."""
    try:
        ran = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=_PATIENCE_S, check=False)  # noqa: S607 (on the path)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"^NV Power Mode: *(\S.*)$", ran.stdout, re.MULTILINE)
    return None if found is None else found[1].strip()


def _clocks(root: Path) -> str | None:
    """Whether the least and the greatest frequency are one, of every CPU and the GPU."""
    folders = [(f, "scaling_min_freq", "scaling_max_freq") for f in root.glob("sys/devices/system/cpu/cpu*/cpufreq")]
    for pattern in ("*.gpu", "*.ga10b", "*.gv11b", "*.gp10b", "*.gb10b"):  # the GPU's name by generation
        folders += [(f, "min_freq", "max_freq") for f in root.glob(f"sys/class/devfreq/{pattern}")]
    ends = [(kernel_text(folder / least), kernel_text(folder / greatest)) for folder, least, greatest in folders]
    said = [(low, high) for low, high in ends if low and high]
    if not said:
        return None
    return "locked" if all(low == high for low, high in said) else "free: sudo jetson_clocks locks them"


def _temperature(root: Path) -> str | None:
    """Highest temperature and its sensor; one that is off does not answer and is left out."""
    found = []
    for zone in root.glob("sys/class/thermal/thermal_zone*"):
        name, millidegrees = kernel_text(zone / "type"), kernel_text(zone / "temp")
        if name and re.fullmatch(r"-?\d+", millidegrees):
            found.append((int(millidegrees) / 1e3, name))
    return f"{max(found)[0]:.1f} °C ({max(found)[1]})" if found else None
