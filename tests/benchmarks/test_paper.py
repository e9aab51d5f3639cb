"""The paper's figures on tiny images, with a few steps and networks of three blocks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper.__main__ import main
from benchmarks.paper.exhibits import DFS, EXHIBITS, SKIPNET, Exhibit, chosen
from benchmarks.paper.runs import Settings, carry_out, find_data, runs_of, state_of, train_values
from dfs_deploy.errors import UsageError
from dfs_deploy.report.runs import load_run
from dfs_deploy.training import read_metrics, train
from dfs_deploy.training.metrics import StepRecord
from tests.checks import refuses
from tests.training.small import colour_patches

SMALL = [
    "--scale",
    "0.00005",
    "--alpha-scale",
    "1",
    "--networks",
    "resnet38=resnet8,resnet74=resnet8",
    "--set",
    "batch=16",
]
SMALL += ["--set", "threads=1", "--set", "device=cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    splits = {"train": colour_patches(48), "test": colour_patches(24, seed=1)}
    arrays = {f"{name}_{key}": value for name, d in splits.items() for key, value in (("x", d.images), ("y", d.labels))}
    np.savez(folder / "cifar10.npz", **arrays)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def out(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What some figures and tables leave."""
    folder = tmp_path_factory.mktemp("paper") / "runs"
    assert main(["--data", str(data), "--out", str(folder), "--only", "fig3,fig8,table1,table2,two-step", *SMALL]) == 0
    return folder


def exhibit(name: str) -> Exhibit:
    return next(each for each in EXHIBITS if each.name == name)


def test_every_figure_and_table_of_the_results_is_there() -> None:
    names = [each.name for each in EXHIBITS]
    assert names[:11] == [*(f"fig{number}" for number in range(3, 12)), "table1", "table2"]
    methods = Counter(variant.options for variant in exhibit("fig5").variants)
    assert methods == {DFS: 4, SKIPNET: 4}
    assert {(each.network, each.data_set) for each in EXHIBITS[:4]} == {
        (network, data_set) for network in ("resnet38", "resnet74") for data_set in ("cifar10", "cifar100")
    }
    assert {variant.alpha_sign for variant in exhibit("table1").variants} == {"dynamic", "constant"}
    assert [each.name for each in chosen(None, ["resnet74"], ["cifar100"])] == ["fig6"]


def test_networks_share_a_backbone_and_a_gate_and_name_what_they_begin_with() -> None:
    runs = {run.name: run for run in runs_of(exhibit("fig3"), "resnet38")}
    assert len(runs) == 1 + 2 + 8
    seen: set[str] = set()
    for name, run in runs.items():
        assert run.begins is None or run.begins[1] in seen
        seen.add(name)
    values = train_values(runs["resnet38-cifar10-skipnet-20"], Settings(scale=0.01), Path("d"), Path("o"))
    assert values["start"] == str(Path("o/resnet38-cifar10-skipnet-gate/checkpoint.pt"))
    assert (values["joint_steps"], values["target"], values["options"]) == (640, 20.0, SKIPNET)
    assert values["blocks_per_group"] == 6
    assert Settings().steps("joint") == 64_000


def test_fewer_steps_have_a_greater_alpha_unless_told() -> None:
    runs = {run.name: run for run in runs_of(exhibit("table2"), "resnet74")}
    least, plain = (f"resnet74-cifar10-dfs-{name}" for name in ("40-alpha1e-06", "gate"))

    def alpha(name: str, settings: Settings) -> float:
        found: float = train_values(runs[name], settings, Path("d"), Path("o"))["alpha"]
        return found

    for settings, factor in ((Settings(), 1), (Settings(0.01), 100), (Settings(0.01, alpha_scale=1.0), 1)):
        assert alpha(least, settings) == pytest.approx(1e-6 * factor)
        assert alpha(plain, settings) == pytest.approx(5e-6 * factor)


def test_runs_are_those_that_were_asked_for_and_are_drawn_with_their_steps(out: Path) -> None:
    figures = out / "figures"
    found = load_run(out / "resnet8-cifar10-dfs-20")
    assert (found.method, found.target, found.steps) == ("DFS", 20.0, 3)
    assert load_run(out / "resnet8-cifar10-skipnet-80").options == ("skip", "full")
    constant = load_run(out / "resnet8-cifar10-dfs-40-alpha1e-05-constant")
    assert (constant.alpha, constant.alpha_sign) == (1e-5, "constant")
    assert found.alpha == 5e-6
    stages = {r.stage for r in read_metrics(out / "resnet8-cifar10-dfs-40-joint-only") if isinstance(r, StepRecord)}
    assert stages == {"joint"}
    for name in ("fig3", "fig8"):
        text = (figures / f"{name}.svg").read_text()
        assert "steps: backbone 3, gate 3, joint 3; alpha 5e-06" in text
        assert (figures / f"{name}.png").stat().st_size > 1000
    table = (figures / "table1.md").read_text()
    assert table.count("| DFS-ResNet-8 |") == 2
    assert "Backbone: top-1" in table
    assert "joint 3; alpha 1e-05)" in table
    assert (figures / "table2.md").read_text().count("| DFS-ResNet-8 |") == 8
    index = (figures / "paper.md").read_text()
    assert index.count("## ") == 5
    assert "Not finished" not in index
    assert "resnet8-cifar10-dfs-20-joint-only" in index
    numbers = json.loads((figures / "paper.json").read_text())
    assert len(numbers["runs"]) == len({run["name"] for run in numbers["runs"]}) == 1 + 8 + 1 + 9 + 2


def test_the_same_command_trains_nothing_again(data: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    words = ["--data", str(data), "--out", str(out), "--only", "fig3", *SMALL]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.count("finished before") == 11
    assert "at most 0 steps are left" in said
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")} == logs
    assert main(["--draw", "--out", str(out), "--only", "fig3,fig7", *SMALL]) == 0
    index = (out / "figures" / "paper.md").read_text()
    assert "Not finished: resnet8-cifar10-dfs-10" in index


def test_a_run_that_was_stopped_goes_on(data: Path, tmp_path: Path) -> None:
    settings = Settings(0.0001, 0, {"batch": 16, "threads": 1, "device": "cpu", "save_every": 1})
    backbone = runs_of(exhibit("fig3"), "resnet8")[0]
    values = train_values(backbone, settings, data / "cifar10.npz", tmp_path)

    def stop(text: str, share: float) -> None:
        if "step" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(progress=stop, **values)
    assert state_of(tmp_path / backbone.name) == "stopped"
    result = carry_out(values)
    assert result is not None
    assert state_of(tmp_path / backbone.name) == "finished"
    steps = [record.step for record in read_metrics(tmp_path / backbone.name) if isinstance(record, StepRecord)]
    assert steps == list(range(1, 7))
    assert carry_out(values) is None


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "out"), "--dry-run", "--scale", "0.01"]) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert "resnet74-cifar100-skipnet-80" in said
    assert "joint 640" in said
    assert "fig4, fig11" in said
    assert main(["--out", str(tmp_path / "out"), "--dry-run", "--networks", "resnet38", "--data-sets", "cifar100"]) == 0
    assert "11 runs for 1 figures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scale", "0"], "scale 0"),
        (["--scale", "2"], "scale 2"),
        (["--only", "fig12"], "'fig12'"),
        (["--networks", "resnet50"], "'resnet50'"),
        (["--networks", "resnet38=resnet9"], "'resnet9'"),
        (["--data-sets", "svhn"], "'svhn'"),
        (["--only", "fig6", "--networks", "resnet38"], "no figure"),
        (["--set", "batch"], "NAME=VALUE"),
        (["--dry-run", "--alpha-scale", "-1"], "alpha scale -1"),
        (["--dry-run", "--alpha-scale", "nan"], "alpha scale nan"),
        (["--dry-run", "--set", "foo=1"], "no value 'foo'"),
        (["--dry-run", "--set", "batch=0"], "batch is 0"),
        (["--dry-run", "--set", "batch=many"], "batch is 'many'"),
        (["--dry-run", "--set", "threads=0"], "threads is 0"),
        (["--dry-run", "--set", "target=30"], "--only"),
        (["--dry-run", "--set", "blocks_per_group=1"], "--networks"),
        (["--dry-run", "--set", "seed=1"], "--seed"),
        (["--dry-run", "--seed", "-1"], "seed is -1"),
        ([], "--data"),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["--data", str(data), "--out", str(tmp_path / "file"), "--only", "fig8", *SMALL]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "--out" in said


def test_other_settings_in_the_same_folder_are_refused(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data), "--out", str(out), "--only", "fig3", *SMALL[2:]]
    assert main([*words, "--scale", "0.5"]) == 2
    assert "was begun with" in capsys.readouterr().err


def test_data_that_are_not_there_are_named(data: Path) -> None:
    assert find_data(data, "cifar10") == data / "cifar10.npz"
    with refuses(UsageError, "no cifar100", "cifar-100-python"):
        find_data(data, "cifar100")
