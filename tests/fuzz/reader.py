"""What the harness asks of each reader under test."""

from __future__ import annotations

import hashlib
import os
import shutil
import unicodedata
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

from dfs_deploy.errors import UsageError
from tests.cli.program import run
from tests.fuzz.mutators.draw import Draw

Fate = Literal["any", "same", "refused", "works", "runs"]
"""What a changed file may lead to.

- ``any``: any result, or a named error.
- ``same``: the result of the unchanged file, or a named error: what protects it are digests.
- ``refused``: a named error.
- ``works``: the result of the unchanged file: it is a cache that can be made anew.
- ``runs``: any result and no error: it is a cache that can do without.
"""


class Reader(ABC):
    """A way into the product for one kind of file.

    Attributes:
        name: on the command line and in the table.
        seeds: names of the sound files that cases are made from.
    """

    name: str
    seeds: tuple[str, ...]

    @abstractmethod
    def place(self, seed: str, folder: Path) -> None:
        """Puts a sound file, or several, into an empty folder."""

    @abstractmethod
    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        """Changes what ``place`` put there."""

    @abstractmethod
    def read(self, folder: Path) -> str:
        """Reads it by the product's own functions; gives a fingerprint of the result."""


def fingerprint(*values: Any) -> str:
    """A short text that is equal for equal values; arrays count by shape, type and bytes."""
    digest = hashlib.sha256()
    for value in values:
        if hasattr(value, "tobytes"):
            digest.update(f"{value.shape} {value.dtype}".encode())
            digest.update(value.tobytes())
        else:
            digest.update(repr(value).encode("utf-8", "backslashreplace"))
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def link_tree(source: Path, target: Path) -> None:
    """A tree of hard links: files of it are to be replaced, not written into."""
    target.mkdir()
    for entry in os.scandir(source):
        if entry.is_dir(follow_symlinks=False):
            link_tree(Path(entry.path), target / entry.name)
        else:
            os.link(entry.path, target / entry.name)


def replace(path: Path, content: bytes) -> None:
    """Puts a new file in the place of one, which may have other names, or of what stands there instead."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


class TextError(Exception):
    """Output that no terminal should get."""


def command_line(*arguments: str | Path, lines: int = 400) -> str:
    """Runs ``dfs-deploy`` here; gives a fingerprint of what it printed.

    Raises:
        TextError: it printed what could move a cursor or forge a line, or more than one line of error.
        UsageError: it ended with an error, which is told.
    """
    ran = run(*arguments)
    if ran.code not in (0, 1, 2, 3, 4) or "Traceback" in ran.err:
        raise AssertionError(f"exit code {ran.code}: {ran.err[-500:]}")
    failed = ran.err.splitlines()[-1:] if ran.code and ran.err.strip() else []
    for text, most in ((ran.out, lines), (ran.err, lines)):
        if text.strip() and (problem := unprintable(text, most)):
            raise TextError(f"{problem} in {text[:300]!r}")
    if ran.code and not (failed and failed[0].startswith("error: ")) and not ran.out:
        raise AssertionError(f"exit code {ran.code} without a word")
    if failed and failed[0].startswith("error: "):
        raise UsageError(failed[0].removeprefix("error: "))
    return fingerprint(ran.code, ran.out)


_UNSHOWN = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"))
LONGEST = 2000


def unprintable(text: str, lines: int = 1) -> str:
    """What is wrong with text that goes to a terminal; empty if nothing is.

    Args:
        text: of an error, or of the whole output.
        lines: how many there may be.
    """
    found = text.rstrip("\n").split("\n")
    if len(found) > lines:
        return f"{len(found)} lines"
    if lines == 1 and not text.strip():
        return "no message"
    for line in found:
        if len(line) > LONGEST:
            return f"a line of {len(line)} characters"
        for character in line:
            if unicodedata.category(character) in _UNSHOWN and character not in "\u200c\u200d":
                return f"character {ord(character):#x}"
    return ""
