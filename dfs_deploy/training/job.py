"""What a run was asked to do, on disk beside its results: whoever resumes it needs no other word."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dfs_deploy.errors import CheckpointError, UsageError
from dfs_deploy.io.files import write_whole
from dfs_deploy.io.json_files import MalformedError, read_json
from dfs_deploy.io.kinds import JOB_FILE as JOB_FILE
from dfs_deploy.io.kinds import given_instead
from dfs_deploy.io.text import first_line
from dfs_deploy.options import Options
from dfs_deploy.training.recipe import STAGES, STEERED, Recipe, StageName

SCHEMA = 1

_MOST_SEED = 2**63 - 1
_MOST_STEPS = 10**9
_BOUNDS = {
    "seed": (0, _MOST_SEED),
    "held_out": (1, _MOST_STEPS),
    "evaluate_every": (0, _MOST_STEPS),
    "save_every": (1, _MOST_STEPS),
    "threads": (1, 1024),
}
"""Least and most of each integer of a job."""

_MOST_PIXELS = 4096
_SGD = ("momentum", "nesterov", "weight_decay")
_READ: dict[StageName, tuple[str, ...]] = {
    "backbone": ("backbone_steps", "backbone_lr", "augmentation", *_SGD),
    "gate": (
        "options",
        "gate_steps",
        "gate_patience",
        "gate_lr",
        "gate_optimizer",
        "standardize_gate",
        "alpha",
        "augmentation",
    ),
    "joint": ("options", "policy", "joint_steps", "settle_share", "joint_lr", "augmentation", *_SGD),
    "deploy": ("options", "policy", "deploy_steps", "deploy_rate", "joint_lr", *_SGD),
}
"""The values of a recipe that a stage reads, besides those that every stage does."""


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        data: ``digits``, or the path of a data set.
        recipe: the hyperparameters.
        seed: of every draw.
        size: height and width to resize images to; ``None`` for their own.
        held_out: number of training images to evaluate on instead of a split of its own; ``None`` for that split.
        evaluate_on: name of the split to evaluate on; ``None`` for ``test`` if the data have one, else ``val``, else
            images held out.
        backbone: checkpoint whose backbone is taken, in place of stage 0.
        start: checkpoint whose backbone and gate are taken, in place of stages 0 and 1.
        until: the last stage that runs.
        evaluate_every: steps between evaluations; 0 for the end of each stage only.
        save_every: steps between saved states.
        device: what to compute on; ``None`` for a GPU where there is one.
        threads: that one operation may use on the CPU; ``None`` for PyTorch's choice, but no more than CPU
            affinity and the container's quota keep busy.
        amp: whether convolutions run in bfloat16.
        compile: whether ``torch.compile`` compiles stage 0.
        tensorboard: whether TensorBoard's events are written too.
    """

    data: str
    recipe: Recipe
    seed: int = 0
    size: tuple[int, int] | None = None
    held_out: int | None = None
    evaluate_on: str | None = None
    backbone: str | None = None
    start: str | None = None
    until: StageName = "deploy"
    evaluate_every: int = 0
    save_every: int = 200
    device: str | None = None
    threads: int | None = None
    amp: bool = False
    compile: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.backbone is not None and self.start is not None:
            raise UsageError("a backbone and a start are given, expected at most one; a start has a backbone in it")
        if self.start is not None and self.recipe.policy is not None:
            raise UsageError("a start is given and a policy, which has no gate to start with; give its backbone")
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageError(f"{name} is {value}, expected {least} to {most}")
        for name in ("data", "backbone", "start", "evaluate_on", "device"):
            _check_storable(name, getattr(self, name))
        _check_storable("cost", self.recipe.cost)
        if self.size is not None and not all(1 <= side <= _MOST_PIXELS for side in self.size):
            raise UsageError(f"size {self.size[0]}x{self.size[1]}, expected 1 to {_MOST_PIXELS} pixels each way")
        if self.held_out is not None and self.evaluate_on is not None:
            raise UsageError(
                f"{self.held_out} images to hold out and the split {self.evaluate_on!r} to evaluate on, expected at"
                " most one of the two"
            )
        if not self.stages:
            raise UsageError(f"nothing to do until stage {self.until!r} from what is given; choose a later stage")

    @property
    def stages(self) -> tuple[StageName, ...]:
        """The stages that run."""
        first = 2 if self.start is not None else 1 if self.backbone is not None else 0
        left_out = {
            "gate": self.recipe.policy is not None,
            "deploy": self.recipe.deploy_steps == 0,
        }
        return tuple(s for s in STAGES[first : STAGES.index(self.until) + 1] if not left_out.get(s, False))

    @property
    def target(self) -> float | None:
        """Computation percentage that the last stage is steered to; ``None`` if nothing steers it."""
        recipe = self.recipe
        steered = any(stage in STEERED and recipe.steps(stage) for stage in self.stages)
        return recipe.target if steered and recipe.policy is None and recipe.alpha_sign == "dynamic" else None

    @property
    def used(self) -> frozenset[str]:
        """Names of the values of the recipe that this run reads; the others have no effect on it."""
        recipe, gated = self.recipe, self.recipe.policy is None
        used = {"batch", "blocks_per_group", "schedule", "clip"}
        for stage in self.stages:
            if not recipe.steps(stage):
                used.add(f"{stage}_steps")
                continue
            used.update(_READ[stage])
            if stage == "gate" and recipe.gate_optimizer == "sgd":
                used.update(_SGD)
            if stage in STEERED:
                used.update(("costs", "cost"))
            if stage in STEERED and gated:
                used.update(("alpha", "alpha_sign", "joint_gate_lr", "gate_optimizer"))
        if self.target is not None:
            used.add("target")
        if recipe.deploy_steps == 0:
            used.add("deploy_steps")  # that there is no such stage
        return frozenset(used)

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        plain: dict[str, Any] = msgspec.to_builtins(self, enc_hook=str)
        return plain


def save_job(folder: Path, job: Job) -> None:
    """Writes a job whole."""
    content = msgspec.json.encode({"schema": SCHEMA, "job": job.as_json()})
    write_whole(folder / JOB_FILE, msgspec.json.format(content, indent=1) + b"\n")


def load_job(folder: Path) -> Job:
    """Reads the job of a run.

    Raises:
        CheckpointError: there is none, or it is malformed.
        UsageError: it asks for what cannot be.
    """
    path = folder / JOB_FILE
    try:
        content = read_json(path, _JobFile, follow=False, dec_hook=_decode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            given_instead(folder, "the folder of a training run", "record")
            or f"no training run in {folder}, expected {JOB_FILE} there; give the --out of a run"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); check it, or begin a new run") from error
    except MalformedError as error:
        impossible = None if error.__cause__ is None else error.__cause__.__cause__
        if isinstance(impossible, UsageError):
            raise impossible from error
        raise CheckpointError(f"{path} is malformed ({error}); start the run again") from error
    if content.schema != SCHEMA:
        raise CheckpointError(f"{path} has schema {content.schema}, expected {SCHEMA}; update dfs-deploy")
    return content.job


def _check_storable(name: str, text: str | None) -> None:
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} {text!r} is not UTF-8 and cannot be stored in {JOB_FILE}; rename it") from error


@dataclass(frozen=True)
class _JobFile:
    schema: int
    job: Job


def _decode(kind: type, value: Any) -> Any:
    if kind is Options:
        if not isinstance(value, str):
            raise ValueError(f"options of type {type(value).__name__}, expected text")
        return Options.parse(value)
    raise NotImplementedError(f"no way to read a {kind.__name__}")
