from __future__ import annotations

from pathlib import Path

import pytest

from dfs_deploy.bench.jetson import UNKNOWN, is_jetson, jetson_facts, problems
from tests.bench.boards import jetson_tree
from tests.bench.sensors import write_tree

ORIN = {
    "model": "NVIDIA Jetson Orin Nano Developer Kit",
    "Jetson Linux": "36.4.3",
    "JetPack": "6.2",
    "TensorRT": "10.3.0.30",
    "CUDA": "12.6.68",
    "power mode": UNKNOWN,
    "clocks": "free: sudo jetson_clocks locks them",
    "temperature": "48.5 °C (tj-thermal)",
}


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_an_orin_is_read(tmp_path: Path) -> None:
    jetson_tree(tmp_path)
    assert is_jetson(tmp_path)
    assert jetson_facts(tmp_path) == ORIN
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


def test_a_bare_board_is_told_what_to_install(tmp_path: Path) -> None:
    facts = jetson_facts(jetson_tree(tmp_path, packages={}, cuda=None))
    assert facts["JetPack"] == facts["TensorRT"] == facts["CUDA"] == UNKNOWN
    lines = problems(facts)
    assert len(lines) == 2
    assert all("sudo apt install nvidia-jetpack" in line for line in lines)


def test_files_that_are_missing_or_say_nothing(tmp_path: Path) -> None:
    write_tree(tmp_path, {"etc/nv_tegra_release": "R36", "var/lib/dpkg/status": "nonsense\n\nmore"})
    zone = "sys/class/thermal/thermal_zone0"
    write_tree(tmp_path, {f"{zone}/type": "x\n", f"{zone}/temp": "hot\n"})
    assert set(jetson_facts(tmp_path).values()) == {UNKNOWN}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Jetson Linux": "35.4.1", "TensorRT": "8.5.2"}, ["35.4.1", "flash JetPack 6"]),
        ({"TensorRT": "11.4.1"}, ["11.4.1", "JetPack 6", "python3-libnvinfer"]),
        ({"CUDA": UNKNOWN}, ["CUDA", "pycuda", "sudo apt install nvidia-jetpack"]),
    ],
)
def test_what_is_known_not_to_work(changes: dict[str, str], words: list[str]) -> None:
    (line,) = problems(ORIN | changes)
    assert all(word in line for word in words)


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R32 (release), REVISION: 7.4, GCID: 33514132, BOARD: t210ref", "32.7.4"),
        ("# R38 (release), REVISION: 2", "38.2"),
    ],
)
def test_releases(tmp_path: Path, text: str, release: str) -> None:
    assert jetson_facts(jetson_tree(tmp_path, release=text))["Jetson Linux"] == release


def test_nvpmodel_is_asked(tmp_path: Path) -> None:
    program = tmp_path / "nvpmodel"
    program.write_text('#!/bin/sh\n[ "$1" = -q ] && echo "NV Fan Mode:cool" && echo "NV Power Mode: 15W" && echo 1\n')
    program.chmod(0o755)
    assert jetson_facts(tmp_path)["power mode"] == "15W"
    program.write_text('#!/bin/sh\necho "NVPM ERROR: failed"\n')
    assert jetson_facts(tmp_path)["power mode"] == UNKNOWN


def test_one_free_clock_is_enough(tmp_path: Path) -> None:
    jetson_tree(tmp_path, locked=True)
    assert jetson_facts(tmp_path)["clocks"] == "locked"
    write_tree(tmp_path, {"sys/class/devfreq/17000000.gpu/min_freq": "306000000\n"})
    assert jetson_facts(tmp_path)["clocks"].startswith("free")
