"""Dispatch for one image: everything bound once, one mark waited for a block, nothing enqueued for a skip.

A feature map lies in one of a few buffers of its resolution, its *place*; a block reads one place and writes the next,
and a skipped block leaves the place as it is. Without speculation there are two. With it, blocks are enqueued ahead of
the gate's decisions, each into a further place, so that what the last certain block left is still there when a guess
was wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.network import Architecture
from dfs_deploy.runtimes.gate import Gate
from dfs_deploy.runtimes.tensorrt.batch import STATIC
from dfs_deploy.runtimes.tensorrt.contexts import ONE_IMAGE, Binder
from dfs_deploy.runtimes.tensorrt.device import HostOutput, Lane
from dfs_deploy.runtimes.tensorrt.engines import LoadedEngine, LoadedEngines
from dfs_deploy.runtimes.tensorrt.graphs import Launch, Launcher
from dfs_deploy.runtimes.tensorrt.speculation import PathCounts

AHEAD = 2
"""Blocks that run ahead of the last certain decision, at most."""


class Turn(NamedTuple):
    """What an option does to features at a place.

    Attributes:
        label: what messages call it.
        launch: its engine; ``None`` for a skip that is free.
        place: where the features are then.
    """

    label: str
    launch: Launch | None
    place: int


class SingleDispatch:
    """Runs one image at a time.

    Args:
        engines: shared with clones.
        gate: this dispatch's own; ``None`` with a static policy, whose path is always given.
        architecture: for the sizes of the buffers.
        lane: this thread's stream and memory.
        binder: of the lane.
        launcher: how an engine is enqueued.
        speculate: whether blocks are enqueued ahead of the gate.
    """

    def __init__(
        self,
        engines: LoadedEngines,
        gate: Gate | None,
        architecture: Architecture,
        lane: Lane,
        binder: Binder,
        launcher: Launcher,
        speculate: bool,
    ) -> None:
        self._gate, self._lane = gate, lane
        self.counts = PathCounts(len(engines.blocks[0])) if speculate and engines.blocks else None
        shapes = architecture.blocks
        places = 1 + AHEAD if speculate else 2
        by_size: dict[tuple[int, ...], list[int]] = {}
        buffers = []
        for shape in shapes:
            size = shape.out_shape
            if size not in by_size:
                by_size[size] = [lane.allocate(4 * int(np.prod(size))) for _ in range(places)]
            buffers.append(by_size[size])
        self._pooled = [lane.host_output((1, shape.out_channels)) for shape in shapes]
        self._marks = [lane.mark() for _ in shapes]
        # The gate reads copies: what the device writes may change under a wrong guess.
        self._seen = [np.zeros_like(pooled.array) for pooled in self._pooled]
        self._steps = [] if gate is None else [gate.bind_pooled(i, self._seen[i]) for i in range(len(engines.blocks))]

        # Loops, no closures: an error's traceback keeps closures, and with them contexts, past what frees the device.
        self._images = lane.pinned((1, *architecture.image_shape))
        self._source = lane.allocate(self._images.nbytes)
        fetched = gate is not None
        self._stem = _bound(binder, launcher, engines.stem, self._source, buffers[0][0], self._pooled[0], fetched)
        self._turns: list[list[list[Turn]]] = []
        for i, options in enumerate(engines.blocks):
            self._turns.append([])
            for place, source in enumerate(buffers[i]):
                # To the next place, or to the first of another resolution.
                after = (place + 1) % places if buffers[i] is buffers[i + 1] else 0
                turns = []
                for engine in options:
                    turn = Turn(f"block {i + 1}, skipped", None, place)
                    if engine is not None:
                        target, pooled = buffers[i + 1][after], self._pooled[i + 1]
                        launch = _bound(binder, launcher, engine, source, target, pooled, fetched)
                        turn = Turn(engine.label, launch, after)
                    turns.append(turn)
                self._turns[i].append(turns)
        self._logits = lane.host_output((1, architecture.classes))
        self._head = []
        for source in buffers[-1]:
            call = binder.bind(engines.head, ONE_IMAGE, source, {"output": self._logits.address})
            self._head.append(launcher.launch(call, self._logits))
        self._done = lane.mark()
        self.at = "the stem"
        """What was being enqueued or waited for: after a failure, what failed."""

    def run(
        self, image: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Runs one image, (1, C, H, W) float32; see :meth:`dfs_deploy.runtimes.base.Backend.infer`."""
        seen, counts = self._seen, self.counts if forced is None else None
        np.copyto(self._images, image)
        if self._gate is None:
            assert forced is not None  # noqa: S101 (a static policy is always given)
            return self._run_path(forced[0]), forced.copy()
        self._gate.reset(1)
        self.at = certain = "the stem"
        self._lane.upload(self._source, self._images)
        self._enqueue(self._stem, 0)
        path = bytearray(len(self._turns))
        guessed: deque[tuple[int, Turn]] = deque()
        place, ran = 0, True
        for i, step in enumerate(self._steps):
            if counts is not None:
                self._enqueue_ahead(counts, guessed, path[:i], place)
                self.at = certain
            if ran:
                self._marks[i].wait()
                np.copyto(seen[i], self._pooled[i].array)
            else:
                np.copyto(seen[i], seen[i - 1])
            option = step()
            if forced is not None:
                option = int(forced[0, i])
            path[i] = option
            turn = self._turns[i][place][option]
            self.at = certain = turn.label
            if not (guessed and counts is not None and counts.compare(guessed.popleft()[0], option)):
                # What was guessed may still run, into places that nothing reads before they are written again.
                guessed.clear()
                self._enqueue_turn(turn, i)
            place, ran = turn.place, turn.launch is not None
        self._finish(self._head[place], f"{certain} or the head")
        if counts is not None:
            counts.observe(bytes(path))
        return self._logits.array.copy(), np.frombuffer(path, np.uint8)[None]

    def _run_path(self, path: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Runs the image that was put in place, along a path that is known before: the host waits once."""
        self.at = "the stem"
        self._lane.upload(self._source, self._images)
        *launches, head = self.engine_calls(path)
        for launch in launches:
            self.at = launch.label
            launch()
        self._finish(head, STATIC)
        return self._logits.array.copy()

    def _finish(self, head: Launch, waiting_for: str) -> None:
        self.at = "the head"
        head()
        self.at = waiting_for
        self._done.set()
        self._done.wait()

    def _enqueue_ahead(
        self, counts: PathCounts, guessed: deque[tuple[int, Turn]], certain: bytearray, place: int
    ) -> None:
        """Enqueues what most paths did next, until enough blocks are under way, or what comes next is not clear.

        Args:
            counts: of the paths so far.
            guessed: what is under way after the certain part of the path; grows.
            certain: the part of the path that the gate decided.
            place: where the features are after it.
        """
        beginning = bytes(certain) + bytes(option for option, _ in guessed)
        running = sum(turn.launch is not None for _, turn in guessed)
        if guessed:
            place = guessed[-1][1].place
        while running < AHEAD and len(beginning) < len(self._turns):
            option = counts.guess(beginning)
            if option is None:
                return
            turn = self._turns[len(beginning)][place][option]
            self.at = turn.label
            self._enqueue_turn(turn, len(beginning))
            guessed.append((option, turn))
            beginning += bytes((option,))
            place, running = turn.place, running + (turn.launch is not None)

    def _enqueue_turn(self, turn: Turn, i: int) -> None:
        if turn.launch is not None:
            self._enqueue(turn.launch, i + 1)

    def _enqueue(self, launch: Launch, block: int) -> None:
        launch()
        self._marks[block].set()

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Launch, ...]:
        """The launches that a path makes, in order."""
        calls, place = [self._stem], 0
        for turns, option in zip(self._turns, path, strict=True):
            turn = turns[place][int(option)]
            place = turn.place
            if turn.launch is not None:
                calls.append(turn.launch)
        return (*calls, self._head[place])

    def gate_calls(self) -> tuple[Callable[[], int], ...]:
        """The gate's step at each gated block; none with a static policy."""
        if self._gate is not None:
            self._gate.reset(1)
        return tuple(self._steps)


def _bound(
    binder: Binder,
    launcher: Launcher,
    engine: LoadedEngine,
    source: int,
    target: int,
    pooled: HostOutput,
    fetched: bool,
) -> Launch:
    """An engine from one address to another, whose pooled features the host reads where they are fetched."""
    call = binder.bind(engine, ONE_IMAGE, source, {"output": target, "pooled": pooled.address})
    return launcher.launch(call, pooled if fetched else None)
