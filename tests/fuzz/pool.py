"""Runs cases in children that are bounded in time and memory, and says what became of each.

A child is forked from a process that has imported everything, runs a few hundred cases, and says before each which one
it is: when it dies, that one is to blame. Another child goes on with the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import random
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfs_deploy.errors import DfsDeployError, InternalError
from tests.fuzz.guard import CODE, OUTSIDE, Guard
from tests.fuzz.mutators.draw import Draw
from tests.fuzz.reader import Fate, Reader, TextError, unprintable

SECONDS = 5.0
"""Of processor time, or of waiting without any, that a case may take."""

MEMORY = 1 << 30
"""Bytes above the baseline that a case may take."""

_WALL = 120.0
"""Seconds after which a case is ended however slow the machine is."""

_BATCH = 250
_MIB = 1 << 20
_PR_SET_PDEATHSIG = 1

EQUAL, OTHER, REFUSED = "equal", "other", "refused"
MESSAGE, WRONG, TRACEBACK, HANG, OVER_MEMORY, CRASH = (
    "bad message",
    "wrong result",
    "traceback",
    "hang",
    "memory",
    "crash",
)

GOOD = (EQUAL, OTHER, REFUSED)
BAD = (MESSAGE, WRONG, TRACEBACK, HANG, OVER_MEMORY, CRASH, CODE, OUTSIDE)


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        case: its number.
        kind: one of ``GOOD`` or ``BAD``.
        seed: the sound file that it was made from.
        notes: what was changed.
        detail: what the reader said or did.
    """

    case: int
    kind: str
    seed: str
    notes: tuple[str, ...]
    detail: str

    @property
    def bad(self) -> bool:
        """Whether it must not be."""
        return self.kind in BAD


class Child:
    """One forked process that runs cases of one reader, as seen from the parent."""

    def __init__(self, pid: int, pipe: int, cases: Sequence[int], work: Path, alone: bool) -> None:
        self.pid, self.pipe, self.work, self.alone = pid, pipe, work, alone
        self.left = list(cases)
        self.buffer = b""
        self.current: tuple[int, str, tuple[str, ...]] | None = None
        self.begun = self.moved = time.monotonic()
        self.used = -1.0
        self.killed = ""

    def check_time(self) -> None:
        """Ends a child that waits for what never comes. A busy machine makes it slow; it does not make it wait."""
        now = time.monotonic()
        state, used = _state(self.pid)
        if used != self.used or state in "RDZ":
            self.used, self.moved = used, now
        waited, whole = now - self.moved, now - self.begun
        if waited > SECONDS or whole > _WALL:
            self.killed = f"waits for {waited:.0f} s" if waited > SECONDS else f"no end in {whole:.0f} s"
            os.kill(self.pid, signal.SIGKILL)


def run_cases(
    reader: Reader,
    seed: int,
    cases: Iterable[int],
    *,
    jobs: int,
    keep: Path | None = None,
    report: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Runs cases of a reader.

    Args:
        reader: what reads.
        seed: of every draw, with the reader's name and the case's number.
        cases: their numbers.
        jobs: children at a time.
        keep: folder in which the files of bad cases are kept.
        report: called with each outcome as it comes.

    Returns:
        The outcomes, by number.
    """
    with tempfile.TemporaryDirectory(prefix="dfs-fuzz-") as folder:
        return _Pool(reader, seed, list(cases), jobs, Path(folder).resolve(), keep, report).run()


class _Pool:
    def __init__(
        self,
        reader: Reader,
        seed: int,
        cases: list[int],
        jobs: int,
        folder: Path,
        keep: Path | None,
        report: Callable[[Outcome], None],
    ) -> None:
        self._reader, self._seed, self._folder, self._keep, self._report = reader, seed, folder, keep, report
        size = min(_BATCH, -(-len(cases) // jobs)) or 1
        self._waiting = [(cases[i : i + size], False) for i in range(0, len(cases), size)]
        self._free = list(range(jobs))
        self._outcomes: dict[int, Outcome] = {}
        self._selector = selectors.DefaultSelector()

    def run(self) -> list[Outcome]:
        running = 0
        try:
            while self._waiting or running:
                while self._waiting and self._free:
                    cases, alone = self._waiting.pop(0)
                    self._start(cases, alone, self._free.pop())
                    running += 1
                ready = self._selector.select(0.5)
                for key, _ in ready:
                    if self._hear(key.data):
                        running -= 1
                for key in list(self._selector.get_map().values()):
                    key.data[0].check_time()
        finally:
            for key in list(self._selector.get_map().values()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(key.data[0].pid, signal.SIGKILL)
                os.waitpid(key.data[0].pid, 0)
        return [self._outcomes[case] for case in sorted(self._outcomes)]

    def _start(self, cases: list[int], alone: bool, place: int) -> None:
        work = self._folder / f"work-{place}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.close(reading)
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # no child outlives its parent
                _Runner(self._reader, self._seed, work, writing, self._keep).run(cases)
                code = 0
            except BaseException:
                os.write(2, traceback.format_exc().encode())  # the log by now; sys.stderr may be another's
            finally:
                os._exit(code)
        os.close(writing)
        os.set_blocking(reading, False)
        child = Child(pid, reading, cases, work, alone)
        self._selector.register(reading, selectors.EVENT_READ, (child, place))

    def _hear(self, data: tuple[Child, int]) -> bool:
        """Takes what a child says; whether it is gone."""
        child, place = data
        piece = os.read(child.pipe, 1 << 16)
        child.buffer += piece
        *lines, child.buffer = child.buffer.split(b"\n")
        for line in lines:
            self._take(child, json.loads(line))
        if piece:
            return False
        self._selector.unregister(child.pipe)
        os.close(child.pipe)
        _, status = os.waitpid(child.pid, 0)
        self._free.append(place)
        if child.current is not None:
            self._died(child, status)
        elif child.left and status:
            log = (child.work / "log").read_text(errors="replace")[-3000:] if (child.work / "log").exists() else ""
            at = f"{self._reader.name} ended before case {child.left[0]}"
            raise RuntimeError(f"a child of {at}, status {status} {child.killed}: {log}")
        if child.left:
            self._waiting.insert(0, (child.left, False))
        return True

    def _take(self, child: Child, words: list[Any]) -> None:
        child.begun = child.moved = time.monotonic()
        case = words[1]
        if words[0] == "begin":
            child.current = (case, words[2], tuple(words[3]))
            return
        assert child.current is not None
        _, seed, notes = child.current
        child.current = None
        child.left.remove(case)
        self._settle(Outcome(case, words[2], seed, notes, words[3]), child.alone)

    def _died(self, child: Child, status: int) -> None:
        assert child.current is not None
        case, seed, notes = child.current
        child.left.remove(case)
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if child.killed:
            kind, detail = HANG, child.killed
        elif number == signal.SIGPROF:
            kind, detail = HANG, f"more than {SECONDS:.0f} s of processor time"
        elif number == signal.SIGKILL:
            kind, detail = OVER_MEMORY, "killed by the system"
        else:
            log = (child.work / "log").read_text(errors="replace").strip().splitlines()[-3:]
            kind, detail = CRASH, f"signal {number}, status {status}: {' / '.join(log)}"[:400]
        self._settle(Outcome(case, kind, seed, notes, detail), child.alone)

    def _settle(self, outcome: Outcome, alone: bool) -> None:
        if outcome.kind in (HANG, OVER_MEMORY) and not alone:
            self._waiting.append(([outcome.case], True))  # what came before it in the child may have had a part
            return
        self._outcomes[outcome.case] = outcome
        self._report(outcome)


class _Runner:
    """The child's side."""

    def __init__(self, reader: Reader, seed: int, work: Path, pipe: int, keep: Path | None) -> None:
        self._reader, self._seed, self._work, self._pipe, self._keep = reader, seed, work, pipe, keep
        self._outside = work / "outside"
        self._outside.mkdir()
        (self._outside / "secret.bin").write_bytes(bytes(4096))
        self._case, self._empty, self._temporary = work / "case", work / "here", work / "tmp"
        faulthandler.disable()  # a crash is told by its signal
        log = os.open(work / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        self._temporary.mkdir()
        os.environ.update(TMPDIR=str(self._temporary), HOME=str(self._temporary), XDG_CACHE_HOME=str(self._temporary))
        tempfile.tempdir = None
        self._empty.mkdir()
        os.chdir(self._empty)
        self._sound: dict[str, str] = {}
        self._guard: Guard | None = None

    def run(self, cases: Iterable[int]) -> None:
        for seed in self._reader.seeds[:1]:
            self._sound_result(seed)  # imports what is imported late
        baseline = _peak()
        self._guard = Guard(self._work, self._outside)
        _limit_memory()
        for case in cases:
            draw = Draw(self._reader.name, self._seed, case, self._outside)
            seed = draw.choice(self._reader.seeds)
            sound = self._sound_result(seed)
            self._fresh(seed)
            try:
                fate = self._reader.mutate(draw, seed, self._case)
            except Exception as error:
                raise RuntimeError(f"case {case} of {self._reader.name} cannot be made: {draw.notes}") from error
            self._say("begin", case, seed, draw.notes)
            kind, detail = self._read(fate, sound)
            if _peak() - baseline > MEMORY:
                kind, detail = OVER_MEMORY, f"{(_peak() - baseline) // _MIB} MiB above the baseline; {detail}"
            if kind in BAD and self._keep is not None:
                _keep(self._case, self._keep / f"{self._reader.name}-{self._seed}-{case}")
            self._say("end", case, kind, detail[:600])
            if kind == OVER_MEMORY:
                os._exit(0)  # the peak stays: another child goes on
            if case % 16 == 0:
                gc.collect()

    def _sound_result(self, seed: str) -> str:
        """The fingerprint of the unchanged file, read the first time that it is asked for."""
        if seed not in self._sound:
            self._fresh(seed)
            self._sound[seed] = self._reader.read(self._case)
        return self._sound[seed]

    def _fresh(self, seed: str) -> None:
        for folder in (self._case, self._temporary):
            shutil.rmtree(folder, ignore_errors=True)
        self._temporary.mkdir()
        self._case.mkdir()
        self._reader.place(seed, self._case)

    def _read(self, fate: Fate, sound: str) -> tuple[str, str]:
        assert self._guard is not None
        os.truncate(self._work / "log", 0)
        self._guard.begin()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        error: BaseException | None = None
        try:
            result = self._reader.read(self._case)
        except BaseException as caught:
            error = caught
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        events = self._guard.end()
        if error is None:
            kind, detail = _judge(fate, result, sound)
        else:
            kind, detail = _judge_error(error)
            if fate in ("works", "runs") and kind == REFUSED:
                kind, detail = WRONG, f"refused, though it is a cache: {detail}"
            error.__traceback__ = None
        return events[0] if events else (kind, detail)

    def _say(self, *words: Any) -> None:
        os.write(self._pipe, json.dumps(words).encode() + b"\n")


def _judge(fate: Fate, result: str, sound: str) -> tuple[str, str]:
    if fate == "refused":
        return WRONG, "accepted what must be refused"
    if fate in ("same", "works") and result != sound:
        return WRONG, "accepted with another result than the sound file's, which digests protect"
    return (EQUAL, "") if result == sound else (OTHER, "")


def _judge_error(error: BaseException) -> tuple[str, str]:
    chain: list[BaseException] = [error]
    while (following := chain[-1].__cause__ or chain[-1].__context__) is not None and following not in chain:
        chain.append(following)
    text = f"{type(error).__name__}: {error}"
    if any(isinstance(each, MemoryError) or "bad_alloc" in str(each)[:2000] for each in chain):
        return OVER_MEMORY, text
    if isinstance(error, TextError):
        return MESSAGE, str(error)
    if not isinstance(error, DfsDeployError) or isinstance(error, InternalError):
        last = traceback.extract_tb(error.__traceback__)[-4:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(last))
        return TRACEBACK, f"{text[:300]} ({where})"
    problem = unprintable(str(error))
    return (MESSAGE, f"{problem}: {text!r}") if problem else (REFUSED, text)


def _limit_memory() -> None:
    """Lets an allocation far beyond the bound fail, so that it cannot take the machine down."""
    with open("/proc/self/status") as stream:  # noqa: PTH123
        held = next(int(line.split()[1]) << 10 for line in stream if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY + (MEMORY >> 2),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _state(pid: int) -> tuple[str, float]:
    """State letter and processor time of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "Z", 0.0
    return fields[0], float(fields[11]) + float(fields[12])


def _keep(case: Path, target: Path) -> None:
    """Copies a case's files; what is no plain file as what it is, and no sparse file with its zeros."""

    def ignore(folder: str, names: list[str]) -> Iterator[str]:
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink() and not path.is_dir() and (not path.is_file() or path.stat().st_size > 64 * _MIB):
                yield name

    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(case, target, symlinks=True, ignore=lambda folder, names: list(ignore(folder, names)))


def shuffled(cases: int, seed: int) -> list[int]:
    """Case numbers in an order of no meaning, so that children get a mixture."""
    numbers = list(range(cases))
    random.Random(seed).shuffle(numbers)  # noqa: S311 (no secret)
    return numbers
