from __future__ import annotations

import pytest

from dfs_deploy.bench.clock import Case
from dfs_deploy.bench.energy import EnergyReading, EnergySampler, measure_energy


class Scripted(EnergySampler):
    """Gives readings in turn, and knows what was called while a window was open."""

    def __init__(self, *readings: EnergyReading) -> None:
        self.source, self.rail = "test", "rail"
        self._readings = list(readings)
        self._open = False
        self.windows: list[int] = []

    def start(self) -> None:
        assert not self._open
        self._open = True
        self.windows.append(0)

    def stop(self) -> EnergyReading:
        assert self._open
        self._open = False
        return self._readings.pop(0)

    def called(self) -> None:
        if self._open:
            self.windows[-1] += 1


def joules(value: float, seconds: float) -> EnergyReading:
    return EnergyReading(value, seconds, "test", "rail", 20.0, 40)


def test_energy_an_image_with_and_without_idle_power() -> None:
    sampler = Scripted(joules(10.0, 2.0), joules(30.0, 4.0), joules(21.0, 3.0))
    order: dict[str, list[int]] = {"a": [], "b": []}

    def case(name: str) -> Case:
        def call(index: int) -> None:
            order[name].append(index)
            sampler.called()

        return Case(name, call)

    found = measure_energy(sampler, [case("a"), case("b")], range(3), 8, window_s=0.01, idle_s=0.0)
    assert (found.source, found.rail, found.rate_hz) == ("test", "rail", 20.0)
    assert (found.idle_watts, found.idle_seconds) == (5.0, 2.0)
    assert sampler.windows[0] == 0, "nothing runs in the idle window"
    for result, used, calls in zip(
        found.cases, (joules(30.0, 4.0), joules(21.0, 3.0)), sampler.windows[1:], strict=True
    ):
        assert result.images == 8 * calls > 0
        assert result.joules_per_image == pytest.approx(used.joules / result.images)
        assert result.joules_per_image_over_idle == pytest.approx((used.joules - 5.0 * used.seconds) / result.images)
        assert result.watts == used.watts
    for name in order:
        assert order[name][:3] == [0, 1, 2], "warmed up first"
        assert set(order[name]) <= {0, 1, 2}


def test_a_call_longer_than_the_window_is_one_call() -> None:
    sampler = Scripted(joules(1.0, 1.0), joules(2.0, 1.0))
    found = measure_energy(sampler, [Case("slow", lambda index: sampler.called())], [0], 1, window_s=0.0, idle_s=0.0)
    assert found.cases[0].images == 1
