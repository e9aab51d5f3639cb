from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from dfs_deploy.bench.start_up import measure_start_up
from dfs_deploy.errors import EnvironmentLacksError
from tests.bundles import Made
from tests.checks import refuses


def test_a_start_is_measured_in_a_process_of_its_own(mixed: Made) -> None:
    told: list[float] = []
    found = measure_start_up(mixed.path, ["dfs", "static-int8"], 1, progress=lambda stage, share: told.append(share))
    assert [start.name for start in found] == ["dfs", "static-int8"]
    assert told == [0.0, 0.5]
    for start in found:
        assert start.processes == 1
        assert min(start.import_ms, start.load_ms, start.first_result_ms) > 0
        assert start.total_ms == pytest.approx(start.import_ms + start.load_ms + start.first_result_ms)
        if Path("/proc/self/status").is_file():
            assert start.rss_mb is not None
            assert start.peak_rss_mb is not None
            assert start.loaded_mb is not None
            assert 0 < start.loaded_mb < start.rss_mb <= start.peak_rss_mb
        assert msgspec.to_builtins(start)["name"] == start.name


def test_no_process_is_started_where_none_is_wanted(tmp_path: Path) -> None:
    assert measure_start_up(tmp_path / "missing.dfs", ["dfs"], 0) == ()


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with refuses(EnvironmentLacksError, "missing.dfs", "--start-ups 0"):
        measure_start_up(tmp_path / "missing.dfs", ["dfs"], 1)


def test_nothing_of_the_current_directory_is_imported(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the current directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    assert measure_start_up(mixed.path.resolve(), ["dfs"], 1)[0].load_ms > 0
