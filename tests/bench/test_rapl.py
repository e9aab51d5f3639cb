from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.bench.energy import EnergySampler
from dfs_deploy.bench.sensors import RaplPackage, find_rapl
from tests.bench.sensors import rapl_tree

GREATEST = 1_000_000


def counter(root: Path, package: int = 0) -> Path:
    return root / f"sys/class/powercap/intel-rapl:{package}/energy_uj"


def test_packages_are_added_and_what_is_part_of_them_or_more_than_them_is_not(tmp_path: Path) -> None:
    rapl_tree(tmp_path, packages=2, microjoules=5_000_000)
    sampler = find_rapl(tmp_path)
    assert isinstance(sampler, EnergySampler)
    sampler.start()
    for package, now in ((0, 6_500_000), (1, 5_250_000)):
        counter(tmp_path, package).write_text(f"{now}\n")
    result = sampler.stop()
    assert (result.source, result.rail) == ("rapl", "package-0+package-1")
    assert result.joules == pytest.approx(1.75)


@given(st.lists(st.integers(0, GREATEST), min_size=1, max_size=12))
def test_a_counter_that_starts_again_goes_on(tmp_path_factory: pytest.TempPathFactory, used: list[int]) -> None:
    root = rapl_tree(tmp_path_factory.mktemp("rapl"), microjoules=GREATEST - 7, greatest=GREATEST)
    package = RaplPackage(counter(root).parent)
    raw, total = GREATEST - 7, 0
    for microjoules in used:
        raw, total = (raw + microjoules) % (GREATEST + 1), total + microjoules
        counter(root).write_text(f"{raw}\n")
        assert package.joules() == pytest.approx(total / 1e6)


def test_no_rapl(tmp_path: Path) -> None:
    assert "no RAPL" in str(find_rapl(tmp_path))
    rapl_tree(tmp_path, packages=0)
    assert "no RAPL" in str(find_rapl(tmp_path)), "the platform alone is no package"


def test_counters_of_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rapl_tree(tmp_path)
    real = Path.read_text

    def read_text(self: Path) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_text", read_text)
    found = str(find_rapl(tmp_path))
    for word in ("energy_uj", "root"):
        assert word in found


def test_a_counter_that_holds_no_number(tmp_path: Path) -> None:
    rapl_tree(tmp_path)
    counter(tmp_path).write_text("many\n")
    assert "cannot be read" in str(find_rapl(tmp_path))
