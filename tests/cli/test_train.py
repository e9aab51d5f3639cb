"""``dfs-deploy train``: what is given, what is said, and what a stop leaves."""

from __future__ import annotations

import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from dfs_deploy.bundle import Bundle
from dfs_deploy.costs import save_costs
from dfs_deploy.data import Dataset, save_npz
from dfs_deploy.training import Recipe
from dfs_deploy.training.state import load_state
from tests.builders import release_state_dict, save_release
from tests.cli.program import Ran, run
from tests.cli.test_train_baselines import header, latency_table
from tests.training.small import colour_patches

DOCS = Path(__file__).parent.parent.parent / "docs"
QUICK = ("--preset", "quick", "--blocks", "1", "--batch", "16", "--threads", "1", "--device", "cpu")
STEPS = ("--backbone-steps", "6", "--gate-steps", "4", "--joint-steps", "4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "patches.npz"
    save_npz(path, colour_patches())
    return path


@pytest.fixture(scope="module")
def finished(data: Path) -> Path:
    """A run with all stages."""
    out = data.parent / "finished"
    ran = train(data, "--out", out)
    assert ran.code == 0, ran.err
    return out


def train(data: Path | str, *arguments: str | Path) -> Ran:
    """A run of a second, in this process."""
    return run("train", "--data", data, *QUICK, *STEPS, *arguments)


def recipe_of(folder: Path) -> dict[str, Any]:
    recipe = json.loads((folder / "job.json").read_text())["job"]["recipe"]
    assert isinstance(recipe, dict)
    return recipe


def until_backbone(data: Path | str, *arguments: str | Path) -> Ran:
    return run("train", "--data", data, *QUICK, "--until", "backbone", *arguments)


# ------------------------------------------------------------------------------------------------ values of the recipe

CHANGED = {
    "autocast": ("bfloat16", "bfloat16"),
    "descent": ("0.5", 0.5),
    "distill": ("0.25", 0.25),
    "drop": ("0.1", 0.1),
    "statistics_batches": ("2", 2),
    "temperature": ("3", 3.0),
    "options": ("skip,full", "skip,full"),
    "target": ("20", 20.0),
    "blocks_per_group": ("2", 2),
    "batch": ("8", 8),
    "backbone_steps": ("1", 1),
    "gate_steps": ("1", 1),
    "gate_patience": ("2", 2),
    "joint_steps": ("1", 1),
    "settle_share": ("0.5", 0.5),
    "backbone_lr": ("1e-2", 0.01),
    "gate_lr": ("1e-3", 0.001),
    "joint_lr": ("0.02", 0.02),
    "joint_gate_lr": ("0.003", 0.003),
    "schedule": ("steps", "steps"),
    "gate_optimizer": ("sgd", "sgd"),
    "momentum": ("0.5", 0.5),
    "nesterov": ("false", False),
    "weight_decay": ("0", 0.0),
    "clip": ("1", 1.0),
    "standardize_gate": ("False", False),
    "alpha": ("0.001", 0.001),
    "alpha_sign": ("constant", "constant"),
    "augmentation": ("none", "none"),
    "crop_area": ("0.25", 0.25),
}


def test_every_value_of_the_recipe_can_be_set(data: Path, tmp_path: Path) -> None:
    told_otherwise = {"policy", "cost", "costs"}  # a network without a gate, and costs that were measured
    assert set(CHANGED) | told_otherwise == set(vars(Recipe()))
    changes = [word for name, (text, _) in CHANGED.items() for word in ("--set", f"{name}={text}")]
    ran = run("train", "--data", data, "--preset", "quick", *changes, "--threads", "1", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    recipe = recipe_of(tmp_path / "run")
    assert {name: recipe[name] for name in CHANGED} == {name: value for name, (_, value) in CHANGED.items()}


def test_a_value_is_the_same_by_its_flag_and_by_its_name(data: Path, tmp_path: Path) -> None:
    by_flag = ["--alpha", "0.01", "--augment", "crop", "--target", "25", "--options", "skip,full"]
    by_name = ["alpha=0.01", "augmentation=crop", "target=25", "options=skip,full"]
    one = run("train", "--data", data, *QUICK, *STEPS, *by_flag, "--out", tmp_path / "one")
    other = train(data, *[word for change in by_name for word in ("--set", change)], "--out", tmp_path / "other")
    assert (one.code, other.code) == (0, 0), one.err + other.err
    assert recipe_of(tmp_path / "one") == recipe_of(tmp_path / "other")


def test_costs_and_a_policy_can_be_set_by_name(data: Path, finished: Path, tmp_path: Path) -> None:
    """``--set cost=FILE`` is ``--cost FILE``: a run that is steered by times says so, and no other does."""
    save_costs(tmp_path / "latency.json", latency_table())
    arguments = ["--set", f"cost={tmp_path / 'latency.json'}", "--target", "60", "--out", tmp_path / "timed"]
    assert train(data, *arguments).code == 0
    assert recipe_of(tmp_path / "timed")["cost"] == "latency.json"
    assert recipe_of(tmp_path / "timed")["costs"] == [[0.2, 0.6, 1.0, 1.0]] * 2
    train(data, "--set", "cost=nonsense.json", "--out", tmp_path / "no").failed(2, "nonsense.json")
    backbone = ["--backbone", finished / "backbone.pt"]
    assert train(data, *backbone, "--set", "policy=8", "--out", tmp_path / "policy").code == 0
    assert recipe_of(tmp_path / "policy")["policy"] == "8"
    mixed = train(data, *backbone, "--set", "policy=mixed", "--target", "20", "--out", tmp_path / "mixed")
    assert mixed.code == 0, mixed.err
    assert "by sensitivity" in mixed.err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "alpha=1", "--alpha", "1"], ["alpha", "twice"]),
        (["--set", "clip=1", "--set", "clip=2"], ["clip", "twice"]),
        (["--set", "speed=1"], ["no value 'speed'"]),
        (["--set", "alpha"], ["NAME=VALUE"]),
        (["--set", "alpha=much"], ["alpha as a number"]),
        (["--set", "gate_patience=1e3"], ["gate_patience as an integer"]),
        (["--set", "gate_patience=" + "9" * 5000], ["gate_patience"]),
        (["--set", "schedule=never"], ["steps or one-cycle"]),
        (["--set", "momentum=1"], ["momentum", "less than 1"]),
        (["--set", "momentum=0"], ["nesterov"]),
        (["--set", "alpha=nan"], ["alpha", "at least 0"]),
        (["--target", "150"], ["0 to 100"]),
        (["--target", "nan"], ["target is nan"]),
        (["--policy", "8", "--target", "nan"], ["target is nan"]),
        (["--set", "joint_steps=-1"], ["joint_steps"]),
        (["--set", f"joint_steps={10**30}"], ["joint_steps", "1,000,000,000"]),
        (["--cost", ""], ["cost ''", "flops or the path of a latency table"]),
        (["--cost", "latncy"], ["cost 'latncy' is neither latency, flops nor a file", "--save-costs"]),
        (["--policy", "8", "--max-top1-drop", "0.3"], ["an accuracy to keep (--max-top1-drop) and a policy"]),
        (["--weights-key", "state_dict_ema"], ["a weights key is given without a file"]),
        (["--set", "options=skip"], ["option"]),
        (["--options", "8,8"], ["8"]),
        (["--seed", "9" * 30], ["seed"]),
        (["--held-out", "-4"], ["held_out"]),
        (["--held-out", "10", "--evaluate-on", "test"], ["one of the two"]),
        (["--size", "0x8"], ["size 0x8"]),
        (["--size", "9" * 5000 + "x8"], ["size"]),
        (["--device", "toaster"], ["toaster"]),
        (["--preset", "slow"], ["paper, quick, cpu-int8 or jetson"]),
        (["--policy", "mixed"], ["--backbone"]),
        (["--evaluate-on", "test"], ["no split 'test'", "--held-out"]),
        (["--save-every", "9" * 12], ["save_every"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_value_that_cannot_be_is_one_line_and_writes_nothing(
    data: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    out = tmp_path / "run"
    common = ["--preset", "quick", "--blocks", "1", "--batch", "16", "--threads", "1"]
    ran = run("train", "--data", data, *common, *arguments, "--out", out)
    last = Ran(ran.code, ran.out, ran.err.splitlines(keepends=True)[-1])
    last.failed(2, *words)
    assert len(ran.err.splitlines()) <= 2, "at most the line on the data comes before"
    assert not out.exists()


def test_a_device_that_this_machine_lacks_is_of_the_environment(data: Path, tmp_path: Path) -> None:
    until_backbone(data, "--device", "cuda:99", "--json", "--out", tmp_path / "run").failed(3, "cuda:99", "--device")
    assert not (tmp_path / "run").exists()


def test_data_that_cannot_be_used_are_not_announced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    until_backbone(tmp_path / "empty", "--out", tmp_path / "run").failed(2, "empty", "expected one per class")


def test_a_value_that_no_stage_reads_is_named(data: Path, finished: Path, tmp_path: Path) -> None:
    backbone = ["--backbone", finished / "backbone.pt"]
    words = ["--policy", "8", "--set", "gate_lr=1", "--target", "30", "--json", "--out", tmp_path / "a"]
    ran = train(data, *backbone, *words)
    assert ran.code == 0
    (note,) = ran.json["notes"][:1]
    for word in ("target", "gate_lr", "gate_steps", "backbone_steps", "no effect", "a network with a policy"):
        assert word in note
    assert "joint_steps" not in note
    ran = until_backbone(data, "--backbone-steps", "2", "--alpha", "1", "--json", "--out", tmp_path / "b")
    assert "no effect on this run: alpha (" in ran.json["notes"][0]
    ran = train(data, "--alpha-sign", "constant", "--target", "30", "--json", "--out", tmp_path / "c")
    assert "no effect on this run: target (" in ran.json["notes"][0]
    assert ran.json["target"] is None
    ran = train(data, "--target", "30", "--set", "clip=1", "--json", "--out", tmp_path / "d")
    assert (ran.code, ran.err) == (0, "")
    assert not [note for note in ran.json["notes"] if "no effect" in note]
    ran = train(data, "--set", "gate_lr=1", "--until", "backbone", "--out", tmp_path / "e")
    assert "no effect on this run: gate_lr, gate_steps, joint_steps" in ran.err


def test_weights_of_a_checkpoint_can_be_chosen(data: Path, tmp_path: Path) -> None:
    weights = release_state_dict(groups=(1, 1, 1), classes=3, width=16)
    averaged = {k: v * 0.5 if v.is_floating_point() else v for k, v in weights.items()}
    save_release(tmp_path / "two.pt", weights, state_dict_ema=averaged)
    arguments = ["--backbone", tmp_path / "two.pt", "--size", "32x32", "--until", "gate", "--json", "--out"]
    chosen = train(data, *arguments, tmp_path / "ema", "--weights-key", "state_dict_ema")
    assert chosen.code == 0, chosen.err
    state = load_state(tmp_path / "ema")
    assert state is not None
    assert torch.equal(state.network["net.blocks.1.conv1.weight"], averaged["group2_layer0.conv1.weight"])
    train(data, *arguments, tmp_path / "no", "--weights-key", "nonsense").failed(4, "nonsense")
    assert not (tmp_path / "no").exists()


# ------------------------------------------------------------------------------------------------------------ the data


def split_folders(root: Path, *splits: str, classes: tuple[str, ...] = ("cat", "dog"), count: int = 12) -> Path:
    random_pixels = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(random_pixels.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.mark.parametrize(
    ("splits", "flags", "said", "split", "images"),
    [
        (("train", "val"), [], "evaluating on split val", "val", 24),
        (("train", "val", "test"), [], "evaluating on split test (also there: val; --evaluate-on val)", "test", 24),
        (("train",), [], "evaluating on a tenth of the images held out", "held-out", 2),
        (("train", "val"), ["--held-out", "5"], "evaluating on 5 images held out", "held-out", 5),
    ],
)
def test_the_split_to_evaluate_on_is_chosen_and_said(
    tmp_path: Path, splits: tuple[str, ...], flags: list[str], said: str, split: str, images: int
) -> None:
    folder = split_folders(tmp_path / "data", *splits)
    arguments = ["--backbone-steps", "2", *flags, "--out"]
    ran = until_backbone(folder, *arguments, tmp_path / "run")
    assert ran.code == 0, ran.err
    first = ran.err.splitlines()[0]
    assert first.startswith("training on split train of")
    assert said in first
    result = until_backbone(folder, *arguments, tmp_path / "again", "--json").json
    assert (result["split"], result["images"]) == (split, images)


@pytest.mark.parametrize(
    ("splits", "flags", "words"),
    [
        (("val", "test"), [], ["val, test", "no train"]),
        (("train", "val"), ["--evaluate-on", "test"], ["no split 'test'", "it has val"]),
        (("train", "val"), ["--evaluate-on", "train"], ["no split 'train' to evaluate on"]),
    ],
)
def test_a_split_that_is_not_there_is_said_before_an_image_is_decoded(
    tmp_path: Path, splits: tuple[str, ...], flags: list[str], words: list[str]
) -> None:
    folder = split_folders(tmp_path / "data", *splits)
    for image in folder.rglob("*.png"):
        image.write_bytes(b"no image")
    until_backbone(folder, *flags, "--out", tmp_path / "run").failed(2, *words)
    assert not (tmp_path / "run").exists()


def save_splits(path: Path, train_set: Dataset, test_set: Dataset) -> Path:
    np.savez(path, train_x=train_set.images, train_y=train_set.labels, test_x=test_set.images, test_y=test_set.labels)
    return path


def test_splits_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    patches = colour_patches()
    small = Dataset(patches.images[:, :6], patches.labels, (), "small")
    sizes = save_splits(tmp_path / "sizes.npz", patches, small)
    until_backbone(sizes, "--json", "--out", tmp_path / "run").failed(2, "6x8", "8x8", "--size 8x8")
    beyond = Dataset(patches.images, patches.labels + 1, (), "beyond")
    until_backbone(save_splits(tmp_path / "labels.npz", patches, beyond), "--json", "--out", tmp_path / "run").failed(
        2, "label 3", "expected 0 to 2"
    )
    assert until_backbone(sizes, "--size", "8x8", "--backbone-steps", "1", "--out", tmp_path / "sized").code == 0


def test_labels_with_gaps_are_refused_or_said(tmp_path: Path) -> None:
    patches = colour_patches(48)
    np.savez(tmp_path / "huge.npz", x=patches.images, y=np.where(patches.labels == 2, 10**9, patches.labels))
    until_backbone(tmp_path / "huge.npz", "--json", "--out", tmp_path / "run").failed(2, "1000000000", "without gaps")
    np.savez(tmp_path / "gap.npz", x=patches.images, y=np.where(patches.labels == 2, 5, patches.labels))
    ran = until_backbone(tmp_path / "gap.npz", "--backbone-steps", "1", "--out", tmp_path / "run")
    assert ran.code == 0
    assert "note: 3 of 6 classes have no training image (2, 3, 4)" in ran.err


def test_a_class_that_cannot_be_stored_is_refused_before_training(tmp_path: Path) -> None:
    folder = split_folders(tmp_path / "data", "train", classes=("dog", "caf\udce9"))
    until_backbone(folder, "--json", "--out", tmp_path / "run").failed(2, "caf", "UTF-8")
    assert not (tmp_path / "run").exists()


def test_digits_are_resized_as_any_data_and_give_way_to_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = until_backbone("digits", "--size", "8x8", "--backbone-steps", "1")
    assert ran.code == 0
    exporting = shlex.split(ran.out.splitlines()[-1].removeprefix("next: dfs-deploy "))
    assert run(*exporting, "--targets", "fp32").code == 0
    assert header("run").network.image_shape == (3, 8, 8)
    split_folders(tmp_path / "digits", "train")
    until_backbone("digits", "--backbone-steps", "1", "--out", "other")
    assert header("other").network.classes == 2
    assert header("other").job["recipe"]["augmentation"] == "crop-flip"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "4"}, ["RANK", "torchrun"]),
        ({"WORLD_SIZE": "many"}, ["WORLD_SIZE", "'many'"]),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"}, ["MASTER_PORT"]),
    ],
)
def test_variables_of_a_batch_system_are_not_taken_for_processes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    until_backbone(data, "--json", "--out", tmp_path / "run").failed(2, *words)


# ---------------------------------------------------------------------------------------------------------- the folder


def test_a_folder_that_cannot_take_a_run_is_said_before_the_data_are_read(finished: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "missing.npz"
    until_backbone(nothing, "--out", finished).failed(2, "has a training run already", "--resume")
    (tmp_path / "file").write_text("")
    until_backbone(nothing, "--out", tmp_path / "file").failed(2, "is no folder")
    until_backbone(nothing, "--out", "/proc/run").failed(2, "/proc/run", "cannot be created")
    until_backbone(nothing, "--out", tmp_path / "run").failed(2, "does not exist")


def test_of_two_trainings_in_one_folder_one_is_refused(data: Path, finished: Path, tmp_path: Path) -> None:
    from dfs_deploy.io.files import sole_use

    before = (finished / "metrics.jsonl").read_bytes()
    with sole_use(finished):
        run("train", "--resume", finished).failed(2, "another process trains in", str(finished))
    (tmp_path / "new").mkdir()
    with sole_use(tmp_path / "new"):
        until_backbone(data, "--json", "--out", tmp_path / "new").failed(2, "another process trains in")
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert list((tmp_path / "new").iterdir()) == []
    assert run("train", "--resume", finished).code == 0


# ---------------------------------------------------------------------------------------------------- lines and results


def test_a_pipe_gets_lines_while_it_trains(finished: Path, data: Path, tmp_path: Path) -> None:
    ran = train(data, "--out", tmp_path / "run")
    lines = ran.err.splitlines()
    for stage, steps in (("backbone", 6), ("gate", 4), ("joint", 4)):
        begun = [line for line in lines if line.startswith(f"{stage} step 1/{steps}: loss ")]
        assert len(begun) == 1
        assert "accuracy" in begun[0]
        assert "computation" in begun[0]
        assert any(line.startswith(f"{stage} step {steps}: top-1") for line in lines)


def test_a_missed_target_is_said_and_in_the_result(data: Path, finished: Path, tmp_path: Path) -> None:
    """Stage 1 ends at full computation, and a gate that does not learn stays there."""
    fixed = ["--start", finished / "checkpoint.pt", "--joint-steps", "1", "--set", "joint_gate_lr=0"]
    for target, missed in (("50", True), ("99", False)):
        out = tmp_path / target
        ran = run("train", "--data", data, *QUICK, *fixed, "--target", target, "--out", out)
        assert ran.code == 0, ran.err
        said = re.search(rf"^target missed: 100.00 % computation, asked for {target} %; ", ran.out, re.MULTILINE)
        assert (said is not None) == missed
        result = run("train", "--resume", out, "--json").json
        assert (result["target"], result["target_missed"]) == (float(target), missed)


def test_the_printed_next_command_makes_a_bundle_named_after_the_run(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, words in (("run one", ["checkpoint.pt"]), ("other", ["checkpoint.pt"])):
        ran = train(data, "--seed", str(len(name)), "--out", name)
        line = ran.out.splitlines()[-1]
        assert line.startswith("next: dfs-deploy export ")
        program, *arguments = shlex.split(line.removeprefix("next: "))
        calibrated = ["--calibration-data", str(data)]
        assert (program, arguments) == ("dfs-deploy", ["export", f"{name}/{words[0]}", *calibrated])
        assert run(*arguments, "--targets", "fp32").code == 0
    digests = {name: Bundle(tmp_path / f"{name}.dfs").manifest.source.sha256 for name in ("run one", "other")}
    assert len(set(digests.values())) == 2
    assert run("export", "other/backbone.pt", "--targets", "fp32").code == 0
    assert (tmp_path / "other-backbone.dfs").is_dir()
    # Inside the run's folder it is named alike.
    monkeypatch.chdir(tmp_path / "other")
    assert run("export", "checkpoint.pt", "--targets", "fp32").code == 0
    assert (tmp_path / "other" / "other.dfs").is_dir()


def test_training_for_a_device_works_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of docs/training.md as they stand, with fewer steps and shorter measurements."""
    section = (DOCS / "training.md").read_text().split("## Training for a device")[1]
    blocks = [block.split("```")[0] for block in section.split("```sh\n")[1:]]
    commands = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    few = [word for word, before in zip(STEPS, ["", *STEPS], strict=False) if "--joint-steps" not in (word, before)]
    short = {
        "export": [],
        "bench": ["--min-seconds", "0.01", "--min-iterations", "2000", "--start-ups", "0", "--energy-seconds", "0"],
        "train": ["--threads", "1"],
    }
    monkeypatch.chdir(tmp_path)
    for module in ("verdict", "costs"):  # however busy this machine is: what is measured counts as known
        monkeypatch.setattr(f"dfs_deploy.bench.{module}.MAX_UNCERTAINTY", math.inf)
    monkeypatch.setattr("dfs_deploy.training.latency.TOLERANCE", math.inf)
    assert [command[1] for command in commands] == ["train", "train", "export", "bench", "train"]
    for program, verb, *arguments in commands:
        assert program == "dfs-deploy"
        steps = (few if "--joint-steps" in arguments else STEPS) if verb == "train" else []
        ran = run(verb, *arguments, *short[verb], *steps)
        assert ran.code == 0, ran
    assert header(tmp_path / "for-this-machine").cost == "latency"
    assert header(tmp_path / "for-this-device").cost == "latency.json"


def test_a_table_of_another_depth_names_the_flag(tmp_path: Path, data: Path) -> None:
    save_costs(tmp_path / "latency.json", latency_table())
    arguments = ["--preset", "quick", "--cost", tmp_path / "latency.json", "--json", "--out", tmp_path / "run"]
    run("train", "--data", data, *arguments).failed(2, "--blocks 1")


# ------------------------------------------------------------------------------------------------------------- stopping


def begin(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Starts ``python -m dfs_deploy train`` in a process of its own."""
    command = [sys.executable, "-m", "dfs_deploy", "train", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120.0
    while process.poll() is None and not condition() and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("number", "code", "how"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_a_stop_says_what_was_saved_and_how_to_go_on(
    data: Path, tmp_path: Path, number: signal.Signals, code: int, how: str
) -> None:
    endless = [*QUICK, "--data", data, "--backbone-steps", "1000000", "--save-every", "5", "--out", "a run"]
    process = begin(*endless, cwd=tmp_path)
    wait_for((tmp_path / "a run" / "state.pt").exists, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60.0)
    assert (process.returncode, out) == (code, "")
    *_, said = err.splitlines()
    found = re.fullmatch(how + r": saved up to step (\d+) of stage backbone; go on with: (.*)", said)
    assert found is not None, err
    assert "Traceback" not in err
    assert not list((tmp_path / "a run").glob(".*"))
    assert shlex.split(found[2])[-3:] == ["train", "--resume", "a run"]
    state = load_state(tmp_path / "a run")
    assert state is not None
    assert state.step == int(found[1]), "what it says holds"


@pytest.mark.parametrize("stage", ["job", "gate", "end"])
def test_a_stop_between_two_saved_states_says_so(data: Path, tmp_path: Path, stage: str) -> None:
    out = tmp_path / "run"

    def stop(text: str, share: float) -> None:
        if text.startswith({"job": "backbone", "gate": "gate", "end": "nothing"}[stage]):
            raise KeyboardInterrupt

    ends = KeyboardInterrupt if stage == "end" else None
    with (
        mock.patch("dfs_deploy.cli.train_progress.silent", stop),
        mock.patch("dfs_deploy.training.running.TrainingResult", side_effect=ends),
    ):
        ran = train(data, "--json", "--out", out)
    go_on = f"go on with: dfs-deploy train --resume {out}"
    said = {
        "job": f"nothing was saved yet; {go_on}",
        "gate": f"saved up to the beginning of stage gate; {go_on}",
        "end": f"all stages are done and saved in {out}",
    }
    assert (ran.code, ran.err) == (130, f"interrupted: {said[stage]}\n")


def test_ctrl_c_before_training_says_that_nothing_was_written(data: Path, tmp_path: Path) -> None:
    with mock.patch("dfs_deploy.training.running.splits_for", side_effect=KeyboardInterrupt):
        ran = until_backbone(data, "--json", "--out", tmp_path / "run")
    assert (ran.code, ran.err) == (130, "interrupted: nothing was written\n")
    assert not (tmp_path / "run").exists()
