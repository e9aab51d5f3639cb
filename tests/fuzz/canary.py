"""What a hostile file would call if it could: it leaves a mark that the harness looks for."""

from __future__ import annotations

import os

ran: list[str] = []
"""What was called."""


def touch(*words: object) -> None:
    """Leaves the mark."""
    ran.append(f"{os.getpid()}: {words!r}"[:200])
