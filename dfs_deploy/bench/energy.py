"""Energy per image: the protocol of a sensor, and windows in which every case runs by itself.

A sampler reads in a thread of its own, and on a board every reading is a bus transfer. So energy is measured in windows
apart from the timed ones: run the same work for some seconds between ``EnergySampler.start`` and
``EnergySampler.stop``, count the images, and divide. A window of seconds also outlasts what a sensor averages over.
The sensors themselves are in ``dfs_deploy.bench.sensors``.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dfs_deploy.bench.clock import Case
from dfs_deploy.bench.result import CaseEnergy, EnergyReport
from dfs_deploy.errors import EnvironmentLacksError
from dfs_deploy.progress import Progress, silent

IDLE_S = 2.0
"""Seconds of nothing before the first case."""

Samples = Sequence[tuple[float, float]]
"""Pairs of a time in seconds and the reading then."""


@dataclass(frozen=True)
class EnergyReading:
    """Energy of a window.

    Attributes:
        joules: energy.
        seconds: length of the window, from the first sample to the last.
        source: name of the sensor: ``ina3221``, ``nvml`` or ``rapl``.
        rail: measured rail, or rails that are added.
        rate_hz: samples per second.
        samples: number of samples.
    """

    joules: float
    seconds: float
    source: str
    rail: str
    rate_hz: float
    samples: int

    @property
    def watts(self) -> float:
        """Mean power over the window."""
        return self.joules / self.seconds


class EnergySampler:
    """Measures energy between ``start`` and ``stop``, as often as wanted, from a thread that sleeps in between.

    Args:
        source: see ``EnergyReading``.
        rail: see ``EnergyReading``.
        read: function that gives watts, or joules since some moment.
        kind: ``power`` for watts, ``counter`` for joules.
        interval_s: seconds between two readings.
    """

    def __init__(
        self, source: str, rail: str, read: Callable[[], float], kind: Literal["power", "counter"], interval_s: float
    ) -> None:
        self.source, self.rail = source, rail
        self._read, self._kind, self._interval_s = read, kind, interval_s
        self._samples: list[tuple[float, float]] = []
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._failure: OSError | None = None

    def start(self) -> None:
        """Opens a window; raises EnvironmentLacksError if the sensor cannot be read."""
        self._end()
        self._samples, self._failure = [], None
        self._sample()
        if self._failure is None:
            self._closing.clear()
            self._thread = threading.Thread(target=self._poll, name=f"energy-{self.source}", daemon=True)
            self._thread.start()
        self._check()

    def stop(self) -> EnergyReading:
        """Closes the window; raises EnvironmentLacksError if the sensor failed meanwhile, or was read too seldom."""
        self._end()
        if self._failure is None and self._samples:
            self._sample()
        self._check()
        return reading(self._samples, self._kind, self.source, self.rail)

    def _poll(self) -> None:
        while self._failure is None and not self._closing.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        try:
            value = self._read()
        except OSError as error:
            self._failure = error
        else:
            self._samples.append((time.monotonic(), value))

    def _end(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _check(self) -> None:
        if self._failure is not None:
            raise EnvironmentLacksError(
                f"{self.source} stopped answering ({self._failure}); measure without energy, or look at the sensor"
            ) from self._failure


def reading(samples: Samples, kind: Literal["power", "counter"], source: str, rail: str) -> EnergyReading:
    """Figures of a window: power is integrated by trapezoids, of a counter the ends are taken.

    Raises:
        EnvironmentLacksError: fewer than two samples, or no time between them.
    """
    seconds = samples[-1][0] - samples[0][0] if samples else 0.0
    if seconds <= 0.0:
        raise EnvironmentLacksError(
            f"{source} gave {len(samples)} sample(s) in the window, expected at least two; measure for longer"
        )
    if kind == "counter":
        joules = samples[-1][1] - samples[0][1]
    else:
        joules = sum(
            (later - earlier) * (first + second) / 2
            for (earlier, first), (later, second) in itertools.pairwise(samples)
        )
    return EnergyReading(joules, seconds, source, rail, (len(samples) - 1) / seconds, len(samples))


def measure_energy(
    sampler: EnergySampler,
    cases: Sequence[Case],
    inputs: Sequence[int],
    batch: int,
    *,
    window_s: float,
    idle_s: float = IDLE_S,
    progress: Progress = silent,
) -> EnergyReport:
    """Runs every case by itself for some seconds, after some seconds of nothing.

    Args:
        sampler: sensor of the device.
        cases: cases to run.
        inputs: indices of inputs, in order, again from the start when used up.
        batch: images per call.
        window_s: seconds per case, at least.
        idle_s: seconds of nothing before.
        progress: progress over the cases.

    Raises:
        EnvironmentLacksError: the sensor stopped answering.
    """
    sampler.start()
    time.sleep(idle_s)
    idle = sampler.stop()
    found = []
    for i, case in enumerate(cases):
        progress("measuring energy", i / len(cases))
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
