"""The live counter of ``dfs-deploy run`` on a video or a camera, and its figures at the end."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.live import Live

from dfs_deploy.cli.classified import Classified, cells, classify
from dfs_deploy.cli.console import errors
from dfs_deploy.errors import DataError
from dfs_deploy.runtimes import Runtime


@dataclass
class Tally:
    """Figures of a video so far.

    Attributes:
        file: the video, or the camera's device.
        frames: number of frames that were classified.
        seconds: time since the first frame was asked for: decoding, resizing and classifying.
        computation: sum of the frames' computation percentages.
        classes: number of frames by name of their class.
        last: result of the newest frame.
        error: reason why the video ended early.
    """

    file: str
    frames: int = 0
    seconds: float = 0.0
    computation: float = 0.0
    classes: Counter[str] = field(default_factory=Counter)
    last: Classified | None = None
    error: str | None = None

    def add(self, result: Classified, seconds: float) -> None:
        """Counts a frame that was done ``seconds`` after the start."""
        self.frames += 1
        self.seconds = seconds
        self.computation += result.computation_percentage
        self.classes[result.label] += 1
        self.last = result

    @property
    def frames_per_s(self) -> float:
        """Frames per second over all frames; NaN before the first."""
        return self.frames / self.seconds if self.frames else float("nan")

    @property
    def computation_percentage(self) -> float:
        """Mean computation percentage over all frames; NaN before the first."""
        return self.computation / self.frames if self.frames else float("nan")

    def as_json(self) -> dict[str, Any]:
        """The video's entry of ``run --json``."""
        return {
            "file": self.file,
            "frames": self.frames,
            "seconds": self.seconds,
            "frames_per_s": self.frames_per_s,
            "computation_percentage": self.computation_percentage,
            "classes": dict(self.classes.most_common()),
            "last": None if self.last is None else self.last.as_json(),
        }


def watch(
    runtime: Runtime, frames: Iterator[NDArray[np.uint8]], name: str, limit: int | None, quiet: bool, endless: bool
) -> Tally:
    """Classifies frames (H, W, 3) uint8 of the network's size, and counts on standard error if a person watches.

    Args:
        runtime: the runtime that classifies.
        frames: the frames; the figures end with one that cannot be decoded, and ``error`` says so.
        name: name of the video, or of the camera's device.
        limit: number of frames after which it stops; ``None`` for no limit.
        quiet: whether nothing is shown.
        endless: whether Ctrl-C ends only the video, and not the program.
    """
    tally = Tally(name)
    console = errors()
    shown: AbstractContextManager[object] = nullcontext()
    if not quiet and console.is_terminal:
        shown = Live(console=console, get_renderable=lambda: _lines(tally), transient=True, refresh_per_second=8)
    elif not quiet:
        console.print(f"watching camera {name} ..." if endless else f"classifying {name} ...")
    start = time.perf_counter()
    with shown:
        try:
            for frame in itertools.islice(frames, limit):
                tally.add(classify(runtime, frame), time.perf_counter() - start)
        except DataError as error:
            tally.error = str(error)
        except KeyboardInterrupt:
            if not endless:
                raise
    return tally


def _lines(tally: Tally) -> Group:
    if tally.last is None:
        return Group(f"{tally.file}: waiting for a frame")
    return Group(
        f"{tally.file}: {tally.frames} frames  {tally.frames_per_s:.1f}/s"
        f"  computation {tally.computation_percentage:.1f} %  {tally.last.label} ({tally.last.probability:.2f})",
        cells(tally.last.path),
    )
