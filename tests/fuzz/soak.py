"""Runs a network for long: ``python -m tests.fuzz.soak [--scale 0.01]``.

One million single images, 20,000 batches of random sizes, 1,000 times opened and closed, and 8 clones in 8 threads,
each in a process of its own. Memory must stay within 2 MiB of the most of a warm-up, the files and threads that are
open must stay the same, and every result must equal the first one of its image, bit by bit. Prints a table; the exit
code is 1 if a threshold is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
FLAT = 2 << 20
"""Bytes by which the resident memory may grow after the warm-up."""

_SAMPLES = 40
_WARM_UP = 0.3
_MOST_IMAGES = 64
_THREADS = 8

COUNTS = {"single images": 1_000_000, "batches": 20_000, "opened and closed": 1_000, "clones in threads": 400_000}
"""How often each is done at full scale."""


@dataclass(frozen=True)
class Soaked:
    """What one kind of use came to.

    Attributes:
        name: of the use.
        count: how often.
        grown: bytes of resident memory at most above the most of the warm-up.
        files: handles that were open after the warm-up, and at the end.
        tasks: threads, in the same way.
        unequal: results that differ from the first one of their image.
        seconds: that it took.
    """

    name: str
    count: int
    grown: int
    files: tuple[int, int]
    tasks: tuple[int, int]
    unequal: int
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether every bar is met."""
        return (
            self.grown <= FLAT
            and self.files[0] == self.files[1]
            and self.tasks[0] == self.tasks[1]
            and not self.unequal
        )


class Watch:
    """Looks at this process a few times while a use goes on."""

    def __init__(self, count: int) -> None:
        self._first, self._every = max(int(_WARM_UP * count), 1), max(count // _SAMPLES, 1)
        self._begun = time.monotonic()
        self._warm = (0, 0, 0)
        self._most = 0
        self.done = 0

    def step(self, by: int = 1) -> None:
        """Counts what was done."""
        before, self.done = self.done, self.done + by
        if before < self._first <= self.done:
            now = state()
            self._warm = (max(self._warm[0], now[0]), *now[1:])
        elif before // self._every != self.done // self._every:
            if self.done > self._first:
                self._most = max(self._most, state()[0])
            else:  # memory goes up and down while a bundle is loaded: the most of the warm-up counts
                self._warm = (max(self._warm[0], state()[0]), 0, 0)

    def result(self, name: str, unequal: int) -> Soaked:
        """What it came to."""
        now = state()
        grown = max(self._most, now[0]) - self._warm[0]
        seconds = time.monotonic() - self._begun
        return Soaked(name, self.done, grown, (self._warm[1], now[1]), (self._warm[2], now[2]), unequal, seconds)


def state() -> tuple[int, int, int]:
    """Bytes of resident memory, open handles, threads."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files, tasks = (len(list(Path("/proc/self", kind).iterdir())) for kind in ("fd", "task"))
    return pages * os.sysconf("SC_PAGE_SIZE"), files, tasks


Images = NDArray[np.uint8]


def single_images(bundle: Path, images: Images, count: int, seed: int) -> Soaked:
    """One image at a time."""
    from dfs_deploy import Runtime

    order = np.random.default_rng(seed).integers(0, len(images), 4096)
    with Runtime(bundle) as net:
        logits, path = _first_results(net, images)
        watch, unequal = Watch(count), 0
        for i in range(count):
            at = int(order[i % len(order)])
            result = net(images[at : at + 1])
            unequal += not (np.array_equal(result.logits[0], logits[at]) and np.array_equal(result.path[0], path[at]))
            watch.step()
        return watch.result("single images", unequal)


def batches(bundle: Path, images: Images, count: int, seed: int) -> Soaked:
    """Batches of any size, each row the same as alone."""
    from dfs_deploy import Runtime

    random = np.random.default_rng(seed)
    with Runtime(bundle) as net:
        logits, path = _first_results(net, images)
        net(images[:_MOST_IMAGES])
        watch, unequal = Watch(count), 0
        for _ in range(count):
            chosen = random.integers(0, len(images), random.integers(1, _MOST_IMAGES + 1))
            result = net(images[chosen])
            unequal += not (np.array_equal(result.logits, logits[chosen]) and np.array_equal(result.path, path[chosen]))
            watch.step()
        return watch.result("batches", unequal)


def opened_and_closed(bundle: Path, images: Images, count: int, seed: int) -> Soaked:
    """A runtime made, used and closed, again and again."""
    from dfs_deploy import Runtime

    with Runtime(bundle) as net:
        logits, path = _first_results(net, images)
    watch, unequal = Watch(count), 0
    for i in range(count):
        at = (seed + i) % len(images)
        with Runtime(bundle) as net:
            result = net(images[at : at + 1])
        unequal += not (np.array_equal(result.logits[0], logits[at]) and np.array_equal(result.path[0], path[at]))
        watch.step()
    return watch.result("opened and closed", unequal)


def clones_in_threads(bundle: Path, images: Images, count: int, seed: int) -> Soaked:
    """Eight clones, each in a thread, each with its share."""
    from dfs_deploy import Runtime

    with Runtime(bundle) as net, contextlib.ExitStack() as stack:
        logits, path = _first_results(net, images)
        nets = [stack.enter_context(net.clone()) for _ in range(_THREADS)]
        watch, unequal, lock = Watch(count), [0] * _THREADS, threading.Lock()
        ready, go_on = threading.Barrier(_THREADS + 1), threading.Event()

        def work(number: int) -> None:
            random = np.random.default_rng([seed, number])
            ready.wait()
            for left in range(count // _THREADS, 0, -50):
                turn = min(left, 50)
                for _ in range(turn):
                    at = int(random.integers(len(images)))
                    result = nets[number](images[at : at + 1])
                    same = np.array_equal(result.logits[0], logits[at]) and np.array_equal(result.path[0], path[at])
                    unequal[number] += not same
                with lock:
                    watch.step(turn)
            ready.wait()
            go_on.wait()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(_THREADS)]
        for thread in threads:
            thread.start()
        ready.wait()
        ready.wait()  # all are done and still there
        result = watch.result("clones in threads", sum(unequal))
        go_on.set()
        for thread in threads:
            thread.join()
        return result


USES: dict[str, Callable[[Path, Images, int, int], Soaked]] = {
    "single images": single_images,
    "batches": batches,
    "opened and closed": opened_and_closed,
    "clones in threads": clones_in_threads,
}


def _first_results(net: object, images: Images) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    results = [net(images[i : i + 1]) for i in range(len(images))]  # type: ignore[operator]
    return np.concatenate([each.logits for each in results]), np.concatenate([each.path for each in results])


def soak(folder: Path, scale: float, seed: int, report: Callable[[Soaked], None] = lambda _: None) -> list[Soaked]:
    """Does every use in a process of its own.

    Args:
        folder: holds ``digits.dfs`` and ``digits-test.npz``.
        scale: share of the full counts.
        seed: of every draw.
        report: called with each result as it comes.
    """
    results = []
    for name, count in COUNTS.items():
        command = [sys.executable, "-m", "tests.fuzz.soak", "--use", name, "--count", str(max(int(count * scale), 40))]
        ran = subprocess.run(
            [*command, "--seed", str(seed), "--folder", str(folder)], cwd=ROOT, stdout=subprocess.PIPE, check=True
        )
        values = json.loads(ran.stdout)
        result = Soaked(**{**values, "files": tuple(values["files"]), "tasks": tuple(values["tasks"])})
        report(result)
        results.append(result)
    return results


@contextlib.contextmanager
def digits() -> Iterator[Path]:
    """A folder with the digits bundle and its images."""
    from tests.examples.conftest import load_example

    with tempfile.TemporaryDirectory(prefix="dfs-soak-") as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            load_example("digits_bundle").make_digits_bundle(Path(folder))
        yield Path(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--use", choices=USES, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.use is not None:
        from dfs_deploy import load_dataset

        images = load_dataset(options.folder / "digits-test.npz").images[:200]
        result = USES[options.use](options.folder / "digits.dfs", images, options.count, options.seed)
        sys.stdout.write(json.dumps(asdict(result)))
        return 0

    def show(result: Soaked) -> None:
        files, tasks = (
            f"{before}" if before == after else f"{before} to {after}" for before, after in (result.files, result.tasks)
        )
        grown, words = f"{result.grown / (1 << 20):+.2f}", "ok" if result.sound else "MISSED"
        cells = (result.name, f"{result.count:,}", grown, files, tasks, result.unequal, f"{result.seconds:.0f}", words)
        sys.stdout.write(f"| {' | '.join(map(str, cells))} |\n")
        sys.stdout.flush()

    sys.stdout.write(
        "| use | count | MiB grown | files | threads | unequal | s | |\n|---|--:|--:|--:|--:|--:|--:|---|\n"
    )
    with digits() as folder:
        results = soak(folder, options.scale, options.seed, show)
    return 0 if all(result.sound for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
