from __future__ import annotations

import csv
from pathlib import Path

import pytest
from msgspec.structs import replace

from dfs_deploy.bench.csv_file import cell, write_csv
from tests.bench.made import FACTS, made_bench


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_row_a_case_with_the_figures_of_the_json(tmp_path: Path) -> None:
    result = made_bench(top1={"dfs": 0.9, "static-fp32": 0.91, "static-int8": 0.89})
    write_csv(result, tmp_path / "bench.csv")
    found = rows(tmp_path / "bench.csv")
    for row, case in zip(found, result.as_json()["cases"], strict=True):
        assert row["name"] == case["name"]
        assert float(row["p50_ms"]) == case["latency_ms"]["p50"]
        assert float(row["throughput_per_s"]) == case["throughput_per_s"]
        assert float(row["ratio_mean"]) == case["ratio"]["mean"]["value"]
        assert float(row["top1"]) == case["top1"]
        assert row["bundle"] == "net"
        assert row["valid"] == "True"


@pytest.mark.parametrize("turns", [2, 60])
def test_the_columns_do_not_depend_on_what_is_known(tmp_path: Path, turns: int) -> None:
    write_csv(made_bench(rounds=turns), tmp_path / "bench.csv")
    write_csv(made_bench(), tmp_path / "full.csv")
    found = rows(tmp_path / "bench.csv")
    assert found[0].keys() == rows(tmp_path / "full.csv")[0].keys()
    assert found[0]["top1"] == ""
    assert (found[0]["ratio_mean"] == "") == (turns == 2)


@pytest.mark.parametrize("name", ["=1+1", "@SUM(A1)", "\r=1", " =1", "\uff1d1", "\x1b[31m=1"], ids=ascii)
def test_a_name_is_no_formula_and_moves_no_cursor(tmp_path: Path, name: str) -> None:
    """Spreadsheets compute what begins like a formula: a bundle's or a data set's name is another's text."""
    result = replace(made_bench(), bundle=replace(FACTS, name=name), data=name)
    write_csv(result, tmp_path / "bench.csv")
    found = rows(tmp_path / "bench.csv")
    assert len(found) == len(result.cases)
    for row in found:
        for column in ("bundle", "data"):
            assert row[column][0] not in "=+-@\t\r\n\uff1d \x1b"
            assert row[column].isprintable()
            assert "1" in row[column], "the name can still be read"


def test_numbers_and_names_as_usual_stay_as_they_are() -> None:
    assert cell(-0.5) == -0.5
    assert cell(None) is None
    assert cell("dfs-forced-25-int8") == "dfs-forced-25-int8"
    assert cell("a = b") == "a = b"
