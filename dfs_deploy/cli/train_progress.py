"""What ``train`` shows while it trains: a bar on a terminal, and in a pipe a line every so often."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dfs_deploy.cli.console import errors, percent
from dfs_deploy.io.text import one_line

LEAST_WAIT_S = 10.0
"""Seconds between two lines at the beginning; they grow with the time that the run takes already."""

MOST_WAIT_S = 60.0
"""Seconds between two lines at most: shorter than what a build server takes for a hang."""

_Record = Mapping[str, Any]


class Progression:
    """An observer of a training run that knows how far it is.

    Attributes:
        notes: text of the notes that came, in order.

    Args:
        show: called with each record after it was taken in.
        clock: seconds, from any beginning.
    """

    def __init__(
        self,
        show: Callable[[_Record], None] = lambda record: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._show = show
        self._clock = clock
        self._steps: dict[str, int] = {}
        self.notes: list[str] = []
        self._stage = ""
        self._first_step = 0
        self._stage_began = 0.0

    def __call__(self, record: _Record) -> None:
        """Takes in a record of the run."""
        if record["event"] == "run":
            recipe = record["job"]["recipe"]
            self._steps = {name.removesuffix("_steps"): recipe[name] for name in recipe if name.endswith("_steps")}
        elif record["event"] == "note":
            self.notes.append(record["text"])
        elif record["event"] == "step" and record["stage"] != self._stage:
            self._stage, self._first_step, self._stage_began = record["stage"], record["step"], self._clock()
        self._show(record)

    def total(self, stage: str) -> int | None:
        """Most steps of a stage, if they are known."""
        return self._steps.get(stage)

    def seconds_left(self, step: int) -> float | None:
        """Seconds that the stage takes from a step on, as fast as it was until then; ``None`` if that is not known."""
        total, done = self.total(self._stage), step - self._first_step
        if total is None or done < 1:
            return None
        return (self._clock() - self._stage_began) / done * (total - step)


class Lines:
    """A line on the run every so often, for logs and pipes.

    Args:
        say: called with each line.
        clock: seconds, from any beginning.
    """

    def __init__(self, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.progression = Progression(self._show, clock=clock)
        self._say = say
        self._clock = clock
        self._began = clock()
        self._due = self._began
        self._stage = ""

    def _show(self, record: _Record) -> None:
        if record["event"] == "evaluation":
            self._say(describe_evaluation(record))
        elif record["event"] == "note":
            self._say(describe_note(record))
        elif record["event"] == "step":
            now = self._clock()
            if now < self._due and record["stage"] == self._stage:
                return
            self._stage = record["stage"]
            self._due = now + min(max(LEAST_WAIT_S, (now - self._began) / 20.0), MOST_WAIT_S)
            total, left = self.progression.total(record["stage"]), self.progression.seconds_left(record["step"])
            rest = "" if left is None else f", about {describe_duration(left)} left of this stage"
            self._say(
                f"{record['stage']} step {record['step']}{'' if total is None else f'/{total}'}: loss"
                f" {record['loss']:.3f}, accuracy {percent(record['accuracy'], 1)}, computation"
                f" {record['percentage']:.1f} %{rest}"
            )


@contextlib.contextmanager
def training_progress(*, quiet: bool) -> Iterator[Progression]:
    """Gives the observer that shows a run: a bar on a terminal, lines in a pipe, nothing if ``quiet``."""
    console = errors()
    if quiet:
        yield Progression()
    elif not console.is_terminal:
        yield Lines(console.print).progression
    else:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting", total=None)
            stage = ""

            def show(record: _Record) -> None:
                nonlocal stage
                if record["event"] == "step":
                    if record["stage"] != stage:
                        stage = record["stage"]
                        bar.reset(task, total=progression.total(stage), completed=record["step"])
                    text = (
                        f"{stage:<8} loss {record['loss']:7.3f}  accuracy {record['accuracy']:6.1%}"
                        f"  computation {record['percentage']:5.1f} %"
                    )
                    bar.update(task, description=text, completed=record["step"])
                elif record["event"] == "evaluation":
                    console.print(describe_evaluation(record))
                elif record["event"] == "note":
                    console.print(describe_note(record))

            progression = Progression(show)
            yield progression


def describe_evaluation(record: _Record) -> str:
    """An evaluation in a line."""
    return (
        f"{record['stage']} step {record['step']}: top-1 {percent(record['top1'])} of {record['images']}"
        f" {record['split']} images at {record['percentage']:.2f} % computation, {record['paths']} path(s)"
    )


def describe_note(record: _Record) -> str:
    """What looks wrong and may be meant, in a line."""
    return f"note: {one_line(record['text'])}"


def describe_duration(seconds: float) -> str:
    """A duration as a person says it: ``40 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60.0)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
