from __future__ import annotations

import dataclasses
import json
import os

import pytest

from dfs_deploy.bench import check_device, describe_machine
from dfs_deploy.bench.machine import DEVICES, is_jetson
from dfs_deploy.errors import EnvironmentLacksError, UsageError
from tests.checks import refuses


def test_a_machine_is_described_in_plain_values() -> None:
    machine = describe_machine()
    assert machine.cpu
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert machine.system
    assert isinstance(machine.int8, str)
    assert isinstance(machine.float16, bool)
    assert machine.load is None or machine.load >= 0
    assert json.loads(json.dumps(dataclasses.asdict(machine))) == dataclasses.asdict(machine)


def test_what_does_not_change_is_told_the_same_twice() -> None:
    first, second = (dataclasses.replace(describe_machine(), load=None) for _ in range(2))
    assert first == second


def test_a_cpu_is_always_there() -> None:
    check_device("cpu")


@pytest.mark.parametrize("device", ["gpu", "CPU", "", "tpu"])
def test_an_unknown_device_is_a_wrong_call(device: str) -> None:
    with refuses(UsageError, repr(device), *DEVICES):
        check_device(device)
    assert UsageError.exit_code == 2


@pytest.mark.skipif(is_jetson(), reason="this is a Jetson")
def test_another_machine_is_no_jetson() -> None:
    with refuses(EnvironmentLacksError, "Jetson", "--device cpu"):
        check_device("jetson")
    assert EnvironmentLacksError.exit_code == 3


def test_a_device_that_no_runtime_serves() -> None:
    with refuses(EnvironmentLacksError, "cuda", "--device cpu"):
        check_device("cuda")
