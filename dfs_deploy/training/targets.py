"""Targets that a run with accuracy as its goal has tried: the file in its folder, ``targets.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from dfs_deploy.errors import CheckpointError
from dfs_deploy.io.json_files import Name, Share, VersionedFormat

TARGETS_FILE: Final = "targets.json"

SCHEMA_VERSION: Final = 1

_Change = Annotated[float, Meta(ge=-1.0, le=1.0)]


class Tried(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One target of a chain, and what a network that was trained for it lost.

    Attributes:
        target: percentage that its joint training aimed for.
        run: name of its run's folder, in the folder of the chain.
        percentage: percentage that it ended at.
        top1: share of right answers, on the images that the chain is judged by.
        drop: share of right answers that it lost against the network that the chain began with.
        drop_low: lower end of the 95 % interval of that.
        drop_high: upper end.
        held: whether the drop is less than what may be lost, by one standard error (``dfs_deploy.paired.margin``).
    """

    target: float
    run: Name
    percentage: Annotated[float, Meta(ge=0.0)]
    top1: Share
    drop: _Change
    drop_low: float
    drop_high: float
    held: bool

    def __str__(self) -> str:
        low, high = 100.0 * self.drop_low, 100.0 * self.drop_high
        return (
            f"target {self.target:g} %: top-1 {100.0 * self.top1:.2f} %, {_points(self.drop)} (95 %: {low:+.2f} to"
            f" {high:+.2f} lost), {'held' if self.held else 'not held'}"
        )


def _points(drop: float) -> str:
    return f"{abs(100.0 * drop):.2f} points {'lost' if drop >= 0.0 else 'won'}"


class Targets(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The targets of a chain so far.

    Attributes:
        schema_version: version of this format.
        max_top1_drop: share of right answers that may be lost.
        reference_top1: share of right answers of the network that the chain began with, in full precision.
        split: name of the split that the chain is judged by: ``val``, or ``held-out`` training images.
        images: number of its images.
        tried: the targets, in the order in which they were tried, the highest first.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    max_top1_drop: Share
    reference_top1: Share
    split: Name
    images: Annotated[int, Meta(ge=1)]
    tried: tuple[Tried, ...] = ()

    @property
    def best(self) -> Tried | None:
        """The lowest target that held; ``None`` if none did."""
        return next((each for each in reversed(self.tried) if each.held), None)

    @property
    def ended(self) -> bool:
        """Whether a target was not held, so that lower ones are not tried."""
        return any(not each.held for each in self.tried)


FORMAT = VersionedFormat(
    "record of targets",
    Targets,
    SCHEMA_VERSION,
    "put it back, or begin a new run",
    error=CheckpointError,
)


def load_targets(folder: Path) -> Targets | None:
    """The targets of a chain so far; ``None`` before the first has ended.

    Raises:
        CheckpointError: the file cannot be read, or is malformed.
    """
    path = folder / TARGETS_FILE
    return FORMAT.read(path, follow=False) if path.exists() else None


def save_targets(folder: Path, targets: Targets) -> None:
    """Writes the targets of a chain, whole."""
    FORMAT.write(folder / TARGETS_FILE, targets)
