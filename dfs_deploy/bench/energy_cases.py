"""Energy an image, of every case of a bench, in windows apart from the timed ones."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dfs_deploy.bench.clock import Case
from dfs_deploy.bench.energy import EnergySampler

IDLE_S = 2.0
WINDOW_S = 3.0
"""Seconds a case: many times what a sensor averages over."""


@dataclass(frozen=True)
class CaseEnergy:
    """Energy of one case.

    Attributes:
        name: of the case.
        joules_per_image: all that was used in the window over the images run in it; idle power is part of it.
        joules_per_image_over_idle: the same without what the machine would have used idle.
        watts: mean power.
        images: run in the window.
        seconds: of the window.
    """

    name: str
    joules_per_image: float
    joules_per_image_over_idle: float
    watts: float
    images: int
    seconds: float


@dataclass(frozen=True)
class EnergyReport:
    """Energy of every case.

    Attributes:
        source: the sensor.
        rail: what it measures.
        rate_hz: samples a second, in the idle window.
        idle_watts: power before, while nothing ran.
        idle_seconds: of that window.
        cases: in the order in which they were run.
    """

    source: str
    rail: str
    rate_hz: float
    idle_watts: float
    idle_seconds: float
    cases: tuple[CaseEnergy, ...]


def measure_energy(
    sampler: EnergySampler,
    cases: Sequence[Case],
    inputs: Sequence[int],
    batch: int,
    *,
    window_s: float = WINDOW_S,
    idle_s: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> EnergyReport:
    """Runs every case by itself for some seconds, after some seconds of nothing.

    Args:
        sampler: of the device.
        cases: what to run.
        inputs: indices of inputs, in order, again from the start when used up.
        batch: images a call.
        window_s: seconds a case, at least.
        idle_s: seconds of nothing before; ``None`` for :data:`IDLE_S`.
        progress: called with how far it is, 0 to 1.

    Raises:
        EnvironmentLacksError: the sensor stopped answering.
    """
    sampler.start()
    time.sleep(IDLE_S if idle_s is None else idle_s)
    idle = sampler.stop()
    found = []
    for place, case in enumerate(cases):
        if progress is not None:
            progress(place / len(cases))
        for index in itertools.islice(itertools.cycle(inputs), 3):
            case.call(index)
        calls, order = 0, itertools.cycle(inputs)
        sampler.start()
        end = time.monotonic() + window_s
        while calls == 0 or time.monotonic() < end:
            case.call(next(order))
            calls += 1
        used = sampler.stop()
        images = calls * batch
        over = used.joules - idle.watts * used.seconds
        found.append(CaseEnergy(case.name, used.joules / images, over / images, used.watts, images, used.seconds))
    return EnergyReport(idle.source, idle.rail, idle.rate_hz, idle.watts, idle.seconds, tuple(found))
