"""The training runs behind some exhibits: each once, in an order in which every run begins with one before it."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.paper.exhibits import DFS, SKIPNET, Exhibit, Variant
from dfs_deploy.errors import UsageError
from dfs_deploy.training import Job, Recipe, TrainingResult, preset, resume, train
from dfs_deploy.training.recipe import unknown_value
from dfs_deploy.training.state import load_state

DATA_NAMES = {
    "cifar10": ("cifar10.npz", "cifar10", "cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("cifar100.npz", "cifar100", "cifar-100-python", "cifar-100-binary"),
}
"""Names that a data set may have in the folder of data, as the archives unpack, or as an .npz."""

STAGES = ("backbone", "gate", "joint")

HERE = ("device", "threads")
"""Values that depend on the machine, which may change between two calls."""

OF_THE_EXHIBITS = {
    **dict.fromkeys(("options", "target", "policy", "alpha_sign", "until", "backbone", "start"), "--only"),
    "blocks_per_group": "--networks",
    "data": "--data",
    "out": "--out",
    "seed": "--seed",
    "alpha": "--alpha-scale",
}
"""Values that a run has by its figure, or by another flag; and the flag that chooses among them."""

_RENAMED = {"blocks_per_group": "blocks", "augmentation": "augment"}
_FLAGS = {
    *("data", "out", "preset", "seed", "until", "options", "target", "policy", "alpha", "alpha_sign", "batch"),
    *("backbone", "start", "backbone_steps", "gate_steps", "joint_steps", *_RENAMED, *HERE),
}
"""Values that have a flag of their own on the command line of ``train``."""


@dataclass(frozen=True)
class Settings:
    """What all runs of one folder share.

    Attributes:
        scale: share of the paper's 64,000 steps per stage that is run.
        alpha_scale: factor on every alpha; ``None`` for one over the scale, so that fewer steps pull as far.
        seed: seed of every draw.
        changes: further values of the recipe by name, other than the paper's.

    Raises:
        UsageError: a scale that is out of bounds, or a change of a value that is unknown or decided otherwise.
    """

    scale: float = 1.0
    seed: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)
    alpha_scale: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.scale <= 1.0:
            raise UsageError(f"scale {self.scale:g}, expected more than 0 and at most 1, the paper's steps")
        if self.alpha_scale is not None and not 0.0 < self.alpha_scale < math.inf:
            raise UsageError(f"alpha scale {self.alpha_scale:g}, expected a number of more than 0; 1 for the paper's")
        known = {each.name for each in dataclasses.fields(Recipe)} - {"costs"} | {*HERE, "preset", "save_every"}
        for name in self.changes:
            if name in OF_THE_EXHIBITS:
                raise UsageError(f"--set {name}, which each figure decides; choose with {OF_THE_EXHIBITS[name]}")
            if name not in known:
                raise UsageError(f"--set {name}: {unknown_value(name, known)}")

    def alpha(self, papers: float | None = None) -> float:
        """Absolute weight of the cost in place of one of the paper's, by default that of its main results."""
        factor = 1.0 / self.scale if self.alpha_scale is None else self.alpha_scale
        return float(f"{factor * (preset('paper').alpha if papers is None else papers):.6g}")

    def steps(self, stage: str) -> int:
        """Most steps of a stage."""
        whole: int = preset("paper").steps(stage)  # type: ignore[arg-type]
        return max(1, round(self.scale * whole))

    def values(self) -> dict[str, Any]:
        """Values of the recipe and of the job that every run has."""
        steps = {f"{stage}_steps": self.steps(stage) for stage in STAGES}
        return {"preset": "paper", "seed": self.seed, **steps, "alpha": self.alpha(), **self.changes}


@dataclass(frozen=True)
class Run:
    """One call of ``train``.

    Attributes:
        name: name of its folder.
        network: name of the CIFAR ResNet, such as ``resnet38``.
        data_set: name of its data set.
        stages: stages that it trains.
        begins: name of the run that it begins with, and how: ``backbone`` or ``start``.
        values: its own values for ``train``.
    """

    name: str
    network: str
    data_set: str
    stages: tuple[str, ...]
    begins: tuple[str, str] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


def runs_of(exhibit: Exhibit, network: str) -> list[Run]:
    """The runs of an exhibit on a network, each after the one that it begins with."""
    found: dict[str, Run] = {}
    for run in _runs_of(exhibit, network):
        found.setdefault(run.name, run)
    return list(found.values())


def _runs_of(exhibit: Exhibit, network: str) -> Iterator[Run]:
    base, data_set = f"{network}-{exhibit.data_set}", exhibit.data_set
    backbone = Run(f"{base}-backbone", network, data_set, ("backbone",), values={"until": "backbone"})
    yield backbone
    for variant in exhibit.variants:
        gate = Run(
            name=f"{base}-{_method(variant)}-gate",
            network=network,
            data_set=data_set,
            stages=("gate",),
            begins=("backbone", backbone.name),
            values={"options": variant.options, "joint_steps": 0},
        )
        if variant.policy is None and variant.two_step:
            yield gate
        yield Run(
            name=f"{base}-{variant_name(variant)}",
            network=network,
            data_set=data_set,
            stages=("joint",),
            begins=("start", gate.name) if variant.policy is None and variant.two_step else ("backbone", backbone.name),
            values=_values(variant),
        )


def _values(variant: Variant) -> dict[str, Any]:
    given = {
        "options": variant.options,
        "target": variant.target,
        "policy": variant.policy,
        "alpha": variant.alpha,
        "alpha_sign": None if variant.policy else variant.alpha_sign,
        "gate_steps": None if variant.policy or variant.two_step else 0,
    }
    return {name: value for name, value in given.items() if value is not None}


def _method(variant: Variant) -> str:
    if variant.policy is not None:
        return "mixed" if variant.policy == "mixed" else f"uniform-{variant.policy}"
    return {DFS: "dfs", SKIPNET: "skipnet"}[variant.options or ""]


def variant_name(variant: Variant) -> str:
    """Name of a variant's run without that of the network and the data set."""
    alpha = None if variant.alpha is None else f"alpha{variant.alpha:g}"
    target = None if variant.target is None else f"{variant.target:g}"
    constant = "constant" if variant.alpha_sign == "constant" else None
    joint = None if variant.two_step else "joint-only"
    return "-".join(part for part in (_method(variant), target, alpha, constant, joint) if part)


def find_data(folder: Path, data_set: str) -> Path:
    """Place of a data set in the folder of data.

    Raises:
        UsageError: it is not there.
    """
    places = [folder / name for name in DATA_NAMES[data_set]]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise UsageError(
            f"{folder} has no {data_set}, expected one of {', '.join(DATA_NAMES[data_set])}; put one there"
        )
    return found


def blocks_per_group(network: str) -> int:
    """N of ``resnet(6N+2)``.

    Raises:
        UsageError: no such name.
    """
    match = re.fullmatch(r"resnet(\d{1,4})", network)
    if match is None or (int(match[1]) - 2) % 6 or int(match[1]) < 8:
        raise UsageError(f"network {network!r}, expected resnetD of depth D = 6N + 2, such as resnet38")
    return (int(match[1]) - 2) // 6


def train_values(run: Run, settings: Settings, data: Path, out: Path) -> dict[str, Any]:
    """What ``train`` is called with for a run; its folder is ``out``'s."""
    values = {**settings.values(), **run.values, "blocks_per_group": blocks_per_group(run.network)}
    if "alpha" in run.values:
        values["alpha"] = settings.alpha(run.values["alpha"])
    if run.begins is not None:
        how, name = run.begins
        backbone = name.endswith("-backbone")
        values[how] = str(out / name / ("backbone.pt" if backbone else "checkpoint.pt"))
    return {"data": str(data), "out": str(out / run.name), **values}


def check_values(values: Mapping[str, Any]) -> None:
    """Makes sure that a recipe and a job can be made of what ``train`` will be called with; reads no data.

    Raises:
        UsageError: a value that cannot be.
    """
    job = {name: values[name] for name in {each.name for each in dataclasses.fields(Job)} & set(values)}
    recipe = {name: value for name, value in values.items() if name not in job and name not in ("out", "preset")}
    if recipe.get("policy") == "mixed":  # one that is searched, for a target that its options reach
        del recipe["policy"]
        recipe["options"] = "8,16,full"
    elif recipe.get("policy") is not None:
        recipe["options"] = f"{recipe['policy']},full"
    Job(recipe=preset(values["preset"], **recipe), **job)


def command_of(values: Mapping[str, Any]) -> str:
    """The same as a line for a shell."""
    words = ["dfs-deploy", "train"]
    for name, value in values.items():
        plain = str(value).lower() if isinstance(value, bool) else str(value)
        flag = _RENAMED.get(name, name).replace("_", "-")
        words += [f"--{flag}", plain] if name in _FLAGS else ["--set", f"{name}={plain}"]
    return shlex.join(words)


def state_of(folder: Path) -> str:
    """``finished``, ``stopped`` or ``new``."""
    if not (folder / "job.json").exists():
        return "new"
    state = load_state(folder)
    return "finished" if state is not None and state.stage is None else "stopped"


def carry_out(values: Mapping[str, Any]) -> TrainingResult | None:
    """Trains a run, or goes on with it; ``None`` if it is finished already."""
    state = state_of(Path(values["out"]))
    if state == "finished":
        return None
    return train(**values) if state == "new" else resume(values["out"])


def unique(runs: Sequence[Run]) -> list[Run]:
    """The runs of several exhibits, each once."""
    return list({run.name: run for run in runs}.values())
