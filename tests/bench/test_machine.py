from __future__ import annotations

import dataclasses
import json
import os

from dfs_deploy.bench import describe_machine


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
