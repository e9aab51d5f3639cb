from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
import torch

from dfs_deploy.checkpoints import load_checkpoint, save_checkpoint
from dfs_deploy.data import Dataset, save_npz
from dfs_deploy.errors import CheckFailedError, CheckpointError, DataError, EnvironmentLacksError, UsageError
from dfs_deploy.options import Options
from dfs_deploy.training import Job, read_metrics, resume, run_job
from dfs_deploy.training.begin import begun
from dfs_deploy.training.data import Images
from dfs_deploy.training.job import load_job
from dfs_deploy.training.loop import Loop, evaluate
from dfs_deploy.training.processes import Processes
from dfs_deploy.training.recipe import StageName
from dfs_deploy.training.splits import splits_for
from tests.builders import release_state_dict, save_release, small_network
from tests.checks import refuses
from tests.settled import CONTRACT
from tests.training.small import colour_patches, small_job, small_recipe

FORK = multiprocessing.get_context("fork")


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics log without its times, as plain values."""
    records: list[dict[str, Any]] = msgspec.to_builtins(read_metrics(folder))
    return [record for record in records if record["event"] != "time"]


def of(folder: Path, event: str, stage: str | None = None) -> list[dict[str, Any]]:
    return [record for record in lines(folder) if record["event"] == event and stage in (None, record["stage"])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that never stopped."""
    run_job(small_job(folder, evaluate_every=6), folder / "whole")
    return folder / "whole"


def test_the_stages_run_in_order_and_leave_what_can_be_used(whole: Path) -> None:
    steps = [(record["stage"], record["step"]) for record in of(whole, "step")]
    assert [stage for stage, step in steps if step == 1] == ["backbone", "gate", "joint"]
    assert [step for stage, step in steps if stage == "joint"] == list(range(1, 13))
    assert sorted(path.name for path in whole.iterdir()) == [
        "backbone.pt",
        "checkpoint.pt",
        "job.json",
        "metrics.jsonl",
        "state.pt",
    ]
    network = load_checkpoint(whole / "checkpoint.pt").network
    assert str(network.options) == "skip,8,16,full"
    backbone = load_checkpoint(whole / "backbone.pt").network
    assert backbone.policy == (1, 1)
    header = lines(whole)[0]
    assert (header["event"], header["schema"], header["processes"]) == ("run", 2, 1)
    assert header["job"] == load_job(whole).as_json()


def test_the_log_has_the_documented_keys(whole: Path) -> None:
    step = of(whole, "step", "joint")[0]
    assert set(step) == {"event", "stage", "step", "loss", "accuracy", "cost", "percentage", "alpha", "lr", "target"}
    assert len(step["lr"]) == 2
    evaluation = of(whole, "evaluation", "joint")[-1]
    keys = {"event", "stage", "step", "split", "images", "top1", "percentage", "option_share", "paths"}
    assert set(evaluation) == keys
    assert [len(row) for row in evaluation["option_share"]] == [4, 4]
    assert all(sum(row) == pytest.approx(1.0) for row in evaluation["option_share"])
    spent = sum(share * cost for row in evaluation["option_share"] for share, cost in zip(row, COSTS, strict=True))
    assert evaluation["percentage"] == pytest.approx(100.0 * spent / 2)


COSTS = (0.0, 1 / 16, 1 / 4, 1.0)


def test_stage_0_leaves_the_gate_alone_and_stage_1_the_backbone(folder: Path, whole: Path) -> None:
    run_job(small_job(folder, until="gate"), folder / "gate")
    state = torch.load(folder / "gate" / "state.pt", weights_only=True)["network"]
    backbone = load_checkpoint(whole / "backbone.pt").network.state_dict()
    fixed = [key for key in backbone if not key.startswith("ranges.")]
    assert all(torch.equal(state[key], backbone[key]) for key in fixed)
    assert any(not torch.equal(state[key], backbone[key]) for key in backbone)


def test_stage_1_ends_when_every_block_runs_in_full(whole: Path) -> None:
    steps = of(whole, "step", "gate")
    assert len(steps) < small_recipe().gate_steps
    patience = small_recipe().gate_patience
    assert [record["percentage"] for record in steps[-patience:]] == [100.0] * patience
    assert of(whole, "evaluation", "gate")[-1]["percentage"] > 95.0
    assert all(record["alpha"] < 0.0 for record in steps)


def test_the_last_steps_of_joint_training_keep_statistics_and_ranges(folder: Path, whole: Path) -> None:
    recipe = small_recipe(settle_share=1.0, joint_lr=0.0, joint_gate_lr=0.0, statistics_batches=0, alpha_sign="dynamic")
    before = load_checkpoint(whole / "checkpoint.pt").network.state_dict()
    run_job(small_job(folder, recipe, start=str(whole / "checkpoint.pt")), folder / "settled")
    after = load_checkpoint(folder / "settled" / "checkpoint.pt").network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_seed_repeats_and_another_does_not(folder: Path, whole: Path) -> None:
    job = small_job(folder, evaluate_every=6)
    run_job(job, folder / "again")
    assert lines(folder / "again") == lines(whole)
    run_job(small_job(folder, evaluate_every=6, seed=2), folder / "other")
    assert of(folder / "other", "step")[0]["loss"] != of(whole, "step")[0]["loss"]


def test_the_target_is_reached_by_the_dynamic_sign_and_missed_by_the_constant_one(folder: Path, whole: Path) -> None:
    """Table 1's finding, on the toy problem."""
    missed = {}
    for sign in ("dynamic", "constant"):
        changes = {"alpha_sign": sign, "alpha": 1e-2, "descent": 0.0, "joint_gate_lr": 1e-2}
        recipe = small_recipe(joint_steps=80, **changes)
        out = folder / sign
        run_job(small_job(folder, recipe, backbone=str(whole / "backbone.pt"), save_every=1000), out)
        last = [record["percentage"] for record in of(out, "step", "joint")[-15:]]
        missed[sign] = abs(sum(last) / len(last) - recipe.target)
    assert missed["dynamic"] < 10.0
    assert missed["constant"] > 25.0


@pytest.mark.parametrize(("options", "target"), [("skip,8", 3.5), ("skip,full", 60.0), ("skip,8,16,full", 30.0)])
def test_a_controlled_alpha_reaches_the_target_with_any_options(
    folder: Path, whole: Path, options: str, target: float
) -> None:
    recipe = small_recipe(options=Options.parse(options), target=target, joint_steps=80)
    out = folder / f"controlled-{options}"
    run_job(small_job(folder, recipe, backbone=str(whole / "backbone.pt"), save_every=1000), out)
    steps = of(out, "step", "joint")
    settled = steps[recipe.settled_from("joint") + 5 :]
    mean = sum(record["percentage"] for record in settled) / len(settled)
    assert mean == pytest.approx(target, abs=4.0 * recipe.dearest)
    network, splits = load_checkpoint(out / "checkpoint.pt").network, splits_for(load_job(out))
    trained_on = evaluate(network, Images(splits.train, splits.contract(), torch.device("cpu")))
    assert trained_on.percentage == pytest.approx(target, abs=recipe.dearest)
    assert steps[0]["target"] == pytest.approx(steps[0]["percentage"])
    assert [record["target"] for record in steps[40:]] == [pytest.approx(target)] * 40
    assert len({record["alpha"] for record in steps}) > 40
    assert all(record["target"] is None for record in of(out, "step", "gate"))


def test_a_step_in_bfloat16_learns_and_resumes_to_the_bit(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(autocast="bfloat16", backbone_steps=20, statistics_batches=3, drop=0.5)
    job = small_job(folder, recipe)
    run_job(job, tmp_path / "whole")
    stopped(job, tmp_path / "run")
    resume(tmp_path / "run")
    assert lines(tmp_path / "run")[1:] == lines(tmp_path / "whole")[1:]
    one, other = (load_checkpoint(tmp_path / name / "checkpoint.pt").network.state_dict() for name in ("run", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert all(value.dtype != torch.bfloat16 for value in one.values())
    steps = of(tmp_path / "whole", "step", "backbone")
    assert steps[-1]["loss"] < steps[0]["loss"]
    plain = dataclasses.replace(job, recipe=dataclasses.replace(recipe, autocast="none"), until="backbone")
    run_job(plain, tmp_path / "plain")
    first = of(tmp_path / "plain", "step")[0]["loss"]
    assert steps[0]["loss"] != first
    assert steps[0]["loss"] == pytest.approx(first, rel=0.05)


def test_stage_0_drops_late_blocks_more_often_and_none_once_it_is_over(folder: Path, tmp_path: Path) -> None:
    """A block that every step drops learns nothing; the first is dropped in half of the steps."""
    job = small_job(folder, small_recipe(drop=1.0, backbone_steps=12, weight_decay=0.0), until="backbone")
    run_job(job, tmp_path / "run")
    run_job(dataclasses.replace(job, recipe=small_recipe(backbone_steps=1, backbone_lr=0.0)), tmp_path / "begun")
    trained, begun = (load_checkpoint(tmp_path / name / "backbone.pt").network.net for name in ("run", "begun"))
    for block, learns in (("blocks.1", True), ("blocks.2", False)):
        same = torch.equal(trained.state_dict()[f"{block}.conv1.weight"], begun.state_dict()[f"{block}.conv1.weight"])
        assert same != learns


def taught(job: Job, out: Path, teacher: Callable[[torch.Tensor], torch.Tensor] | None) -> Loop:
    """A loop that has run a job with a teacher."""
    splits = splits_for(job)
    network, _ = begun(job, splits, None, None)
    out.mkdir()
    loop = Loop(job, network, out, splits, torch.device("cpu"), Processes(), lambda text, share: None, None, teacher)
    loop.run()
    return loop


@pytest.mark.parametrize("policy", [None, "8"])
def test_a_teacher_is_learned_from_with_a_gate_and_with_a_policy(
    folder: Path, whole: Path, tmp_path: Path, policy: str | None
) -> None:
    """A teacher that calls everything green: with all of the loss from it, the labels are forgotten."""
    asked: list[int] = []

    def green(images: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        asked.append(len(images))
        return torch.tensor([[0.0, 8.0, 0.0]]).repeat(len(images), 1)

    recipe = small_recipe(distill=1.0, policy=policy, joint_steps=40, gate_steps=1, joint_lr=0.1)
    job = small_job(folder, recipe, backbone=str(whole / "backbone.pt"))
    loop = taught(job, tmp_path / "run", green)
    assert not loop.notes
    assert asked == [recipe.batch] * recipe.joint_steps
    green_ones = (splits_for(job).evaluation.labels == 1).mean()
    assert 0.0 < green_ones < 0.5
    assert of(tmp_path / "run", "evaluation", "joint")[-1]["top1"] == pytest.approx(green_ones)


def test_what_cannot_do_anything_is_said(folder: Path, whole: Path, tmp_path: Path) -> None:
    job = small_job(folder, small_recipe(distill=0.5), start=str(whole / "checkpoint.pt"))
    assert taught(job, tmp_path / "alone", None).notes == ["no effect on this run: distill, as no teacher is given"]
    without = small_job(folder, small_recipe(), start=str(whole / "checkpoint.pt"))
    asked: list[int] = []
    loop = taught(without, tmp_path / "unasked", lambda x: asked.append(len(x)) or torch.zeros(len(x), 3))  # type: ignore[func-returns-value]
    assert (loop.notes, asked) == ([], [])


# ------------------------------------------------------------------------------------------------------------ stopping


def forked(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=work, daemon=True)
    process.start()
    return process


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_at_random_moments_ends_as_one_never_stopped(folder: Path, whole: Path, seed: int) -> None:
    moments = random.Random(seed)  # noqa: S311 (no secret)
    out = folder / f"killed-{seed}"
    total = len((whole / "metrics.jsonl").read_bytes())
    job = small_job(folder, evaluate_every=6, save_every=moments.randint(1, 6))
    killed = 0
    for _ in range(5):
        begun = (out / "job.json").exists()
        process = forked((lambda: resume(out)) if begun else (lambda: run_job(job, out)))
        # At a random size of the log, and then a random moment after it: while it computes, logs or saves.
        grown = size_of(out) + moments.randint(0, total // 3)
        deadline = time.monotonic() + 60.0
        while process.is_alive() and size_of(out) < grown and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.03)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed
    resume(out) if (out / "job.json").exists() else run_job(job, out)
    mine, theirs = lines(out), lines(whole)
    assert mine[1:] == theirs[1:]
    one, other = (load_checkpoint(path / "checkpoint.pt").network.state_dict() for path in (out, whole))
    assert all(torch.equal(one[key], other[key]) for key in one)


def size_of(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return log.stat().st_size if log.exists() else 0


def test_a_finished_run_can_be_resumed_and_changes_nothing(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    again = resume(whole)
    assert (whole / "metrics.jsonl").read_bytes() == before
    assert again.evaluation.top1 == of(whole, "evaluation", "joint")[-1]["top1"]


def test_a_full_disk_is_one_line_and_loses_nothing(folder: Path) -> None:
    """A limit on the size of files stands for the disk: writing fails in the same place, with another errno."""
    out = folder / "full"
    job = small_job(folder, small_recipe(backbone_steps=40), save_every=10, until="backbone")
    run_job(job, folder / "roomy")

    def until_20(text: str, share: float) -> None:
        if text.startswith("backbone step 20/"):
            # Room for the log, but not for a state.
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(EnvironmentLacksError, match="make room there") as raised:
            run_job(job, out, until_20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert str(out) in str(raised.value)
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 10
    assert not list(out.glob("*.tmp")) + list(out.glob(".*.tmp"))
    resume(out)
    assert lines(out)[1:] == lines(folder / "roomy")[1:]


class StoppedError(Exception):
    pass


def stopped(job: Job, out: Path, stage: StageName = "joint", step: int = 8) -> None:
    """Begins a run and stops it at a step or soon after."""

    def stop(text: str, share: float) -> None:
        if text.startswith(stage) and share * job.recipe.steps(stage) >= step:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_job(job, out, stop)


def test_what_a_killed_process_left_half_written_is_removed_by_the_next(folder: Path) -> None:
    out = folder / "leftovers"
    stopped(small_job(folder), out)
    for name in ("job.json", "state.pt", "backbone.pt", "checkpoint.pt"):
        (out / f".{name}.0123abcd.tmp").write_bytes(b"half")
    resume(out)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    # Also by one that finds nothing left to do, and would write none of these files again.
    (out / ".backbone.pt.0123abcd.tmp").write_bytes(b"half")
    resume(out)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_a_run_goes_on_without_what_it_began_with(folder: Path, whole: Path, tmp_path: Path) -> None:
    """The state holds the weights: the checkpoint that they were taken from may be gone."""
    start = tmp_path / "start.pt"
    start.write_bytes((whole / "checkpoint.pt").read_bytes())
    job = small_job(folder, start=str(start))
    run_job(job, tmp_path / "whole")
    stopped(job, tmp_path / "run")
    start.unlink()
    resume(tmp_path / "run")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_progress_goes_on_where_a_run_does_and_the_job_is_logged_once(folder: Path) -> None:
    out, seen = folder / "observed", []
    stopped(small_job(folder, save_every=5), out, "backbone", 10)
    resume(out, lambda text, share: seen.append((text.partition(":")[0], share)))
    assert seen[0] == ("backbone step 6/12", 6 / 12)
    assert seen[-1] == ("joint step 12/12", 1.0)
    stages = [text.partition(" ")[0] for text, _ in seen]
    assert list(dict.fromkeys(stages)) == ["backbone", "gate", "joint"]
    assert all(0.0 < share <= 1.0 for _, share in seen)
    assert [record["event"] for record in lines(out)].count("run") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": {"joint_steps": 7}}, ["recipe.joint_steps is 7, was 12"]),
        ({"recipe": {"options": "skip,full"}}, ["skip,full"]),
        ({"seed": 9}, ["seed is 9, was 1"]),
        ({"until": "gate"}, ["stage joint", "backbone, gate only"]),
    ],
)
def test_a_run_whose_job_was_changed_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    stopped(small_job(folder), tmp_path)
    content = json.loads((tmp_path / "job.json").read_text())
    recipe = {**content["job"]["recipe"], **change.get("recipe", {})}
    changed = {**content, "job": {**content["job"], **change, "recipe": recipe}}
    (tmp_path / "job.json").write_text(json.dumps(changed))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with refuses(CheckpointError, "job.json", *words):
        resume(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_the_data_of_a_run_may_move_and_may_not_change(folder: Path, whole: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    patches = colour_patches()
    save_npz(data, patches)
    out = tmp_path / "run"
    stopped(dataclasses.replace(small_job(folder, evaluate_every=6), data=str(data)), out)
    for labels, names, words in (
        (patches.labels, ("red", "green", "cyan"), "class names"),
        ((patches.labels + 1) % 3, patches.class_names, "labels"),
    ):
        save_npz(data, Dataset(patches.images, labels, names, "patches"))
        with refuses(DataError, str(data), words, "begun with"):
            resume(out)
    save_npz(data, Dataset(patches.images[:90], patches.labels[:90], patches.class_names, "patches"))
    with refuses(DataError, "training images"):
        resume(out)
    save_npz(tmp_path / "moved.npz", patches)
    content = json.loads((out / "job.json").read_text())
    content["job"]["data"] = str(tmp_path / "moved.npz")
    (out / "job.json").write_text(json.dumps(content))
    resume(out)
    assert lines(out)[1:] == lines(whole)[1:]


def test_a_log_that_lost_its_end_is_refused_and_not_filled_up(folder: Path, tmp_path: Path) -> None:
    stopped(small_job(folder), tmp_path)
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:100])
    with refuses(CheckpointError, "metrics.jsonl holds 100 bytes"):
        resume(tmp_path)
    assert log.stat().st_size == 100


@pytest.mark.parametrize(("name", "kind"), [("metrics.jsonl", "FIFO"), ("state.pt", "link"), ("job.json", "link")])
def test_what_is_no_file_of_a_run_is_refused_and_neither_waited_for_nor_followed(
    folder: Path, tmp_path: Path, name: str, kind: str
) -> None:
    run = tmp_path / "run"
    stopped(small_job(folder), run)
    (run / name).rename(tmp_path / "outside")
    before = (tmp_path / "outside").read_bytes()
    if kind == "FIFO":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to(tmp_path / "outside")
    with refuses(CheckpointError, name, kind):
        resume(run)
    assert (tmp_path / "outside").read_bytes() == before


def changed_state(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = torch.load(folder / "state.pt", weights_only=True)
    change(content)
    torch.save(content, folder / "state.pt")


def put(content: dict[str, Any], optimizer: int, key: str, value: Any) -> None:
    content["optimizers"][optimizer]["state"][0][key] = value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: put(content, 0, "momentum_buffer", torch.zeros(3)), "momentum_buffer"),
        (lambda content: put(content, 0, "speed", torch.zeros(3)), "speed"),
        (lambda content: put(content, 1, "exp_avg", torch.zeros(3)), "exp_avg"),
        (lambda content: put(content, 1, "step", torch.tensor(float("nan"))), "step"),
        (lambda content: content["optimizers"].pop(), "stage joint"),
        (lambda content: content["network"]["net.stem_conv.weight"].fill_(torch.nan), "NaN"),
        (lambda content: content["network"].pop("net.stem_conv.weight"), "another network"),
        (lambda content: content.update(stage="lunch"), "malformed"),
    ],
)
def test_a_state_that_does_not_fit_is_one_line(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    stopped(small_job(folder), tmp_path)
    changed_state(tmp_path, change)
    with refuses(CheckpointError, words):
        resume(tmp_path)


def test_rates_are_those_of_the_recipe_whatever_the_state_says(folder: Path, whole: Path, tmp_path: Path) -> None:
    stopped(small_job(folder, evaluate_every=6), tmp_path)

    def change(content: dict[str, Any]) -> None:
        content["optimizers"][0]["param_groups"][0].update(momentum=0.1, weight_decay="much", initial_lr=7.0)

    changed_state(tmp_path, change)
    resume(tmp_path)
    assert lines(tmp_path)[1:] == lines(whole)[1:]


def test_tensors_of_a_state_that_share_memory_come_apart(folder: Path, tmp_path: Path) -> None:
    logs = []
    for shared in (False, True):
        run = tmp_path / str(shared)
        stopped(small_job(folder), run)

        def change(content: dict[str, Any], shared: bool = shared) -> None:
            for gathered in content["optimizers"][1]["state"].values():
                zeros = torch.zeros(()).expand_as(gathered["exp_avg"])
                gathered["exp_avg"] = zeros if shared else zeros.clone()

        changed_state(run, change)
        resume(run)
        logs.append(lines(run)[1:])
    assert logs[0] == logs[1]


def test_memory_that_runs_out_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: Any, **kwargs: Any) -> Any:
        torch.empty(1 << 62, dtype=torch.uint8)

    monkeypatch.setattr("dfs_deploy.training.loop.joint_loss", no_memory)
    with refuses(EnvironmentLacksError, "memory is too small", "--batch"):
        run_job(small_job(folder), tmp_path / "run")


# ----------------------------------------------------------------------------------------------------------- processes


def in_two_processes(job: Job, out: Path) -> list[float]:
    """Runs a job in two processes that speak by Gloo; gives a weight of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = FORK.SimpleQueue()

    def work(rank: int) -> None:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
        with patch("dfs_deploy.training.loop.evaluate", side_effect=evaluate) as evaluated:
            run_job(job, out)
        network = evaluated.call_args.args[0]
        results.put(sum(float(value.double().sum()) for value in network.state_dict().values()))

    processes = [FORK.Process(target=work, args=(rank,), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120.0)
        assert process.exitcode == 0
    return [results.get() for _ in processes]


def test_two_processes_share_the_work_of_one(folder: Path, whole: Path) -> None:
    """With fixed statistics the mean of two halves is the whole, so the metrics are those of one process."""
    recipe = small_recipe(settle_share=1.0, joint_steps=6, statistics_batches=0)
    start = str(whole / "checkpoint.pt")
    one, two = folder / "one", folder / "two"
    run_job(small_job(folder, recipe, start=start), one)
    weights = in_two_processes(small_job(folder, recipe, start=start), two)
    assert weights[0] == weights[1]
    assert lines(two)[0]["processes"] == 2
    for mine, theirs in zip(lines(two)[1:], lines(one)[1:], strict=True):
        for key in set(mine) - {"option_share", "lr", "event", "stage", "split"}:
            assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), (mine, theirs)


def test_two_processes_train_all_stages(folder: Path) -> None:
    weights = in_two_processes(small_job(folder), folder / "pair")
    assert weights[0] == weights[1]
    assert of(folder / "pair", "evaluation", "gate")[-1]["percentage"] > 95.0
    assert of(folder / "pair", "step", "backbone")[-1]["loss"] < of(folder / "pair", "step", "backbone")[0]["loss"]


# ----------------------------------------------------------------------------------------------------------- bad input


def test_a_checkpoint_of_another_architecture_is_refused(folder: Path, whole: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other.pt", small_network(blocks=2), CONTRACT)
    with pytest.raises(CheckpointError, match="another network than this job's"):
        run_job(small_job(folder, backbone=str(tmp_path / "other.pt")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    recipe = small_recipe(options=Options.parse("skip,full"))
    with pytest.raises(CheckpointError, match="--backbone"):
        run_job(small_job(folder, recipe, start=str(whole / "checkpoint.pt")), tmp_path / "run")


def test_what_is_assumed_of_a_checkpoint_to_begin_with_is_noted(folder: Path, tmp_path: Path) -> None:
    state = release_state_dict(groups=(1, 1, 1), classes=3, width=16)
    path = save_release(tmp_path / "release.pt", state)
    recipe = small_recipe(gate_steps=1)
    result = run_job(small_job(folder, recipe, backbone=str(path), until="gate", size=(32, 32)), tmp_path / "run")
    assumed = [note for note in result.notes if note.startswith(f"assumed of {path}: ")]
    assert any("skip,8,16,full" in note for note in assumed)
    assert any("32x32" in note for note in assumed)
    taken = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["network"]
    assert torch.equal(taken["net.head.weight"], state["fc.weight"])


def test_a_run_is_not_written_over(folder: Path, whole: Path) -> None:
    with pytest.raises(UsageError, match="--resume"):
        run_job(small_job(folder), whole)


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no training run"):
        resume(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("job.json", b"{"),
        ("job.json", b'{"schema": 1, "job": {"data": 3}}'),
        ("job.json", b'{"schema": 1, "job": {"data": "digits", "recipe": {"options": "skip,99"}}}'),
        ("state.pt", b"no archive"),
    ],
)
def test_a_damaged_run_is_one_line(whole: Path, tmp_path: Path, name: str, content: bytes) -> None:
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(content if path.name == name else path.read_bytes())
    with pytest.raises((CheckpointError, UsageError)) as raised:
        resume(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_job_of_another_schema_is_refused(whole: Path, tmp_path: Path) -> None:
    content = json.loads((whole / "job.json").read_text())
    (tmp_path / "job.json").write_text(json.dumps({**content, "schema": 7}))
    with pytest.raises(CheckpointError, match="update dfs-deploy"):
        resume(tmp_path)


@pytest.mark.parametrize("rate", ["backbone_lr", "joint_lr"])
def test_a_loss_that_is_no_number_ends_the_run(rate: str, folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(**{rate: 1e30}, clip=0.0)
    with pytest.raises(CheckFailedError, match="lower the learning rate"):
        run_job(small_job(folder, recipe), tmp_path / "run")


def test_a_batch_that_is_larger_than_the_data_writes_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--batch"):
        run_job(small_job(folder, small_recipe(batch=512)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
