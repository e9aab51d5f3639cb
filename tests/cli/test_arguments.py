from __future__ import annotations

from pathlib import Path

import pytest

from dfs_deploy.errors import UsageError
from dfs_deploy.io.files import check_files_writable
from tests.bundles import Made
from tests.checks import refuses
from tests.cli.program import run


def test_what_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("old")
    check_files_writable(old, None, tmp_path / "new", tmp_path / "within" / "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]
    assert old.read_text() == "old"


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refuses(UsageError, str(tmp_path), "folder"):
        check_files_writable(tmp_path)
    with refuses(UsageError, str(tmp_path / "file" / "out.html"), "name another"):
        check_files_writable(tmp_path / "file" / "out.html")


@pytest.mark.parametrize(
    "call",
    [
        ("bench", "{bundle}", "--csv"),
        ("bench", "{bundle}", "--save-baseline"),
        ("bench", "{bundle}", "--save-costs"),
        ("bench", "{bundle}", "--forced", "--plot"),
        ("report", "{bundle}", "--html"),
        ("verify", "{bundle}", "--checkpoint", "missing.pt", "--data", "missing.npz", "--save"),
        ("demo", "--out"),
    ],
)
def test_no_work_is_done_for_a_file_that_cannot_be_written(
    floats: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[str, ...]
) -> None:
    def worked(*_: object, **__: object) -> None:
        raise AssertionError("work was done before the path was looked at")

    for work in (
        "bench.measure.time_interleaved",
        "bench.costs.measure_costs",
        "report.build._run",
        "exporters.pipeline._calibrate",
    ):
        monkeypatch.setattr(f"dfs_deploy.{work}", worked)
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "out.svg"
    ran = run(*(word.format(bundle=floats.path) for word in call), path)
    ran.failed(2, str(tmp_path / "file"))
    assert ran.out == ""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("verify {bundle} --checkpoint {bundle} --data {data}", ["is a bundle", "floats.pt"]),
        ("verify {bundle} --checkpoint {checkpoint} --data nope.npz", ["nope.npz does not exist"]),
        ("verify {bundle} --checkpoint {checkpoint} --data {data} --min-route-agreement 1.01", ["--min-r", "0.98"]),
        ("bench {bundle} --data nope", ["nope does not exist"]),
        ("bench {bundle} --noise-band 5 --compare nope.json", ["--noise-band 5", "0.05 is 5 %"]),
        ("export empty", ["empty is a folder", "expected a checkpoint"]),
        ("export run", ["training run", "give the checkpoint.pt in it"]),
        ("inspect run", ["training run", "dfs-deploy export run/checkpoint.pt first"]),
        ("bench {bundle} run", ["training run", "dfs-deploy export run/checkpoint.pt first"]),
        ("bench {bundle} --data run", ["training run", "dfs-deploy export run/checkpoint.pt makes a bundle"]),
        ("export {checkpoint} --mean 0.5", ["mean 0.5", "give 3 numbers"]),
        ("report {bundle} --bench photo.png", ["photo.png", "PNG image"]),
        ("report nope", ["no bundle at nope"]),
        ("report {bundle}", ["--html"]),
        ("train --data {data} --target 0.4", ["at least 1 %", "give 40"]),
        ("train --data {data} --set block=1", ["did you mean blocks_per_group"]),
    ],
)
def test_a_mistake_is_named_with_its_remedy(
    floats: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").touch()
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    paths = {"bundle": floats.path, "checkpoint": floats.checkpoint, "data": floats.data_file}
    ran = run(*(word.format(**paths) for word in call.split()))
    assert ran.code in (2, 4), ran
    ran.failed(ran.code, *words)
