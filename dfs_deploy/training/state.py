"""Where a run stands, on disk: enough to go on as if it had never stopped."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from dfs_deploy.errors import CheckpointError, EnvironmentLacksError
from dfs_deploy.files import check_file, write_whole
from dfs_deploy.training.recipe import StageName

STATE_FILE = "state.pt"
SCHEMA = 1
_MOST_BYTES = 1 << 36


@dataclass(frozen=True)
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
    """

    stage: StageName | None
    step: int
    streak: int
    log_bytes: int = 0
    network: dict[str, Tensor] = field(default_factory=dict)
    optimizers: list[dict[str, Any]] = field(default_factory=list)
    ranges: list[tuple[Any, ...]] = field(default_factory=list)


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
            f"cannot write to {folder} ({error.strerror or error}); what was saved before is whole: make room there,"
            f" then go on with: dfs-deploy train --resume {folder}"
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
    if not path.exists():
        return None
    try:
        check_file(path, _MOST_BYTES)
        content = torch.load(path, map_location="cpu", weights_only=True)
        schema = content.pop("schema")
        state = State(**content)
        sound = (
            schema == SCHEMA
            and state.stage in (None, *get_args(StageName))
            and all(isinstance(value, int) and value >= 0 for value in (state.step, state.streak, state.log_bytes))
            and isinstance(state.network, dict)
            and isinstance(state.optimizers, list)
            and isinstance(state.ranges, list)
        )
    except Exception as error:  # a damaged archive raises whatever its readers meet in it
        cause = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(f"{path} is not a readable training state ({cause}); start the run again") from error
    if not sound:
        raise CheckpointError(f"{path} is a malformed training state of schema {schema!r}; start the run again")
    return state
