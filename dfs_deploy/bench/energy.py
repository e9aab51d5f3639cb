"""Energy over a window, from whatever sensor the machine has.

A sampler reads in a thread of its own, and on a board every reading is a bus transfer. So energy is measured in a
window apart from the one that is timed: run the same work for some seconds between :meth:`EnergySampler.start` and
:meth:`EnergySampler.stop`, count the images, and divide. A window of seconds also outlasts what a sensor averages over.
"""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfs_deploy.errors import EnvironmentLacksError

ROOT = Path("/")

Samples = Sequence[tuple[float, float]]
"""Pairs of a time in seconds and what was read then."""


@dataclass(frozen=True)
class EnergyReading:
    """What was used in a window.

    Attributes:
        joules: energy.
        seconds: length of the window, from the first sample to the last.
        source: where it comes from: ``ina3221``, ``tegrastats``, ``nvml`` or ``rapl``.
        rail: what was measured there.
        rate_hz: samples a second.
        samples: how many.
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


class EnergySampler(ABC):
    """Measures energy between :meth:`start` and :meth:`stop`; may be started again afterwards.

    Attributes:
        source: where readings come from.
        rail: what is measured there.
    """

    source: str
    rail: str

    @abstractmethod
    def start(self) -> None:
        """Opens a window.

        Raises:
            EnvironmentLacksError: the sensor cannot be read.
        """

    @abstractmethod
    def stop(self) -> EnergyReading:
        """Closes the window; nothing runs in the background afterwards.

        Raises:
            EnvironmentLacksError: the sensor could not be read, or too seldom to say anything.
        """


def find_sampler(device: str, root: Path = ROOT) -> EnergySampler | None:
    """The best sampler for a device, or ``None`` where it has none that can be read.

    Args:
        device: ``cpu`` (RAPL), ``cuda`` (NVML) or ``jetson`` (INA3221, else tegrastats).
        root: of the file system; another for tests.
    """
    found = _look(device, root)
    return found if isinstance(found, EnergySampler) else None


def why_no_sampler(device: str, root: Path = ROOT) -> str:
    """One line that says what was looked for and what to do, where :func:`find_sampler` gives ``None``; else empty."""
    found = _look(device, root)
    return found if isinstance(found, str) else ""


def _look(device: str, root: Path) -> EnergySampler | str:
    """A sampler, or why there is none."""
    from dfs_deploy.bench import ina3221, nvml, rapl, tegrastats

    if device == "cpu":
        return rapl.find(root)
    if device == "cuda":
        return nvml.find()
    sensor = ina3221.find(root)
    if isinstance(sensor, EnergySampler):
        return sensor
    fallback = tegrastats.find()
    return fallback if isinstance(fallback, EnergySampler) else f"{sensor}; {fallback}"


class PolledSampler(EnergySampler):
    """Reads a sensor at an interval, from a thread that sleeps in between.

    Args:
        source: see :class:`EnergyReading`.
        rail: see :class:`EnergyReading`.
        read: gives watts, or joules since some moment.
        kind: which of these.
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
        self._end()
        self._samples, self._failure = [], None
        self._sample()
        if self._failure is None:
            self._closing.clear()
            self._thread = threading.Thread(target=self._poll, name=f"energy-{self.source}", daemon=True)
            self._thread.start()
        self._check()

    def stop(self) -> EnergyReading:
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
    """Makes the figures of a window: power is integrated by trapezoids, of a counter the ends are taken.

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
