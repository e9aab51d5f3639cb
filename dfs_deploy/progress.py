"""The progress callback: one type for all long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Callback of long work: the stage, in a few words, and the share of the stage that is done, 0 to 1."""


def silent(stage: str, share: float) -> None:
    """The callback that shows nothing."""


def part_of(progress: Progress, start: float, end: float) -> Progress:
    """The callback for a part of the work, which reports to the callback of the whole.

    Args:
        progress: callback of the whole.
        start: share of the whole that is done when the part begins, 0 to 1.
        end: share of the whole that is done when the part ends, 0 to 1.
    """
    return lambda stage, share: progress(stage, start + (end - start) * share)
