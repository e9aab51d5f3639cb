"""The progress callback: one type for everything that takes long, with ready-made ones."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Callback of long work: what is being done, in a few words, and how much of it is done, 0 to 1."""


def silent(stage: str, share: float) -> None:
    """Progress that nobody watches."""


def part_of(progress: Progress, start: float, end: float) -> Progress:
    """Progress of a part of the work, as progress of the whole.

    Args:
        progress: callback of the whole.
        start: share of the whole that is done if the part begins, 0 to 1.
        end: the same if the part ends.
    """
    return lambda stage, share: progress(stage, start + (end - start) * share)
