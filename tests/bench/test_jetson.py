from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from dfs_deploy.bench.jetson import (
    clocks_locked,
    hottest,
    installed_packages,
    is_jetson,
    parse_power_mode,
    parse_release,
    problems,
    query_power_mode,
    read_jetson,
    read_power_state,
)
from dfs_deploy.bench.result import Jetson
from tests.bench.boards import jetson_tree
from tests.bench.sensors import write_tree

ORIN = Jetson("NVIDIA Jetson Orin Nano Developer Kit", "36.4.3", "6.2", "10.3.0.30", "12.6.68")


def test_an_orin_is_read(tmp_path: Path) -> None:
    jetson_tree(tmp_path)
    assert is_jetson(tmp_path)
    assert read_jetson(tmp_path) == ORIN
    assert problems(ORIN) == []


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("etc/nv_tegra_release", "# R35 (release), REVISION: 4.1", True),
        ("proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0", True),
        ("proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0", False),
        ("etc/os-release", "NAME=Ubuntu", False),
    ],
)
def test_what_tells_a_jetson(tmp_path: Path, file: str, content: str, expected: bool) -> None:
    assert is_jetson(write_tree(tmp_path, {file: content})) is expected


def test_a_bare_board_has_nothing_and_is_told_what_to_install(tmp_path: Path) -> None:
    board = read_jetson(jetson_tree(tmp_path, packages={}, cuda=None))
    assert (board.jetpack, board.tensorrt, board.cuda) == ("6", None, None)
    lines = problems(board)
    assert len(lines) == 2
    assert all("sudo apt install nvidia-jetpack" in line for line in lines)
    assert read_jetson(tmp_path / "elsewhere") == Jetson(None, None, None, None, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"l4t": "35.4.1", "tensorrt": "8.5.2"}, ["35.4.1", "flash JetPack 6"]),
        ({"l4t": "32.7.4", "tensorrt": "8.2.1"}, ["32.7.4", "flash JetPack 6"]),
        ({"tensorrt": "8.5.2.2"}, ["8.5.2.2", "8.6"]),
        ({"tensorrt": "11.4.1"}, ["11.4.1", "JetPack 6", "python3-libnvinfer"]),
        ({"l4t": "38.2", "jetpack": "7.0", "tensorrt": "11.4.1"}, ["11.4.1", "7.2.2", "7.0"]),
        ({"cuda": None}, ["CUDA", "pycuda", "sudo apt install nvidia-jetpack"]),
    ],
)
def test_what_is_known_not_to_work(changes: dict[str, str | None], words: list[str]) -> None:
    (line,) = problems(replace(ORIN, **changes))
    assert "\n" not in line
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "36.4.3"),
        ("# R32 (release), REVISION: 7.4, GCID: 33514132, BOARD: t210ref", "32.7.4"),
        ("# R38 (release), REVISION: 2", "38.2"),
        ("", None),
        ("R36", None),
    ],
)
def test_releases(text: str, release: str | None) -> None:
    assert parse_release(text) == release


def test_a_package_that_was_removed_is_not_installed() -> None:
    there = "Package: a\nStatus: install ok installed\nVersion: 1"
    removed = "Package: b\nStatus: deinstall ok config-files\nVersion: 2"
    assert installed_packages(f"{there}\n\n{removed}\n") == {"a": "1"}
    assert installed_packages("") == installed_packages("nonsense\n\nmore") == {}


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN"),
        ("NV Fan Mode:cool\nNV Power Mode: MODE_30W_4CORE\n5\n", "MODE_30W_4CORE"),
        ("NVPM ERROR: failed\n", None),
        ("", None),
    ],
)
def test_power_modes(text: str, mode: str | None) -> None:
    assert parse_power_mode(text) == mode


def test_nvpmodel_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert query_power_mode() is None
    program = tmp_path / "nvpmodel"
    program.write_text('#!/bin/sh\n[ "$1" = -q ] && echo "NV Power Mode: 15W" && echo 1\n')
    program.chmod(0o755)
    assert query_power_mode() == "15W"
    state = read_power_state(jetson_tree(tmp_path / "board"))
    assert (state.mode, state.clocks_locked, state.celsius, state.sensor) == ("15W", False, 48.531, "tj-thermal")


@pytest.mark.parametrize("locked", [True, False])
def test_clocks(tmp_path: Path, locked: bool) -> None:
    assert clocks_locked(jetson_tree(tmp_path, locked=locked)) is locked


def test_one_free_clock_is_enough(tmp_path: Path) -> None:
    jetson_tree(tmp_path, locked=True)
    write_tree(tmp_path, {"sys/class/devfreq/17000000.gpu/min_freq": "306000000\n"})
    assert clocks_locked(tmp_path) is False


def test_a_machine_that_does_not_say(tmp_path: Path) -> None:
    assert clocks_locked(tmp_path) is None
    assert hottest(tmp_path) is None
    write_tree(
        tmp_path, {"sys/class/thermal/thermal_zone0/type": "x\n", "sys/class/thermal/thermal_zone0/temp": "hot\n"}
    )
    assert hottest(tmp_path) is None
