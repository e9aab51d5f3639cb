from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from msgspec.structs import asdict, replace

from dfs_deploy.bench.machine import Watch, describe_machine, read_state
from dfs_deploy.bench.result import MachineState


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.fixture
def affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {2, 0}, raising=False)


def frequency(cpu: int, governor: str, kilohertz: int) -> dict[str, str]:
    folder = f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
    return {f"{folder}/scaling_governor": f"{governor}\n", f"{folder}/scaling_cur_freq": f"{kilohertz}\n"}


@pytest.mark.usefixtures("affinity")
def test_the_clocks_of_the_cpus_that_may_be_used(tmp_path: Path) -> None:
    cpus = {**frequency(0, "performance", 3_000_000), **frequency(1, "powersave", 800_000)}
    cpus |= frequency(2, "schedutil", 2_000_000)
    state = read_state(tree(tmp_path, {**cpus, "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n"}))
    assert state.affinity == (0, 2)
    assert state.governor == "performance, schedutil"
    assert state.frequency_mhz == 2500.0
    assert state.turbo is True
    assert not state.virtual


@pytest.mark.usefixtures("affinity")
def test_a_guest_without_frequency_scaling(tmp_path: Path) -> None:
    cpuinfo = (
        "processor\t: 0\ncpu MHz\t\t: 2596.138\nflags\t\t: fpu hypervisor avx2\n\nprocessor\t: 1\ncpu MHz\t\t: 1\n"
    )
    state = read_state(tree(tmp_path, {"proc/cpuinfo": cpuinfo}))
    assert state.virtual
    assert state.frequency_mhz == 2596.138
    assert state.governor is None
    assert state.turbo is None


@pytest.mark.parametrize(
    ("file", "text", "turbo"),
    [
        ("intel_pstate/no_turbo", "1", False),
        ("intel_pstate/no_turbo", "0", True),
        ("cpufreq/boost", "1", True),
        ("cpufreq/boost", "0", False),
    ],
)
def test_turbo_by_either_driver(tmp_path: Path, file: str, text: str, turbo: bool) -> None:
    assert read_state(tree(tmp_path, {f"sys/devices/system/cpu/{file}": text})).turbo is turbo


@pytest.mark.usefixtures("affinity")
def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    state = read_state(tmp_path)
    assert state == MachineState((0, 2), None, None, None, False, state.load)


def test_stolen_time_is_a_share_of_what_passed(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/stat": "cpu  100 0 50 800 10 0 5 20 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"})
    watch = Watch(tmp_path)
    tree(tmp_path, {"proc/stat": "cpu  150 0 50 840 10 0 5 30 57 0\n"})
    found = watch.stop()
    assert found.steal == pytest.approx(10 / 100)
    assert found.preemptions_per_s is not None
    assert found.preemptions_per_s >= 0


def test_without_proc_stat_nothing_is_said_of_stolen_time(tmp_path: Path) -> None:
    assert Watch(tmp_path).stop().steal is None


def test_a_machine_is_described_in_plain_values() -> None:
    machine = describe_machine()
    assert machine.cpu
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert machine.system
    assert isinstance(machine.int8, str)
    assert isinstance(machine.float16, bool)
    assert machine.load is None or machine.load >= 0
    assert json.loads(json.dumps(asdict(machine))) == asdict(machine)


def test_what_does_not_change_is_told_the_same_twice() -> None:
    first, second = (replace(describe_machine(), load=None) for _ in range(2))
    assert first == second
