from __future__ import annotations

from pathlib import Path

import pytest

from dfs_deploy.bench.energy import EnergySampler
from dfs_deploy.bench.sensors import find_ina3221
from dfs_deploy.errors import EnvironmentLacksError
from tests.bench.sensors import ina3221_tree
from tests.checks import refuses

ORIN_NANO = {"1-0040": {1: ("VDD_IN", 5008, 904), 2: ("VDD_CPU_GPU_CV", 5000, 160), 3: ("VDD_SOC", 4992, 248)}}
NANO = {"6-0040": {1: ("POM_5V_IN", 5096, 400), 2: ("POM_5V_GPU", 5088, 24), 3: ("POM_5V_CPU", 5088, 120)}}
AGX_ORIN = {
    "1-0040": {1: ("VDD_GPU_SOC", 19000, 100), 2: ("VDD_CPU_CV", 19000, 50), 3: ("VIN_SYS_5V0", 5000, 700)},
    "1-0041": {2: ("VDDQ_VDD2_1V8AO", 5000, 90)},
}


@pytest.mark.parametrize(
    ("chips", "rail", "watts"),
    [
        (ORIN_NANO, "VDD_IN", 5.008 * 0.904),
        (NANO, "POM_5V_IN", 5.096 * 0.4),
        (AGX_ORIN, "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0", 1.9 + 0.95 + 3.5),
        ({"1-0041": {1: ("CV", 1, 1)}, "1-0040": {2: ("VDD_IN", 5000, 1), 3: ("VIN", 19000, 500)}}, "VIN", 9.5),
    ],
)
def test_the_rail_that_feeds_the_module(
    tmp_path: Path, chips: dict[str, dict[int, tuple[str, int, int]]], rail: str, watts: float
) -> None:
    sampler = find_ina3221(ina3221_tree(tmp_path, chips))
    assert isinstance(sampler, EnergySampler)
    sampler.start()
    result = sampler.stop()
    assert (result.source, result.rail) == ("ina3221", rail)
    assert result.watts == pytest.approx(watts)


def test_rails_that_are_not_the_whole_are_named(tmp_path: Path) -> None:
    found = find_ina3221(ina3221_tree(tmp_path, {"1-0040": {1: ("VDD_GPU_SOC", 1, 1), 3: ("VIN_SYS_5V0", 1, 1)}}))
    assert isinstance(found, str)
    for word in ("VDD_GPU_SOC, VIN_SYS_5V0", "VIN, POM_5V_IN, VDD_IN"):
        assert word in found


def test_no_monitor(tmp_path: Path) -> None:
    assert "no INA3221" in str(find_ina3221(tmp_path))


def test_a_monitor_that_holds_no_number(tmp_path: Path) -> None:
    ina3221_tree(tmp_path, ORIN_NANO)
    (current,) = tmp_path.rglob("curr1_input")
    current.write_text("\n")
    assert "cannot be read" in str(find_ina3221(tmp_path))


def test_a_monitor_that_goes_away(tmp_path: Path) -> None:
    sampler = find_ina3221(ina3221_tree(tmp_path, ORIN_NANO))
    assert isinstance(sampler, EnergySampler)
    sampler.start()
    (current,) = tmp_path.rglob("curr1_input")
    current.unlink()
    with refuses(EnvironmentLacksError, "ina3221", "curr1_input"):
        sampler.stop()
