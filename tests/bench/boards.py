"""File trees of Jetson boards, made from the documented formats of their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tests.bench.sensors import write_tree

ORIN_PACKAGES = {
    "nvidia-l4t-core": "36.4.3-20250107174145",
    "nvidia-jetpack": "6.2+b77",
    "libnvinfer10": "10.3.0.30-1+cuda12.5",
    "libnvinfer-bin": "10.3.0.30-1+cuda12.5",
    "python3-libnvinfer": "10.3.0.30-1+cuda12.5",
}


def jetson_tree(
    root: Path,
    *,
    release: str = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8\n",
    packages: Mapping[str, str] = ORIN_PACKAGES,
    cuda: str | None = "12.6.68",
    locked: bool = False,
) -> Path:
    """An Orin Nano with JetPack 6.2, unless told otherwise."""
    status = [f"Package: {name}\nStatus: install ok installed\nVersion: {v}" for name, v in packages.items()]
    status.append("Package: libnvinfer8\nStatus: deinstall ok config-files\nVersion: 8.5.2-1+cuda11.4")
    least = 1510400 if locked else 115200
    files = {
        "etc/nv_tegra_release": release,
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "var/lib/dpkg/status": "\n\n".join(status) + "\n",
        "sys/class/devfreq/17000000.gpu/min_freq": f"{625000000 if locked else 306000000}\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "625000000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "47093\n",
        "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
        "sys/class/thermal/thermal_zone8/type": "tj-thermal\n",
        "sys/class/thermal/thermal_zone8/temp": "48531\n",
    }
    for cpu in range(2):
        files[f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_min_freq"] = f"{least}\n"
        files[f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_max_freq"] = "1510400\n"
    if cuda is not None:
        versions = {"cuda": {"name": "CUDA SDK", "version": cuda}, "cuda_nvcc": {"name": "nvcc", "version": "12.6.68"}}
        files["usr/local/cuda/version.json"] = json.dumps(versions, indent=3)
    return write_tree(root, files)
