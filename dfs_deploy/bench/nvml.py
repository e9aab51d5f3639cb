"""Energy of an NVIDIA GPU's board by NVML, the driver's own library, through ``nvidia-ml-py``.

Where the driver counts energy (Volta and later), the counter is read; elsewhere power is read and integrated. NVML
renews either about ten times a second, and on A100 and H100 samples power a quarter of the time ("Part-time Power
Measurements", Yang et al., arXiv 2312.02741): use windows of seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from dfs_deploy.bench.energy import EnergySampler, PolledSampler

SOURCE = "nvml"
INTERVAL_S = 0.1

_QUERIES: Final[tuple[tuple[Literal["counter", "power"], str], ...]] = (
    ("counter", "nvmlDeviceGetTotalEnergyConsumption"),  # millijoules
    ("power", "nvmlDeviceGetPowerUsage"),  # milliwatts
)


def find(index: int = 0) -> EnergySampler | str:
    """A sampler of one GPU, or why there is none.

    Args:
        index: of the GPU in NVML's order, which is that of the bus.
    """
    try:
        import pynvml
    except ModuleNotFoundError:
        return "nvidia-ml-py is not installed; pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        rail = f"{pynvml.nvmlDeviceGetName(handle)} board"
    except pynvml.NVMLError as error:
        return f"NVML finds no GPU {index} ({error}); see what nvidia-smi says"
    for kind, query in _QUERIES:
        read = _in_units(pynvml, getattr(pynvml, query), handle)
        try:
            read()
        except OSError:
            continue
        return PolledSampler(SOURCE, rail, read, kind, INTERVAL_S)
    return f"{rail} reports neither energy nor power to NVML"


def _in_units(pynvml: Any, query: Callable[[Any], int], handle: Any) -> Callable[[], float]:
    """A query that answers in thousandths, as one in joules or watts that raises OSError where it fails."""

    def read() -> float:
        try:
            return query(handle) / 1e3
        except pynvml.NVMLError as error:
            raise OSError(str(error)) from error

    return read
