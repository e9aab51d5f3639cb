"""What a run was asked to do, on disk beside its results: whoever resumes it needs no other word."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dfs_deploy.decoding import MalformedError, read_json
from dfs_deploy.errors import CheckpointError, UsageError
from dfs_deploy.files import write_whole
from dfs_deploy.options import Options
from dfs_deploy.text import first_line
from dfs_deploy.training.recipe import STAGES, Recipe, StageName

JOB_FILE = "job.json"
SCHEMA = 1


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        data: ``digits``, or the path of a data set.
        recipe: the hyperparameters.
        seed: of every draw.
        size: height and width to resize images to; ``None`` for their own.
        held_out: evaluate on so many training images instead of the test split; ``None`` for the test split.
        backbone: checkpoint whose backbone is taken, in place of stage 0.
        start: checkpoint whose backbone and gate are taken, in place of stages 0 and 1.
        until: the last stage that runs.
        evaluate_every: steps between evaluations; 0 for the end of each stage only.
        save_every: steps between saved states.
        device: what to compute on; ``None`` for a GPU where there is one.
        threads: that one operation may use on the CPU; ``None`` for PyTorch's choice.
        amp: whether convolutions run in bfloat16.
        compile: whether ``torch.compile`` compiles stage 0.
        tensorboard: whether TensorBoard's events are written too.
    """

    data: str
    recipe: Recipe
    seed: int = 0
    size: tuple[int, int] | None = None
    held_out: int | None = None
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
        if self.seed < 0 or self.save_every < 1 or self.evaluate_every < 0:
            raise UsageError(
                f"seed {self.seed}, save_every {self.save_every}, evaluate_every {self.evaluate_every}; expected at"
                " least 0, 1 and 0"
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
        content = read_json(path, _JobFile, dec_hook=_decode)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no training run in {folder}, expected {JOB_FILE} there; give the --out of a run"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); give the --out of a run") from error
    except MalformedError as error:
        impossible = None if error.__cause__ is None else error.__cause__.__cause__
        if isinstance(impossible, UsageError):
            raise impossible from error
        raise CheckpointError(f"{path} is malformed ({error}); start the run again") from error
    if content.schema != SCHEMA:
        raise CheckpointError(f"{path} has schema {content.schema}, expected {SCHEMA}; update dfs-deploy")
    return content.job


@dataclass(frozen=True)
class _JobFile:
    schema: int
    job: Job


def _decode(kind: type, value: Any) -> Any:
    if kind is Options and isinstance(value, str):
        return Options.parse(value)
    raise NotImplementedError(f"no way to read a {kind.__name__}")
