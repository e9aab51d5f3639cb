"""The harness sees what it is there to see."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dfs_deploy.errors import DataError, InternalError
from tests.fuzz import canary, pool
from tests.fuzz.guard import CODE, OUTSIDE
from tests.fuzz.mutators.draw import Draw
from tests.fuzz.pool import (
    CRASH,
    EQUAL,
    HANG,
    MESSAGE,
    OTHER,
    OVER_MEMORY,
    REFUSED,
    TRACEBACK,
    WRONG,
    Outcome,
    run_cases,
)
from tests.fuzz.reader import Fate, Reader


class Planted(Reader):
    """Reads a file of one word; does as told if the word was changed."""

    name = "planted"
    seeds = ("one",)

    def __init__(self, act: Callable[[Path], str], fate: Fate = "any") -> None:
        self._act, self._fate = act, fate

    def place(self, seed: str, folder: Path) -> None:
        (folder / "file").write_text("sound")

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        (folder / "file").write_text("changed")
        draw.note("all of it")
        return self._fate

    def read(self, folder: Path) -> str:
        return "sound" if (folder / "file").read_text() == "sound" else self._act(folder)


def only(act: Callable[[Path], str], fate: Fate = "any", keep: Path | None = None) -> Outcome:
    """What becomes of one case, which is told."""
    (outcome,) = run_cases(Planted(act, fate), 0, [7], jobs=1, keep=keep)
    assert (outcome.case, outcome.seed, outcome.notes) == (7, "one", ("all of it",))
    return outcome


def fails(error: BaseException) -> Callable[[Path], str]:
    def act(folder: Path) -> str:
        raise error

    return act


@pytest.mark.parametrize(
    ("fate", "result", "expected"),
    [
        ("any", "sound", EQUAL),
        ("any", "else", OTHER),
        ("same", "sound", EQUAL),
        ("same", "else", WRONG),
        ("refused", "sound", WRONG),
        ("works", "else", WRONG),
        ("runs", "else", OTHER),
    ],
)
def test_results(fate: Fate, result: str, expected: str) -> None:
    assert only(lambda folder: result, fate).kind == expected


def test_errors() -> None:
    assert only(fails(DataError("one line"))).kind == REFUSED
    assert only(fails(DataError("one line")), "same").kind == REFUSED
    assert only(fails(DataError("one line")), "works").kind == WRONG
    assert only(fails(DataError("one line")), "runs").kind == WRONG
    assert only(fails(DataError(""))).kind == MESSAGE
    assert only(fails(ValueError("not ours"))).kind == TRACEBACK
    assert only(fails(InternalError("ours, and a bug"))).kind == TRACEBACK
    assert only(fails(KeyboardInterrupt())).kind == TRACEBACK


def test_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DataError, "__str__", lambda self: "cursor \x1b[2J")
    assert only(fails(DataError("x"))).kind == MESSAGE


def test_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SECONDS", 0.5)

    def spin(folder: Path) -> str:
        while True:
            pass

    def wait(folder: Path) -> str:
        time.sleep(60)
        return ""

    def read_fifo(folder: Path) -> str:
        os.mkfifo(folder / "fifo")
        return (folder / "fifo").read_text()

    assert [only(act).kind for act in (spin, wait, read_fifo)] == [HANG] * 3


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MEMORY", 1 << 27)

    def touch(folder: Path) -> str:
        np.ones(9 << 24, np.uint8)
        return "sound"

    def refused(folder: Path) -> str:
        try:
            return str(np.zeros(1 << 40, np.uint8))
        except MemoryError as error:
            raise DataError("too large") from error

    assert [only(act).kind for act in (touch, refused)] == [OVER_MEMORY] * 2


def test_crashes_are_told_from_cases_beside_them() -> None:
    def crash(folder: Path) -> str:
        ctypes.string_at(0)
        return ""

    assert only(crash).kind == CRASH
    assert only(lambda folder: os.kill(os.getpid(), signal.SIGABRT) or "").kind == CRASH

    class Mostly(Planted):
        def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
            fate = super().mutate(draw, seed, folder)
            (folder / "deadly").touch() if draw.chance(0.2) else None
            return fate

    outcomes = run_cases(
        Mostly(lambda folder: crash(folder) if (folder / "deadly").exists() else "x"), 0, range(40), jobs=2
    )
    kinds = [outcome.kind for outcome in outcomes]
    assert [outcome.case for outcome in outcomes] == list(range(40))
    assert set(kinds) == {CRASH, OTHER}
    assert kinds.count(CRASH) < 20


def test_code() -> None:
    def process(folder: Path) -> str:
        return str(subprocess.run(["true"], check=True))

    def shell(folder: Path) -> str:
        return str(os.system("true"))  # noqa: S605

    def call(folder: Path) -> str:
        canary.touch()
        return "sound"

    def source(folder: Path) -> str:
        exec("x = 1")  # noqa: S102 (what is looked for)
        return "sound"

    for act in (process, shell, call, source):
        assert only(act).kind == CODE, act


def test_files(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("x")

    def reads(folder: Path) -> str:
        return (tmp_path / "other").read_text()

    def writes(folder: Path) -> str:
        (tmp_path / "made").write_text("x")
        return "sound"

    def follows(folder: Path) -> str:
        (folder / "link").symlink_to(tmp_path / "other")
        return (folder / "link").read_text()

    def native(folder: Path) -> str:
        secret = os.fsencode(folder.parent / "outside" / "secret.bin")
        library = ctypes.CDLL(None)
        library.close(library.open(secret, os.O_RDONLY))
        return "sound"

    def inside(folder: Path) -> str:
        (folder / "made").write_text("x")
        return (folder / "made").read_text()

    assert [only(act).kind for act in (reads, writes, follows, native)] == [OUTSIDE] * 4
    assert only(inside).kind == OTHER


def test_a_bad_case_is_kept_and_is_the_same_again(tmp_path: Path) -> None:
    class Random(Planted):
        def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
            (folder / "file").write_text(str(draw.random()))
            return "refused"

    kept = tmp_path / "kept"
    for jobs in (1, 2):
        run_cases(Random(lambda folder: "x"), 3, [1, 2], jobs=jobs, keep=kept / str(jobs))
    for case in ("planted-3-1", "planted-3-2"):
        assert (kept / "1" / case / "file").read_text() == (kept / "2" / case / "file").read_text()
    assert (kept / "1" / "planted-3-1" / "file").read_text() != (kept / "1" / "planted-3-2" / "file").read_text()


def test_a_child_that_cannot_read_the_sound_file_is_an_error() -> None:
    class Broken(Planted):
        def read(self, folder: Path) -> str:
            raise DataError("the sound file is refused")

    with pytest.raises(RuntimeError, match="the sound file is refused"):
        run_cases(Broken(lambda folder: ""), 0, [1], jobs=1)
