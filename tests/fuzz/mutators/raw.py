"""Changes that know no format."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.mutators.draw import Draw


def mutate_bytes(draw: Draw, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Flips, overwrites, cuts, inserts, repeats and splices, a few times.

    Args:
        draw: decides.
        data: what to change.
        others: files of the same kind, to take pieces from.
    """
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        kind = draw.choice(("flip", "set", "number", "cut", "insert", "delete", "repeat", "zero", "splice", "append"))
        begin, end = draw.part(len(changed))
        if kind == "flip" and changed:
            begin = min(begin, len(changed) - 1)
            changed[begin] ^= 1 << draw.randrange(8)
        elif kind == "set" and changed:
            begin = min(begin, len(changed) - 1)
            changed[begin] = draw.choice((0, 1, 0x0A, 0x22, 0x2E, 0x7F, 0x80, 0xFE, 0xFF))
        elif kind == "number":
            size = draw.choice((2, 4, 8))
            number = draw.number() % (1 << 8 * size)
            changed[begin : begin + size] = number.to_bytes(size, draw.choice(("little", "big")))
        elif kind == "cut":
            del changed[begin:]
        elif kind == "insert":
            changed[begin:begin] = draw.randbytes(draw.choice((1, 4, 100)))
        elif kind == "delete":
            del changed[begin:end]
        elif kind == "repeat":
            changed[begin:begin] = changed[begin:end] * draw.choice((1, 2, 50 if len(changed) < 100_000 else 1))
        elif kind == "zero":
            changed[begin:end] = bytes(end - begin)
        elif kind == "splice" and others:
            other = draw.choice(others)
            first, last = draw.part(len(other))
            changed[begin:end] = other[first:last]
        elif kind == "append":
            changed += draw.choice((b"\0", b"\n", bytes(5000), draw.randbytes(64)))
        draw.note(f"{kind} {begin}:{end}")
    return bytes(changed)


ODD_FILES = ("fifo", "sparse", "folder", "dangling link", "endless link", "link outside", "socket", "empty", "missing")


def odd_file(draw: Draw, path: Path, *, named: bool = False) -> str:
    """Puts something in a file's place that is none, or is far too large; gives what.

    Args:
        draw: decides.
        path: of the file.
        named: whether a user names it, who may well name a link.
    """
    kind = draw.choice([kind for kind in ODD_FILES if not named or kind != "link outside"])
    draw.note(f"{path.name} becomes: {kind}")
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "sparse":
        with path.open("wb") as stream:
            stream.write(b"{")
            stream.truncate(100 << 30)
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to("nothing" if named else "/nowhere/at/all")
    elif kind == "endless link":
        path.symlink_to("/dev/zero")
    elif kind == "link outside":
        path.symlink_to(draw.outside / "secret.bin")
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have about a hundred characters
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
        finally:
            os.chdir(here)
    elif kind == "empty":
        path.touch()
    return kind
