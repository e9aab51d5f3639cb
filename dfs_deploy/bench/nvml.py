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


def find() -> EnergySampler | str:
    """A sampler of the GPU that CUDA runs on in this process, or why there is none."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return "nvidia-ml-py is not installed; pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
        handle = _handle(pynvml)
        rail = f"{pynvml.nvmlDeviceGetName(handle)} board"
    except pynvml.NVMLError as error:
        return f"NVML finds no GPU ({error}); see what nvidia-smi says"
    for kind, query in _QUERIES:
        read = _in_units(pynvml, getattr(pynvml, query), handle)
        try:
            read()
        except OSError:
            continue
        return PolledSampler(SOURCE, rail, read, kind, INTERVAL_S)
    return f"{rail} reports neither energy nor power to NVML"


def _handle(pynvml: Any) -> Any:
    """NVML's handle of CUDA's first device.

    NVML counts every card in the order of the bus, CUDA those that ``CUDA_VISIBLE_DEVICES`` shows and the fastest
    first: only the address on the bus tells them apart.
    """
    try:
        import pycuda.driver as cuda
    except ModuleNotFoundError:  # nothing runs on a GPU then
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    cuda.init()
    return pynvml.nvmlDeviceGetHandleByPciBusId(cuda.Device(0).pci_bus_id())


def _in_units(pynvml: Any, query: Callable[[Any], int], handle: Any) -> Callable[[], float]:
    """A query that answers in thousandths, as one in joules or watts that raises OSError where it fails."""

    def read() -> float:
        try:
            return query(handle) / 1e3
        except pynvml.NVMLError as error:
            raise OSError(str(error)) from error

    return read
