"""Kills ``export``, ``prepare`` and ``train`` in the middle: ``python -m tests.fuzz.kills [--random N] [--every K]``.

Two ways: real processes of the command line are killed at random moments, and forked ones before each of their
changes of the file system, one after another. After each kill, what the command writes must be absent, the old one or
the new one, whole; and after the next run that nobody disturbs, nothing else may lie in the folder, beside it, or among
the temporary files. Prints a table; the exit code is 1 if there is any breach.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import torch

from dfs_deploy import Runtime
from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import load_checkpoint, save_checkpoint
from dfs_deploy.runtimes.onnxruntime.prepared import load_prepared
from dfs_deploy.training.job import load_job
from dfs_deploy.training.state import load_state
from tests.fuzz.corpus import made_corpus
from tests.fuzz.reader import fingerprint
from tests.settled import CONTRACT, pixels, settled_network
from tests.training.small import SIZE, colour_patches

ROOT = Path(__file__).parents[2]
NAMES = ("export", "export-over", "prepare", "train")

_CHANGES = frozenset(
    (
        *(
            "os.mkdir",
            "os.rename",
            "os.remove",
            "os.rmdir",
            "os.link",
            "os.symlink",
            "os.truncate",
            "os.chmod",
            "os.utime",
        ),
        *("shutil.rmtree", "ctypes.dlsym"),
    )
)


class Work(ABC):
    """A command that writes something, in a folder of its own.

    Attributes:
        name: in the table.
    """

    name: str

    @abstractmethod
    def begin(self, folder: Path) -> None:
        """Puts what the command starts from into an empty folder."""

    @abstractmethod
    def command(self, folder: Path) -> list[str]:
        """Its words; those of a run after a kill may depend on what is there."""

    @abstractmethod
    def result(self, folder: Path) -> str:
        """A fingerprint of what is there, ``absent`` without it; raises an error if it is not whole."""


class Export(Work):
    """A bundle, where there is none or where there is another."""

    def __init__(self, folder: Path, old: Path | None) -> None:
        self.name = "export" if old is None else "export-over"
        self._old = old
        self._checkpoint = folder / f"{self.name}.pt"
        network = settled_network("skip,16,full", widths=(4, 8), seed=7)
        save_checkpoint(self._checkpoint, network, CONTRACT)

    def begin(self, folder: Path) -> None:
        shutil.copy(self._checkpoint, folder / "net.pt")
        if self._old is not None:
            shutil.copytree(self._old, folder / "net.dfs")

    def command(self, folder: Path) -> list[str]:
        return ["export", "net.pt", "--out", "net.dfs", "--targets", "fp32"]

    def result(self, folder: Path) -> str:
        return _bundle_result(folder / "net.dfs", prepared=False)


class Prepare(Work):
    """Engines for this machine beside a bundle."""

    name = "prepare"

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._expected = _bundle_result(bundle, prepared=True)

    def begin(self, folder: Path) -> None:
        shutil.copytree(self._bundle, folder / "net.dfs")

    def command(self, folder: Path) -> list[str]:
        return ["prepare", "net.dfs"]

    def result(self, folder: Path) -> str:
        plain = _bundle_result(folder / "net.dfs", prepared=False)
        with tempfile.TemporaryDirectory() as copy:  # a load makes what is missing: not here
            for name in ("net.dfs", "net.dfs.cache"):
                if (folder / name).exists():
                    shutil.copytree(folder / name, Path(copy, name))
            whole = load_prepared(Bundle(Path(copy, "net.dfs"))) is not None
            blocked = _bundle_result(Path(copy, "net.dfs"), prepared=True)
        if blocked != self._expected:
            raise AssertionError("the network gives other results than before")
        return f"{plain} {blocked}" if whole else "absent"


class Train(Work):
    """A training run: begun, or gone on with where it was cut off."""

    name = "train"

    def __init__(self, folder: Path) -> None:

        self._data = folder / "patches.npz"
        images = colour_patches(48)
        np.savez(
            self._data,
            train_x=images.images[:32],
            train_y=images.labels[:32],
            test_x=images.images[32:],
            test_y=images.labels[32:],
        )

    def begin(self, folder: Path) -> None:
        shutil.copy(self._data, folder / "patches.npz")

    def command(self, folder: Path) -> list[str]:
        if (folder / "run" / "job.json").exists():
            return ["train", "--resume", "run"]
        steps = ["--backbone-steps", "4", "--gate-steps", "4", "--joint-steps", "4"]
        small = ["--preset", "quick", "--blocks", "1", "--batch", "8", "--save-every", "2", "--size", f"{SIZE}x{SIZE}"]
        return ["train", "--data", "patches.npz", "--out", "run", *small, *steps, "--threads", "1", "--device", "cpu"]

    def result(self, folder: Path) -> str:
        run = folder / "run"
        if (run / "job.json").exists():
            load_job(run)
        state = load_state(run)
        for name in ("backbone.pt", "checkpoint.pt"):
            if (run / name).exists():
                network = load_checkpoint(run / name, deployable=False).network
        if state is None or state.stage is not None:
            return "absent"
        return fingerprint(*(value.numpy() for value in network.state_dict().values()))


def _bundle_result(path: Path, prepared: bool) -> str:
    if not path.exists():
        return "absent"
    bundle = Bundle(path)
    with Runtime(bundle, prepared=prepared) as net:
        result = net(pixels(10))
    return fingerprint(sorted(bundle.manifest.files.items()), result.logits, result.path)


@dataclass
class Tally:
    """What the kills of one command came to.

    Attributes:
        name: of the command.
        kills: moments at which it was killed.
        absent: after so many of them there was nothing.
        old: after so many, what was there before.
        new: after so many, what it writes.
        breaches: a line for each result that is not whole, or orphan.
    """

    name: str
    kills: int = 0
    absent: int = 0
    old: int = 0
    new: int = 0
    breaches: list[str] = field(default_factory=list)


class Harness:
    """Runs one command again and again in a folder.

    Args:
        work: the command.
        folder: for all that is made.
    """

    def __init__(self, work: Work, folder: Path) -> None:
        self._work = work
        self._home = folder / "here"
        self._temporary = folder / "tmp"
        self._place = self._home / "work"
        self.tally = Tally(work.name)
        self._fresh()
        self._before = work.result(self._place)
        self.changes = self._forked(None)
        self._after = work.result(self._place)
        self._names = self._listed()
        if self._before == self._after:
            raise RuntimeError(f"{work.name} changes nothing that the harness sees")

    def measure(self) -> float:
        """Seconds that an undisturbed process of the command line takes."""
        self._fresh()
        begun = time.monotonic()
        self._real(None)
        return time.monotonic() - begun

    def kill_before_change(self, number: int) -> None:
        """Kills a forked process before one of its changes of the file system, by number from 1."""
        self._fresh()
        self._forked(number)
        self._judge(f"before change {number} of {self.changes}")

    def kill_after(self, seconds: float) -> None:
        """Kills a process of the command line after some time."""
        self._fresh()
        self._real(seconds)
        self._judge(f"after {seconds:.3f} s")

    def _fresh(self) -> None:
        for folder in (self._home, self._temporary):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self._place.mkdir()
        self._work.begin(self._place)

    def _judge(self, moment: str) -> None:
        tally = self.tally
        tally.kills += 1
        try:
            found = self._work.result(self._place)
        except Exception as error:
            tally.breaches.append(f"{tally.name}, killed {moment}: broken: {type(error).__name__}: {error}"[:300])
            found = ""
        if found == self._after:
            tally.new += 1
        elif found == self._before and found != "absent":
            tally.old += 1
        elif found == "absent":
            tally.absent += 1
        elif found:
            tally.breaches.append(f"{tally.name}, killed {moment}: neither the old nor the new one is there")
        try:
            self._forked(None)
            if self._work.result(self._place) != self._after:
                tally.breaches.append(f"{tally.name}, killed {moment}: the next run gives something else")
        except Exception as error:
            tally.breaches.append(f"{tally.name}, killed {moment}: the next run fails: {error}"[:300])
        orphans = sorted((self._listed() - self._names).elements())
        if orphans:
            tally.breaches.append(f"{tally.name}, killed {moment}: orphans {', '.join(orphans[:4])}")

    def _listed(self) -> Counter[str]:
        """Every name in the folder and among temporary files; how many, if content names them."""
        found = [path.relative_to(self._home) for path in self._home.rglob("*")]
        found += [Path("TMPDIR", path.relative_to(self._temporary)) for path in self._temporary.rglob("*")]
        return Counter(re.sub("[0-9a-f]{64}", "DIGEST", str(path)) for path in found)

    def _real(self, seconds: float | None) -> None:
        environment = {**os.environ, "TMPDIR": str(self._temporary), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "dfs_deploy", *self._work.command(self._place)]
        with subprocess.Popen(
            command, cwd=self._place, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                _, error = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                return
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {error[-500:]}")

    def _forked(self, kill_before: int | None) -> int:
        """Runs the command in a fork; gives the number of its changes, or of that before which it was killed."""
        reading, writing = os.pipe()
        log = self._temporary.with_name("log")
        pid = os.fork()
        if not pid:
            code = 70
            try:
                os.close(reading)
                handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
                os.environ["TMPDIR"] = str(self._temporary)
                tempfile.tempdir = None
                os.chdir(self._place)
                counted = _count_changes((f"{self._home}/", f"{self._temporary}/"), kill_before)
                code = _command_line(self._work.command(self._place))
                os.write(writing, json.dumps(counted()).encode())
            finally:
                sys.stdout.flush()
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            said = stream.read()
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and kill_before is not None:
            return kill_before
        if status or not said:
            raise RuntimeError(f"status {status}: {log.read_text(errors='replace')[-500:]}")
        return int(json.loads(said))


def _command_line(words: list[str]) -> int:
    from dfs_deploy.cli import main

    sys.argv = ["dfs-deploy", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _count_changes(roots: tuple[str, ...], kill_before: int | None) -> Callable[[], int]:
    """Counts changes of the file system below some folders from now on, and kills this process before one of them."""
    seen = 0
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def change() -> None:
        nonlocal seen
        seen += 1
        if seen == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, words: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = words
            wants = bool(flags & writes) if mode is None else bool(set(mode) & set("wax+"))
            if not wants or isinstance(path, int):
                return
        elif event not in _CHANGES:
            return
        elif event == "ctypes.dlsym":
            if words[1] == "renameat2":
                change()
            return
        else:
            path = words[0]
        text = roots[0] if isinstance(path, int) else str(Path.cwd() / os.fsdecode(path))
        if text.startswith(roots):
            change()

    real = os.fsync

    def fsync(handle: int) -> None:
        change()
        real(handle)

    os.fsync = fsync
    sys.addaudithook(hook)
    return lambda: seen


def run(
    folder: Path,
    *,
    moments: int,
    every: int,
    seed: int,
    names: Sequence[str] = (),
    report: Callable[[Tally], None] = lambda _: None,
) -> list[Tally]:
    """Kills every command.

    Args:
        folder: an empty folder.
        moments: random moments at which processes of the command line are killed, shared among the commands.
        every: before each so many changes of the file system a forked process is killed; 0 for none.
        seed: of the moments, and of which changes are taken.
        names: of commands; all if there are none.
        report: called with each tally as it comes.
    """
    torch.set_num_threads(1)
    with made_corpus() as corpus:
        works: list[Work] = [
            Export(folder, None),
            Export(folder, corpus.bundle("floats").path),
            Prepare(corpus.bundle("short").path),
            Train(folder),
        ]
        chosen = [work for work in works if not names or work.name in names]
        draw = random.Random(seed)  # noqa: S311 (no secret)
        tallies = []
        for i, work in enumerate(chosen):
            place = folder / str(i)
            place.mkdir()
            harness = Harness(work, place)
            if every:
                for number in range(1 + draw.randrange(every), harness.changes + 1, every):
                    harness.kill_before_change(number)
            share = moments * (i + 1) // len(chosen) - moments * i // len(chosen)
            if share:
                whole = harness.measure()
                for _ in range(share):
                    # Half of them late, where files are written.
                    begin = 0.0 if draw.random() < 0.5 else 0.6
                    harness.kill_after(whole * draw.uniform(begin, 1.02))
            report(harness.tally)
            tallies.append(harness.tally)
            shutil.rmtree(place, ignore_errors=True)
        return tallies


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(NAMES)}; all if none is named")
    parser.add_argument("--random", type=int, default=100, help="moments, shared among the commands")
    parser.add_argument("--every", type=int, default=1, help="changes of the file system from one kill to the next")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    def show(tally: Tally) -> None:
        sys.stdout.write(
            f"| {tally.name} | {tally.kills} | {tally.absent} | {tally.old} | {tally.new} | {len(tally.breaches)} |\n"
        )
        sys.stdout.flush()

    sys.stdout.write("| command | kills | absent | old | new | breaches |\n|---|--:|--:|--:|--:|--:|\n")
    with tempfile.TemporaryDirectory(prefix="dfs-kills-") as folder, contextlib.suppress(KeyboardInterrupt):
        tallies = run(
            Path(folder).resolve(),
            moments=options.random,
            every=options.every,
            seed=options.seed,
            names=options.works,
            report=show,
        )
    breaches = [line for tally in tallies for line in tally.breaches]
    sys.stdout.write("".join(f"{line}\n" for line in breaches[:60]))
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
