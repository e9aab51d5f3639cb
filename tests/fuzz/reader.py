"""What the harness asks of each reader under test."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

from tests.fuzz.mutators.draw import Draw

Fate = Literal["any", "same", "refused"]
"""What a changed file may lead to: any result, only the result of the unchanged file, or only a named error."""


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
        """Changes what :meth:`place` put there."""

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
    """Puts a new file in the place of one, which may have other names."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


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
