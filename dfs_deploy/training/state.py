"""Where a run stands, on disk: enough to go on as if it had never stopped."""

from __future__ import annotations

import contextlib
import io
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from dfs_deploy.checkpoints.archives import check_archive
from dfs_deploy.checkpoints.reading import MAX_CHECKPOINT
from dfs_deploy.errors import CheckpointError, DataError, EnvironmentLacksError
from dfs_deploy.io.files import check_file, write_whole
from dfs_deploy.io.text import first_line
from dfs_deploy.training.job import JOB_FILE, Job
from dfs_deploy.training.recipe import StageName

STATE_FILE = "state.pt"
SCHEMA = 1

_FREE = ("data", "device", "threads", "evaluate_every", "save_every", "compile", "tensorboard")
"""What of a job may be changed between two parts of a run: the path of the same data, and how it is computed."""


@dataclass(frozen=True, eq=False)
class State:
    """What a run needs to go on.

    Attributes:
        stage: the stage it is in; ``None`` when all are done.
        step: steps taken in it.
        streak: last steps in a row in which every block ran the dearest option.
        log_bytes: size of the metrics log at that step.
        network: state dict.
        optimizers: state dicts, in the order in which the stage makes its optimizers.
        ranges: of the deployed engines in stage 3, as :func:`dfs_deploy.training.deployed.plain_ranges` makes them.
        job: plain values of the job that it belongs to.
        data: identity of the data that it belongs to, as :attr:`dfs_deploy.training.data.Splits.identity` gives it.
    """

    stage: StageName | None
    step: int
    streak: int
    log_bytes: int = 0
    network: dict[str, Tensor] = field(default_factory=dict)
    optimizers: list[dict[str, Any]] = field(default_factory=list)
    ranges: list[tuple[Any, ...]] = field(default_factory=list)
    job: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def check(self, folder: Path, job: Job, data: dict[str, Any]) -> None:
        """Makes sure that a run goes on with the job and the data that it was begun with.

        States of version 0.1.0 say nothing of either, and pass.

        Raises:
            CheckpointError: ``job.json`` was changed.
            DataError: the data were.
        """
        if self.stage not in (None, *job.stages):
            raise CheckpointError(
                f"the run in {folder} is in stage {self.stage}, and {JOB_FILE} there has {', '.join(job.stages)} alone;"
                " it was changed: put it back, or begin a new run"
            )
        now = job.as_json()
        for name, was, is_now in _differences(self.job, {key: now[key] for key in now if key not in _FREE}):
            raise CheckpointError(
                f"{JOB_FILE} in {folder} was changed since the run was begun: {name} is {is_now!r}, was {was!r}; put it"
                " back, or begin a new run"
            )
        for name, was, is_now in _differences(self.data, data):
            raise DataError(
                f"the data at {job.data} are not those that the run in {folder} was begun with: {name} {is_now!r},"
                f" expected {was!r}; put them back, or begin a new run"
            )


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Turns what the file system refuses while a run writes into one line; what was saved before stays.

    Raises:
        EnvironmentLacksError: for instance, the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise EnvironmentLacksError(
            f"cannot write to {folder} ({first_line(error)}); what was saved before is whole: make room there,"
            f" then go on with: dfs-deploy train --resume {shlex.quote(str(folder))}"
        ) from error


def save_state(folder: Path, state: State) -> None:
    """Writes a state whole."""
    content = {"schema": SCHEMA, **vars(state)}
    # To memory first: a full disk then fails as Python's own OSError, with its cause.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(folder / STATE_FILE, buffer.getvalue())


def load_state(folder: Path) -> State | None:
    """Reads the last state of a run; nothing in the file is executed.

    Returns:
        The state, or ``None`` where the run was stopped before it saved one.

    Raises:
        CheckpointError: it is malformed.
    """
    path = folder / STATE_FILE
    try:
        size = check_file(path, MAX_CHECKPOINT, follow=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); start the run again") from error
    try:
        with path.open("rb") as stream:
            check_archive(stream, size)
            stream.seek(0)
            content = torch.load(stream, map_location="cpu", weights_only=True)
        schema = content.pop("schema")
        state = State(**content)
        sound = (
            schema == SCHEMA
            and state.stage in (None, *get_args(StageName))
            and all(isinstance(value, int) and value >= 0 for value in (state.step, state.streak, state.log_bytes))
            and isinstance(state.network, dict)
            and isinstance(state.optimizers, list)
            and isinstance(state.ranges, list)
            and isinstance(state.job, dict)
            and isinstance(state.data, dict)
        )
    except Exception as error:  # a damaged archive raises whatever its readers meet in it
        cause = first_line(error, 120)
        raise CheckpointError(f"{path} is not a readable training state ({cause}); start the run again") from error
    if not sound:
        raise CheckpointError(f"{path} is a malformed training state of schema {schema!r}; start the run again")
    return state


def _differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The values that two nested dicts both have and that differ: dotted name, before, now."""
    for key, value in now.items():
        if key not in before:
            continue
        name, was = f"{path}{key}", before[key]
        if isinstance(value, dict) and isinstance(was, dict):
            yield from _differences(was, value, f"{name}.")
        elif value != was:
            yield name, was, value
