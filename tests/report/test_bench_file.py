from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dfs_deploy.errors import DataError, UsageError
from dfs_deploy.report import BundleReport
from dfs_deploy.report.bench_file import BenchedBundle, BenchFigures, load_bench, match_benches
from tests.checks import refuses

ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
def values(told: BundleReport) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(told.bench)
    return found


def written(folder: Path, values: Any) -> Path:
    path = folder / "bench.json"
    path.write_text(json.dumps(values))
    return path


def test_a_file_is_read_as_it_was_written(values: dict[str, Any], told: BundleReport, tmp_path: Path) -> None:
    assert load_bench(written(tmp_path, values)) == told.bench


def test_keys_that_a_newer_bench_adds_are_passed_over(
    values: dict[str, Any], told: BundleReport, tmp_path: Path
) -> None:
    values["cases"][0]["something"] = {"new": 1}
    assert load_bench(written(tmp_path, values | {"schema_version": 9})) == told.bench


def test_percentiles_may_be_refused(values: dict[str, Any], tmp_path: Path) -> None:
    values["cases"][0]["latency_ms"]["p99"] = None
    assert load_bench(written(tmp_path, values)).cases[0].latency_ms.p99 is None


@pytest.mark.parametrize("missing", ["cases", "clock", "machine"])
def test_what_is_shown_must_be_there(values: dict[str, Any], tmp_path: Path, missing: str) -> None:
    del values[missing]
    with refuses(DataError, missing):
        load_bench(written(tmp_path, values))


def test_what_is_no_bench(values: dict[str, Any], tmp_path: Path) -> None:
    with refuses(DataError, "missing.json"):
        load_bench(tmp_path / "missing.json")
    with refuses(DataError, "bench.json"):
        load_bench(written(tmp_path, [1, 2]))
    values["cases"] = values["cases"][1:]
    with refuses(DataError, "dfs"):
        load_bench(written(tmp_path, values))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with refuses(DataError, "deep.json"):
        load_bench(tmp_path / "deep.json")


def of(figures: BenchFigures, digest: str | None) -> tuple[Path, BenchFigures]:
    bundle = None if digest is None else BenchedBundle(digest)
    return Path("bench.json"), msgspec.structs.replace(figures, bundle=bundle)


def test_files_find_their_bundles(told: BundleReport) -> None:
    assert told.bench is not None
    first, second = of(told.bench, ONE), of(told.bench, TWO)
    assert match_benches([TWO, ONE], [first, second]) == (second[1], first[1])
    assert match_benches([ONE, TWO], [second]) == (None, second[1])
    assert match_benches([ONE, TWO], []) == (None, None)
    unnamed = of(told.bench, None)
    assert match_benches([ONE], [unnamed]) == (unnamed[1],)


def test_files_that_fit_no_bundle(told: BundleReport) -> None:
    assert told.bench is not None
    with refuses(DataError, TWO[:12]):
        match_benches([ONE], [of(told.bench, TWO)])
    with refuses(UsageError, "one file a bundle"):
        match_benches([ONE, TWO], [of(told.bench, None)])
    with refuses(UsageError, "same bundle"):
        match_benches([ONE, TWO], [of(told.bench, ONE), of(told.bench, ONE)])


@pytest.mark.parametrize(("key", "value"), [("p50", 0.0), ("p50", -1.0), ("p50", 1e300), ("p95", 0.0)])
def test_a_time_that_no_clock_gives_is_refused(values: dict[str, Any], tmp_path: Path, key: str, value: float) -> None:
    """Ratios are made of them."""
    values["cases"][0]["latency_ms"][key] = value
    with refuses(DataError, key):
        load_bench(written(tmp_path, values))
