"""Metrics logs of training runs, written out, so that a reader which asks for other keys fails."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ALL = ("skip", "8", "16", "full")
SKIPNET = ("skip", "full")


def records(
    options: Sequence[str] = ALL,
    *,
    target: float = 40.0,
    alpha: float = 3e-4,
    alpha_sign: str = "dynamic",
    top1: float = 0.875,
    percentage: float = 40.5,
    policy: Sequence[str] | None = None,
    data: str = "/data/cifar-10.npz",
    stage: str = "joint",
) -> list[dict[str, Any]]:
    """A log of a ResNet-20 that trained a backbone, then another stage."""
    share = [1.0 / len(options)] * len(options)
    header: dict[str, Any] = {
        "event": "run",
        "schema": 1,
        "version": "0.1.0",
        "job": {
            "data": data,
            "recipe": {"target": target, "alpha": alpha, "alpha_sign": alpha_sign, "batch": 128},
            "seed": 3,
        },
        "architecture": {"groups": [3, 3, 3], "widths": [16, 32, 64], "classes": 10},
        "options": list(options),
        "images": {"train": 50000, "test": 10000},
        "processes": 1,
    }
    if policy is not None:
        header["policy"] = list(policy)
    step = {"stage": stage, "loss": 1.0, "accuracy": 0.5, "cost": 3.0, "percentage": 50.0, "alpha": 1e-4, "lr": [0.1]}
    backbone = {"event": "evaluation", "stage": "backbone", "step": 3000, "split": "test", "images": 10000}
    made = [
        header,
        {**backbone, "top1": 0.9, "percentage": 100.0, "option_share": [], "paths": 1},
        {"event": "time", "stage": "backbone", "step": 3000, "seconds": 12.5, "steps": 3000},
    ]
    if stage != "backbone":
        made += [{"event": "step", "step": number, **step} for number in (1, 2)]
        last = {"event": "evaluation", "stage": stage, "step": 1500, "split": "test", "images": 10000}
        made.append({**last, "top1": top1, "percentage": percentage, "option_share": [share] * 8, "paths": 77})
    return made


def write_log(folder: Path, made: Sequence[dict[str, Any]]) -> Path:
    """Writes a run's folder with its log, and gives the folder."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in made))
    return folder
