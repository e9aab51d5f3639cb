"""A Jetson's power from the lines of NVIDIA's ``tegrastats``, where its power monitor cannot be read itself.

A line has for each rail its power now and its mean in milliwatts: ``VDD_IN 4524mW/4510mW``, before JetPack 5 without
the unit (Jetson Linux Developer Guide, "tegrastats Utility").
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence

from dfs_deploy.bench.energy import EnergyReading, EnergySampler, reading
from dfs_deploy.bench.ina3221 import expected, total_of
from dfs_deploy.errors import EnvironmentLacksError

SOURCE = "tegrastats"
INTERVAL_MS = 100
_PATIENCE_S = 5.0
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/(\d+)(?:mW)?(?!\w)")


def parse_rails(line: str) -> dict[str, float]:
    """Power now, in watts, of each rail that a line names."""
    return {name: int(now) / 1e3 for name, now, _ in _RAIL.findall(line)}


def find(command: Sequence[str] | None = None) -> EnergySampler | str:
    """A sampler of the module's total power, or why there is none.

    Args:
        command: prints the lines; ``None`` for ``tegrastats`` at ten lines a second.
    """
    if command is None:
        program = shutil.which("tegrastats")
        if program is None:
            return "no tegrastats on the path"
        command = (program, "--interval", str(INTERVAL_MS))
    sampler = TegrastatsSampler(command)
    try:
        sampler.start()
        sampler.cancel()
    except EnvironmentLacksError as error:
        return str(error)
    return sampler


class TegrastatsSampler(EnergySampler):
    """Reads the lines of a process that lives from :meth:`start` to :meth:`stop`.

    Args:
        command: prints them.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.source, self.rail = SOURCE, ""
        self._command = tuple(command)
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._samples: list[tuple[float, float]] = []
        self._begun = threading.Event()
        self._seen = ""

    def start(self) -> None:
        self.cancel()
        self._samples, self._seen = [], ""
        self._begun.clear()
        try:
            self._process = subprocess.Popen(  # noqa: S603 (a fixed program)
                self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            raise EnvironmentLacksError(
                f"{self._command[0]} does not start ({error}); measure without energy"
            ) from error
        self._thread = threading.Thread(
            target=self._follow, args=(self._process,), name="energy-tegrastats", daemon=True
        )
        self._thread.start()
        self._begun.wait(_PATIENCE_S)
        if not self._samples:
            self.cancel()
            seen = f"printed {self._seen[:80]!r}" if self._seen else "printed nothing"
            raise EnvironmentLacksError(f"{self._command[0]} {seen}, expected one of {expected()}")
        self._samples = [(time.monotonic(), self._samples[-1][1])]

    def stop(self) -> EnergyReading:
        if self._thread is None or not self._thread.is_alive():
            self.cancel()
            raise EnvironmentLacksError(f"{self._command[0]} ended by itself; measure without energy")
        self.cancel()
        # A line comes only ten times a second: until the window's end the last one holds.
        self._samples.append((time.monotonic(), self._samples[-1][1]))
        return reading(self._samples, "power", self.source, self.rail)

    def cancel(self) -> None:
        """Ends the process and the thread, if they run."""
        process, thread = self._process, self._thread
        self._process = self._thread = None
        if process is not None:
            process.terminate()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if thread is not None:
            thread.join()
        if process is not None and process.stdout is not None:
            process.stdout.close()

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None  # noqa: S101 (opened with a pipe)
        for line in process.stdout:
            self._seen = line.strip()
            found = parse_rails(line)
            names = total_of(found)
            if names is None:
                break
            self.rail = "+".join(names)
            self._samples.append((time.monotonic(), sum(found[name] for name in names)))
            self._begun.set()
        self._begun.set()
