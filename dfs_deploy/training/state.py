"""The state of a run on disk: enough to go on as if it had never stopped."""

from __future__ import annotations

import contextlib
import io
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfs_deploy.checkpoints.archives import check_archive
from dfs_deploy.checkpoints.reading import MAX_CHECKPOINT
from dfs_deploy.errors import CheckpointError, DataError, EnvironmentLacksError
from dfs_deploy.io.files import check_file, write_whole
from dfs_deploy.io.kinds import JOB_FILE
from dfs_deploy.io.text import first_line
from dfs_deploy.models import DFSNetwork
from dfs_deploy.training.job import Job
from dfs_deploy.training.recipe import STAGES, StageName
from dfs_deploy.training.steering import STEERED

STATE_FILE = "state.pt"
SCHEMA = 1

_FREE = ("data", "device", "threads", "evaluate_every", "save_every")
"""Values of a job that may change between two parts of a run: the path of the same data, and how it is computed."""

_GATHERED = {"SGD": {"momentum_buffer": True}, "Adam": {"step": False, "exp_avg": True, "exp_avg_sq": True}}
"""What each optimizer gathers of a parameter, and whether it has the parameter's shape."""


@dataclass(frozen=True, eq=False)
class State:
    """Everything that a run needs to go on.

    Attributes:
        stage: the stage it is in; ``None`` if all are done.
        step: steps taken in it.
        streak: last steps in a row in which every block ran the dearest option.
        log_bytes: size of the metrics log at that step.
        network: state dict of the network.
        steering: what the steering of stage 2 holds, by name; empty before its first step.
        optimizers: state dicts, in the order in which the stage makes its optimizers.
        job: plain values of the job that it belongs to.
        data: identity of the data that it belongs to, as ``Splits.identity`` gives it.
    """

    stage: StageName | None
    step: int
    streak: int
    log_bytes: int = 0
    network: dict[str, Tensor] = field(default_factory=dict)
    steering: dict[str, float] = field(default_factory=dict)
    optimizers: list[dict[str, Any]] = field(default_factory=list)
    job: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def check(self, folder: Path, job: Job, data: dict[str, Any]) -> None:
        """Makes sure that a run goes on with the job and the data that it was begun with.

        Raises:
            CheckpointError: the job's file was changed.
            DataError: the data were.
        """
        if self.stage not in (None, *job.stages):
            raise CheckpointError(
                f"the run in {folder} is in stage {self.stage}, and {JOB_FILE} there has {', '.join(job.stages)} only;"
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

    def restore_network(self, network: DFSNetwork, folder: Path) -> None:
        """Gives a network the state's weights.

        Raises:
            CheckpointError: they are of another network, or what it computes with is not finite. Tensors that no graph
                reads may be anything, such as a mask of infinities.
        """
        read = {f"net.{name}" for part in network.graphs.parts for name in part.tensors}
        try:
            network.load_state_dict(self.network)
            sound = all(
                bool(torch.isfinite(tensor).all())
                for key, tensor in network.state_dict().items()
                if key in read or not key.startswith("net.")
            )
        except (AttributeError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"the state in {folder} is of another network than its job's; start again") from error
        if not sound:
            raise CheckpointError(f"the state in {folder} holds NaN or infinity; start again")

    def restore_optimizers(self, optimizers: list[torch.optim.Optimizer], folder: Path) -> None:
        """Gives optimizers what the state's had gathered of each parameter; rates and the like are the recipe's.

        Raises:
            CheckpointError: the state is of other optimizers, or not finite.
        """
        try:
            for optimizer, saved in zip(optimizers, self.optimizers, strict=True):
                own = [
                    {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
                ]
                optimizer.load_state_dict(saved)
                for group, values in zip(optimizer.param_groups, own, strict=True):
                    parameters = group["params"]
                    group.clear()
                    group.update(values, params=parameters)
                    for parameter in parameters:
                        _check_gathered(optimizer, parameter)
                        # Memory of its own, which a file's tensors may share with each other and with themselves.
                        gathered = optimizer.state.get(parameter, {})
                        gathered.update({key: value.clone() for key, value in gathered.items()})
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the state in {folder} does not fit the stage {self.stage} ({first_line(error, 120)}); start again"
            ) from error


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Turns an error of the file system while a run writes into one line; what was saved before stays.

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
        The state, or ``None`` if the run was stopped before it saved one.

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
        kinds = {"step": int, "streak": int, "log_bytes": int, "network": dict, "optimizers": list, "job": dict}
        kinds |= {"data": dict, "steering": dict}
        sound = (
            schema == SCHEMA
            and state.stage in (None, *STAGES)
            and all(isinstance(getattr(state, name), kind) for name, kind in kinds.items())
            and min(state.step, state.streak, state.log_bytes) >= 0
            and set(state.steering) in (set(), set(STEERED))
            and all(isinstance(value, float) and math.isfinite(value) for value in state.steering.values())
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


def _check_gathered(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """Raises ValueError if an optimizer's state of a parameter is not what such an optimizer makes."""
    gathered = optimizer.state.get(parameter, {})
    shapes = _GATHERED[type(optimizer).__name__]
    if gathered and set(gathered) != set(shapes):
        raise ValueError(f"{type(optimizer).__name__} with {', '.join(map(str, gathered))}")
    for key, value in gathered.items():
        wanted = parameter.shape if shapes[key] else torch.Size()
        if not isinstance(value, Tensor) or value.shape != wanted or not bool(torch.isfinite(value).all()):
            raise ValueError(f"{key} of another shape, or not finite")
