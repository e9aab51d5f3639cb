"""The job of a run, on disk with its results: whoever resumes the run needs nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dfs_deploy.errors import CheckpointError, UsageError
from dfs_deploy.geometry import Geometry, Interpolation
from dfs_deploy.io.json_files import VersionedFormat
from dfs_deploy.io.kinds import JOB_FILE, given_instead
from dfs_deploy.options import Options
from dfs_deploy.training.recipe import STAGES, Recipe, StageName

SCHEMA = 2
"""Version 1, of dfs-deploy 0.1.0, had a stage that is gone."""

GIVEN = "given"
"""Name of a network that was handed over."""

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

_TEXTS = ("data", "network", "weights", "backbone", "start", "weights_key", "teacher", "evaluate_on", "device")
"""Values of a job that are text, such as paths."""

_MOST_PIXELS = 4096


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        data: ``digits``, or the path of a data set.
        recipe: the hyperparameters.
        seed: seed of every draw.
        size: height and width to resize images to; ``None`` for their own.
        resize: length in pixels to which the shorter side of an image is resized before its centre of that size is cut
            out; ``None`` resizes an image to exactly that size.
        interpolation: kind of resizing.
        held_out: number of training images to evaluate on instead of a split of its own; ``None`` for that split.
        evaluate_on: name of the split to evaluate on, or ``held-out`` for a tenth of the training images; ``None`` for
            ``test`` if the data have one, else ``val``, else images held out.
        network: name of the network as ``build_network`` takes it, or ``given`` for one that was handed over; ``None``
            for the CIFAR ResNet of the recipe.
        frozen: parameters of a network that was handed over which stay as they are.
        frozen_modules: modules of such a network which stay in evaluation mode.
        weights: weights of a network by name, in place of stage 0; ``None`` for random ones.
        backbone: checkpoint whose backbone is taken, in place of stage 0.
        start: checkpoint whose backbone and gate are taken, in place of stages 0 and 1.
        new_head: whether those weights are of other classes than the data, so that the final layer is a new one and
            stage 0 must train it.
        weights_key: name of the weights to take from that checkpoint, if it holds several.
        teacher: network whose answers stage 2 learns from: a checkpoint; ``full`` for the network as the run began with
            it, in full precision; or ``given`` for a module that was handed over. ``None`` for none.
        teacher_digest: digest of that module if no file can hold it.
        max_top1_drop: share of right answers that the network may lose against the one that the run began with, by
            images that are not of the test split: targets are lowered until more is lost. ``None`` for one target.
        until: the last stage that runs.
        evaluate_every: steps between evaluations; 0 for the end of each stage only.
        save_every: steps between saved states.
        device: device to compute on; ``None`` for a GPU if there is one.
        threads: threads that one operation may use on the CPU; ``None`` for PyTorch's choice, but no more than CPU
            affinity and the container's quota keep busy.
    """

    data: str
    recipe: Recipe
    seed: int = 0
    size: tuple[int, int] | None = None
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    held_out: int | None = None
    evaluate_on: str | None = None
    network: str | None = None
    frozen: tuple[str, ...] = ()
    frozen_modules: tuple[str, ...] = ()
    weights: str | None = None
    backbone: str | None = None
    start: str | None = None
    new_head: bool = False
    weights_key: str | None = None
    teacher: str | None = None
    teacher_digest: str | None = None
    max_top1_drop: float | None = None
    until: StageName = "joint"
    evaluate_every: int = 0
    save_every: int = 200
    device: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.backbone is not None and self.start is not None:
            raise UsageError("a backbone and a start are given, expected at most one; a start has a backbone in it")
        if self.start is not None and self.recipe.policy is not None:
            raise UsageError("a start is given and a policy, which has no gate to start with; give its backbone")
        if self.weights is not None and self.network in (None, GIVEN):
            raise UsageError(
                "weights are given without the network that they are of; name it, as in torchvision:resnet18"
            )
        if self.weights is not None and (self.backbone is not None or self.start is not None):
            raise UsageError("weights are given and a backbone or a start, which has some; leave one out")
        if self.weights_key is not None and self.backbone is None and self.start is None and self.weights is None:
            raise UsageError("a weights key is given without a file that it chooses from; leave it out")
        if self.network is None:
            self.recipe.check_blocks(3 * self.recipe.blocks_per_group - 1)
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageError(f"{name} is {value}, expected {least} to {most}")
        for name in (
            "data",
            "network",
            "weights",
            "backbone",
            "start",
            "weights_key",
            "teacher",
            "evaluate_on",
            "device",
        ):
            _check_storable(name, getattr(self, name))
        _check_storable("cost", self.recipe.cost)
        if self.size is not None and not all(1 <= side <= _MOST_PIXELS for side in self.size):
            raise UsageError(f"size {self.size[0]}x{self.size[1]}, expected 1 to {_MOST_PIXELS} pixels each way")
        if self.size is None and (self.resize is not None or self.interpolation != "bilinear"):
            raise UsageError("images are to be resized and no size is given; give it, as in --size 224x224")
        _ = self.geometry  # its bounds
        if self.held_out is not None and self.evaluate_on is not None:
            raise UsageError(
                f"{self.held_out} images to hold out and the split {self.evaluate_on!r} to evaluate on, expected at"
                " most one of the two"
            )
        if self.max_top1_drop is not None:
            self._check_drop(self.max_top1_drop)
        if self.until not in STAGES:
            raise UsageError(f"stage {self.until!r}, expected {', '.join(STAGES)}")
        if not self.stages:
            raise UsageError(f"nothing to do until stage {self.until!r} from what is given; choose a later stage")

    def _check_drop(self, drop: float) -> None:
        """Checks that accuracy can be the goal."""
        if not 0.0 <= drop <= 1.0:
            raise UsageError(f"--max-top1-drop {drop:g}, expected a share, 0 to 1; 0.005 is half a point")
        if self.recipe.policy is not None:
            raise UsageError(
                "an accuracy to keep (--max-top1-drop) and a policy, which costs what it costs; leave one out"
            )
        if self.until != "joint" or not self.recipe.joint_steps:
            raise UsageError(
                "an accuracy to keep (--max-top1-drop) and no joint training, which lowers the target; give steps for"
                " it (--joint-steps)"
            )
        self.check_judge(self.evaluate_on)

    def check_judge(self, split: str | None) -> None:
        """Checks that the split which is evaluated on may choose a target, if accuracy is the goal.

        Args:
            split: its name; ``None`` if the data decide about it.

        Raises:
            UsageError: it is the test split.
        """
        if self.max_top1_drop is not None and split == "test":
            raise UsageError(
                "--max-top1-drop chooses a target, which the test split must not decide; evaluate on val, or on images"
                " that are held out"
            )

    @property
    def geometry(self) -> Geometry | None:
        """How images become the network's input; ``None`` if they have its size already."""
        return None if self.size is None else Geometry(self.size, self.resize, self.interpolation)

    @property
    def trained(self) -> bool:
        """Whether the run begins with a backbone that was trained, its final layer included."""
        if self.new_head:
            return False
        return self.network == GIVEN or any(file is not None for file in (self.weights, self.backbone, self.start))

    @property
    def stages(self) -> tuple[StageName, ...]:
        """The stages that run."""
        first = 2 if self.start is not None else 1 if self.trained else 0
        stages = STAGES[first : STAGES.index(self.until) + 1]
        return tuple(stage for stage in stages if stage != "gate" or self.recipe.policy is None)

    @property
    def standardized_in(self) -> StageName | None:
        """The stage that begins by scaling the gate's embeddings: the first in which an untrained gate is trained."""
        if not self.recipe.standardize_gate or "gate" not in self.stages:
            return None
        return next((stage for stage in self.stages if stage != "backbone" and self.recipe.steps(stage)), None)

    @property
    def target(self) -> float | None:
        """Computation percentage that the last stage is steered to; ``None`` if nothing steers it."""
        recipe = self.recipe
        steered = "joint" in self.stages and recipe.joint_steps and recipe.policy is None
        return recipe.target if steered and recipe.alpha_sign != "constant" else None

    @property
    def used(self) -> frozenset[str]:
        """Names of the values of the recipe that this run reads; the others have no effect on it."""
        names = self.recipe.read_by(self.stages) | (set() if self.target is None else {"target"})
        names |= set() if self.standardized_in is None else {"standardize_gate"}
        return names if self.network is None else names - {"blocks_per_group"}

    def as_json(self) -> dict[str, Any]:
        """The job as plain values."""
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self, enc_hook=str))
        return plain


def save_job(folder: Path, job: Job) -> None:
    """Writes a job whole."""
    FORMAT.write(folder / JOB_FILE, _JobFile(schema=SCHEMA, job=job))


def load_job(folder: Path) -> Job:
    """Reads the job of a run.

    Raises:
        CheckpointError: there is none, it is malformed or impossible, or of another version.
    """
    path = folder / JOB_FILE
    if not os.path.lexists(path):
        raise CheckpointError(
            given_instead(folder, "the folder of a training run", "run")
            or f"no training run in {folder}, expected {JOB_FILE} there; give the --out of a run"
        )
    return FORMAT.read(path, follow=False).job


def _check_storable(name: str, text: str | None) -> None:
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} {text!r} is not UTF-8 and cannot be stored in {JOB_FILE}; rename it") from error


class _JobFile(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    job: Job


def _decode(kind: type, value: Any) -> Any:
    if kind is Options:
        if not isinstance(value, str):
            raise ValueError(f"options of type {type(value).__name__}, expected text")
        return Options.parse(value)
    raise NotImplementedError(f"no way to read a {kind.__name__}")


FORMAT = VersionedFormat(
    "training job",
    _JobFile,
    SCHEMA,
    "put it back, or begin a new run: export and --start take the checkpoint of any",
    error=CheckpointError,
    version_key="schema",
    dec_hook=_decode,
    enc_hook=str,
)
