"""Trains the networks of ``dfs-deploy demo``: one that decides, and static ones with the same care.

    python examples/01_train_digits.py [--out FOLDER]

All are ``demo_network.py``, six blocks on pictures of 48x48 pixels with a digit, clear or hard to read. A teacher and a
backbone are trained in full precision; the backbone leaves out blocks at random, so that it bears skips. From it, each
network takes as many further steps on the same scenes and learns from the teacher, too: one that decides for each
picture which of the last four blocks to run; one that runs all blocks in 8 bits; and two without the two or three
blocks that cost the least accuracy. All choices are made on the split ``val``; the split ``test`` is not even in the
file. A run that was stopped goes on with ``dfs_deploy.training.resume``. Minutes on two CPU cores. Needs:
pip install ".[train]"
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_network import six_blocks

import dfs_deploy
from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.data.digit_scenes import load_digit_scenes
from dfs_deploy.training import train

ALWAYS = ("blocks.0", "blocks.1")
"""Blocks that always run; the gate decides about the others by what these have seen."""

TEACHER = {"backbone_steps": 800, "backbone_lr": 0.1, "drop": 0.2}
BACKBONE = {"backbone_steps": 700, "backbone_lr": 0.1, "drop": 0.6}  # it bears skips, and knows less
JOINT = {"joint_steps": 300, "joint_lr": 0.02}
COMMON = {
    "preset": "cpu-int8",
    "options": "skip,8",
    "evaluate_on": "val",
    "cost": "flops",  # the blocks are of one size, so it says the same as a measured cost
    "batch": 64,
    "weight_decay": 5e-4,
    "augmentation": "crop",
    "autocast": "bfloat16",
    "threads": 1,
}
KINDS: dict[str, dict[str, Any]] = {
    "dfs": {"gate_steps": 30, "joint_gate_lr": 4e-3, "alpha": 0.5, "target": 3.1},  # half of the 6.25 % of 8 bits
    "static": {"policy": "8"},
    "pruned-2": {"policy": "pruned:2"},
    "pruned-3": {"policy": "pruned:3"},
}


def main(arguments: Sequence[str] | None = None, copies: int = 12, **values: int) -> None:
    """Makes the scenes, trains, prints what each network reached, and writes the checkpoints that are shipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("scenes"), help="folder for scenes, runs and checkpoints")
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    common = {**COMMON, "data": write_scenes(out / "scenes.npz", copies), "progress": show}
    plain = {**common, "network": "demo_network:six_blocks", "size": (48, 48), "until": "backbone"}
    teacher = train(out=out / "teacher", **{**plain, **TEACHER, **values}).checkpoint
    backbone = train(out=out / "backbone", **{**plain, **BACKBONE, **values}).checkpoint
    further = {**common, **JOINT, "teacher": str(teacher), "network": adapted(backbone, out / "backbone" / "begun.pt")}
    log = {}
    for name, kind in KINDS.items():
        result = train(out=out / name, **{**further, **kind, **values})
        found, recipe = result.evaluation, result.job.recipe
        print(f"{name}: top-1 {found.top1:.2%} at {found.percentage:.2f} % computation")
        ship(result.checkpoint, out / f"{name}.pt")
        log[name] = {"val_top1": found.top1, "computation_percentage": found.percentage, "policy": recipe.policy}
    recipes = {"common": COMMON, "teacher": TEACHER, "backbone": BACKBONE, "further": JOINT, "kinds": KINDS}
    (out / "training.json").write_text(json.dumps({"recipes": recipes, "results": log}, indent=1) + "\n")


def adapted(backbone: Path, file: Path) -> Path:
    """Writes a trained backbone as a network with an untrained gate, which runs every block."""
    torch.manual_seed(0)  # of the gate's weights
    trained = load_checkpoint(backbone, deployable=False)
    net = six_blocks().eval()
    net.load_state_dict(trained.network.net.state_dict())
    plan = dfs_deploy.find_blocks(net, torch.zeros(1, *trained.input.shape))
    for name in ALWAYS:
        plan[name].options = "8"
    dfs_deploy.adapt(net, plan, options="skip,8").save(file, trained.input)
    return file


def show(text: str, share: float) -> None:
    """Prints a line of progress for every hundredth of a stage."""
    print(text)


def write_scenes(path: Path, copies: int) -> Path:
    """Writes the scenes that are trained on, and those that choices are made on, as one file."""
    train, held_out = load_digit_scenes("train", copies).data, load_digit_scenes("val", min(copies, 4)).data
    np.savez(
        path,
        train_x=train.images,
        train_y=train.labels,
        val_x=held_out.images,
        val_y=held_out.labels,
        class_names=np.array(train.class_names),
    )
    return path


def ship(checkpoint: Path, file: Path) -> None:
    """Copies a checkpoint with weights of 16 bits, which takes half of the room; loading makes them 32 bits again."""
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"] = {
        name: value.half() if value.is_floating_point() else value for name, value in content["state_dict"].items()
    }
    torch.save(content, file)
    print(f"wrote {file}")
