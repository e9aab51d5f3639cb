"""NVML by a stand-in of ``pynvml``, whose names are held to the real module's where that is installed."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from dfs_deploy.bench.energy import EnergySampler
from dfs_deploy.bench.sensors import find_nvml, find_sampler
from dfs_deploy.errors import EnvironmentLacksError
from tests.checks import refuses
from tests.runtimes.tensorrt.machine import machine


class Driver(ModuleType):
    """What the driver answers: each name a function that ``pynvml`` has."""

    class NVMLError(Exception):
        pass

    def __init__(self, gpus: int = 1, counts_energy: bool = True, tells_power: bool = True) -> None:
        super().__init__("pynvml")
        self._gpus, self._counts_energy, self._tells_power = gpus, counts_energy, tells_power
        self.millijoules = 1_000

    def _need(self, there: bool, text: str) -> None:
        if not there:
            raise self.NVMLError(text)

    def nvmlInit(self) -> None:
        self._need(self._gpus > 0, "Driver Not Loaded")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._need(index < self._gpus, "Invalid Argument")
        return index

    def nvmlDeviceGetHandleByPciBusId(self, address: str) -> int:
        self._need(address == "0000:3B:00.0", "Not Found")
        return 1

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA Test"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        self._need(self._counts_energy, "Not Supported")
        self.millijoules += 2_500
        return self.millijoules

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        self._need(self._tells_power, "Not Supported")
        return 75_000


def installed(monkeypatch: pytest.MonkeyPatch, driver: Driver | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver)


def test_the_stand_in_has_no_name_that_the_real_module_lacks() -> None:
    real: Any = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    for name in vars(Driver):
        if name.startswith(("nvml", "NVML")):
            assert hasattr(real, name), name


def test_energy_is_the_difference_of_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, Driver())
    sampler = find_sampler("cuda")
    assert isinstance(sampler, EnergySampler)
    sampler.start()
    result = sampler.stop()
    assert (result.source, result.rail) == ("nvml", "NVIDIA Test board")
    assert result.joules == pytest.approx(2.5 * (result.samples - 1))


def test_without_a_counter_power_is_integrated(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, Driver(counts_energy=False))
    sampler = find_nvml()
    assert isinstance(sampler, EnergySampler)
    sampler.start()
    assert sampler.stop().watts == pytest.approx(75.0)


def test_a_gpu_that_falls_off_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    installed(monkeypatch, driver)
    sampler = find_nvml()
    assert isinstance(sampler, EnergySampler)
    sampler.start()
    driver._counts_energy = False
    with refuses(EnvironmentLacksError, "nvml", "Not Supported"):
        sampler.stop()


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (None, ["nvidia-ml-py is not installed", "pip install nvidia-ml-py"]),
        (Driver(gpus=0), ["Driver Not Loaded", "nvidia-smi"]),
        (Driver(counts_energy=False, tells_power=False), ["NVIDIA Test", "neither energy nor power"]),
    ],
)
def test_no_sampler_and_why(monkeypatch: pytest.MonkeyPatch, driver: Driver | None, words: list[str]) -> None:
    installed(monkeypatch, driver)
    found = find_sampler("cuda")
    assert isinstance(found, str)
    assert all(word in found for word in words)


def test_of_several_cards_the_one_that_cuda_runs_on_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML's first card may be another than CUDA's, as with CUDA_VISIBLE_DEVICES."""
    asked: list[int] = []

    class Two(Driver):
        def nvmlDeviceGetName(self, handle: int) -> str:
            asked.append(handle)
            return f"NVIDIA Test {handle}"

    installed(monkeypatch, Two(gpus=2))
    with machine():
        sampler = find_nvml()
    assert isinstance(sampler, EnergySampler)
    assert (sampler.rail, asked) == ("NVIDIA Test 1 board", [1])
