from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import UsageError
from dfs_deploy.runtimes import Runtime
from dfs_deploy.system.cpu import (
    WEIGHT_BITS,
    Cpu,
    CpuLimits,
    TargetCpu,
    cpu_facts,
    cpu_limits,
    describe_cpu,
    made_for_another_cpu,
    target_named,
    target_of,
)
from tests.bundles import Made, copied, float_bundle, manifest_of, write_manifest
from tests.checks import refuses

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


V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 {place} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
"""


def groups(root: Path, mounts: str, process: str, **files: str) -> None:
    """Writes what the kernel tells of control groups; a name such as ``a__b`` is the file ``b`` of the group ``a``."""
    (root / "proc/self").mkdir()
    (root / "proc/self/mountinfo").write_text(mounts)
    (root / "proc/self/cgroup").write_text(process)
    for name, content in files.items():
        file = root / "sys/fs/cgroup" / name.replace("__", "/").replace("0", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    limits = cpu_limits(tmp_path)
    assert (limits.quota, limits.throttled_periods) == (None, None)
    assert limits.cores == len(limits.affinity) >= 1


@pytest.mark.parametrize(
    ("limit", "quota"),
    [("150000 100000", 1.5), ("20000 100000", 0.2), ("max 100000", None), ("", None), ("1 0", None), ("no", None)],
)
def test_the_quota_of_version_2(root: Path, limit: str, quota: float | None) -> None:
    groups(root, V2, "0::/\n", cpu0max=limit + "\n", cpu0stat="usage_usec 5\nnr_periods 9\nnr_throttled 4\n")
    limits = cpu_limits(root)
    assert limits.quota == quota
    assert limits.throttled_periods == (None if quota is None else 4)


def test_the_least_quota_of_the_groups_around_counts(root: Path) -> None:
    groups(
        root,
        V2,
        "0::/pod/main\n",
        pod__cpu0max="100000 100000\n",
        pod__cpu0stat="nr_throttled 3\n",
        pod__main__cpu0max="400000 100000\n",
        pod__main__cpu0stat="nr_throttled 2\n",
        other__cpu0max="1000 100000\n",
    )
    assert cpu_limits(root).quota == 1.0
    assert cpu_limits(root).throttled_periods == 5


@pytest.mark.parametrize(
    ("place", "path", "folder", "limit", "quota"),
    [
        ("/", "/docker/ab", "docker__ab__", "50000", 0.5),
        ("/docker/ab", "/docker/ab", "", "-1", None),
        ("/docker/ab", "/docker/ab/in", "in__", "300000", 3.0),
    ],
)
def test_the_quota_of_version_1(
    root: Path, place: str, path: str, folder: str, limit: str, quota: float | None
) -> None:
    """Seen from the host, and from a container, whose mount shows its own part."""
    files = {"cpu0cfs_quota_us": limit, "cpu0cfs_period_us": "100000", "cpu0stat": "nr_periods 1\nnr_throttled 1\n"}
    named = {f"cpu,cpuacct__{folder}{name}": content + "\n" for name, content in files.items()}
    groups(root, V1.format(place=place), f"5:cpuset:/x\n4:cpu,cpuacct:{path}\n0::/\n", **named)
    assert cpu_limits(root).quota == quota
    assert cpu_limits(root).throttled_periods == (None if quota is None else 1)


def test_a_process_outside_its_namespace_has_the_quota_of_the_mount(root: Path) -> None:
    groups(root, V2, "0::/../../elsewhere\n", cpu0max="50000 100000\n")
    assert cpu_limits(root) == CpuLimits(cpu_limits(root).affinity, 0.5, None)


def test_cores_that_a_quota_keeps_busy() -> None:
    def cores(quota: float | None) -> int:
        return CpuLimits((0, 1, 2, 5), quota, None).cores

    assert [cores(quota) for quota in (None, 0.2, 1.0, 1.5, 4.0, 32.0)] == [4, 1, 1, 2, 4, 4]


def test_a_real_quota_is_read_and_its_throttling_counted() -> None:
    """Needs a kernel whose CPU groups of version 1 may be made here."""
    group = Path("/sys/fs/cgroup/cpu") / f"dfs-deploy-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    script = (
        "import json, os, sys, time\n"
        "from pathlib import Path\n"
        "from dfs_deploy.system.cpu import cpu_limits\n"
        "Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "before = cpu_limits()\n"
        "end = time.process_time() + 0.2\n"
        "while time.process_time() < end: pass\n"
        "print(json.dumps([before.quota, cpu_limits().throttled_periods - before.throttled_periods]))\n"
    )
    try:
        (group / "cpu.cfs_quota_us").write_text("20000")
        ran = subprocess.run(
            [sys.executable, "-c", script, str(group)], capture_output=True, text=True, check=True, timeout=120
        )
    finally:
        group.rmdir()
    quota, throttled = json.loads(ran.stdout)
    assert quota == 0.2
    assert throttled > 0


# The kind of CPU that INT8 engines are made for


VNNI = Cpu("A server", frozenset(("avx2", "avx512_vnni")), "AVX-512 VNNI", False, "a")
PLAIN = Cpu("An old one", frozenset(("avx2",)), "", False, "b")


@pytest.mark.parametrize(
    ("machine", "cpu", "target"),
    [("x86_64", VNNI, "vnni"), ("AMD64", PLAIN, "avx2"), ("aarch64", PLAIN, "arm"), ("riscv64", PLAIN, "arm")],
)
def test_the_kind_of_a_cpu(monkeypatch: pytest.MonkeyPatch, machine: str, cpu: Cpu, target: TargetCpu) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert target_of(cpu) == target


def test_kinds_have_names_and_auto_is_this_machines() -> None:
    for target in WEIGHT_BITS:
        assert target_named(target) == target
    assert target_named("auto") == target_named(None) == target_of()
    with refuses(UsageError, "'sse'", "auto", "vnni", "avx2", "arm", "name one of them"):
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
    note = made_for_another_cpu(of_bits(mixed, tmp_path, bits).manifest.int8_weight_bits, cpu)
    assert (note is None) == (not words)
    for word in words:
        assert word in (note or "")


def test_a_bundle_without_int8_suits_every_cpu(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = Bundle(float_bundle(tmp_path_factory).path)
    assert bundle.manifest.int8_weight_bits is None
    assert made_for_another_cpu(None, VNNI) is made_for_another_cpu(None, PLAIN) is None


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
