from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs_deploy.bench import sensors
from dfs_deploy.bench.energy import EnergySampler
from dfs_deploy.errors import EnvironmentLacksError
from tests.checks import refuses

ORIN_NANO = (
    "11-25-2026 10:00:00 RAM 2448/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB)"
    " CPU [2%@729,0%@729,off,off,0%@729,0%@729] EMC_FREQ 0%@665"
    " GR3D_FREQ 0%@[305] CV0@-256C cpu@43.5C SOC2@43.187C gpu@43.562C tj@44.2C"
    " VDD_IN 4524mW/4510mW VDD_CPU_GPU_CV 523mW/520mW VDD_SOC 1325mW/1325mW"
)
NANO = (
    "RAM 1352/3964MB (lfb 2x1MB) IRAM 0/252kB(lfb 252kB) CPU [1%@102,0%@102] EMC_FREQ 0% GR3D_FREQ 0%"
    " PLL@30C CPU@33.5C thermal@32.75C POM_5V_IN 2532/2535 POM_5V_GPU 41/41 POM_5V_CPU 165/165"
)


def printing(line: str, interval_s: float = 0.002, times: int = 10**9) -> tuple[str, ...]:
    code = f"import time\nfor _ in range({times}):\n    print({line!r}, flush=True)\n    time.sleep({interval_s})"
    return sys.executable, "-c", code


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("energy-")]
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_rails_with_and_without_their_unit() -> None:
    assert sensors.parse_rails(ORIN_NANO) == {"VDD_IN": 4.524, "VDD_CPU_GPU_CV": 0.523, "VDD_SOC": 1.325}
    assert sensors.parse_rails(NANO) == {"POM_5V_IN": 2.532, "POM_5V_GPU": 0.041, "POM_5V_CPU": 0.165}
    assert sensors.parse_rails("") == sensors.parse_rails("RAM 1/2MB SWAP 0/3MB IRAM 0/252kB(lfb 252kB)") == {}


@pytest.mark.parametrize(("line", "rail", "watts"), [(ORIN_NANO, "VDD_IN", 4.524), (NANO, "POM_5V_IN", 2.532)])
def test_a_window_lasts_from_start_to_stop(line: str, rail: str, watts: float) -> None:
    sampler = sensors.find_tegrastats(printing(line))
    assert isinstance(sampler, EnergySampler)
    for _ in range(2):
        sampler.start()
        result = sampler.stop()
        assert (result.source, result.rail) == ("tegrastats", rail)
        assert result.watts == pytest.approx(watts)
        assert result.samples >= 2


def test_a_process_that_does_not_heed_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "_PATIENCE_S", 0.5)
    program, flag, code = printing(NANO)
    stubborn = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + code
    sampler = sensors.TegrastatsSampler((program, flag, stubborn))
    sampler.start()
    assert sampler.stop().rail == "POM_5V_IN"


def test_a_process_that_ends_by_itself_is_no_reading() -> None:
    sampler = sensors.TegrastatsSampler(printing(NANO, times=1, interval_s=0.0))
    sampler.start()
    (thread,) = [thread for thread in threading.enumerate() if thread.name.startswith("energy-")]
    thread.join()
    with refuses(EnvironmentLacksError, "ended by itself"):
        sampler.stop()


@pytest.mark.parametrize("line", ["RAM 1/2MB VDD_SOC 5mW/5mW", "tegrastats: permission denied"])
def test_lines_without_the_total_say_what_was_printed(line: str) -> None:
    found = sensors.find_tegrastats(printing(line))
    assert isinstance(found, str)
    for word in (line[:40], "VIN, POM_5V_IN, VDD_IN"):
        assert word in found


def test_a_process_that_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "_PATIENCE_S", 0.2)
    assert "printed nothing" in str(sensors.find_tegrastats((sys.executable, "-c", "import time; time.sleep(60)")))
    assert "printed nothing" in str(sensors.find_tegrastats((sys.executable, "-c", "")))


def test_no_such_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sensors.find_tegrastats() == "no tegrastats on the path"
    assert "does not start" in str(sensors.find_tegrastats((str(tmp_path / "none"),)))


def test_the_program_on_the_path_is_asked_for_ten_lines_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "tegrastats"
    program.write_text(
        f'#!/bin/sh\necho "$@" > "{tmp_path}/flags"\nwhile true; do echo "{NANO}"; /bin/sleep 0.01; done\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(sensors.find_tegrastats(), EnergySampler)
    assert (tmp_path / "flags").read_text() == "--interval 100\n"
    assert subprocess.run(["/bin/true"], check=True).returncode == 0
