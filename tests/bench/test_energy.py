from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.bench.energy import EnergyReading, EnergySampler, reading
from dfs_deploy.bench.sensors import find_sampler
from dfs_deploy.errors import EnvironmentLacksError
from tests.bench.sensors import ina3221_tree, rapl_tree
from tests.checks import refuses

steps = st.lists(st.tuples(st.floats(1e-3, 10.0), st.floats(0.0, 1e3)), min_size=2, max_size=30)


def walk(made: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Samples at rising times from steps of time and a power each."""
    times = itertools.accumulate(step for step, _ in made)
    return [(moment, watts) for moment, (_, watts) in zip(times, made, strict=True)]


@given(steps, st.floats(0.0, 1e3))
def test_constant_power_is_power_times_time(made: list[tuple[float, float]], watts: float) -> None:
    samples = [(moment, watts) for moment, _ in walk(made)]
    result = reading(samples, "power", "ina3221", "VIN")
    assert result.joules == pytest.approx(watts * result.seconds)
    assert result.watts == pytest.approx(watts)
    assert (result.samples, result.rate_hz) == (len(samples), pytest.approx((len(samples) - 1) / result.seconds))


@given(steps, st.integers(1, 28))
def test_energy_adds_up_over_windows_and_stays_between_the_extremes(made: list[tuple[float, float]], cut: int) -> None:
    samples = walk(made)
    whole = reading(samples, "power", "s", "r")
    powers = [watts for _, watts in samples]
    assert min(powers) - 1e-6 <= whole.watts <= max(powers) + 1e-6
    cut = min(cut, len(samples) - 2)
    if cut >= 1:
        parts = [reading(part, "power", "s", "r").joules for part in (samples[: cut + 1], samples[cut:])]
        assert sum(parts) == pytest.approx(whole.joules)


def test_of_a_counter_the_ends_count() -> None:
    assert reading([(1.0, 100.0), (2.0, 500.0), (5.0, 130.0)], "counter", "rapl", "package-0") == EnergyReading(
        joules=30.0, seconds=4.0, source="rapl", rail="package-0", rate_hz=0.5, samples=3
    )


@pytest.mark.parametrize("samples", [[], [(1.0, 5.0)], [(1.0, 5.0), (1.0, 5.0)]])
def test_too_few_samples_are_no_reading(samples: list[tuple[float, float]]) -> None:
    with refuses(EnvironmentLacksError, "nvml", str(len(samples)), "longer"):
        reading(samples, "power", "nvml", "board")


def test_a_window_opens_and_closes_with_a_sample_and_leaves_no_thread() -> None:
    reads = itertools.count()
    sampler = EnergySampler("test", "rail", lambda: float(next(reads)), "counter", interval_s=60.0)
    for _ in range(3):
        sampler.start()
        result = sampler.stop()
        assert (result.samples, result.joules) == (2, 1.0)
        assert (result.source, result.rail) == ("test", "rail")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("energy-")]


def test_a_window_is_sampled_in_between() -> None:
    read = threading.Semaphore(0)

    def watts() -> float:
        read.release()
        return 2.0

    sampler = EnergySampler("test", "rail", watts, "power", interval_s=0.001)
    sampler.start()
    for _ in range(5):
        assert read.acquire(timeout=10)
    result = sampler.stop()
    assert result.samples >= 5
    assert result.watts == pytest.approx(2.0)


def test_a_window_may_be_opened_anew() -> None:
    sampler = EnergySampler("test", "rail", lambda: 1.0, "power", interval_s=60.0)
    sampler.start()
    sampler.start()
    assert sampler.stop().samples == 2


def test_without_a_start_there_is_no_reading() -> None:
    with refuses(EnvironmentLacksError, "test", "0 sample"):
        EnergySampler("test", "rail", lambda: 1.0, "power", interval_s=60.0).stop()


@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_sensor_that_stops_answering_is_named_and_leaves_no_thread(good: int) -> None:
    reads = itertools.count()

    def watts() -> float:
        if next(reads) >= good:
            raise OSError("bus error")
        return 1.0

    sampler = EnergySampler("test", "rail", watts, "power", interval_s=0.001)

    def window() -> None:
        sampler.start()
        while next(reads) < 10:
            time.sleep(0.002)
        sampler.stop()

    with refuses(EnvironmentLacksError, "test", "bus error"):
        window()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("energy-")]


def test_each_device_has_its_sensor(tmp_path: Path) -> None:
    rapl_tree(tmp_path)
    ina3221_tree(tmp_path, {"1-0040": {1: ("VDD_IN", 5000, 1000)}})
    for device, source in (("cpu", "rapl"), ("jetson", "ina3221")):
        sampler = find_sampler(device, tmp_path)
        assert isinstance(sampler, EnergySampler)
        assert sampler.source == source


@pytest.mark.parametrize("device", ["cpu", "jetson"])
def test_an_absent_sensor_is_none_and_one_line_says_why(device: str, tmp_path: Path) -> None:
    line = find_sampler(device, tmp_path)
    assert isinstance(line, str)
    assert "\n" not in line
    assert ("RAPL" if device == "cpu" else "INA3221") in line
