from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.data import Dataset, save_npz
from dfs_deploy.exporters import pipeline
from dfs_deploy.runtimes import Runtime
from dfs_deploy.system.cpu import WORDS, TargetCpu, cpu_limits
from tests.builders import release_state_dict, save_release, skipnet_state_dict
from tests.bundles import Made
from tests.cli.program import run, run_apart
from tests.settled import CONTRACT, pixels, settled_network


def test_an_export_is_told_as_json(mixed: Made, tmp_path: Path) -> None:
    out = tmp_path / "net.dfs"
    ran = run("export", mixed.checkpoint, "--calibration-data", mixed.data_file, "--out", out, "--json")
    assert (ran.code, ran.err) == (0, "")
    bundle = Bundle(out)
    assert ran.json["bundle"] == str(out)
    assert ran.json["digest"] == bundle.digest
    assert ran.json["bytes"] == bundle.size
    assert ran.json["options"] == ["skip", "8", "16", "full"]
    assert ran.json["substitutions"] == {}
    assert ran.json["passed"] is True
    assert ran.json["engines_validated"] > 10
    assert ran.json["worst_error"].keys() == {"int8", "fp16", "fp32"}
    assert ran.json["worst_error"]["fp32"] < 1e-4
    assert ran.json["accuracy"]["samples"] == 96


def test_an_export_is_told_to_a_person(mixed: Made, tmp_path: Path) -> None:
    out = tmp_path / "net.dfs"
    ran = run("export", mixed.checkpoint, "--calibration-data", mixed.data_file, "--out", out, "--targets", "fp32,int8")
    assert ran.code == 0
    assert "PASSED" in ran.out
    assert str(out) in ran.out
    assert "option 16 falls back to fp32" in ran.out
    assert "no image was sent there" in ran.out
    assert "route agreement" in ran.out
    assert any("calibrating" in line for line in ran.err.splitlines())
    assert "Traceback" not in ran.err


def test_the_same_export_in_another_process_is_the_same_to_the_byte(mixed: Made, tmp_path: Path) -> None:
    """Nothing may depend on a hash seed, a clock or a path."""
    arguments = ["export", mixed.checkpoint, "--calibration-data", mixed.data_file, "--json"]
    apart = run_apart(*arguments, cwd=tmp_path)
    assert apart.code == 0, apart.err
    here = run(*arguments, "--out", tmp_path / "here.dfs")
    assert apart.json["bundle"] == "mixed.dfs"
    assert apart.json["digest"] == here.json["digest"]


def test_flags_reach_the_exporter(mixed: Made, tmp_path: Path) -> None:
    out = tmp_path / "net.dfs"
    flags = "--targets fp32,int8 --runtime onnxruntime,tensorrt --calibration-method mse --calibration-samples 40"
    ran = run(
        "export",
        mixed.checkpoint,
        *flags.split(),
        *("--weight-bits", "7", "--seed", "4", "--calibration-data", mixed.data_file, "--out", out, "--json"),
    )
    assert ran.code == 0, ran.err
    manifest = Bundle(out).manifest
    assert set(manifest.runtimes) == {"onnxruntime", "tensorrt"}
    assert manifest.calibration is not None
    assert (manifest.calibration.method, manifest.calibration.samples) == ("mse", 40)
    assert (manifest.calibration.weight_bits, manifest.calibration.seed) == (7, 4)
    assert manifest.targets == ["int8", "fp32"]


@pytest.mark.parametrize(("target", "bits"), [("vnni", 8), ("avx2", 7)])
def test_weights_have_the_bits_that_suit_the_cpu(mixed: Made, tmp_path: Path, target: TargetCpu, bits: int) -> None:
    flags = ["--calibration-data", mixed.data_file, "--targets", "fp32,int8", "--out", tmp_path / "net.dfs"]
    ran = run("export", mixed.checkpoint, *flags, "--target-cpu", target)
    assert ran.code == 0, ran.err
    assert f"{bits} bits, for {WORDS[target]}" in ran.out
    calibration = Bundle(tmp_path / "net.dfs").manifest.calibration
    assert calibration is not None
    assert calibration.weight_bits == bits
    ran = run("export", mixed.checkpoint, *flags, "--target-cpu", target, "--weight-bits", str(15 - bits), "--json")
    assert ran.json["weight_bits"] == 15 - bits


def test_threads_reach_pytorch_and_the_engines(mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = pipeline.validate

    def validate(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return real(*arguments)

    opened: list[int | None] = []

    class Opened(Runtime):
        def __init__(self, *arguments: Any, threads: int | None = None, **choices: Any) -> None:
            opened.append(threads)
            super().__init__(*arguments, threads=threads, **choices)

    monkeypatch.setattr(pipeline, "validate", validate)
    monkeypatch.setattr(pipeline, "Runtime", Opened)
    flags = ["--calibration-data", mixed.data_file, "--targets", "fp32", "--out", tmp_path / "net.dfs", "--json"]
    before = torch.get_num_threads()
    assert run("export", mixed.checkpoint, *flags, "--threads", "3").code == 0
    assert (seen, opened) == ([3], [3])
    assert torch.get_num_threads() == before
    assert run("export", mixed.checkpoint, *flags).code == 0
    assert (seen[1] <= cpu_limits().cores, opened[1]) == (True, None)


def test_budgets_are_calibrated_kept_and_shown(mixed: Made, tmp_path: Path) -> None:
    """The tiny network's gate makes large steps: the ends of what its options allow can always be held."""
    out = tmp_path / "net.dfs"
    flags = ["--targets", "fp32", "--calibration-data", mixed.data_file, "--out", out]
    ran = run("export", mixed.checkpoint, *flags, "--budgets", "1, 0", "--json")
    assert (ran.code, ran.err) == (0, "")
    least, *_, most = ran.json["budgets"]
    assert (least["computation_percentage"], most["computation_percentage"]) == (0.0, 100.0)
    assert [point.budget for point in Bundle(out).manifest.budgets] == [
        point["budget"] for point in ran.json["budgets"]
    ]
    for shown in (run("export", mixed.checkpoint, *flags, "--budgets", "0,1"), run("inspect", out)):
        assert shown.code == 0
        for word in ("budgets, measured at export on 96 images", "100.00 %", "bias", " ms"):
            assert word in shown.out, word
    for budget, wanted in (("0", 0.0), ("1", 100.0)):
        bars = ["--min-route-agreement", "0", "--max-top1-drop", "1", "--max-computation-change", "0"]
        ran = run("verify", out, "--checkpoint", mixed.checkpoint, "--data", mixed.data_file, "--budget", budget, *bars)
        assert ran.code == 0, ran.err
        assert f"budget {budget}" in ran.out
        assert f"{wanted:.2f} %" in ran.out
    ran = run("verify", out, "--checkpoint", mixed.checkpoint, "--data", mixed.data_file, "--budget", "1.5")
    ran.failed(2, "budget 1.5", "0 to 1")


def test_assumptions_and_options(tmp_path: Path) -> None:
    checkpoint = save_release(tmp_path / "net.pth.tar", release_state_dict((1, 1, 1)))
    data = Dataset(pixels(16, size=(32, 32)), np.zeros(16, np.int64), (), "data")
    save_npz(tmp_path / "data.npz", data)
    flags = ["--calibration-data", tmp_path / "data.npz", "--out", tmp_path / "net.dfs"]
    ran = run("export", checkpoint, *flags)
    assert ran.code == 0, ran.err
    assert ran.out.count("assumed:") == 4
    assert Bundle(tmp_path / "net.dfs").manifest.source.assumptions == [
        line.removeprefix("assumed: ") for line in ran.out.splitlines() if line.startswith("assumed: ")
    ]
    ran = run("export", checkpoint, "--options", "skip,4,8,full", *flags, "--json")
    assert ran.json["options"] == ["skip", "4", "8", "full"]
    assert len(ran.json["assumptions"]) == 3


def test_what_a_checkpoint_does_not_say_can_be_given(tmp_path: Path) -> None:
    checkpoint = save_release(tmp_path / "net.pth.tar", release_state_dict((1, 1, 1), classes=3))
    (tmp_path / "names.txt").write_text("ant\nbee\nwasp\n\n")
    given = ["--mean", "0.4,0.5,0.6", "--std", ".1,.2,.3", "--input-size", "24x40"]
    common = ["export", checkpoint, "--targets", "fp32", "--options", "skip,8,16,full", "--out", tmp_path / "net.dfs"]
    for names in ("ant, bee,wasp", tmp_path / "names.txt"):
        ran = run(*common, *given, "--class-names", names, "--json")
        assert (ran.code, ran.json["assumptions"]) == (0, [])
        record = Bundle(tmp_path / "net.dfs").manifest.input
        assert (record.shape, record.mean, record.std) == ((3, 24, 40), [0.4, 0.5, 0.6], [0.1, 0.2, 0.3])
        assert record.class_names == ["ant", "bee", "wasp"]
    ran = run(*common, *given, "--class-names", "none", "--json")
    assert Bundle(tmp_path / "net.dfs").manifest.input.class_names == []


def test_targets_that_no_option_can_use_are_said_to_be_of_the_static_baseline(tmp_path: Path) -> None:
    torch.save({"state_dict": skipnet_state_dict(seed=0)}, tmp_path / "net.pt")
    data = tmp_path / "data.npz"
    save_npz(data, Dataset(pixels(16, size=(32, 32)), np.zeros(16, np.int64), (), "data"))
    arguments = ["export", tmp_path / "net.pt", "--targets", "fp32,int8", "--out", tmp_path / "net.dfs"]
    assert "nothing is INT8 (a static baseline needs --calibration-data)" in run(*arguments).out
    assert "only the static baseline is INT8" in run(*arguments, "--calibration-data", data).out
    assert "is INT8" not in run(*arguments[:2], "--targets", "fp32", *arguments[4:]).out


def test_which_of_several_weights_is_chosen_kept_and_verified(tmp_path: Path) -> None:
    content = {"state_dict": skipnet_state_dict(seed=0), "state_dict_ema": skipnet_state_dict(seed=1)}
    torch.save(content, tmp_path / "net.pt")
    data, out = tmp_path / "data.npz", tmp_path / "net.dfs"
    save_npz(data, Dataset(pixels(16, size=(32, 32)), np.zeros(16, np.int64), (), "data"))
    ran = run("export", tmp_path / "net.pt", "--targets", "fp32", "--out", out)
    assert "those in state_dict are taken" in ran.out
    first = Bundle(out).digest
    ran = run("export", tmp_path / "net.pt", "--targets", "fp32", "--out", out, "--weights-key", "state_dict_ema")
    assert "those in state_dict_ema are taken" in ran.out
    assert Bundle(out).digest != first
    arguments = ["verify", out, "--checkpoint", tmp_path / "net.pt", "--data", data]
    ran = run(*arguments, "--json")
    assert (ran.code, ran.json["route_agreement"]) == (0, 1.0)
    assert any("state_dict_ema are taken" in line for line in ran.json["assumptions"])
    assert "state_dict_ema" in run(*arguments).out
    ran = run(*arguments, "--weights-key", "state_dict", "--json")
    assert ran.json["route_agreement"] < 1.0
    run(*arguments, "--weights-key", "best", "--json").failed(4, "best", "state_dict, state_dict_ema")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--targets", "int8,fp16"], 2, ["add fp32"]),
        (["--runtime", "openvino"], 2, ["openvino", "onnxruntime"]),
        (["--calibration-method", "entropy"], 2, ["--calibration-data"]),
        (["--options", "skip,9000"], 2, ["9000"]),
        (["--budgets", "0.1"], 2, ["--calibration-data"]),
        (["--budgets", "20", "--calibration-data", "missing.npz"], 2, ["missing.npz"]),
        (["--options", "skip,full"], 4, ["not skip,full"]),
        (["--mean", "0.5;0.5;0.5"], 2, ["--mean", "0.49,0.48,0.45"]),
        (["--mean", "125,123,114", "--std", "63,62,67"], 2, ["--mean '125,123,114'", "by 255"]),
        (["--std", "0,1,1"], 2, ["std between"]),
        (["--input-size", "32"], 2, ["--input-size", "32x32"]),
        (["--class-names", "missing.txt"], 2, ["missing.txt", "one class name per line"]),
        (["--class-names", "a,b"], 2, ["2 class names"]),
        (["--weights-key", "ema"], 4, ["'ema'", "state_dict"]),
    ],
)
def test_a_wrong_call(mixed: Made, tmp_path: Path, arguments: list[str], code: int, words: list[str]) -> None:
    ran = run("export", mixed.checkpoint, "--out", tmp_path / "net.dfs", *arguments, "--json")
    ran.failed(code, *words)
    assert ran.out == ""
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"no checkpoint")
    run("export", tmp_path / "net.pt", "--json").failed(4, "net.pt")
    run("export", tmp_path / "missing.pt", "--json").failed(4, "missing.pt")
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "other.pt")
    run("export", tmp_path / "other.pt", "--json").failed(4, "weight")


def test_something_else_at_the_place(mixed: Made, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    run("export", mixed.checkpoint, "--targets", "fp32", "--out", tmp_path, "--json").failed(2, "no bundle", "--out")
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_an_accuracy_to_keep_is_chosen_kept_shown_and_run(mixed: Made, tmp_path: Path) -> None:
    out = tmp_path / "net.dfs"
    flags = ["--targets", "fp32", "--calibration-data", mixed.data_file, "--out", out, "--max-top1-drop", "0.2"]
    ran = run("export", mixed.checkpoint, *flags, "--json")
    assert (ran.code, ran.err) == (0, "")
    point = ran.json["accuracy_budget"]
    assert point["max_top1_drop"] == 0.2
    assert point["chosen"]["samples"] + point["checked"]["samples"] == 96
    kept = Bundle(out).manifest.accuracy_budget
    assert kept is not None
    assert kept.bias == point["bias"]
    assert run("inspect", out, "--json").json["manifest"]["accuracy_budget"] == point
    for shown in (run("export", mixed.checkpoint, *flags), run("inspect", out)):
        assert shown.code == 0
        for word in ("accuracy budget: bias", "20.00 points below", "chosen on", "checked on", "95 % confidence"):
            assert word in shown.out, word
    bars = ["--min-route-agreement", "0", "--max-top1-drop", "1", "--max-computation-change", "1"]
    common = ["verify", out, "--checkpoint", mixed.checkpoint, "--data", mixed.data_file, *bars]
    own, trained = run(*common, "--json"), run(*common, "--budget", "trained", "--json")
    halves = [point[half]["computation_percentage_trained"] for half in ("chosen", "checked")]
    assert trained.json["computation_percentage_bundle"] == pytest.approx(np.mean(halves))
    halves = [point[half]["computation_percentage"] for half in ("chosen", "checked")]
    assert own.json["computation_percentage_bundle"] == pytest.approx(np.mean(halves))
    assert "budget trained" in run(*common, "--budget", "trained").out
    run(*common, "--budget", "some").failed(2, "--budget", "'some'", "trained")
    run("bench", out, "--all-budgets").failed(2, "has only an accuracy budget", "export with --budgets")


def test_an_accuracy_that_cannot_be_kept_is_a_failed_check(mixed: Made, tmp_path: Path) -> None:
    """The data are labelled with what the reference says, and the network is another."""
    save_checkpoint(tmp_path / "other.pt", settled_network(seed=7), CONTRACT)
    flags = ["--calibration-data", mixed.data_file, "--targets", "fp32", "--out", tmp_path / "net.dfs"]
    ran = run("export", tmp_path / "other.pt", *flags, "--max-top1-drop", "0.1", "--reference", mixed.path, "--json")
    ran.failed(1, "no budget", "within 10.00 points of bundle mixed", "--max-top1-drop")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other.pt"]
