from __future__ import annotations

import logging
import platform
from typing import Any

import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import UsageError
from dfs_deploy.runtimes import Runtime
from dfs_deploy.system.cpu import Cpu
from dfs_deploy.system.target_cpu import WEIGHT_BITS, WORDS, TargetCpu, made_for_another_cpu, target_named, target_of
from tests.bundles import Made, copied, float_bundle, manifest_of, mixed_bundle, write_manifest
from tests.checks import refuses

VNNI = Cpu("A server", frozenset(("avx2", "avx512_vnni")), "AVX-512 VNNI", False, "a")
PLAIN = Cpu("An old one", frozenset(("avx2",)), "", False, "b")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return mixed_bundle(tmp_path_factory)


@pytest.mark.parametrize(
    ("machine", "cpu", "target"),
    [("x86_64", VNNI, "vnni"), ("AMD64", PLAIN, "avx2"), ("aarch64", PLAIN, "arm"), ("riscv64", PLAIN, "arm")],
)
def test_the_kind_of_a_cpu(monkeypatch: pytest.MonkeyPatch, machine: str, cpu: Cpu, target: TargetCpu) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert target_of(cpu) == target


def test_only_x86_without_vnni_wants_seven_bits() -> None:
    assert {target for target, bits in WEIGHT_BITS.items() if bits == 7} == {"avx2"}
    assert WORDS.keys() == WEIGHT_BITS.keys()


def test_kinds_have_names_and_auto_is_this_machines() -> None:
    for target in WEIGHT_BITS:
        assert target_named(target) == target
    assert target_named("auto") == target_named(None) == target_of()
    with refuses(UsageError, "'sse'", "auto", "vnni", "avx2", "arm"):
        target_named("sse")


def of_bits(made: Made, folder: Any, bits: int) -> Bundle:
    path = copied(made, folder)
    values = manifest_of(path)
    values["calibration"]["weight_bits"] = bits
    write_manifest(path, values)
    return Bundle(path)


@pytest.mark.parametrize(
    ("bits", "cpu", "words"),
    [
        (8, VNNI, []),
        (7, PLAIN, []),
        (8, PLAIN, ["8 bits", "x86 without VNNI", "wants 7", "slow here", "--target-cpu avx2"]),
        (7, VNNI, ["7 bits", "x86 with VNNI", "wants 8", "lose precision", "--target-cpu vnni"]),
    ],
)
def test_a_bundle_for_another_cpu_is_told_with_the_remedy(
    mixed: Made, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, bits: int, cpu: Cpu, words: list[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    note = made_for_another_cpu(of_bits(mixed, tmp_path, bits).manifest, cpu)
    assert (note is None) == (not words)
    for word in words:
        assert word in (note or "")


def test_a_bundle_without_int8_suits_every_cpu(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = Bundle(float_bundle(tmp_path_factory).path)
    assert made_for_another_cpu(bundle.manifest, VNNI) is made_for_another_cpu(bundle.manifest, PLAIN) is None


def test_loading_says_once_that_a_bundle_is_for_another_cpu(
    mixed: Made, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    other = 15 - WEIGHT_BITS[target_of()]
    path = of_bits(mixed, tmp_path, other).path
    with caplog.at_level(logging.WARNING), Runtime(path) as runtime:
        runtime.clone().close()
    (record,) = caplog.records
    assert record.name.startswith("dfs_deploy")
    assert str(path) in record.getMessage()
    assert "made for another CPU" in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.WARNING), Runtime(mixed.path):
        assert not caplog.records, "made here"
