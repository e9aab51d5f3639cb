from __future__ import annotations

import platform
from pathlib import Path

import pytest

from dfs_deploy.cpu import cpu_facts, describe_cpu, has_fast_float16

X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Some Server CPU @ 2.00GHz
cpu MHz\t\t: 2000.000
flags\t\t: fpu sse2 avx2 {flags}
bugs\t\t:

processor\t: 1
model name\t: Another
flags\t\t: fpu avx512_vnni
"""

ARM = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd {flags}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd0b
CPU revision\t: 0

"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    return tmp_path


def says(root: Path, monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: str, flags: str = "") -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "processor", lambda: "")
    (root / "proc" / "cpuinfo").write_text(cpuinfo.format(flags=flags))


def test_facts_are_those_of_the_first_cpu(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(root, monkeypatch, "x86_64", X86)
    facts = cpu_facts(root)
    assert facts["model name"] == "Some Server CPU @ 2.00GHz"
    assert facts["cpu MHz"] == "2000.000"
    assert facts["bugs"] == ""
    assert describe_cpu(root).features == {"fpu", "sse2", "avx2"}


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "flags", "int8"),
    [
        ("x86_64", X86, "", ""),
        ("x86_64", X86, "avx_vnni", "AVX VNNI"),
        ("x86_64", X86, "avx_vnni avx512_vnni", "AVX-512 VNNI"),
        ("aarch64", ARM, "", ""),
        ("aarch64", ARM, "asimddp", "Arm dot product"),
        ("aarch64", ARM, "asimddp i8mm", "Arm I8MM"),
    ],
)
def test_instructions_for_8_bit_products(
    root: Path, monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: str, flags: str, int8: str
) -> None:
    says(root, monkeypatch, machine, cpuinfo, flags)
    assert describe_cpu(root).int8 == int8


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "flags", "fast"),
    [
        ("aarch64", ARM, "fphp asimdhp", True),
        ("aarch64", ARM, "", False),
        ("aarch64", ARM, "asimdhpx", False),
        ("armv8l", ARM, "fphp asimdhp", False),  # a 32-bit kernel on such a CPU
        ("x86_64", X86, "avx512_fp16", False),
    ],
)
def test_fast_float16_is_of_64_bit_arm_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: str, flags: str, fast: bool
) -> None:
    says(root, monkeypatch, machine, cpuinfo, flags)
    assert describe_cpu(root).float16 == fast


def test_the_key_tells_cpus_apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(root, monkeypatch, "x86_64", X86)
    assert describe_cpu(root).key == "x86_64 Some Server CPU @ 2.00GHz avx2"
    says(root, monkeypatch, "x86_64", X86, "avx512f avx512_vnni")
    assert describe_cpu(root).key == "x86_64 Some Server CPU @ 2.00GHz avx2 avx512_vnni avx512f"
    says(root, monkeypatch, "aarch64", ARM, "asimdhp")
    assert describe_cpu(root).key == "aarch64 0x41 0xd0b 0x1 0 fp asimd asimdhp"
    assert describe_cpu(root).model == "aarch64"
    says(root, monkeypatch, "aarch64", ARM, "asimdhp asimddp")
    assert describe_cpu(root).key != "aarch64 0x41 0xd0b 0x1 0 fp asimd asimdhp"


def test_a_system_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    cpu = describe_cpu(tmp_path)
    assert cpu_facts(tmp_path) == {}
    assert (cpu.model, cpu.features, cpu.int8, cpu.float16, cpu.key) == ("arm", frozenset(), "", False, "arm64 arm")


def test_this_cpu_is_described_the_same_twice() -> None:
    assert describe_cpu() == describe_cpu()
    assert describe_cpu().model
    assert has_fast_float16() == describe_cpu().float16
